"""Dropout's masks on a processor, drawn several times faster than PyTorch draws them.

PyTorch's CPU kernel makes a double for every value, one after the other on one core, whatever the number of threads:
of a training step of MiniLM on two cores an eighth goes there. One value in sixteen bits is enough to drop a share.
"""

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

LEVELS = 1 << 16
"""A share is rounded to one of so many, the error of which is below what a mask of a billion values would show."""


@contextlib.contextmanager
def quick_dropout(device: torch.device) -> Iterator[None]:
    """What is dropped on a processor while the block runs is drawn by :func:`keep_share`.

    Every way to dropout, inside attention too, ends at one kernel of PyTorch's, which is replaced for as long. Other
    devices draw with their own. Masks still follow from ``torch.manual_seed`` alone.
    """
    if device.type != "cpu":
        yield
        return
    library: Any = torch.library.Library("aten", "IMPL")  # type: ignore[no-untyped-call]  # its kernels last as long
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Warning only once for all operators", UserWarning)  # it is meant
        library.impl("bernoulli_.float", keep_share, "CPU")
    try:
        yield
    finally:
        del library


def keep_share(mask: torch.Tensor, p: float = 0.5, *, generator: torch.Generator | None = None) -> torch.Tensor:
    """Fills ``mask`` in place with ones, each with probability ``p``, and zeros.

    The values come from SFC64 (C. Doty-Humphrey, PractRand), begun at a number that PyTorch's generator gives.
    """
    (seed,) = torch.randint(1 << 62, (1,), generator=generator).tolist()
    drawn = np.random.SFC64(seed).random_raw(-(-mask.numel() // 4)).view(np.uint16)[: mask.numel()]
    kept = torch.from_numpy(drawn < round(p * LEVELS))
    return mask.copy_(kept.view(mask.shape))
