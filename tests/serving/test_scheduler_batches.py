"""What the scheduler makes a batch of, in whose turn, and what comes of it."""

import asyncio

from serving.batching import Limits
from serving.outcomes import Answered, Batch
from serving.pace import STALL
from serving.returns import LINGER, Returns
from serving.scheduler import Scheduler
from tests.serving.gate import NEVER, UNPREPARABLE, Gate, all_are_ready, all_of, play, scheduler_of


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


async def two_are_answered(gate: Gate, scheduler: Scheduler, seconds: float, times: int = 100) -> None:
    """The only lane has computed two items, in so many seconds; the gate stays open for so many batches in all."""
    both = scheduler.submit(["a", "b"], NEVER)
    await gate.busy()
    gate.now += seconds
    gate.open(times)
    await both


def test_those_who_were_answered_a_moment_ago_are_one_batch_again() -> None:
    gate = Gate()

    async def scenario() -> None:
        with scheduler_of(gate, returns=Returns(share=1.0)) as scheduler:
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
        with scheduler_of(gate, returns=Returns(share=1.0)) as scheduler:
            await two_are_answered(gate, scheduler, 1000)
            gate.now += 1001 * LINGER
            assert (await scheduler.submit(["c"], NEVER)).answers == ["C"]
        assert gate.batches == [["a", "b"], ["c"]]

    play(scenario)


def test_after_a_batch_that_was_held_up_nobody_is_waited_for_any_longer() -> None:
    gate = Gate()

    async def scenario() -> None:
        with scheduler_of(gate, returns=Returns(share=1.0)) as scheduler:
            await two_are_answered(gate, scheduler, 1, times=1)
            await two_are_answered(gate, scheduler, 1000)
            gate.now += 1.01 * STALL * LINGER
            assert (await scheduler.submit(["c"], NEVER)).answers == ["C"]
        assert gate.batches == [["a", "b"], ["a", "b"], ["c"]]

    play(scenario)


def test_nobody_is_waited_for_where_clients_do_not_come_back() -> None:
    gate = Gate()

    async def scenario() -> None:
        with scheduler_of(gate, returns=Returns(share=0.0)) as scheduler:
            await two_are_answered(gate, scheduler, 1000)
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


def test_who_leaves_pays_for_what_was_computed_and_for_nothing_else() -> None:
    gate = Gate()
    spent: list[int] = []

    async def scenario() -> None:
        with scheduler_of(gate, limits=Limits(items=1)) as scheduler:
            left = scheduler.submit(["four", "and three"], NEVER, "who left", spent.append)
            await gate.busy()
            left.cancel()
            other = scheduler.submit(["a"], NEVER, "who stays")
            gate.open()
            assert (await other).answers == ["A"]
        assert gate.batches == [["four"], ["a"]]
        assert spent == [len("four")]

    play(scenario)
