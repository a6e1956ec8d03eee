"""Batches: every row once, hardly any padding, and shares that add up for any number of workers."""

from typing import Any

import numpy as np
import pytest

from training.batches import by_length, epoch_batches, share

LENGTHS = np.random.default_rng(1).geometric(0.06, size=5_003).clip(3, 98)


@pytest.mark.parametrize(("rows", "batch_size"), [(5_003, 32), (31, 32), (1, 8), (1_601, 16)])
def test_every_row_is_in_one_batch_and_the_last_partial_one_is_kept(rows: int, batch_size: int) -> None:
    batches = epoch_batches(LENGTHS[:rows], batch_size, seed=7, epoch=0)
    assert sorted(np.concatenate(batches).tolist()) == list(range(rows))
    assert len(batches) == -(-rows // batch_size)
    assert sum(len(batch) < batch_size for batch in batches) <= 1


def test_the_plan_follows_from_seed_and_epoch_alone() -> None:
    first, again = epoch_batches(LENGTHS, 32, 7, 1), epoch_batches(LENGTHS, 32, 7, 1)
    assert all((one == other).all() for one, other in zip(first, again, strict=True))
    assert not np.array_equal(np.concatenate(first), np.concatenate(epoch_batches(LENGTHS, 32, 7, 2)))


def test_padding_is_small_beside_random_batches() -> None:
    def padded(batches: list[Any]) -> float:
        return sum(int(LENGTHS[batch].max()) * len(batch) for batch in batches) / int(LENGTHS.sum())

    at_random = np.array_split(np.random.default_rng(2).permutation(len(LENGTHS)), len(LENGTHS) // 32)
    assert padded(epoch_batches(LENGTHS, 32, 7, 0)) < 1.15 < 2 < padded(at_random)
    assert padded(by_length(LENGTHS, 32)) < 1.02


@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize("rows", [1, 2, 3, 32])
def test_the_mean_over_workers_of_weighted_sums_is_the_mean_over_the_batch(rows: int, world: int) -> None:
    batch = np.arange(rows)
    losses = np.random.default_rng(3).random(rows)
    shares = [share(batch, rank, world) for rank in range(world)]
    assert all(len(own) for own, _ in shares), "every worker must take part in the exchange"
    assert sum(losses[own].sum() * weight for own, weight in shares) / world == pytest.approx(losses.mean())
