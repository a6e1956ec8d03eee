"""What workers on processors tell one another of their gradients: of a large embedding only the rows that were read.

Half of MiniLM's weights are its table of words, of which a batch reads some hundred rows of thirty thousand; the
gradient of all the others is zero at every worker. Where the cores that compute also carry the messages, that half of
an exchange is worth leaving out.
"""

import torch
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

LARGE = 1 << 20
"""Values from which on it pays to look which rows of a table are to be exchanged."""


def exchange_rows_read(wrapped: DistributedDataParallel) -> None:
    """Has ``wrapped`` average its gradients as ever, but leave out what is zero at all workers."""
    embeddings = (module for module in wrapped.modules() if isinstance(module, torch.nn.Embedding))
    tables = {id(module.weight) for module in embeddings if module.weight.numel() >= LARGE}
    wrapped.register_comm_hook(tables, exchange)


def exchange(
    tables: set[int],
    bucket: dist.GradBucket,  # type: ignore[name-defined]
) -> torch.futures.Future[torch.Tensor]:
    """Averages a bucket of gradients over the workers; ``tables`` are the ids of weights that are large embeddings."""
    if not any(id(weight) in tables for weight in bucket.parameters()):
        return allreduce_hook(dist.group.WORLD, bucket)  # type: ignore[arg-type]
    flat, begin = bucket.buffer(), 0
    for weight, gradient in zip(bucket.parameters(), bucket.gradients(), strict=True):
        if id(weight) in tables:
            end = gradient.storage_offset() - flat.storage_offset()
            average(flat[begin:end])
            average_rows(gradient)
            begin = end + gradient.numel()
    average(flat[begin:])
    done: torch.futures.Future[torch.Tensor] = torch.futures.Future()
    done.set_result(flat)
    return done


def average_rows(table: torch.Tensor) -> None:
    """Averages a matrix over the workers in place, by those of its rows that are not zero at one of them.

    A row counts as zero whose norm is zero in its own precision: nothing that an optimizer would notice.
    """
    read = (torch.linalg.vector_norm(table, dim=1) != 0).to(torch.uint8)
    dist.all_reduce(read, op=dist.ReduceOp.MAX)
    rows = read.nonzero().squeeze(1)
    if 2 * len(rows) > len(read):  # an embedding that is also the output layer
        average(table)
    else:
        values = table[rows]
        average(values)
        table[rows] = values


def average(values: torch.Tensor) -> None:
    """Averages over the workers in place."""
    if values.numel():
        dist.all_reduce(values.div_(dist.get_world_size()))
