"""Whose weights lie in memory: everybody's or, in a bounded number of bytes, those of whoever was asked last.

A model that sleeps is loaded by the thread that is about to compute with it; only then do others go, the one that
was asked longest ago first. So what is being loaded stands beside what is there, for as long as that takes.
"""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from cluster.errors import HeadraceError, UserError

logger = logging.getLogger(__name__)


class Sleeper(Protocol):
    """A model that can let go of its weights.

    Attributes:
        name: for the log.
        loaded: whether it holds them.
        bytes: what they take; while it sleeps, what they took.
        used: when it last computed what somebody asked, in monotonic seconds.
    """

    @property
    def name(self) -> str: ...
    @property
    def loaded(self) -> bool: ...
    @property
    def bytes(self) -> int: ...
    @property
    def used(self) -> float: ...

    def load(self) -> None:
        """Takes them again."""

    def sleep(self) -> None:
        """Lets them go; nobody computes meanwhile."""


class Observe(Protocol):
    """Is told whether a model is loaded whenever that changes, and whether it is so again, after it slept."""

    def __call__(self, *, loaded: bool, again: bool) -> None: ...


@dataclass(eq=False)
class _Resident:
    sleeper: Sleeper
    stays: bool
    observers: list[Observe] = field(default_factory=list)
    users: int = 0

    def observe(self, *, loaded: bool, again: bool) -> None:
        for observe in self.observers:
            observe(loaded=loaded, again=again)


class Memory:
    """Keeps what models hold within a bound, whichever threads compute with them.

    Nobody who computes ever waits for memory, so whoever waits for others to finish is not waited for.

    Args:
        limit: bytes; None for any number.
    """

    def __init__(self, limit: int | None = None) -> None:
        self._limit = limit
        self._residents: dict[Sleeper, _Resident] = {}
        self._changed = threading.Condition()
        self._moving = False  # one is being loaded; the next has to wait
        self._making_room = False  # it is loaded, and nobody else begins to compute until there is room for it

    def admit(self, sleeper: Sleeper, observe: Observe, *, stays: bool = False, first: bool = False) -> None:
        """Counts a model that has been loaded; it sleeps at once where there is no room for it.

        One that several share is admitted once more with each of them, when it holds what that one brings.

        Args:
            observe: told whether it is ``loaded`` each time that changes, and whether it is so ``again``.
            stays: it never sleeps.
            first: others that nobody computes with go rather than this one.

        Raises:
            UserError: there would never be room for it, or for the largest of those that are there.
        """
        with self._changed:
            self._require_room(sleeper, stays=stays)
            grown = sleeper in self._residents
            resident = self._residents.setdefault(sleeper, _Resident(sleeper, stays))
            resident.observers.append(observe)
            observe(loaded=True, again=False)
            while self._excess() and (idle := self._idle(but=resident)) and (first or stays or grown):
                self._let_go(idle[0])
            if self._excess() and not stays and not resident.users:
                self._let_go(resident)

    def forget(self, sleeper: Sleeper, observe: Observe) -> None:
        """Counts a model no more once all who had it admitted have said so; its weights go with who computes last.

        Args:
            observe: as it was given when the model was admitted; it is told that the model is gone.
        """
        with self._changed:
            resident = self._residents[sleeper]
            resident.observers.remove(observe)
            if not resident.observers:
                del self._residents[sleeper]
            self._changed.notify_all()
        if sleeper.loaded:
            observe(loaded=False, again=False)

    def held(self) -> int:
        """The bytes that all hold together."""
        with self._changed:
            return self._held()

    @contextmanager
    def awake(self, sleeper: Sleeper) -> Iterator[None]:
        """While this lasts a model is loaded, and stays so. One that cannot be loaded says so when it is to compute."""
        with self._changed:
            # one that was forgotten answers what it had taken before, and is not counted
            resident = self._residents.get(sleeper) or _Resident(sleeper, stays=True)
            self._changed.wait_for(lambda: not (self._making_room if sleeper.loaded else self._moving))
            resident.users += 1
            loads = not sleeper.loaded
            self._moving = self._moving or loads
        try:
            if loads:
                self._load(resident)
            yield
        finally:
            with self._changed:
                resident.users -= 1
                self._changed.notify_all()

    def _load(self, resident: _Resident) -> None:
        try:
            resident.sleeper.load()
            resident.observe(loaded=True, again=True)
            with self._changed:
                self._making_room = True
                self._make_room(resident)
        except Exception as error:  # noqa: BLE001  whatever it is, the thread that computes has to live on
            reason = str(error) if isinstance(error, HeadraceError) else type(error).__name__
            logger.error("%s cannot be loaded again: %s", resident.sleeper.name, reason)
        finally:
            with self._changed:
                self._moving = self._making_room = False
                self._changed.notify_all()

    # --- under the lock -------------------------------------------------------------------------------------------

    def _held(self) -> int:
        return sum(one.sleeper.bytes for one in self._residents.values() if one.sleeper.loaded)

    def _excess(self) -> bool:
        return self._limit is not None and self._held() > self._limit

    def _make_room(self, newest: _Resident) -> None:
        """Lets others go until the bound holds; where all of them compute, the first that has finished."""
        while self._excess() and self._others(newest):
            idle = self._idle(but=newest)
            if idle:
                self._let_go(idle[0])
            else:
                self._changed.wait()

    def _others(self, but: _Resident) -> list[_Resident]:
        return [one for one in self._residents.values() if one is not but and not one.stays and one.sleeper.loaded]

    def _idle(self, but: _Resident) -> list[_Resident]:
        """Those that nobody computes with, first the one that was asked longest ago."""
        return sorted((one for one in self._others(but) if not one.users), key=lambda one: one.sleeper.used)

    def _let_go(self, resident: _Resident) -> None:
        resident.sleeper.sleep()
        resident.observe(loaded=False, again=False)

    def _require_room(self, sleeper: Sleeper, *, stays: bool) -> None:
        others = [one for one in self._residents.values() if one.sleeper is not sleeper]
        sizes = [(one.stays, one.sleeper.bytes) for one in others] + [(stays, sleeper.bytes)]
        largest = max((size for kept, size in sizes if not kept), default=0)
        least = sum(size for kept, size in sizes if kept) + largest
        if self._limit is not None and least > self._limit:
            raise UserError(
                f"serve.memory is {self._limit} bytes, and with {sleeper.name} {least} are needed: for the models that "
                "write, which always stay, and the largest of the others"
            )
