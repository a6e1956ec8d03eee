"""Batches formed when the model is free, never before. Knows threads and time; knows no HTTP, no Ray, no model.

A request brings one or several items. Each item walks through two stages in threads of their own, so that the event
loop never computes:

    submit -> waiting -> prepare (tokenise) -> ready -> run (forward and decode) -> answer

The run stage has one lane or several, each of which takes what is ready when it becomes free: the oldest item, always,
and those most like it in length. Nothing waits for a batch to fill up, but for this: where clients ask again as soon as
they are answered (see `returns`), a lane that has just answered n items gives them a moment, until n are ready. No item
is passed over for more than the batches before it. Where cores are many and batches wait, a lane for each beats all of
them in one: whoever else needs a core for a moment then delays one batch, and not every core that meets the others
after each product.
"""

import asyncio
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from serving.batching import WINDOW, Failed, Limits, choose, isolated, part
from serving.lanes import Lanes
from serving.outcomes import (
    Answered,
    Backlog,
    Batch,
    ClosedError,
    ExpiredError,
    OverloadedError,
    Spend,
    TooManyTokensError,
    Written,
    free,
)
from serving.pace import Pace
from serving.returns import Returns
from serving.turns import Turns

PREPARE_AT_ONCE = 256


@dataclass(eq=False, slots=True)
class _Request:
    owner: str | None
    loop: asyncio.AbstractEventLoop
    future: "asyncio.Future[Answered]"
    deadline: float
    submitted: float
    answered: Answered
    missing: int
    spend: Spend
    tokens: int = 0  # of those of its items that are prepared


@dataclass(eq=False, slots=True)
class _Item:
    request: _Request
    index: int
    value: Any
    turn: int
    length: int = 0


@dataclass
class _State:
    """What the threads share, under the scheduler's lock."""

    waiting: deque[_Item] = field(default_factory=deque)
    ready: list[_Item] = field(default_factory=list)
    in_prepare: int = 0
    running: dict[int, "_Run"] = field(default_factory=dict)  # by lane
    closed: bool = False
    turns: Turns = field(default_factory=Turns)
    pace: Pace = field(default_factory=Pace)


class _Run(NamedTuple):
    """A batch that a lane runs, among how many lanes the cores are shared, and since when; inf before it begins.

    Before it the lane has passed ``gap`` seconds without work though there was some.
    """

    batch: list[_Item]
    share: int
    gap: float
    since: float = math.inf


class _Last(NamedTuple):
    """How many items a lane's last batch had, when it ended and how long it took unless it was held up; nothing of the
    first one."""

    items: int
    ended: float
    seconds: float


