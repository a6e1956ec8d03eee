"""How many tokens a worker can compute at once: found by trying, before the first step."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
import torch.distributed as dist

from cluster.errors import UserError
from training.batches import Indices, parts, share
from training.encode import EncodedSplit
from training.loop import Trainee, learn_from
from training.strategy import is_parted, without_exchange


def find_budget(trainee: Trainee, rows: EncodedSplit) -> int | None:
    """The padded tokens of the largest part of a batch that fits every worker's memory; None where a whole share does.

    Each worker goes forward and back over the longest rows, with as much memory held as the optimizer will take. No
    weight changes, and the result changes no number of the run: only in how many parts a step is computed.

    Raises:
        UserError: not even the longest row fits, or every worker holds a part of the model only.
    """
    if is_parted(trainee.model):
        raise UserError("train.tokens_per_device: auto cannot try out a model that is parted (fsdp); give a number")
    longest = np.argsort(-rows.lengths, kind="stable")[: trainee.options.batch_size]
    own, _ = share(longest, trainee.rank, trainee.world)
    every = int(len(own) * rows.lengths[own].max())
    budget = every
    with _undone(trainee):
        while not _fits(trainee, rows, parts(own, rows.lengths, budget)[0]):
            if budget <= rows.lengths[own].max():
                budget = 0
                break
            budget //= 2
    least, most = _extremes(trainee, budget, every)
    if least == 0:
        raise UserError(
            "train.tokens_per_device: not even the longest row fits this device's memory; lower model.max_length, set "
            "train.activation_checkpointing, or let fewer weights learn (model.adapt)"
        )
    return None if least >= most else least


def _fits(trainee: Trainee, rows: EncodedSplit, part: Indices) -> bool:
    try:
        with without_exchange(trainee.wrapped):
            learn_from(trainee, rows, part, 1.0, len(part))
    except torch.OutOfMemoryError:
        return False
    finally:
        trainee.optimizer.zero_grad()
        if trainee.device.type == "cuda":
            torch.cuda.empty_cache()
    return True


@contextmanager
def _undone(trainee: Trainee) -> Iterator[None]:
    """Holds what AdamW's two moments will take while the block runs, and then puts back what a forward pass changes."""
    trainee.wrapped.train()
    buffers = {name: buffer.clone() for name, buffer in trainee.model.named_buffers()}
    moments = [torch.empty_like(w) for w in trainee.model.parameters() if w.requires_grad for _ in range(2)]
    try:
        yield
    finally:
        del moments
        for name, buffer in trainee.model.named_buffers():
            buffer.copy_(buffers[name])


def _extremes(trainee: Trainee, budget: int, every: int) -> tuple[int, int]:
    """The least budget that any worker found, and the most tokens that any worker's share has."""
    if trainee.world == 1:
        return budget, every
    told = torch.tensor([budget, -every], device=trainee.device)
    dist.all_reduce(told, op=dist.ReduceOp.MIN)
    least, most = told.tolist()
    return least, -most
