"""What is learned of clients: in a loop, at random moments, and some of each. Time is the test's own."""

import random

import pytest

from serving.returns import LINGER, WORTH, Returns

BATCHES = 200
SECONDS = 0.04
"""What a batch takes."""


def learned(rate: float, looping: int, back: float = 0.003, lanes: int = 1) -> float:
    """The share after many batches, of lanes that run side by side and keep no time with one another.

    Args:
        rate: items a second that come at random moments.
        looping: clients of each lane that ask again ``back`` seconds after they were answered.
    """
    chance, returns = random.Random(5), Returns()
    events: list[tuple[float, int, float]] = []  # when; how many came, or none: then a lane ends a batch of so long
    time = 0.0
    while rate and time < BATCHES * SECONDS:
        time += chance.expovariate(rate)
        events.append((time, 1, 0.0))
    for lane in range(lanes):
        took = SECONDS * (1 + 0.03 * lane)
        for turn in range(1, BATCHES):
            events += [(turn * took, 0, took), (turn * took + back, looping, 0.0)]
    items = max(1, looping + round(rate * SECONDS / lanes))
    for now, came, took in sorted(events):
        returns.came(came, now)
        if took:
            returns.learn(items, now - took, took, now)
    return returns.share


@pytest.mark.parametrize("lanes", [1, 2, 4])
def test_clients_in_a_loop_are_worth_a_moment(lanes: int) -> None:
    assert learned(rate=0, looping=16, lanes=lanes) > 1.5 * WORTH


@pytest.mark.parametrize("rate", [20, 500, 5000])
@pytest.mark.parametrize("lanes", [1, 2])
def test_clients_that_come_at_random_are_not(rate: float, lanes: int) -> None:
    assert abs(learned(rate=rate, looping=0, lanes=lanes)) < WORTH


def test_clients_that_need_longer_than_the_moment_are_not() -> None:
    assert learned(rate=0, looping=16, back=SECONDS * (LINGER + 0.1)) < WORTH


def test_a_moment_is_a_part_of_what_the_batch_took() -> None:
    assert Returns(share=1.0).moment(2.0) == pytest.approx(2.0 * LINGER)
    assert Returns(share=0.0).moment(2.0) == 0.0


def test_nothing_is_learned_before_the_moment_is_over() -> None:
    returns = Returns()
    returns.came(8, 1.1)
    returns.learn(8, ended=1.0, seconds=1.0, now=1.0 + 0.9 * LINGER)
    assert returns.share == 0.0
