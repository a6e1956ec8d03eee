"""The memory that a worker will take, told from shapes, against what a real step keeps."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pytest
import torch

from training.data.fuse import fuse, inspect
from training.encode import encode
from training.loop import make_trainee
from training.memory import Memory, counted, foretold, most_held, storage_of
from training.models.adapt import read_adapt
from training.preflight import needs, plan
from training.recipe import Recipe

CPU = torch.device("cpu")
MakeRecipe = Callable[..., Recipe]


def memory_of(recipe: Recipe, workers: int = 1) -> Memory:
    return foretold(recipe, inspect(recipe, 10_000).tables, workers)


@pytest.mark.parametrize("adapt", ["full", "head", {"lora": {"r": 4}}])
def test_it_is_what_a_real_step_keeps(make_recipe: MakeRecipe, adapt: Any) -> None:
    recipe = make_recipe(model={"adapt": adapt}, train={"batch_size": 32})
    told = memory_of(recipe)
    encoded = encode(recipe, fuse(recipe))
    trainee = make_trainee(encoded, recipe.train, read_adapt(adapt), CPU)
    model, rows = trainee.model.train(), encoded.split("train")
    batch = encoded.task.collate(rows.examples((-rows.lengths).argsort(kind="stable")[:32]))
    known = {storage_of(one) for one in (*model.parameters(), *model.buffers(), *batch.values())}
    with counted(known) as kept:
        outputs = encoded.task.forward(model, batch)
        encoded.task.loss(outputs, batch).sum()
    assert told.activations == sum(kept.values()) + 2 * outputs.nbytes
    assert told.weights == sum(one.nbytes for one in model.parameters())
    assert told.gradients == sum(one.nbytes for one in model.parameters() if one.requires_grad)


def test_what_makes_it_more_and_less(make_recipe: MakeRecipe) -> None:
    whole = memory_of(make_recipe(train={"batch_size": 64}))
    shared = memory_of(make_recipe(train={"batch_size": 64}), workers=2)
    assert shared.activations == pytest.approx(whole.activations / 2, rel=0.1)
    assert (whole.exchanged, shared.exchanged) == (0, whole.gradients)
    again = memory_of(make_recipe(train={"batch_size": 64, "activation_checkpointing": True}))
    assert again.activations < 0.5 * whole.activations
    parts = memory_of(make_recipe(train={"batch_size": 64, "tokens_per_device": 100}))
    assert parts.in_parts and parts.activations < 0.2 * whole.activations
    assert parts.peak - parts.process == parts.weights + parts.moments + parts.gradients + parts.activations
    assert memory_of(make_recipe(train={"batch_size": 64, "precision": "bf16"})).activations < whole.activations


def test_check_tells_it_or_why_it_cannot(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe()
    told = needs(recipe, inspect(recipe, 100).tables, plan(recipe)["workers"])["memory of a worker (MiB)"]
    assert told["at its fullest"] >= told["program"] > 0
    tables = inspect(recipe, 100).tables
    one_label = {name: table.filter(pc.equal(table["topic"], "billing")) for name, table in tables.items()}
    assert needs(recipe, one_label, 1)["memory of a worker"].startswith("not to be told from this sample: ")


def test_a_new_base_needs_no_weights_to_be_told_of(make_recipe: MakeRecipe, home: Path) -> None:
    new = {"type": "bert", "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 96}
    recipe = make_recipe(model={"base": {"new": new, "tokenizer": "train", "vocabulary": 300}})
    told = memory_of(recipe)
    encoded = encode(recipe, fuse(recipe))
    model = encoded.task.build(encoded.base)
    assert told.weights == pytest.approx(sum(one.nbytes for one in model.parameters()), rel=0.1)
    assert told.activations > 0


def test_what_a_process_has_held_only_grows() -> None:
    before = most_held(CPU)
    held = torch.ones(50_000_000)
    assert most_held(CPU) >= before
    assert most_held(CPU) >= held.nbytes
