"""How a model lies on its workers: whole on each of them (DDP), or a part on each (FSDP2).

Either way each worker computes its share of a batch and gradients are averaged over the workers. What is kept of a
sharded model is put together again by :func:`whole`; :func:`part_of` says which rows of a weight a worker holds.
"""

import contextlib
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from training.exchange import exchange_rows_read

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BYTES_WHILE_LEARNING = 16
"""Of a weight in fp32: itself, its gradient and AdamW's two moments."""

ROOM = 0.5
"""The share of a GPU's memory that weights and moments may take before ``auto`` parts them; the rest is for
activations."""

Strategy = Literal["ddp", "fsdp"]


def choose_strategy(wanted: str, model: "PreTrainedModel", device: torch.device) -> Strategy:
    """``auto`` parts a model that leaves too little of a GPU for its activations."""
    if wanted == "fsdp":
        return "fsdp"
    if wanted == "auto" and device.type == "cuda":
        learning = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
        memory = torch.cuda.get_device_properties(device).total_memory
        return "fsdp" if learning * BYTES_WHILE_LEARNING > ROOM * memory else "ddp"
    return "ddp"


def distributed(model: "PreTrainedModel", wanted: str, device: torch.device) -> torch.nn.Module:
    """Puts a model, which is equal on all workers, on its device the way that ``wanted`` says.

    Returns:
        What is called in a training step; the model itself where it is alone or was parted in place.
    """
    wrapped: torch.nn.Module = model
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return wrapped.to(device)
    if choose_strategy(wanted, model, device) == "ddp":
        model.to(device)
        # Told to whoever trains of a weight that has a dimension of one, whose stride says nothing.
        warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides", UserWarning)
        wrapped = DistributedDataParallel(
            model,
            device_ids=[device.index] if device.type == "cuda" else None,
            forward_sync_buffers=keeps_buffers(model),
            gradient_as_bucket_view=True,  # else the gradients lie in memory twice, and are copied to and fro
        )
        if device.type == "cpu":
            exchange_rows_read(wrapped)
        return wrapped
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for layer in _layers(model):
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return wrapped.to(device)


def keeps_buffers(model: torch.nn.Module) -> bool:
    """Whether a model has buffers that training changes (running means), which are saved with its weights.

    Others (positions) are equal on all workers anyway, and writing them anew before each of a step's several forward
    passes would spoil what the first ones left for the backward pass.
    """
    return any(name in model.state_dict(keep_vars=True) for name, _ in model.named_buffers())


def even_buffers(model: torch.nn.Module) -> None:
    """Has all workers hold the first one's buffers, of those that are saved: else each answers with its own running
    means, and what is measured is no model that is kept."""
    kept = model.state_dict(keep_vars=True)
    for name, buffer in model.named_buffers():
        if name in kept:
            dist.broadcast(buffer, src=0)


def _layers(model: "PreTrainedModel") -> list[torch.nn.Module]:
    """The blocks that are gathered one after the other; transformers names their classes."""
    names = set(model._no_split_modules or ())
    return [module for module in model.modules() if type(module).__name__ in names]


def is_parted(model: torch.nn.Module) -> bool:
    """Whether every worker holds a part of the model only."""
    return isinstance(model, FSDPModule)


def part_again(model: torch.nn.Module) -> None:
    """Lets go of what the last forward pass gathered; a backward pass would have done so."""
    if isinstance(model, FSDPModule):
        model.reshard()


def without_exchange(wrapped: torch.nn.Module) -> contextlib.AbstractContextManager[Any]:
    """A backward pass whose gradients are added up on each worker, to be exchanged with a later one's."""
    if isinstance(wrapped, DistributedDataParallel):
        return wrapped.no_sync()
    if isinstance(wrapped, FSDPModule):
        return _no_gradient_sync(wrapped)
    return contextlib.nullcontext()


@contextlib.contextmanager
def _no_gradient_sync(model: FSDPModule) -> Any:
    model.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        model.set_requires_gradient_sync(True)


def gather_batch(
    outputs: torch.Tensor, batch: Mapping[str, torch.Tensor], rows: int
) -> tuple[torch.Tensor, dict[str, torch.Tensor], float]:
    """The outputs and tensors of all workers' shares of a batch, in the batch's own order, at every worker.

    Gradients flow back to the worker that an output came from. Every worker then has the gradient of the same loss,
    ``world`` times in all, which the exchange of gradients divides out again.

    Returns:
        Outputs and batch of ``rows`` rows, and what the sum of their losses is multiplied by.
    """
    world = dist.get_world_size()
    shares = [torch.arange(rows)[rank::world] for rank in range(world)]
    place = torch.argsort(torch.cat(shares)).to(outputs.device)
    counts = [len(one) for one in shares]
    tensors = {name: gather_rows(value, counts)[place] for name, value in batch.items()}
    return gather_rows(outputs, counts)[place], tensors, 1 / rows


def gather_rows(own: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
    """The first ``counts[rank]`` rows of every worker's tensor, one after the other; other dimensions are padded."""
    from torch.distributed.nn.functional import all_gather  # differentiable, unlike the one beside it

    shape = torch.tensor(own.shape, device=own.device)
    dist.all_reduce(shape, op=dist.ReduceOp.MAX)
    missing = [int(most) - here for most, here in zip(shape, own.shape, strict=True)]
    widths = [width for one in reversed(missing) for width in (0, one)]
    gathered = all_gather(torch.nn.functional.pad(own, widths))  # type: ignore[no-untyped-call]
    return torch.cat([one[:count] for one, count in zip(gathered, counts, strict=True)])


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """All of a tensor; every worker must ask for it together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def part_of(tensor: torch.Tensor) -> tuple[torch.Tensor, int]:
    """What this worker holds of a tensor, and the row of the whole that it begins at.

    FSDP2 deals the rows of the first dimension out like ``torch.chunk``: equal parts, the last ones smaller or empty.
    """
    if not isinstance(tensor, DTensor):
        return tensor, 0
    local = tensor.to_local()
    rows = tensor.shape[0]
    size = -(-rows // dist.get_world_size())
    start = min(rows, dist.get_rank() * size)
    assert local.shape[0] == min(rows, start + size) - start, "the first dimension is dealt out like torch.chunk"
    return local, start


def put(place: torch.Tensor, value: torch.Tensor) -> None:
    """Writes all of a tensor to where a worker keeps its part of it."""
    local, start = part_of(place)
    with torch.no_grad():
        local.copy_(value[start : start + local.shape[0]] if isinstance(place, DTensor) else value)
