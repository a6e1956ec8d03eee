"""What a replica reports of itself to whoever decides how many there should be; see ``scaling.py``."""

import math
import threading
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Protocol

from serving.exchange import Receive, Scope, Send
from serving.outcomes import Backlog, Batch
from serving.scaling import Report

App = Callable[[Scope, Receive, Send], Awaitable[None]]

MEMORY_SECONDS = 20.0  # what was computed so long ago counts 1/e of what was computed just now


class Queue(Protocol):
    """Has inputs wait for a model."""

    def backlog(self) -> Backlog:
        """What waits at this moment."""


class Loaded(Protocol):
    """A model that is served, as :class:`serving.lineup.Served`."""

    @property
    def name(self) -> str:
        """Of the model."""

    @property
    def version(self) -> str:
        """Which of the model's versions."""

    @property
    def scheduler(self) -> Queue:
        """What waits for it."""


class Pace:
    """How fast one model computes, and how much of the time, from the batches of the last seconds.

    Sums that fade exponentially; what a batch took of the device is added when it ends.
    """

    def __init__(self, now: float) -> None:
        self._at = now
        self._seconds = self._tokens = self._items = 0.0
        self.seconds_per_token = self.tokens_per_item = 0.0

    def ran(self, batch: Batch, now: float) -> None:
        """A batch has ended."""
        self._fade(now)
        self._seconds += batch.seconds / batch.share
        self._tokens += batch.tokens
        self._items += batch.items
        self.seconds_per_token = self._seconds / max(1.0, self._tokens)
        self.tokens_per_item = self._tokens / max(1.0, self._items)

    def busy(self, now: float) -> float:
        """The share of the time in which it computed, 0 to 1."""
        self._fade(now)
        return min(1.0, self._seconds / MEMORY_SECONDS)

    def wait(self, backlog: Backlog) -> float:
        """Seconds until a model begins with an input that comes behind these."""
        tokens = backlog.tokens + backlog.unmeasured * self.tokens_per_item
        return tokens * self.seconds_per_token

    def _fade(self, now: float) -> None:
        kept = math.exp(-max(0.0, now - self._at) / MEMORY_SECONDS)
        self._seconds, self._tokens, self._items = self._seconds * kept, self._tokens * kept, self._items * kept
        self._at = now


class Workload:
    """How fast the models of one process compute, and what waits for them."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()  # each model tells of its batches from a thread of its own
        self._paces: dict[tuple[str, str], Pace] = {}

    def ran(self, model: str, version: str, batch: Batch) -> None:
        """A batch of a model has ended."""
        with self._lock:
            now = self._clock()
            self._paces.setdefault((model, version), Pace(now)).ran(batch, now)

    def report(self, models: Iterable[Loaded], idle_seconds: float) -> Report:
        """The report of a process that serves these models, which share its cores: their waits and shares add up."""
        wait = busy = 0.0
        with self._lock:
            now, paces = self._clock(), self._paces
            self._paces = {}
            for model in models:
                key, backlog = (model.name, model.version), model.scheduler.backlog()
                pace = self._paces[key] = paces.get(key) or Pace(now)
                wait += pace.wait(backlog)
                busy += pace.busy(now)
        return Report(wait, min(1.0, busy), idle_seconds)


class Traffic:
    """Since when a process has had no request, whichever way requests come."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._open = 0
        self._last = clock()

    def through(self, app: App) -> App:
        """The same ASGI app, whose requests are noticed."""

        async def noticed(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http":
                await app(scope, receive, send)
                return
            self._open += 1
            try:
                await app(scope, receive, send)
            finally:
                self._open -= 1
                self._last = self._clock()

        return noticed

    def idle_seconds(self) -> float:
        """Since the last request ended, or since the beginning; 0 while there is one."""
        return 0.0 if self._open else self._clock() - self._last
