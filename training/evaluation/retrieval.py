"""How well a ranking finds what is relevant. NumPy; every formula names its source.

A ranking is the numbers of passages, best first; the relevant ones of its query have grades above 0.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.floating[Any]]

DEPTH = 100
"""Places of a ranking that are looked at."""

RECALLS = (1, 5, 10, 100)

RETRIEVAL = {
    "ndcg_at_10": "max",
    "mrr_at_10": "max",
    **{f"recall_at_{depth}": "max" for depth in RECALLS},
    "loss": "min",
}
"""What is measured, and whether more or less is better."""

AT_ONCE = 2**24
"""Scores of queries with passages that are held in memory at once."""


@dataclass(frozen=True)
class Ranked:
    """What was found for one query.

    Attributes:
        numbers: the passages, best first.
        grades: relevant passages with their grades.
    """

    numbers: Numbers
    grades: Mapping[int, float]

    @property
    def gains(self) -> Floats:
        """The grade of each passage of the ranking, 0 for one that is not relevant."""
        return np.array([self.grades.get(number, 0.0) for number in self.numbers.tolist()])

    @property
    def first(self) -> int | None:
        """The place, from 1, of the best relevant passage; None where the ranking has none."""
        places = np.flatnonzero(self.gains)
        return int(places[0]) + 1 if len(places) else None


def measure(rankings: Sequence[Ranked]) -> dict[str, float]:
    """The mean over the queries of every metric of ``RETRIEVAL`` but the loss; nothing where there are no queries.

    - nDCG@10: Järvelin and Kekäläinen (2002) with the grade itself as gain and a discount of log2(place + 1), over
      that of the best possible ranking, as trec_eval's ``ndcg_cut.10``;
    - MRR@10: the reciprocal of the first relevant passage's place, 0 beyond the tenth;
    - recall@k: the share of the relevant passages among the first k.
    """
    if not rankings:
        return {}
    found = [(one.gains, np.array(sorted(one.grades.values(), reverse=True))) for one in rankings]
    values = {
        "ndcg_at_10": [dcg(gains[:10]) / dcg(ideal[:10]) for gains, ideal in found],
        "mrr_at_10": [1 / place if (place := one.first) and place <= 10 else 0.0 for one in rankings],
    }
    for depth in RECALLS:
        values[f"recall_at_{depth}"] = [(gains[:depth] > 0).sum() / len(ideal) for gains, ideal in found]
    return {name: float(np.mean(one)) for name, one in values.items()}


def dcg(gains: Floats) -> float:
    """Discounted cumulated gain of a ranking."""
    return float((gains / np.log2(np.arange(2, len(gains) + 2))).sum())


def nearest(queries: Floats, passages: Floats, depth: int = DEPTH) -> Iterator[tuple[int, Numbers, Floats]]:
    """For each query, the places of the passages with the highest dot products, and all its products.

    Passages of one score come in their own order.

    Args:
        queries: shape ``[queries, width]``.
        passages: shape ``[passages, width]``.
    """
    step = max(1, AT_ONCE // max(1, len(passages)))
    for start in range(0, len(queries), step):
        for place, scores in enumerate(queries[start : start + step] @ passages.T, start):
            yield place, best(scores, depth), scores


def best(scores: Floats, depth: int = DEPTH) -> Numbers:
    """The places of the highest scores, best first; equal ones in their own order."""
    if len(scores) > depth:
        least = np.partition(scores, len(scores) - depth)[len(scores) - depth]
        candidates = np.flatnonzero(scores >= least)
    else:
        candidates = np.arange(len(scores))
    order = np.argsort(-scores[candidates], kind="stable")[:depth]
    return np.asarray(candidates[order], dtype=np.int64)


def contrast(scores: Floats, known: Sequence[int]) -> float:
    """The cross-entropy of each relevant passage against all that are not relevant, averaged over the relevant.

    Args:
        scores: of a query with every passage, as the loss scales them.
        known: the places of the relevant ones.
    """
    others = np.delete(scores, known)
    top = scores.max()
    rest = np.exp(others - top).sum()
    return float(np.mean([np.log(rest + np.exp(scores[one] - top)) - (scores[one] - top) for one in known]))
