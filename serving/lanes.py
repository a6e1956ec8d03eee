"""The threads that compute what is ready: which of them is called, and which takes it."""

import threading
from collections.abc import Callable, Collection


class Lanes:
    """Several threads that compute, of which the first that are free take what there is. Guarded by its user's lock.

    What is computed alone is computed with all cores, and GNU OpenMP gives each thread that ever does so helpers of its
    own. Where a process has more of them than cores, they no longer wait awake for the next operation, which makes a
    small forward pass a third slower. So what comes alone always goes to the first lane.

    Args:
        lock: its user's.
        count: of the lanes.
        running: those that compute.
    """

    def __init__(self, lock: threading.Lock, count: int, running: Collection[int]) -> None:
        self._running = running
        self._called = [threading.Condition(lock) for _ in range(count)]

    def __len__(self) -> int:
        return len(self._called)

    def call(self, items: int) -> None:
        """Wakes as many of the free as there are items that are ready."""
        for lane in self._free(len(self))[:items]:
            self._called[lane].notify()

    def call_all(self) -> None:
        """Wakes all, as at the end."""
        for called in self._called:
            called.notify()

    def may_take(self, lane: int, items: int) -> bool:
        """Whether a free lane finds something in so many items, when those before it have taken theirs."""
        return items > len(self._free(lane))

    def wait(self, lane: int) -> None:
        """Until the lane is called."""
        self._called[lane].wait()

    def wait_for(self, lane: int, enough: Callable[[], bool], seconds: float) -> None:
        """Until the lane is called and there is enough, or the time is over."""
        self._called[lane].wait_for(enough, seconds)

    def _free(self, before: int) -> list[int]:
        return [lane for lane in range(before) if lane not in self._running]
