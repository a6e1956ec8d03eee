"""Several lanes of one scheduler: what each takes, and that none waits for another."""

import threading

import pytest

from serving.batching import Limits
from tests.serving.gate import NEVER, Gate, all_are_ready, all_of, play, scheduler_of


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

    play(scenario)


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

    play(scenario)


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

    play(scenario)


def test_what_comes_alone_always_goes_to_the_first_lane() -> None:
    gate = Gate()
    lanes: list[str] = []

    async def scenario() -> None:
        gate.open()
        told = lambda share: lanes.append(threading.current_thread().name)  # noqa: E731
        with scheduler_of(gate, lanes=3, share=told) as scheduler:
            for _ in range(20):
                await scheduler.submit(["a"], NEVER)
            await all_of(*(scheduler.submit([letter], NEVER) for letter in "abcdef"))
            rush = len(lanes)
            for _ in range(20):
                await scheduler.submit(["a"], NEVER)
            assert set(lanes[:20] + lanes[rush:]) == {"run-0"}

    play(scenario)


def test_what_a_lane_leaves_over_is_taken_by_the_next_one_also_at_the_end() -> None:
    gate = Gate()

    async def scenario() -> None:
        with scheduler_of(gate, lanes=3, limits=Limits(budget=30)) as scheduler:
            unlike = [scheduler.submit(["a" * length], NEVER) for length in (1, 29, 30)]
            for _ in unlike:
                await gate.busy()  # each by another lane, as no two fit one batch
            late = scheduler.submit(["late"], NEVER)
            scheduler.close()
            gate.open()
            assert await all_of(*unlike, late) == [["A"], ["A" * 29], ["A" * 30], ["LATE"]]

    play(scenario)
