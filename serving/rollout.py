"""Whether a version does as well as the one it is compared with, and where a replica says that it does not.

A replica keeps a :class:`Record` of each version and, where a version is on trial, judges it by the record of the one
it took over from, or of the one that answers most. What it finds it writes beside the file of wanted models, on the
storage that all share; the driver reads that and takes the version back (``wanted.py``).
"""

import math
import threading
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cluster.storage import read_json, write_json
from serving.outcomes import Batch
from serving.recipe import Rollback

KEPT = 1000  # labels and batches of a version that are remembered
COMPARABLE = 20  # batches of like size, at least, from which a 95th percentile says anything
NOTICEABLE_SECONDS = 0.01  # what is faster counts as this: below it a busy machine shows more than the model does
TRIAL = 10  # times `least` requests: a version that took over and answered so many has passed

Reason = Literal["errors", "latency", "labels"]
Size = tuple[int, float]


@dataclass(frozen=True)
class Finding:
    """A version does worse than it may.

    Attributes:
        reason: what is over its bound.
        figure: how much it is; for errors a share, for latency a ratio, for labels bits.
        answers: the requests that it was judged by.
    """

    model: str
    version: str
    reason: Reason
    figure: float
    bound: float
    answers: int

    def __str__(self) -> str:
        told = {
            "errors": f"{self.figure:.1%} more of its requests failed (bound {self.bound:.1%})",
            "latency": f"its slow batches took {self.figure:.1f} times as long (bound {self.bound:.1f})",
            "labels": f"the mix of its labels is {self.figure:.2f} bits away (bound {self.bound:.2f})",
        }
        return f"{told[self.reason]}, by {self.answers} requests"


@dataclass
class Figures:
    """What a record holds at one moment.

    Attributes:
        answers: requests, of the last ones.
        failed: how many of them failed inside the server.
        labels: how often each label was the best.
        batches: seconds of single batches, by what makes them comparable: see :func:`size_class`.
    """

    answers: int = 0
    failed: int = 0
    labels: Counter[str] = field(default_factory=Counter)
    batches: dict[Size, list[float]] = field(default_factory=dict)


class Record:
    """What one version did lately. The event loop and the model's thread tell it, a third one asks.

    Args:
        window: requests whose outcome is remembered.
    """

    def __init__(self, window: int) -> None:
        self._lock = threading.Lock()
        self._window = window
        self.reset()

    def reset(self) -> None:
        """Forgets everything: the version begins anew."""
        with self._lock:
            self.seen = 0
            self._failed: deque[bool] = deque(maxlen=self._window)
            self._labels: deque[str] = deque(maxlen=KEPT)
            self._batches: deque[tuple[Size, float]] = deque(maxlen=KEPT)

    def answered(self, answers: Sequence[Any]) -> None:
        """A request got these answers."""
        labels = [label for answer in answers if (label := best_label(answer)) is not None]
        with self._lock:
            self.seen += 1
            self._failed.append(False)
            self._labels.extend(labels)

    def failed(self) -> None:
        """A request failed inside the server."""
        with self._lock:
            self.seen += 1
            self._failed.append(True)

    def batch(self, batch: Batch) -> None:
        """A forward pass was done."""
        with self._lock:
            self._batches.append((size_class(batch), batch.seconds))

    def figures(self) -> Figures:
        """All of it, as it is at this moment."""
        with self._lock:
            found = Figures(len(self._failed), sum(self._failed), Counter(self._labels))
            for size, seconds in self._batches:
                found.batches.setdefault(size, []).append(seconds)
        return found


def best_label(answer: Any) -> str | None:
    """The first label of an answer; None where it has none, as vectors, texts and abstentions."""
    first = answer[0] if isinstance(answer, list) and answer else None
    label = first.get("label") if isinstance(first, Mapping) else None
    return label if isinstance(label, str) else None


