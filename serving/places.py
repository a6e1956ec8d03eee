"""Room for texts that are written: a place for each that was taken, and who goes in when one ends."""

import asyncio
import itertools
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from heapq import heappop, heappush
from typing import Literal

from serving.outcomes import ExpiredError
from serving.turns import Turns


class Places:
    """Room that one request was given: a place for each of its texts, from which the text moves on when it begins.

    Args:
        count: the texts.
        owner: who asks.
        keep: is told how many more places are kept for texts that have not begun, or fewer.
    """

    def __init__(self, count: int, owner: str | None, keep: Callable[[int], None]) -> None:
        self.owner, self._left, self._keep = owner, count, keep
        keep(count)

    def begin(self) -> None:
        """One text has begun, and needs this place no more."""
        assert self._left, "a text has begun that has no place"
        self._left -= 1
        self._keep(-1)

    def close(self) -> None:
        """Gives back the places of texts that will not begin."""
        left, self._left = self._left, 0
        self._keep(-left)


@dataclass(order=True)
class _Waiting:
    turn: int
    number: int
    call: Callable[[], object] = field(compare=False)
    state: Literal["waits", "inside", "gone"] = field(default="waits", compare=False)


class Entrance:
    """Lets so many in at once; those who wait go in by turns. They may be of several event loops."""

    def __init__(self, places: int) -> None:
        self._free, self._turns = places, Turns()
        self._waiting: list[_Waiting] = []
        self._numbers = itertools.count()
        self._lock = threading.Lock()

    async def enter(self, owner: str | None, deadline: float) -> None:
        """Returns when there is a place, which is the caller's until :meth:`leave`.

        Args:
            deadline: on the clock of :func:`time.monotonic`.

        Raises:
            ExpiredError: none came free before it.
        """
        loop, called = asyncio.get_running_loop(), asyncio.Event()
        with self._lock:
            turn = self._turns.take(owner, 1)
            one = _Waiting(turn, next(self._numbers), partial(loop.call_soon_threadsafe, called.set))
            heappush(self._waiting, one)
            self._let_in()
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                await called.wait()
        except BaseException as error:
            with self._lock:
                was, one.state = one.state, "gone"
            if was == "inside":  # this moment
                self.leave()
            if isinstance(error, TimeoutError):
                raise ExpiredError from None
            raise

    def leave(self) -> None:
        """Gives a place to whoever is next."""
        with self._lock:
            self._free += 1
            self._let_in()

    def _let_in(self) -> None:
        while self._free and self._waiting:
            one = heappop(self._waiting)
            if one.state == "gone":
                continue
            self._free -= 1
            self._turns.advance(one.turn)
            one.state = "inside"
            one.call()
