"""How long a model takes for what waits, by what its last batches took."""

SMOOTHING = 0.2  # weight of the newest batch in what batches take on average
STALL = 4.0  # times the average: what took longer was held up, which says little of the batches to come
CAUTION = 1.2  # times the wait that the last batches foretell: those to come may be slower, and lateness serves nobody
EBB, MOST_EBB = 0.5, 1.0  # of the wait, and seconds: so long a queue that is full is not filled again


class Pace:
    """Averages over batches, the newer the heavier. Guarded by its user's lock.

    Attributes:
        seconds_per_item: the seconds of batches over their items, not the average of each one's: a batch of one item
            takes several times as long for it as a large one, and says little of a queue that is full.
        seconds_per_run: of a batch.
    """

    def __init__(self) -> None:
        self.seconds_per_item = self.seconds_per_run = 0.0
        self._items = self._seconds = 0.0

    def learn(self, items: int, seconds: float, share: int) -> None:
        """A batch took so long while the device was shared among ``share`` of them."""
        expected = self.seconds_per_item * items
        alone = min(seconds / share, STALL * expected) if expected else seconds / share
        self.seconds_per_run = _smoothed(self.seconds_per_run, alone * share)
        self._seconds, self._items = _smoothed(self._seconds, alone), _smoothed(self._items, items)
        self.seconds_per_item = self._seconds / self._items

    def without_stall(self, seconds: float) -> float:
        """What a batch that took so many seconds tells of those to come: no more than several times their average."""
        return min(seconds, STALL * self.seconds_per_run) if self.seconds_per_run else seconds

    def late(self, wait: float, left: float) -> bool:
        """Whether what waits so long would not be answered in the time that is left to it."""
        return wait > 0 and CAUTION * (wait + self.seconds_per_run) > left

    def ebb(self, wait: float, running: float) -> float:
        """Seconds until there is room for more than the next few: a part of the wait, and the end of a batch.

        Args:
            running: seconds for which the oldest batch has been running.
        """
        return max(min(wait * EBB, MOST_EBB), self.seconds_per_run - running)


def _smoothed(before: float, newest: float) -> float:
    return newest if not before else before + SMOOTHING * (newest - before)
