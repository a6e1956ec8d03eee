"""A model that writes, on several workers: whole on each, or a part on each. Real processes that talk over gloo."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.training.tasks.desk import CPU, GPT2, desk_recipe
from tests.training.together import together
from training.data.fuse import fuse
from training.encode import encode, open_encoded
from training.loop import make_trainee, predict, train
from training.recipe import Train

STRATEGIES = ("ddp", "fsdp")


def learned(data: Path, base: Path, options: Train) -> tuple[list[float], list[list[float]]]:
    """Each step's loss, and at the end what is said of the test rows: an odd number, which is dealt out unevenly."""
    encoded = open_encoded(data, base)
    trainee = make_trainee(encoded, options, "full", CPU)
    losses = [moment.loss for moment in train(trainee, encoded)]
    return losses, [output.tolist() for output in predict(trainee, encoded.split("test"), final=True)]


def worker(rank: int, data: Path, base: Path, options: Train, folder: Path) -> None:
    for strategy in STRATEGIES:
        found = learned(data, base, options.model_copy(update={"strategy": strategy}))
        if rank == 0:
            torch.save(found, folder / f"{strategy}.pt")


def test_workers_learn_and_write_the_same_together(tmp_path: Path, home: Path) -> None:
    """Also that none waits for ever for one that has written its texts to the end."""
    recipe = desk_recipe(tmp_path, "text-generation", GPT2, train={"epochs": 4, "learning_rate": 1e-2})
    encoded = encode(recipe, fuse(recipe))
    losses, said = learned(encoded.folder, encoded.base, recipe.train)
    assert len({len(one) for one in said}) > 1, "texts of several lengths"
    together(2, worker, tmp_path, encoded.folder, encoded.base, recipe.train, tmp_path)
    for strategy in STRATEGIES:
        other_losses, other_said = torch.load(tmp_path / f"{strategy}.pt", weights_only=True)
        assert other_losses == pytest.approx(losses, rel=1e-3)
        ours, theirs = (np.array([one[:2] for one in rows]) for rows in (said, other_said))
        np.testing.assert_allclose(theirs, ours, rtol=1e-2, atol=1e-2)
        same = [one[2:] == other[2:] for one, other in zip(said, other_said, strict=True)]
        assert np.mean(same) > 0.9, "but where two words were almost equally likely"
