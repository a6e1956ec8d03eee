"""Workers as real processes of this machine that talk over gloo, as Ray Train's do, without Ray's own seconds."""

import faulthandler
import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import start_processes

SECONDS = 300
"""Longer than any of them takes. A worker that waits for another for ever says where, and fails."""


def together(world: int, work: Callable[..., None], folder: Path, *given: Any) -> None:
    """Has ``world`` processes of one thread each call ``work(rank, *given)``; they meet over a file in ``folder``."""
    meet = f"file://{folder}/{uuid4().hex}"
    start_processes(_one, (world, work, meet, given), nprocs=world, start_method="spawn")  # type: ignore[no-untyped-call]


def _one(rank: int, world: int, work: Callable[..., None], meet: str, given: tuple[Any, ...]) -> None:
    faulthandler.dump_traceback_later(SECONDS, exit=True)
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=meet, rank=rank, world_size=world)
    work(rank, *given)
    gc.collect()  # DDP refers to itself; one that outlives the process group waits for ever when it is found
    dist.barrier()  # gloo lets go of what it gathered; ended at once, its threads can wait for ever
    dist.destroy_process_group()
