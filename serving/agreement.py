"""Whether two answers to one question say the same, whatever the task."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

NEAR = 0.01
"""By what share numbers may differ, of the larger one or of 1."""

SAME_WAY = 0.999
"""The least cosine of two vectors that point the same way."""

PLACED = ("start", "end", "entity_group", "word", "index")
"""What tells where in a text, or among texts, an entry of an answer lies."""


def agreement(ours: Sequence[Any], theirs: Sequence[Any]) -> float:
    """The share of questions whose two answers say the same; 1 where nothing was asked."""
    same = [says_the_same(one, other) for one, other in zip(ours, theirs, strict=True)]
    return sum(same) / len(same) if same else 1.0


def says_the_same(one: Any, other: Any) -> bool:
    """Whether two answers lead to the same deed.

    Of several labels the best must be the same one; numbers may differ by ``NEAR``, vectors must point the same way,
    entities and ranks must lie at the same places, texts must be equal.
    """
    if type(one) is not type(other):
        return False
    if isinstance(one, float | int):
        return math.isclose(one, other, rel_tol=NEAR, abs_tol=NEAR)
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(says_the_same(one[name], other[name]) for name in one)
    if isinstance(one, list):
        return _lists_say_the_same(one, other)
    return bool(one == other)


def _lists_say_the_same(one: list[Any], other: list[Any]) -> bool:
    if one and other and all(isinstance(value, float) for value in (*one, *other)):
        return len(one) == len(other) and _point_the_same_way(one, other)
    entries = [value for value in (*one, *other) if isinstance(value, Mapping)]
    if entries and len(entries) == len(one) + len(other):
        if any(name in entries[0] for name in PLACED):
            return _places(one) == _places(other)
        if "label" in entries[0] and max(len(one), len(other)) > 1:
            return bool(one and other and one[0]["label"] == other[0]["label"])
    return len(one) == len(other) and all(map(says_the_same, one, other))


def _point_the_same_way(one: Sequence[float], other: Sequence[float]) -> bool:
    first, second = np.asarray(one), np.asarray(other)
    if len(first) == 1:
        return math.isclose(one[0], other[0], rel_tol=NEAR, abs_tol=NEAR)
    lengths = float(np.linalg.norm(first) * np.linalg.norm(second))
    return lengths > 0 and float(first @ second) / lengths >= SAME_WAY


def _places(entries: Sequence[Mapping[str, Any]]) -> list[tuple[Any, ...]]:
    return [tuple(entry.get(name) for name in PLACED) for entry in entries]
