"""A model that the test opens and closes by hand, and a scheduler before it: no clock, no luck."""

import asyncio
import math
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from serving.outcomes import Answered
from serving.scheduler import Scheduler

NEVER = math.inf
UNPREPARABLE = "unpreparable"


class Gate:
    """A model that answers with upper case, once the test lets it."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.entered = threading.Semaphore(0)
        self.opened = threading.Semaphore(0)
        self.now = 0.0

    def prepare(self, values: list[str]) -> list[tuple[str, int]]:
        if UNPREPARABLE in values:
            raise ValueError("cannot be tokenised")
        return [(value, len(value)) for value in values]

    def run(self, values: list[str]) -> list[str]:
        self.batches.append(values)
        self.entered.release()
        assert self.opened.acquire(timeout=30)
        if "poison" in values:
            raise RuntimeError("poisoned")
        return [value.upper() for value in values]

    def clock(self) -> float:
        return self.now

    async def busy(self) -> None:
        """Waits until the model has begun a batch."""
        assert await asyncio.to_thread(self.entered.acquire, timeout=30)

    def open(self, times: int = 100) -> None:
        self.opened.release(times)


@contextmanager
def scheduler_of(gate: Gate, **options: Any) -> Iterator[Scheduler]:
    scheduler = Scheduler(gate.prepare, gate.run, clock=gate.clock, **options)
    try:
        yield scheduler
    finally:
        gate.open()
        scheduler.close()
        assert scheduler.join(30)


async def all_are_ready(scheduler: Scheduler) -> None:
    """The prepare thread keeps its order, so when this one has failed, those before it are ready."""
    with pytest.raises(ValueError, match="tokenised"):
        await scheduler.submit([UNPREPARABLE], NEVER)


async def all_of(*futures: "asyncio.Future[Answered]") -> list[list[Any]]:
    return [answered.answers for answered in await asyncio.gather(*futures)]


def play(scenario: Callable[[], Awaitable[None]]) -> None:
    async def limited() -> None:
        await asyncio.wait_for(scenario(), 60)

    asyncio.run(limited())
