"""Texts longer than a model reads at once: cut into overlapping stretches, and which of them speaks for each token."""

import itertools
import math

import numpy as np
import numpy.typing as npt

OVERLAP = 0.25
"""The share of a stretch that the next one repeats. A token near a cut then has half of that as context on its poorer
side: 63 tokens in stretches of 510."""

Stretch = tuple[int, int]
"""From and up to which token."""


def cut(tokens: int, room: int) -> list[Stretch]:
    """The stretches that cover a text: as few as do with the overlap, of equal lengths, and as short as they can be.

    Args:
        tokens: of the text.
        room: the longest stretch.
    """
    if tokens <= room:
        return [(0, tokens)]
    overlap = int(room * OVERLAP)
    count = math.ceil((tokens - overlap) / (room - overlap))
    length = math.ceil((tokens + (count - 1) * overlap) / count)
    starts = [step * (tokens - length) // (count - 1) for step in range(count)]
    return [(start, start + length) for start in starts]


def owners(stretches: list[Stretch]) -> npt.NDArray[np.int64]:
    """For each token the stretch in which it is farthest from an edge, the first of two; a text's ends are no edges."""
    tokens = stretches[-1][1]
    borders = [(start + end + 1) // 2 for (_, end), (start, _) in itertools.pairwise(stretches)]
    return np.searchsorted(np.array(borders, dtype=np.int64), np.arange(tokens), side="right")
