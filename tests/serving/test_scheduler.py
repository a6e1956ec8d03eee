"""The scheduler against an executor that the test opens and closes by hand: no clock, no luck."""

import asyncio
import math
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from serving.batching import Failed, Limits, choose, isolated
from serving.outcomes import Answered, Backlog, Batch, ClosedError, ExpiredError, OverloadedError
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


def test_what_came_while_the_model_was_busy_is_one_batch() -> None:
    gate = Gate()

    async def scenario() -> None:
        with scheduler_of(gate) as scheduler:
            first = scheduler.submit(["a"], NEVER)
            await gate.busy()
            later = [scheduler.submit([text], NEVER) for text in ("b", "c", "d")]
            await all_are_ready(scheduler)
            gate.open()
            assert await all_of(first, *later) == [["A"], ["B"], ["C"], ["D"]]
        assert gate.batches == [["a"], ["b", "c", "d"]]

    play(scenario)


def test_nothing_waits_when_the_model_is_free() -> None:
    gate = Gate()
    gate.open()

    async def scenario() -> None:
        with scheduler_of(gate) as scheduler:
            assert (await scheduler.submit(["a"], NEVER)).answers == ["A"]
            assert (await scheduler.submit(["b"], NEVER)).answers == ["B"]
        assert gate.batches == [["a"], ["b"]]

    play(scenario)


async def two_are_answered(gate: Gate, scheduler: Scheduler, seconds: float) -> None:
    """The only lane has computed two items, in so many seconds."""
    both = scheduler.submit(["a", "b"], NEVER)
    await gate.busy()
    gate.now += seconds
    gate.open()
    await both


def test_those_who_were_answered_a_moment_ago_are_one_batch_again() -> None:
    gate = Gate()

    async def scenario() -> None:
        with scheduler_of(gate) as scheduler:
            await two_are_answered(gate, scheduler, 1000)
            first = scheduler.submit(["c"], NEVER)
            await all_are_ready(scheduler)
            second = scheduler.submit(["d"], NEVER)
            assert await all_of(first, second) == [["C"], ["D"]]
        assert gate.batches == [["a", "b"], ["c", "d"]]

    play(scenario)


def test_who_comes_alone_after_that_is_not_kept_waiting() -> None:
    gate = Gate()

    async def scenario() -> None:
        with scheduler_of(gate) as scheduler:
            await two_are_answered(gate, scheduler, 1000)
            gate.now += 101
            assert (await scheduler.submit(["c"], NEVER)).answers == ["C"]
        assert gate.batches == [["a", "b"], ["c"]]

    play(scenario)


def test_answers_of_a_list_come_back_in_its_order() -> None:
    gate = Gate()
    gate.open()
    texts = ["long " * 40, "b", "middling " * 5, "a"]

    async def scenario() -> None:
        with scheduler_of(gate) as scheduler:
            assert (await scheduler.submit(texts, NEVER)).answers == [text.upper() for text in texts]

    play(scenario)


def test_a_long_text_is_not_passed_over_for_short_ones_that_came_later() -> None:
    gate = Gate()
    limits = Limits(budget=40, padding_slack=0)

    async def scenario() -> None:
        with scheduler_of(gate, limits=limits) as scheduler:
            futures = [scheduler.submit(["first"], NEVER)]
            await gate.busy()
            futures.append(scheduler.submit(["x" * 30], NEVER))
            futures += [scheduler.submit(["y" * 3], NEVER) for _ in range(20)]
            await all_are_ready(scheduler)
            gate.open()
            await asyncio.gather(*futures)
        assert gate.batches[1] == ["x" * 30]

    play(scenario)


