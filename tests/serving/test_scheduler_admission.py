"""Whom the scheduler takes in, refuses or drops, and what it says of those who wait."""

import asyncio

import pytest

from serving.batching import Limits
from serving.outcomes import Backlog, Batch, ClosedError, ExpiredError, OverloadedError, TooManyTokensError
from tests.serving.gate import NEVER, Gate, all_are_ready, all_of, play, scheduler_of


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


def test_who_fills_the_queue_has_nobody_else_refused() -> None:
    gate = Gate()

    async def scenario() -> None:
        with scheduler_of(gate, limits=Limits(waiting=4)) as scheduler:
            taken = [scheduler.submit(["a"], NEVER, "much")]
            await gate.busy()
            taken += [scheduler.submit(["b"], NEVER, "much") for _ in range(4)]
            with pytest.raises(OverloadedError):
                scheduler.submit(["b"], NEVER, "much")
            taken += [scheduler.submit(["c"], NEVER, "little") for _ in range(2)]
            with pytest.raises(OverloadedError):
                scheduler.submit(["c"], NEVER, "little")
            gate.open()
            await all_of(*taken)

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
            assert refused.value.full_for == 0, "one of them would have fitted"
            gate.now += 0.5
            with pytest.raises(OverloadedError) as refused:
                # There is room, and no time: it takes two seconds itself, and what is foretold may be wrong by a fifth.
                scheduler.submit(["g"], gate.now + 9.5)
            assert refused.value.full_for == pytest.approx(1.5), (
                "until the one that runs should end, and no second less"
            )
            third = scheduler.submit(["h"], gate.now + 9.7)
            with pytest.raises(OverloadedError) as refused:
                scheduler.submit(["i"], NEVER)
            assert refused.value.full_for == pytest.approx(1.5)
            gate.now += 3.0  # it may end at any moment
            with pytest.raises(OverloadedError) as refused:
                scheduler.submit(["i"], NEVER)
            assert refused.value.full_for == 1.0, "of the eight seconds that the others take half is more than enough"
            gate.open()
            assert await all_of(second, waiting, third) == [["B"], ["C", "D"], ["H"]]

    play(scenario)


def test_a_request_of_too_many_tokens_fails_alone() -> None:
    gate = Gate()

    async def scenario() -> None:
        with scheduler_of(gate, limits=Limits(tokens=10)) as scheduler:
            large, small = scheduler.submit(["seven77", "four"], NEVER), scheduler.submit(["ten tokens"], NEVER)
            with pytest.raises(TooManyTokensError) as refused:
                await large
            assert refused.value.most == 10
            gate.open()
            assert (await small).answers == ["TEN TOKENS"]

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
