"""How much memory a worker will hold at its fullest: told from shapes, before anything runs.

The model is made on ``meta`` and goes through steps of the longest rows in fake tensors: they have a shape and a device
and no content, so that no weight is read and no number computed. What lives of them at once is counted.
"""

import logging
import resource
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pyarrow as pa
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.weak import WeakIdKeyDictionary

from cluster.errors import FewRowsError
from training.batches import parts, share
from training.encode import located_rows, readable
from training.inputs.text import without_weights
from training.models.adapt import adapt_model
from training.models.base import resolve_base
from training.models.new_base import shape_base
from training.optimizer import make_optimizer
from training.precision import autocast, choose_precision
from training.recipe import NewBase, Recipe, Train
from training.tasks.task import Batch, Example, Task, task_class

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MIB = 1024**2

logging.getLogger("torch._subclasses.fake_tensor").setLevel(logging.CRITICAL)  # what it reports is raised, too

PROCESS = 620 * MIB
"""A worker that has imported Ray, torch, transformers and scikit-learn, and holds no model; nothing on a GPU."""

SCATTERED = 2.1
"""How many times what a step needs the system counts where it gives out the memory itself: batches of many shapes leave
gaps. A GPU's allocator does not count them. This and ``PROCESS`` are set by ``benchmarks/memory.py``."""

MAPPED = 40 * MIB
"""From here on a tensor of the longest rows leaves no gap when it is given back: glibc gives one of 32 MiB pages of its
own (mallopt(3), the highest that M_MMAP_THRESHOLD becomes by itself), and most batches are a little shorter."""

MAPPED_SCATTERED = 1.2
"""The same of those: what the kernels of a backward pass take for themselves."""


FILES = 200
"""Pictures or sounds of a sample that are opened."""


@dataclass(frozen=True)
class Memory:
    """What lies in a worker's memory at the fullest moment of a step, in bytes.

    Attributes:
        process: the program itself, where it shares the memory with the model.
        weights: of the whole model, in fp32.
        optimizer: AdamW's two moments of each weight that learns; with several workers, the gradients they exchange.
        step: else the gradients as far as they have come, what the backward pass still needs, and what is being
            computed with; in main memory with the gaps between.
    """

    process: int
    weights: int
    optimizer: int
    step: int

    @property
    def peak(self) -> int:
        """All of it."""
        return self.process + self.weights + self.optimizer + self.step


class UntoldError(Exception):
    """What training will need cannot be told beforehand, of which a recipe is no worse."""


@dataclass(frozen=True)
class Learned:
    """What a task makes of fused rows before anything is encoded.

    Attributes:
        task: as it learned from them.
        base: the folder of its base; of a new one, without weights.
        questions: what is asked of each split.
    """

    task: Task
    base: Path
    questions: Mapping[str, pa.Table]


@contextmanager
def learned_from(recipe: Recipe, tables: Mapping[str, pa.Table]) -> Iterator[Learned]:
    """Has the recipe's task learn from fused rows, as training will.

    Raises:
        FewRowsError: the rows lack what others may have.
        UserError: the base is not there, or the rows cannot be learned from.
    """
    located = located_rows(recipe, tables)
    with TemporaryDirectory() as place:
        if isinstance(recipe.model.base, NewBase):
            shape_base(base := Path(place), recipe, tables["train"])
        else:
            base = resolve_base(recipe.model.base, recipe.folder)
        task = task_class(recipe.model.task).learn(recipe.model, base, located, unicode=recipe.data.clean.unicode)
        yield Learned(task, base, task.questions(located))


def foretold(recipe: Recipe, learned: Learned, workers: int) -> Memory:
    """What training will need, told from a sample of fused rows whose longest are taken for the longest of all.

    Raises:
        FewRowsError: none of the rows is one to train on.
        UserError: the model cannot be adapted as the recipe says.
        UntoldError: shapes alone do not tell what the model does, or what a worker holds of it.
    """
    rows = learned.questions["train"]
    examples, _ = readable(learned.task, (rows.slice(0, FILES) if learned.task.file_roles else rows).to_pylist())
    if not examples:
        raise FewRowsError("data: no row of it is one to train on")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        with torch.device("meta"), without_weights():
            model = learned.task.build(learned.base)
            adapt_model(model, learned.task.head(model), recipe.model.adapt)
        if recipe.train.strategy == "fsdp":
            raise UntoldError("train.strategy: fsdp parts the model over the workers")
        return worker_memory(learned.task, model, examples, options=recipe.train, workers=workers, device=device)
    except RuntimeError as error:  # a layer that looks at numbers, or that has no fake counterpart
        raise UntoldError(f"shapes alone do not tell what the model does ({str(error).splitlines()[0]})") from None


def worker_memory(
    task: Task,
    model: "PreTrainedModel",
    examples: Sequence[Example],
    *,
    options: Train,
    workers: int,
    device: torch.device,
) -> Memory:
    """The memory of one of ``workers`` that each hold the whole model.

    Args:
        model: on ``meta``, adapted.
        examples: at least the longest ones of the training split, with their targets and ``length``.
    """
    if options.activation_checkpointing:
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    pretended = Pretended(model.train(), device)
    weights = pretended.held.now
    if workers > 1:
        pretended.keep_gradients()
    optimizer = make_optimizer(model, task.head(model), options)
    for _ in range(2):  # the first step makes the moments
        for batch in _longest_parts(task, examples, options, workers):
            with autocast(device, choose_precision(options.precision, device)):
                pretended.learn_from(task, batch)
        pretended.step(optimizer)
    beside = 3 if workers > 1 else 2  # of a weight that learns: two moments, and the gradient where it is exchanged
    learning = sum(weight.nbytes for weight in model.parameters() if weight.requires_grad)
    step = pretended.held.most - weights - beside * learning
    large = [weight for weight in model.parameters() if weight.nbytes >= MAPPED]
    lasting = sum(weight.nbytes * (1 + beside if weight.requires_grad else 1) for weight in large)
    mapped = pretended.held.mapped - lasting
    in_main_memory = device.type == "cpu"
    counted = round((step - mapped) * SCATTERED + mapped * MAPPED_SCATTERED) if in_main_memory else step
    return Memory(
        process=PROCESS if in_main_memory else 0,
        weights=weights,
        optimizer=beside * learning,
        step=counted,
    )


