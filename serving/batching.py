"""Which of the items that wait make the next batch, and how one bad item of a batch fails alone."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

WINDOW = 1024  # the oldest ready items among which a batch is sought: bounds the sorting, not the queue


@dataclass(frozen=True)
class Limits:
    """How large a batch and a queue may be.

    Attributes:
        budget: padded tokens in one batch (items times the longest); a longer item runs alone.
        items: items in one batch.
        waiting: items waiting in all stages before :class:`OverloadedError`.
        tokens: of all items of one request.
        padding_share: the share of a batch that may be padding…
        padding_slack: …beyond this many tokens, the price of one more batch: on a CPU a batch of MiniLM costs about
            as much as 50 tokens before its first.
    """

    budget: int = 1024
    items: int = 128
    waiting: int = 2048
    tokens: int = 131_072
    padding_share: float = 0.05
    padding_slack: int = 50


@dataclass(frozen=True)
class Failed:
    """Takes the place of a result."""

    error: Exception


def part(limits: Limits, lengths: Sequence[int], parts: int, others: int) -> Limits:
    """The limits of one of several batches that run at once: each lane that is free gets its part of what is ready."""
    budget = limits.budget // (others + parts)
    return replace(limits, budget=min(budget, math.ceil(sum(lengths) / parts)) if parts > 1 else budget)


def choose(lengths: Sequence[int], limits: Limits) -> list[int]:
    """Which of the waiting items, oldest first, make the next batch: the oldest, and the nearest to it in length.

    Grows from the oldest through the items sorted by length while the batch stays within its budget and its padding
    within ``padding_share`` and ``padding_slack``. Returns indices into ``lengths``, shortest item first.
    """
    if not lengths:
        return []
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    low = high = order.index(0)
    total = lengths[0]
    while high - low + 1 < min(len(order), limits.items):
        shorter = lengths[order[low]] - lengths[order[low - 1]] if low > 0 else math.inf
        longer = lengths[order[high + 1]] - lengths[order[high]] if high + 1 < len(order) else math.inf
        new_low, new_high = (low - 1, high) if shorter <= longer else (low, high + 1)
        added = lengths[order[new_low if new_low < low else new_high]]
        padded = (new_high - new_low + 1) * lengths[order[new_high]]
        allowed = limits.padding_share * padded + limits.padding_slack
        if padded > limits.budget or padded - (total + added) > allowed:
            break
        low, high, total = new_low, new_high, total + added
    return order[low : high + 1]


def isolated(function: Callable[[list[Any]], Sequence[Any]], values: list[Any]) -> list[Any]:
    """``function(values)``, where a value that makes it raise gets :class:`Failed` and the others their results.

    The culprit is found by halving, so one bad item among n costs about 2·log2(n) more calls.
    """
    try:
        results = list(function(values))
        assert len(results) == len(values), f"{len(results)} results for {len(values)} values"
        return results
    except Exception as error:  # noqa: BLE001  whatever a model raises belongs to the item that caused it
        if len(values) == 1:
            return [Failed(error)]
        middle = len(values) // 2
        return isolated(function, values[:middle]) + isolated(function, values[middle:])
