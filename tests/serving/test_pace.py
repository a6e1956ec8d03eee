"""What a model's last batches say of the next ones."""

import pytest

from serving.pace import CAUTION, EBB, MOST_EBB, STALL, Pace


def paced(*batches: tuple[int, float], share: int = 1) -> Pace:
    """After batches of so many items that took so many seconds."""
    pace = Pace()
    for items, seconds in batches:
        pace.learn(items, seconds, share)
    return pace


def test_nothing_is_foretold_before_the_first_batch() -> None:
    assert (Pace().seconds_per_item, Pace().seconds_per_run) == (0, 0)
    assert not Pace().late(0.0, 0.001)


def test_a_large_batch_says_more_of_an_item_than_small_ones() -> None:
    """Else a queue that is filled after a quiet hour would be thought three times as long as it is."""
    quiet = [(1, 0.014)] * 50
    assert paced(*quiet).seconds_per_item == pytest.approx(0.014)
    assert paced(*quiet, (32, 0.112)).seconds_per_item == pytest.approx((0.8 * 0.014 + 0.2 * 0.112) / (0.8 + 0.2 * 32))
    busy = [(32, 0.112)] * 50
    assert paced(*busy, (1, 0.014)).seconds_per_item < 1.05 * 0.112 / 32


def test_batches_that_share_the_device_take_their_part_of_it() -> None:
    pace = paced((10, 2.0), share=2)
    assert (pace.seconds_per_item, pace.seconds_per_run) == (0.1, 2.0)


def test_a_batch_that_was_held_up_counts_for_no_more_than_a_slow_one() -> None:
    steady = [(4, 1.0)] * 20
    assert paced(*steady, (4, 600.0)).seconds_per_item == pytest.approx((0.8 + 0.2 * STALL) / 4)


def test_what_a_batch_took_is_told_without_what_held_it_up() -> None:
    assert Pace().without_stall(600.0) == 600.0, "nobody knows yet what batches take"
    assert paced((4, 1.0)).without_stall(1.5) == 1.5
    assert paced((4, 1.0)).without_stall(600.0) == STALL


def test_what_would_come_after_its_time_is_late() -> None:
    pace = paced((1, 1.0))
    assert pace.late(4.0, CAUTION * 5.0 - 0.01)
    assert not pace.late(4.0, CAUTION * 5.0 + 0.01)


def test_a_full_queue_is_not_filled_again_at_once() -> None:
    pace = paced((1, 0.1))
    assert pace.ebb(1.0, running=0.0) == EBB
    assert pace.ebb(60.0, running=0.0) == MOST_EBB
    assert pace.ebb(0.1, running=0.02) == pytest.approx(0.08), "no room is made before a batch ends"