def _longest_parts(task: Task, examples: Sequence[Example], options: Train, workers: int) -> list[Batch]:
    """What a worker computes one after the other in a step of the longest rows: two parts are as full as all."""
    lengths = np.array([example["length"] for example in examples])
    own, _ = share(np.argsort(-lengths, kind="stable")[: options.batch_size], 0, workers)
    budget = options.tokens_per_device if isinstance(options.tokens_per_device, int) else None
    return [
        task.collate([{key: value for key, value in examples[at].items() if key != "length"} for at in part])
        for part in parts(own, lengths, budget)[:2]
    ]


def most_held(device: torch.device) -> int:
    """The bytes that this process has held at its fullest so far: of a GPU's memory where it has one."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB


class Held(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of tensors that live at once, of those that are made while it is on.

    Attributes:
        now: of those that live.
        most: the highest that ``now`` has been.
        mapped: how much of ``most`` was in tensors of ``MAPPED`` bytes and more.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.most = self.mapped = 0
        self._mapped = 0
        self._known = WeakIdKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        tree_map_only(torch.Tensor, self.see, made)
        return made

    def see(self, tensor: torch.Tensor) -> None:
        """Counts a tensor's storage, which others may share, until it is gone."""
        storage = tensor.untyped_storage()
        if storage not in self._known:
            self._known[storage] = weakref.finalize(storage, self._count, -storage.nbytes())
            self._count(storage.nbytes())

    def _count(self, size: int) -> None:
        self.now += size
        self._mapped += size if abs(size) >= MAPPED else 0
        if self.now > self.most:
            self.most, self.mapped = self.now, self._mapped


class Pretended:
    """A model on ``meta`` that goes through its layers in fake tensors which say they lie on ``device``.

    A task takes it for a model. Around it the task works with real tensors, whose content tells it what to pick; what
    it gets back has a shape and is zero.

    Attributes:
        module: the model, by the name that every wrapper has for it.
        held: what its tensors take.
    """

    training = True

    def __init__(self, model: torch.nn.Module, device: torch.device) -> None:
        self.module, self.device = model, device
        self.fake, self.held = FakeTensorMode(allow_non_fake_inputs=True), Held()
        self._answers: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._keeps_gradients = False
        self._pretend()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The model's answer, of the right shapes."""
        with self.fake, self.held:
            args, kwargs = tree_map_only(torch.Tensor, self._seen, (args, kwargs))
            answer = self.module(*args, **kwargs)
        return tree_map_only(torch.Tensor, self._stand_in, answer)

    def learn_from(self, task: Task, batch: Batch) -> None:
        """Goes forward and back over a batch."""
        with self.held:
            outputs = task.forward(cast(torch.nn.Module, self), batch)
            task.loss(outputs.float(), batch).sum().backward()  # type: ignore[no-untyped-call]
        used = [fake for fake, zero in self._answers if zero.grad is not None]
        self._answers.clear()
        with self.fake, self.held:
            torch.autograd.backward(used, [torch.ones_like(one) for one in used])

    def keep_gradients(self) -> None:
        """Has all gradients lie in memory from now on, as in the buckets in which several workers exchange them."""
        self._keeps_gradients = True
        with self.fake, self.held:
            for weight in self.module.parameters():
                weight.grad = torch.zeros_like(weight) if weight.requires_grad else None

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Has the optimizer take its step."""
        with self.fake, self.held:
            optimizer.step()
            optimizer.zero_grad(set_to_none=not self._keeps_gradients)

    def _seen(self, tensor: torch.Tensor) -> torch.Tensor:
        return self.fake.from_tensor(tensor).to(self.device)

    def _stand_in(self, fake: torch.Tensor) -> torch.Tensor:
        """A real tensor of a fake one's shape that takes next to no memory."""
        zero = torch.zeros((), dtype=fake.dtype, requires_grad=fake.requires_grad)
        self._answers.append((fake, zero))
        return zero.expand(fake.shape)

    def _pretend(self) -> None:
        """Puts a fake tensor in the place of each weight and buffer; tied ones stay one."""
        seen: dict[torch.Tensor, torch.Tensor] = {}  # a tensor is found by what it is, not by what it holds

        def of(tensor: torch.Tensor) -> torch.Tensor:
            if tensor not in seen:
                seen[tensor] = FakeTensor(self.fake, tensor.detach(), self.device)
                if isinstance(tensor, torch.nn.Parameter):
                    seen[tensor] = torch.nn.Parameter(seen[tensor], tensor.requires_grad)
                self.held.see(seen[tensor])
            return seen[tensor]

        for module in self.module.modules():
            for place in (module._parameters, module._buffers):
                for name, tensor in place.items():
                    place[name] = of(tensor) if tensor is not None else None  # type: ignore[assignment]
