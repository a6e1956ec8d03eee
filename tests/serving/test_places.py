"""Who goes in when there are fewer places than texts."""

import asyncio
import math
import time

import pytest

from serving.outcomes import ExpiredError
from serving.places import Entrance
from serving.turns import Turns


async def settled() -> None:
    """Whoever could go on has."""
    for _ in range(10):
        await asyncio.sleep(0)


def test_who_asks_a_lot_delays_nobody_else() -> None:
    async def scenario() -> None:
        entrance, entered = Entrance(2), []

        async def come(owner: str, number: int) -> None:
            await entrance.enter(owner, math.inf)
            entered.append((owner, number))

        coming = [asyncio.ensure_future(come("many", number)) for number in range(6)]
        await settled()
        coming += [asyncio.ensure_future(come("one", number)) for number in range(2)]
        await settled()
        assert entered == [("many", 0), ("many", 1)]
        for _ in range(6):
            entrance.leave()
            await settled()
        await asyncio.gather(*coming)
        assert entered[2:] == [("many", 2), ("one", 0), ("many", 3), ("one", 1), ("many", 4), ("many", 5)]

    asyncio.run(scenario())


def test_whoever_gives_up_takes_no_place() -> None:
    async def scenario() -> None:
        entrance = Entrance(1)
        await entrance.enter(None, math.inf)
        with pytest.raises(ExpiredError):
            await entrance.enter(None, time.monotonic())
        gone = asyncio.ensure_future(entrance.enter(None, math.inf))
        this_moment = asyncio.ensure_future(entrance.enter(None, math.inf))
        stays = asyncio.ensure_future(entrance.enter(None, math.inf))
        await settled()
        gone.cancel()
        await settled()
        entrance.leave()  # lets in the second one, which gives up before it hears
        this_moment.cancel()
        await asyncio.wait_for(stays, 30)
        assert gone.cancelled()
        assert this_moment.cancelled()

    asyncio.run(scenario())


def test_turns_that_have_been_are_not_remembered() -> None:
    turns = Turns()
    assert (turns.take("a", 3), turns.take("b", 1), turns.next("a"), turns.waiting("a")) == (1, 1, 4, 3)
    assert (turns.owners, turns.part(9, "b"), turns.part(9, "c")) == (2, 4, 3)
    turns.advance(2)
    assert (turns.owners, turns.waiting("a"), turns.next("b")) == (1, 1, 3)
    turns.advance(1)
    assert turns.present == 2