def test_who_asks_a_lot_delays_nobody_else() -> None:
    gate = Gate()

    async def scenario() -> None:
        with scheduler_of(gate, limits=Limits(items=4, padding_slack=0)) as scheduler:
            futures = [scheduler.submit(["first"], NEVER)]
            await gate.busy()
            futures += [scheduler.submit([f"many-{place}" for place in range(40)], NEVER, "greedy")]
            futures += [scheduler.submit(["once-0", "once-1"], NEVER, "modest")]
            futures += [scheduler.submit(["then-0"], NEVER, "modest")]
            await all_are_ready(scheduler)
            gate.open()
            await asyncio.gather(*futures)
        order = [text for batch in gate.batches for text in batch]
        assert [text for text in order if text.startswith("many")] == [f"many-{place}" for place in range(40)]
        last = max(order.index(text) for text in ("once-0", "once-1", "then-0"))
        assert last <= 7, "three items of each of two owners, in turns, after the first"

    play(scenario)


def test_a_long_queue_of_one_does_not_refuse_another() -> None:
    gate = Gate()

    async def scenario() -> None:
        with scheduler_of(gate, limits=Limits(items=1)) as scheduler:
            first = scheduler.submit(["a"], NEVER)
            await gate.busy()
            gate.now += 2.0  # what an item takes
            gate.open(1)
            await first
            running = scheduler.submit(["b"], NEVER, "greedy")
            await gate.busy()
            many = scheduler.submit(["c"] * 10, NEVER, "greedy")
            with pytest.raises(OverloadedError):
                scheduler.submit(["d"], gate.now + 10, "greedy")
            soon = scheduler.submit(["e"], gate.now + 10, "modest")
            gate.open()
            await asyncio.gather(running, many, soon)

    play(scenario)


def test_an_item_past_its_deadline_is_dropped_before_it_is_computed() -> None:
    gate = Gate()

    async def scenario() -> None:
        with scheduler_of(gate) as scheduler:
            first = scheduler.submit(["a"], NEVER)
            await gate.busy()
            late, early = scheduler.submit(["late"], 5.0), scheduler.submit(["early"], 50.0)
            await all_are_ready(scheduler)
            gate.now = 10.0
            gate.open()
            with pytest.raises(ExpiredError):
                await late
            assert await all_of(first, early) == [["A"], ["EARLY"]]
        assert gate.batches == [["a"], ["early"]]

    play(scenario)


def test_a_cancelled_request_is_not_computed() -> None:
    gate = Gate()

    async def scenario() -> None:
        with scheduler_of(gate) as scheduler:
            first = scheduler.submit(["a"], NEVER)
            await gate.busy()
            gone, stays = scheduler.submit(["gone"], NEVER), scheduler.submit(["stays"], NEVER)
            await all_are_ready(scheduler)
            gone.cancel()
            gate.open()
            assert await all_of(first, stays) == [["A"], ["STAYS"]]
        assert gate.batches == [["a"], ["stays"]]

    play(scenario)


def test_one_bad_item_fails_alone() -> None:
    gate = Gate()

    async def scenario() -> None:
        with scheduler_of(gate) as scheduler:
            first = scheduler.submit(["a"], NEVER)
            await gate.busy()
            futures = [scheduler.submit([text], NEVER) for text in ("b", "poison", "c", UNPREPARABLE, "d")]
            await all_are_ready(scheduler)
            gate.open()
            results = await asyncio.gather(first, *futures, return_exceptions=True)
        assert [type(result) for result in results] == [
            Answered,
            Answered,
            RuntimeError,
            Answered,
            ValueError,
            Answered,
        ]
        told = [result.answers for result in results if isinstance(result, Answered)]
        assert told == [["A"], ["B"], ["C"], ["D"]]

    play(scenario)


def test_a_full_queue_refuses_whole_requests_and_says_when_to_return() -> None:
    gate = Gate()

    async def scenario() -> None:
        with scheduler_of(gate, limits=Limits(waiting=3)) as scheduler:
            first = scheduler.submit(["a"], NEVER)
            await gate.busy()
            gate.now = 2.0  # the first batch takes two seconds
            gate.open(1)
            assert (await first).answers == ["A"]
            second = scheduler.submit(["b"], NEVER)
            await gate.busy()
            waiting = scheduler.submit(["c", "d"], NEVER)
            with pytest.raises(OverloadedError) as refused:
                scheduler.submit(["e", "f"], NEVER)
            assert refused.value.retry_after == pytest.approx(6.0)  # one running, two waiting, two seconds each
            with pytest.raises(OverloadedError):
                # There is room, and no time: it takes two seconds itself, and what is foretold may be wrong by a fifth.
                scheduler.submit(["g"], gate.now + 9.5)
            third = scheduler.submit(["h"], gate.now + 9.7)
            gate.open()
            assert await all_of(second, waiting, third) == [["B"], ["C", "D"], ["H"]]

    play(scenario)