class Scheduler:
    """Runs a model for many requests at once.

    Args:
        prepare: values as given to :meth:`submit` to ``(prepared, length in tokens)`` pairs.
        run: prepared values to answers, in order, each :class:`Written` where it took tokens; called from the threads
            of all lanes.
        limits: sizes of batches and of the queue.
        observe: told of every batch, in the thread that ran it.
        awake: entered around every run; the time that this takes is not the run's.
        clock: monotonic seconds.
        lanes: how many batches may run at once.
        share: told, in the thread that is about to run a batch, among how many lanes the cores are shared.
        returns: what is known of whether clients ask again at once.
    """

    def __init__(
        self,
        prepare: Callable[[list[Any]], Sequence[tuple[Any, int]]],
        run: Callable[[list[Any]], Sequence[Any]],
        limits: Limits | None = None,
        observe: Callable[[Batch], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
        *,
        awake: Callable[[], AbstractContextManager[None]] = nullcontext,
        lanes: int = 1,
        share: Callable[[int], None] = lambda lanes: None,
        returns: Returns | None = None,
    ) -> None:
        self._prepare, self._awake, self._run = prepare, awake, run
        self._limits = limits or Limits()
        self._observe, self._clock = observe, clock
        self._share = share
        self._state = _State()
        self._returns = returns or Returns()
        lock = threading.Lock()
        self._came = threading.Condition(lock)  # something is waiting, or the end
        self._lanes = Lanes(lock, lanes, self._state.running)
        self._threads = [
            threading.Thread(target=self._prepare_forever, name="prepare", daemon=True),
            *(
                threading.Thread(target=self._run_forever, args=(lane,), name=f"run-{lane}", daemon=True)
                for lane in range(lanes)
            ),
        ]
        for thread in self._threads:
            thread.start()

    # --- for the event loop ---------------------------------------------------------------------------------------

    def submit(
        self, values: Sequence[Any], deadline: float, owner: str | None = None, spend: Spend = free
    ) -> "asyncio.Future[Answered]":
        """Queues the values of one request; the future resolves to their answers.

        Cancelling the future drops what has not been computed. An item that fails fails its request, and no other;
        more tokens than one may have fail it with :class:`TooManyTokensError`.

        Args:
            deadline: on the scheduler's clock; past it, the request is dropped and fails with :class:`ExpiredError`.
            owner: who asks. Those who wait are served in turns, so that one who asks a lot delays nobody else.
            spend: is told, on the caller's loop, of the tokens of each item that was computed; also of those that
                nobody waited for any more.

        Raises:
            OverloadedError: the values do not fit the queue, or would not be answered before their deadline.
            ClosedError: after :meth:`close`.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Answered] = loop.create_future()
        answered = Answered.blank(len(values))
        if not values:
            future.set_result(answered)
            return future
        now = self._clock()
        request = _Request(owner, loop, future, deadline, now, answered, len(values), spend)
        with self._came:
            if self._state.closed:
                raise ClosedError
            wait = self._expected_wait(self._state.turns.waiting(owner) + 1)
            crowded = self._crowded(len(values), owner)
            full = self._state.pace.late(wait, deadline - now) or (crowded and self._queued() >= self._limits.waiting)
            if full or crowded:
                raise OverloadedError(wait, self._state.pace.ebb(wait, self._running_for(now)) if full else 0.0)
            first = self._state.turns.take(owner, len(values))
            items = (_Item(request, index, value, first + index) for index, value in enumerate(values))
            self._state.waiting.extend(items)
            self._came.notify()
        return future

    def _crowded(self, more: int, owner: str | None) -> bool:
        """Whether so many more of an owner do not fit.

        In a full queue everybody has an equal part, else who fills it would have all others refused. So it may hold
        more than it should: with n owners, as many times as 1 + 1/2 + … + 1/n comes to.
        """
        turns, room = self._state.turns, self._limits.waiting
        return self._queued() + more > room and turns.waiting(owner) + more > turns.part(room, owner)

    def busy(self) -> bool:
        """Whether anything waits or runs."""
        with self._came:
            return self._queued() + self._running() > 0

    def backlog(self) -> Backlog:
        """What waits at this moment, without what runs."""
        with self._came:
            unmeasured = len(self._state.waiting) + self._state.in_prepare
            return Backlog(sum(item.length for item in self._state.ready), unmeasured)

    def running_for(self) -> float:
        """Seconds that the oldest of the present batches has been running; 0 when the model is free."""
        with self._came:
            return self._running_for(self._clock())

    def alive(self) -> bool:
        """Whether all threads run."""
        return all(thread.is_alive() for thread in self._threads)

    def close(self) -> None:
        """Takes no more requests; what was taken is answered, then the threads end. Returns at once."""
        with self._came:
            self._state.closed = True
            self._came.notify_all()
            self._lanes.call_all()

    def join(self, seconds: float) -> bool:
        """Waits for the threads after :meth:`close`; False when they still run."""
        for thread in self._threads:
            thread.join(seconds)
        return not any(thread.is_alive() for thread in self._threads)

    def _running_for(self, now: float) -> float:
        return max(0.0, 0.0, *(now - run.since for run in self._state.running.values()))

    def _queued(self) -> int:
        return len(self._state.waiting) + self._state.in_prepare + len(self._state.ready)

    def _running(self) -> int:
        return sum(len(run.batch) for run in self._state.running.values())

    def _expected_wait(self, turns: int) -> float:
        """Seconds until an item whose turn is so many after the present one: each owner may have one in each turn."""
        ahead = min(self._queued(), turns * max(1, self._state.turns.owners))
        return (ahead + self._running()) * self._state.pace.seconds_per_item

    # --- the prepare thread ---------------------------------------------------------------------------------------

    def _prepare_forever(self) -> None:
        while items := self._take_waiting():
            results = isolated(self._prepare, [item.value for item in items])
            failed, ready = [], []
            for item, result in zip(items, results, strict=True):
                result = result if isinstance(result, Failed) else self._measured(item, *result)
                if result:
                    failed.append((item, result))
                else:
                    ready.append(item)
            with self._came:
                self._state.in_prepare = 0
                self._state.ready.extend(ready)
                self._returns.came(len(ready), self._clock())
                self._state.ready.sort(key=lambda item: item.turn)  # stable: of one turn the one that came first
                self._lanes.call(len(self._state.ready))
            _deliver(failed)

    def _measured(self, item: _Item, value: Any, length: int) -> Failed | None:
        """Keeps what an item was made into; or why its request is too large."""
        item.value, item.length = value, length
        item.request.tokens += length
        return Failed(TooManyTokensError(most)) if item.request.tokens > (most := self._limits.tokens) else None

    def _take_waiting(self) -> list[_Item]:
        with self._came:
            while not self._state.waiting and not self._state.closed:
                self._came.wait()
            items = [self._state.waiting.popleft() for _ in range(min(PREPARE_AT_ONCE, len(self._state.waiting)))]
            self._state.in_prepare = len(items)
            if not items:
                self._lanes.call_all()  # closed, and they may be waiting for the last of ours
            return items

    # --- the threads of the lanes ---------------------------------------------------------------------------------

    def _run_forever(self, lane: int) -> None:
        last = _Last(0, self._clock(), 0.0)
        while run := self._take_ready(lane, last):
            with self._awake():
                run = self._begin(lane, run)
                results = isolated(self._run, [item.value for item in run.batch])
                ended = self._clock()
            seconds = ended - run.since
            for request in {item.request for item in run.batch}:
                request.answered.runs.append((run.since, run.since + seconds))
            with self._came:
                del self._state.running[lane]
                # A process that stood still in a batch would otherwise keep the next who asks waiting as long again.
                usual = self._state.pace.without_stall(seconds)
                # An item takes its part of the batch, and of what passes between two batches of a lane that has work.
                self._state.pace.learn(len(run.batch), run.gap + seconds, run.share)
                if last.items:
                    self._returns.learn(*last, ended)
            last = _Last(len(run.batch), ended, usual)
            _deliver(list(zip(run.batch, results, strict=True)))
            if self._observe:
                self._observe(_batch(run, seconds))

    def _begin(self, lane: int, run: _Run) -> _Run:
        self._share(run.share)
        with self._came:
            self._state.running[lane] = begun = run._replace(since=self._clock())
        return begun

    def _take_ready(self, lane: int, last: _Last) -> _Run | None:
        """The next batch, as soon as there is one; None at the end."""
        while True:
            with self._came:
                free = last.ended
                while not self._lanes.may_take(lane, len(self._state.ready)):
                    if self._state.closed and not self._queued():
                        return None
                    self._lanes.wait(lane)
                    free = self._clock()
                self._linger(lane, last)
                alive, expired = self._without_the_dead(self._state.ready)
                lengths = [item.length for item in alive[:WINDOW]]
                others = len(self._state.running)
                parts = max(1, min(len(self._lanes) - others, len(lengths)))
                chosen = set(choose(lengths, part(self._limits, lengths, parts, others)))
                run = _Run([alive[index] for index in sorted(chosen)], others + parts, self._clock() - free)
                self._state.ready = [item for index, item in enumerate(alive) if index not in chosen]
                self._state.turns.advance(alive[0].turn if alive else 0)
                if run.batch:
                    self._state.running[lane] = run
                self._call_others()
            _deliver(expired)
            if run.batch:
                return run

    def _call_others(self) -> None:
        """To what a lane has left, or to the end, of which this may have been the last to be taken."""
        if self._state.closed:
            self._lanes.call_all()
        else:
            self._lanes.call(len(self._state.ready))

    def _linger(self, lane: int, last: _Last) -> None:
        """Lets those come whom the lane has answered a moment ago: else the first of them would run alone."""
        left = last.ended + self._returns.moment(last.seconds) - self._clock()
        if left > 0:
            enough = lambda: self._state.closed or len(self._state.ready) >= last.items  # noqa: E731
            self._lanes.wait_for(lane, enough, left)

    def _without_the_dead(self, items: list[_Item]) -> tuple[list[_Item], list[tuple[_Item, Any]]]:
        now = self._clock()
        alive, expired = [], []
        for item in items:
            if item.request.future.done():  # cancelled, or failed through another of its items
                continue
            if now >= item.request.deadline:
                expired.append((item, Failed(ExpiredError())))
            else:
                alive.append(item)
        return alive, expired


def _batch(run: _Run, seconds: float) -> Batch:
    lengths = [item.length for item in run.batch]
    waited = run.since - min(item.request.submitted for item in run.batch)
    return Batch(len(lengths), sum(lengths), len(lengths) * max(lengths), seconds, waited, run.share)


def _deliver(results: list[tuple[_Item, Any]]) -> None:
    """Hands results to their event loops, in one call for each loop."""
    for loop in {item.request.loop for item, _ in results}:
        mine = [(item, result) for item, result in results if item.request.loop is loop]
        if not loop.is_closed():  # a server that has stopped has nobody left to tell
            loop.call_soon_threadsafe(_settle, mine)


def _settle(results: list[tuple[_Item, Any]]) -> None:
    for item, result in results:
        request = item.request
        if not isinstance(result, Failed):
            request.spend(item.length + (result.tokens if isinstance(result, Written) else 0))
        if request.future.done():
            continue
        if isinstance(result, Failed):
            request.future.set_exception(result.error)
            continue
        if isinstance(result, Written):
            result, request.answered.written[item.index] = result
        request.answered.answers[item.index] = result
        request.answered.lengths[item.index] = item.length
        request.missing -= 1
        if not request.missing:
            request.future.set_result(request.answered)
