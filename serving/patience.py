"""When to try again what could not be done: after pauses that grow, or never where the same would come of it."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

FIRST_PAUSE = 1.0  # seconds
LONGEST_PAUSE = 60.0
"""A file system that comes back is noticed within this; one that stays away costs no more than a try a minute."""


@dataclass
class _Failure:
    wanted: Any
    pause: float
    until: float


class Patience:
    """Remembers what failed, by name: what was wanted, and when to try that again.

    Args:
        clock: in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failures: dict[str, _Failure] = {}

    def failed(self, name: str, wanted: Any, *, for_good: bool) -> bool:
        """What is wanted cannot be had now.

        Args:
            for_good: nothing but another wish will change that.

        Returns:
            Whether this is the first time that it fails.
        """
        before = self._failures.get(name)
        first = before is None or before.wanted != wanted
        pause = FIRST_PAUSE if before is None or first else min(2 * before.pause, LONGEST_PAUSE)
        until = math.inf if for_good else self._clock() + pause
        self._failures[name] = _Failure(wanted, pause, until)
        return first

    def waits(self, name: str, wanted: Any) -> bool:
        """Whether it failed, and has not been had since."""
        failure = self._failures.get(name)
        return failure is not None and failure.wanted == wanted

    def due(self, name: str, wanted: Any) -> bool:
        """Whether it is to be tried now."""
        return not self.waits(name, wanted) or self._clock() >= self._failures[name].until

    def forget(self, name: str) -> None:
        """It has been had, or is not wanted any more."""
        self._failures.pop(name, None)
