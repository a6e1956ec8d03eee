"""How many workers a run has."""

from cluster.errors import UserError
from cluster.session import Resources
from training.recipe import Elastic, Train

LEAST_SHARE = 8
"""Rows of a batch below which a further worker costs more in exchange than it brings."""


def workers_and_threads(options: Train, available: Resources) -> tuple[int, int]:
    """How many workers, and how many CPU threads each: one worker per GPU, else one per core.

    Raises:
        UserError: the recipe asks for more workers than there are.
    """
    most = available.gpus or available.cpus
    kind = "GPUs" if available.gpus else "cores"
    if options.workers == "auto":
        workers = max(1, min(most, options.batch_size // LEAST_SHARE))
    elif isinstance(options.workers, Elastic):
        workers = max(options.workers.min, min(most, options.workers.max))
    else:
        workers = options.workers
    if workers > most:
        raise UserError(f"train.workers: {workers} workers need as many {kind}, and there are {most}; or say auto")
    return workers, threads_each(workers, available)


def threads_each(workers: int, available: Resources) -> int:
    """The most cores that each worker can have where no worker lies on two nodes; nodes are taken to be alike."""
    cores = max(1, available.cpus // available.nodes)
    fitting = (threads for threads in range(cores, 0, -1) if available.nodes * (cores // threads) >= workers)
    return next(fitting, 1)