def test_what_passes_between_two_batches_is_part_of_what_an_item_takes() -> None:
    gate = Gate()

    def observe(batch: Batch) -> None:
        gate.now += 1.0  # in the lane's thread, which has work meanwhile

    async def scenario() -> None:
        with scheduler_of(gate, limits=Limits(waiting=2), observe=observe) as scheduler:
            first = scheduler.submit(["a"], NEVER)
            await gate.busy()
            second = scheduler.submit(["b"], NEVER)
            await all_are_ready(scheduler)
            for future in (first, second):
                gate.now += 2.0
                gate.open(1)
                await future
                if future is first:
                    await gate.busy()
            third = scheduler.submit(["c"], NEVER)
            await gate.busy()
            fourth = scheduler.submit(["d", "e"], NEVER)
            with pytest.raises(OverloadedError) as refused:
                scheduler.submit(["f"], NEVER)
            # One runs and two wait; of two batches the first took two seconds and the second one more in between.
            assert refused.value.retry_after == pytest.approx(3 * (0.8 * 2 + 0.2 * 3))
            gate.open()
            assert await all_of(third, fourth) == [["C"], ["D", "E"]]

    play(scenario)


def test_one_batch_that_was_held_up_refuses_nobody() -> None:
    """A machine that stood still for a minute answers as fast as before when it goes on."""
    gate = Gate()

    async def scenario() -> None:
        with scheduler_of(gate, limits=Limits(waiting=64)) as scheduler:
            for seconds in (1.0, 1.0, 60.0):
                asked = scheduler.submit(["a"], NEVER)
                await gate.busy()
                gate.now += seconds
                gate.open(1)
                await asked
            running = scheduler.submit(["b"], NEVER)
            await gate.busy()
            waiting = [scheduler.submit([letter], gate.now + 30) for letter in "cdefghij"]
            gate.open()
            assert await all_of(running, *waiting) == [[letter.upper()] for letter in "bcdefghij"]

    play(scenario)


def test_the_backlog_is_what_waits_and_not_what_runs() -> None:
    gate = Gate()

    async def scenario() -> None:
        with scheduler_of(gate) as scheduler:
            assert scheduler.backlog() == Backlog(tokens=0, unmeasured=0)
            first = scheduler.submit(["runs"], NEVER)
            await gate.busy()
            later = [scheduler.submit([text], NEVER) for text in ("a", "four", "seventh")]
            await all_are_ready(scheduler)
            assert scheduler.backlog() == Backlog(tokens=12, unmeasured=0)
            gate.open()
            await all_of(first, *later)
            assert scheduler.backlog() == Backlog(tokens=0, unmeasured=0)

    play(scenario)


def test_closing_answers_what_was_taken_and_takes_no_more() -> None:
    gate = Gate()

    async def scenario() -> None:
        with scheduler_of(gate) as scheduler:
            first = scheduler.submit(["a"], NEVER)
            await gate.busy()
            second = scheduler.submit(["b"], NEVER)
            scheduler.close()
            with pytest.raises(ClosedError):
                scheduler.submit(["c"], NEVER)
            gate.open()
            assert await all_of(first, second) == [["A"], ["B"]]
        assert not scheduler.alive()

    play(scenario)


def test_each_batch_is_told_with_its_tokens_and_padding() -> None:
    gate = Gate()
    seen: list[Batch] = []

    async def scenario() -> None:
        with scheduler_of(gate, observe=seen.append) as scheduler:
            first = scheduler.submit(["a"], NEVER)
            await gate.busy()
            second = scheduler.submit(["bb", "cccc"], NEVER)
            await all_are_ready(scheduler)
            gate.now = 1.5
            gate.open()
            await asyncio.gather(first, second)

    play(scenario)
    assert seen == [Batch(1, 1, 1, 1.5, 0.0), Batch(2, 6, 8, 0.0, 1.5)]


