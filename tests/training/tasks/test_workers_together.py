"""Tasks whose targets are not one to a row, on several workers: whole on each, in parts of a batch, or a part on each.

Real processes that talk over gloo; ``test_strategy.py`` has the same for one label a row, with more ways of spreading.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.training.tasks.desk import CPU, GPT2, desk_recipe
from tests.training.tasks.marked import spans_recipe, spans_table
from tests.training.tasks.shapes import picture_recipe, write_pictures
from tests.training.together import together
from training.data.fuse import fuse
from training.encode import encode, open_encoded
from training.loop import make_trainee, predict, train
from training.recipe import Recipe, Train

PARTS = {"tokens_per_device": 64}
FSDP = {"strategy": "fsdp"}
WAYS: dict[str, dict[str, Any]] = {"ddp": {}, "parts": PARTS, "fsdp": FSDP, "fsdp in parts": FSDP | PARTS}
BERT = {
    "type": "bert",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 96,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}


def learned(data: Path, base: Path, options: Train) -> tuple[list[float], list[list[float]]]:
    """Each step's loss, and at the end what is said of the test rows."""
    encoded = open_encoded(data, base)
    trainee = make_trainee(encoded, options, "full", CPU)
    losses = [moment.loss for moment in train(trainee, encoded)]
    return losses, [output.tolist() for output in predict(trainee, encoded.split("test"), final=True)]


def worker(rank: int, data: Path, base: Path, options: Train, folder: Path) -> None:
    for way, changes in WAYS.items():
        found = learned(data, base, options.model_copy(update=changes))
        if rank == 0:
            torch.save(found, folder / f"{way}.pt")


def alone_and_together(
    recipe: Recipe, folder: Path
) -> tuple[list[list[float]], dict[str, tuple[list[float], list[list[float]]]]]:
    """What one worker says; and what two say and lose, by the way they share the work."""
    encoded = encode(recipe, fuse(recipe))
    losses, said = learned(encoded.folder, encoded.base, recipe.train)
    in_parts, _ = learned(encoded.folder, encoded.base, recipe.train.model_copy(update=PARTS))
    assert in_parts == pytest.approx(losses, rel=1e-3)
    together(2, worker, folder, encoded.folder, encoded.base, recipe.train, folder)
    others = {way: torch.load(folder / f"{way}.pt", weights_only=True) for way in WAYS}
    for way, (other_losses, _) in others.items():
        assert other_losses == pytest.approx(losses, rel=1e-3), way
    return said, others


def test_workers_write_the_same_together(tmp_path: Path, home: Path) -> None:
    """Also that none waits for ever for one that has written its texts to the end; the rows are dealt out unevenly."""
    recipe = desk_recipe(tmp_path, "text-generation", GPT2, train={"epochs": 4, "learning_rate": 1e-2})
    said, others = alone_and_together(recipe, tmp_path)
    assert len({len(one) for one in said}) > 1, "texts of several lengths"
    for _, other_said in others.values():
        ours, theirs = (np.array([one[:2] for one in rows]) for rows in (said, other_said))
        np.testing.assert_allclose(theirs, ours, rtol=1e-2, atol=1e-2)
        same = [one[2:] == other[2:] for one, other in zip(said, other_said, strict=True)]
        assert np.mean(same) > 0.9, "but where two words were almost equally likely"


def test_workers_mark_the_same_together(tmp_path: Path, home: Path) -> None:
    """A row has as many targets as words, and several windows where it is long."""
    lines = [json.dumps(row) for row in spans_table(90).to_pylist()]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines), encoding="utf-8")
    said, others = alone_and_together(
        spans_recipe(tmp_path, {"new": BERT, "tokenizer": "train", "vocabulary": 300}), tmp_path
    )
    assert sum(map(len, said)) > 0, "something is found"
    for _, other_said in others.values():
        for ours, theirs in zip(said, other_said, strict=True):
            np.testing.assert_allclose(theirs, ours, rtol=1e-2, atol=1e-2)


RESNET = {"type": "resnet", "layer_type": "basic", "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}


def each_measures(rank: int, data: Path, base: Path, options: Train, folder: Path) -> None:
    """What a worker says of every row, of those that all say together, and the model that it would keep."""
    trainee = make_trainee(encoded := open_encoded(data, base), options, "full", CPU)
    list(train(trainee, encoded))
    said = predict(trainee, encoded.split("test"))
    trainee.rank, trainee.world = 0, 1
    own = predict(trainee, encoded.split("test"))
    torch.save([torch.tensor(np.array(outputs)) for outputs in (said, own)], folder / f"{rank}.pt")


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_what_is_measured_is_the_model_that_is_kept(tmp_path: Path, home: Path, strategy: str) -> None:
    """Running means are each worker's own while it learns, and those of one are kept."""
    write_pictures(tmp_path)
    recipe = picture_recipe(tmp_path, tmp_path, model={"base": {"new": RESNET, "tokenizer": None}}, train={"epochs": 2})
    encoded = encode(recipe, fuse(recipe))
    options = recipe.train.model_copy(update={"strategy": strategy, "early_stopping": None})
    together(2, each_measures, tmp_path, encoded.folder, encoded.base, options, tmp_path)
    (said, kept), (said_there, other) = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert torch.equal(said, said_there)
    torch.testing.assert_close(said, kept)
    torch.testing.assert_close(other, kept)
