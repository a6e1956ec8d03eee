"""How much memory a worker will hold at its fullest: added up from shapes, before anything runs.

The model is made, and goes through a step of the longest rows, in fake tensors: they have a shape and a device and no
content, so that no weight is read and no number computed. What such a step keeps for its backward pass is counted.
"""

import resource
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks

from cluster.errors import UserError
from training.batches import parts, share
from training.encode import located_rows, readable
from training.inputs.text import without_weights
from training.models.adapt import adapt_model
from training.models.base import resolve_base
from training.models.new_base import shape_base
from training.precision import autocast, choose_precision
from training.recipe import Adapt, NewBase, Recipe, Train
from training.tasks.task import Example, Task, task_class

MIB = 1024**2

PROCESS = 900 * MIB
"""A worker that has imported Ray, torch, transformers and scikit-learn, and holds no model; nothing on a GPU."""


@dataclass(frozen=True)
class Memory:
    """What lies in a worker's memory at once, in bytes.

    Attributes:
        process: the program itself, where it shares the memory with the model.
        weights: of the whole model, in fp32.
        moments: AdamW's two of each weight that learns.
        exchanged: gradients on their way between workers, where there are several.
        gradients: of the weights that learn.
        activations: what the largest part of a batch keeps for its backward pass, its outputs and their gradient.
        in_parts: a step is computed in several parts, whose gradients add up while the next one's activations come.
    """

    process: int
    weights: int
    moments: int
    exchanged: int
    gradients: int
    activations: int
    in_parts: bool

    @property
    def peak(self) -> int:
        """At the fullest moment of a step. Activations go as gradients come, unless earlier parts' are there."""
        standing = self.process + self.weights + self.moments + self.exchanged
        if self.in_parts:
            return standing + self.gradients + self.activations
        return standing + max(self.gradients, self.activations)


def foretold(recipe: Recipe, tables: Mapping[str, pa.Table], workers: int) -> Memory:
    """What training will need, told from a sample of fused rows whose longest are taken for the longest of all.

    Raises:
        UserError: the base is not there, the sample is too small, or its target cannot be learned.
    """
    located = located_rows(recipe, tables)
    with TemporaryDirectory() as place:
        if isinstance(recipe.model.base, NewBase):
            shape_base(base := Path(place), recipe, tables["train"])
        else:
            base = resolve_base(recipe.model.base, recipe.folder)
        task = task_class(recipe.model.task).learn(recipe.model, base, located, unicode=recipe.data.clean.unicode)
        examples, _ = readable(task, task.questions(located)["train"].to_pylist())
        if not examples:
            raise UserError("data: no row of it is one to train on")
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return worker_memory(
            task, base, examples, options=recipe.train, adapt=recipe.model.adapt, workers=workers, device=device
        )


def worker_memory(
    task: Task,
    base: Path,
    examples: Sequence[Example],
    *,
    options: Train,
    adapt: Adapt,
    workers: int,
    device: torch.device,
) -> Memory:
    """The memory of one of ``workers`` that each hold the whole model.

    Args:
        examples: at least the longest ones of the training split, with their targets and ``length``.
    """
    lengths = np.array([example["length"] for example in examples])
    batch = np.argsort(-lengths, kind="stable")[: options.batch_size]
    own, _ = share(batch, 0, workers)
    budget = options.tokens_per_device if isinstance(options.tokens_per_device, int) else None
    cut = parts(own, lengths, budget)
    real = task.collate([{k: v for k, v in examples[at].items() if k != "length"} for at in cut[0]])
    with torch.device("meta"), without_weights():
        model = task.build(base)
        adapt_model(model, task.head(model), adapt)
    if options.activation_checkpointing:
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    fake = FakeTensorMode()
    pretend(model.train(), device, fake)
    with fake:
        given = {name: fake.from_tensor(tensor).to(device) for name, tensor in real.items()}
        own_storages = {storage_of(one) for one in (*model.parameters(), *model.buffers(), *given.values())}
        with counted(own_storages) as kept, autocast(device, choose_precision(options.precision, device)):
            outputs = task.forward(model, given)
            task.loss(outputs.float(), given).sum()
        weights = sum(bytes_of(one) for one in model.parameters())
        learning = sum(bytes_of(one) for one in model.parameters() if one.requires_grad)
        return Memory(
            process=PROCESS if device.type == "cpu" else 0,
            weights=weights,
            moments=2 * learning,
            exchanged=learning if workers > 1 else 0,
            gradients=learning,
            activations=sum(kept.values()) + 2 * outputs.numel() * 4,
            in_parts=len(cut) > 1,
        )


def most_held(device: torch.device) -> int:
    """The bytes that this process has held at its fullest so far: of a GPU's memory where it has one."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB


def pretend(model: torch.nn.Module, device: torch.device, fake: FakeTensorMode) -> None:
    """Makes the weights of a model on ``meta`` fake ones that say they lie on ``device``; tied ones stay one."""
    seen: dict[torch.Tensor, torch.Tensor] = {}  # a tensor is found by what it is, not by what it holds

    def of(tensor: torch.Tensor) -> torch.Tensor:
        if tensor not in seen:
            seen[tensor] = FakeTensor(fake, tensor.detach(), device)
            if isinstance(tensor, torch.nn.Parameter):
                seen[tensor] = torch.nn.Parameter(seen[tensor], tensor.requires_grad)
        return seen[tensor]

    for module in model.modules():
        for place in (module._parameters, module._buffers):
            for name, tensor in place.items():
                place[name] = of(tensor) if tensor is not None else None  # type: ignore[assignment]


@contextmanager
def counted(known: set[int]) -> Iterator[dict[int, int]]:
    """Counts what is saved for a backward pass while the block runs: storage to bytes, those ``known`` left out."""
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if (storage := storage_of(tensor)) not in known:
            kept[storage] = tensor.untyped_storage().nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        yield kept


def storage_of(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def bytes_of(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()