def test_choose_always_takes_the_oldest_and_keeps_to_the_budget() -> None:
    limits = Limits(budget=100, items=8, padding_share=0.05, padding_slack=4)
    for lengths in ([10] * 20, [90, 10, 10, 11], [10, 90, 91, 9], [300, 1, 1], [7, 5, 6, 8, 100, 7]):
        chosen = choose(lengths, limits)
        longest = max(lengths[index] for index in chosen)
        padded = longest * len(chosen)
        assert 0 in chosen
        assert len(chosen) == len(set(chosen)) <= limits.items
        assert len(chosen) == 1 or padded <= limits.budget
        assert padded - sum(lengths[index] for index in chosen) <= 0.05 * padded + 4
    assert choose([], limits) == []


def test_choose_does_not_pad_short_texts_to_the_length_of_a_long_one() -> None:
    assert sorted(choose([8, 256, 9, 8, 250, 10], Limits(padding_slack=10))) == [0, 2, 3, 5]


def test_isolated_finds_the_culprits_with_few_calls() -> None:
    calls = []

    def fragile(values: list[int]) -> list[int]:
        calls.append(values)
        if 13 in values or 40 in values:
            raise ValueError
        return [value * 2 for value in values]

    results = isolated(fragile, list(range(64)))
    assert [index for index, result in enumerate(results) if isinstance(result, Failed)] == [13, 40]
    assert [result for result in results if not isinstance(result, Failed)] == [
        2 * value for value in range(64) if value not in (13, 40)
    ]
    assert len(calls) <= 25


# --- lanes ------------------------------------------------------------------------------------------------------------


def test_lanes_that_are_free_share_what_is_ready() -> None:
    gate = Gate()
    shares: list[int] = []

    async def scenario() -> None:
        with scheduler_of(gate, lanes=2, share=shares.append) as scheduler:
            alone = scheduler.submit(["a"], NEVER)
            await gate.busy()
            second = scheduler.submit(["b"], NEVER)  # the other lane need not wait for the first
            await gate.busy()
            assert (gate.batches, shares) == ([["a"], ["b"]], [1, 2])
            assert scheduler.busy()
            rest = scheduler.submit(["cc", "dd", "ee", "ff"], NEVER)
            await all_are_ready(scheduler)
            gate.open(1)  # one lane becomes free and takes all that is ready, as the other still runs
            await gate.busy()
            assert sorted(gate.batches[2]) == ["cc", "dd", "ee", "ff"]
            gate.open()
            assert [(await one).answers for one in (alone, second, rest)] == [["A"], ["B"], ["CC", "DD", "EE", "FF"]]

    asyncio.run(asyncio.wait_for(scenario(), 60))


def test_free_lanes_part_a_rush_among_themselves() -> None:
    gate = Gate()

    async def scenario() -> None:
        with scheduler_of(gate, lanes=2) as scheduler:
            rush = scheduler.submit(["aa", "bb", "cc", "dd", "ee", "ff"], NEVER)
            await gate.busy()
            await gate.busy()
            assert sorted(map(len, gate.batches)) == [3, 3]
            gate.open()
            assert (await rush).answers == ["AA", "BB", "CC", "DD", "EE", "FF"]

    asyncio.run(asyncio.wait_for(scenario(), 60))


def test_a_lane_that_fails_leaves_the_other_alone_and_the_longest_run_is_told() -> None:
    gate = Gate()

    async def scenario() -> None:
        with scheduler_of(gate, lanes=2) as scheduler:
            poisoned = scheduler.submit(["poison"], NEVER)
            await gate.busy()
            gate.now = 3.0
            good = scheduler.submit(["good"], NEVER)
            await gate.busy()
            gate.now = 5.0
            assert scheduler.running_for() == 5.0
            gate.open()
            with pytest.raises(RuntimeError, match="poisoned"):
                await poisoned
            assert (await good).answers == ["GOOD"]
            assert scheduler.running_for() == 0.0

    asyncio.run(asyncio.wait_for(scenario(), 60))
