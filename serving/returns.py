"""Whether those who were answered ask again at once, as clients in a loop do, or all come when they please.

A lane that waits a moment for the former computes them in one batch; waiting for the latter only makes them late.
"""

from bisect import bisect_right

LINGER = 0.35
"""Of the time that a batch took: in it clients in a loop have read their answers and asked again."""

WORTH = 0.25
"""The share of a batch's items that has to come back beyond what would have come anyhow."""

SMOOTHING = 0.1
KEPT = 4096


class Returns:
    """Counts who comes just after a batch and who comes later. Guarded by its user's lock.

    Attributes:
        share: of a batch's items, how many more came in the moment after it than come in as long a moment at any other
            time; on average.
    """

    def __init__(self, share: float = 0.0) -> None:
        self.share = share
        self._came: list[float] = []

    def came(self, items: int, now: float) -> None:
        """So many items became ready to run."""
        self._came += [now] * items
        if len(self._came) > KEPT:
            del self._came[: -KEPT // 2]

    def moment(self, seconds: float) -> float:
        """How long a lane waits for those whom a batch of so many seconds has answered."""
        return LINGER * seconds if self.share >= WORTH else 0.0

    def learn(self, items: int, ended: float, seconds: float, now: float) -> None:
        """Looks back on a batch of so many items: it took so many seconds, and another one has been run since."""
        moment = LINGER * seconds
        later = now - ended - moment
        if later <= 0:
            return
        first, middle, last = (bisect_right(self._came, time) for time in (ended, ended + moment, now))
        anyhow = (last - middle) / later * moment
        self.share += SMOOTHING * ((middle - first - anyhow) / items - self.share)