def size_class(batch: Batch) -> Size:
    """One for all batches whose padded tokens differ by less than a factor of two and that shared the device alike."""
    return batch.padded_tokens.bit_length(), batch.share


def judge(ours: Figures, others: Figures | None, bounds: Rollback) -> tuple[Reason, float, float] | None:
    """Why a version must be taken back, how far it is, and the bound; None while it may stay.

    Errors are said as soon as no further answers, up to ``least``, could bring their share under the bound.

    Args:
        others: of the version that it is compared with; None where nothing is known of it.
    """
    before = others or Figures()
    failed = ours.failed / max(ours.answers, bounds.least) - before.failed / max(before.answers, bounds.least)
    if bounds.errors is not None and failed > bounds.errors:
        return "errors", failed, bounds.errors
    if ours.answers < bounds.least:
        return None
    slower = slowdown(ours.batches, before.batches)
    if bounds.latency is not None and slower is not None and slower > bounds.latency:
        return "latency", slower, bounds.latency
    if bounds.labels is not None and min(ours.labels.total(), before.labels.total()) >= bounds.least:
        shift = divergence(ours.labels, before.labels) - chance(ours.labels, before.labels)
        if shift > bounds.labels:
            return "labels", shift, bounds.labels
    return None


def slowdown(ours: Mapping[Size, Sequence[float]], others: Mapping[Size, Sequence[float]]) -> float | None:
    """How many times as long slow batches take as the other version's slow batches of like size.

    The 95th percentile, over our batches, of their seconds over the 95th percentile of the other's in the same size
    class: a version that gets fewer requests has smaller batches, and must not look the faster for it.

    Returns:
        None where too few batches can be compared.
    """
    slow = {size: np.percentile(seconds, 95) for size, seconds in others.items() if len(seconds) >= COMPARABLE}
    ratios = [
        max(seconds, NOTICEABLE_SECONDS) / max(slow[size], NOTICEABLE_SECONDS)
        for size, all_seconds in ours.items()
        if size in slow
        for seconds in all_seconds
    ]
    return float(np.percentile(ratios, 95)) if len(ratios) >= COMPARABLE else None


def divergence(one: Mapping[str, int], other: Mapping[str, int]) -> float:
    """The Jensen-Shannon divergence of two mixes in bits, from 0 to 1 (Lin, 1991, with equal weights)."""
    totals = sum(one.values()), sum(other.values())
    bits = 0.0
    for label in one.keys() | other.keys():
        shares = one.get(label, 0) / totals[0], other.get(label, 0) / totals[1]
        middle = sum(shares) / 2
        bits += sum(share * math.log2(share / middle) for share in shares if share) / 2
    return bits


def chance(one: Mapping[str, int], other: Mapping[str, int]) -> float:
    """The divergence in bits that two samples of one mix have on average; it grows with the number of labels.

    For ``k`` labels and samples of ``n`` and ``m``: (k - 1)(1/n + 1/m) / (8 ln 2), to the second order in the
    difference of the mixes; for samples of one size the mean that Grosse et al. give (Phys. Rev. E 65, 041905, 2002).
    """
    labels = len(one.keys() | other.keys())
    return (labels - 1) * (1 / sum(one.values()) + 1 / sum(other.values())) / (8 * math.log(2))


# --- what replicas tell the driver ------------------------------------------------------------------------------------


def folder_of(wanted: Path) -> Path:
    """Where findings lie, given the file of wanted models."""
    return wanted.with_suffix(".findings")


def tell(wanted: Path, finding: Finding) -> bool:
    """Writes a finding; False where another replica has said the like, and the driver has yet to act."""
    path = folder_of(wanted) / f"{finding.model}.{finding.version}.json"
    if path.exists():
        return False
    write_json(path, asdict(finding))
    return True


def told(wanted: Path) -> dict[Path, Finding]:
    """The findings that lie there, by their files."""
    return {path: Finding(**read_json(path)) for path in sorted(folder_of(wanted).glob("*.json"))}
