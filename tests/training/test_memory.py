"""The memory that a worker will take, told from shapes, against what a real step takes."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pytest
import torch
from torch.distributed._tools.mem_tracker import MemTracker

from cluster.errors import UserError
from training.data.fuse import fuse, inspect
from training.encode import encode
from training.loop import make_trainee
from training.memory import SCATTERED, Memory, foretold, learned_from, most_held
from training.preflight import plan, rehearse
from training.recipe import Recipe

CPU = torch.device("cpu")
MakeRecipe = Callable[..., Recipe]


def memory_of(recipe: Recipe, workers: int = 1) -> Memory:
    with learned_from(recipe, inspect(recipe, 10_000).tables) as learned:
        return foretold(recipe, learned, workers)


def test_it_is_what_a_real_step_takes(make_recipe: MakeRecipe) -> None:
    """PyTorch's own tracker is the reference; it takes no model with weights that stay."""
    recipe = make_recipe(train={"batch_size": 32})
    told = memory_of(recipe)
    encoded = encode(recipe, fuse(recipe))
    trainee = make_trainee(encoded, recipe.train, "full", CPU)
    model, rows = trainee.model.train(), encoded.split("train")
    batch = encoded.task.collate(rows.examples((-rows.lengths).argsort(kind="stable")[:32]))
    tracker = MemTracker()
    tracker.track_external(model, trainee.optimizer)
    with tracker:
        for _ in range(2):
            tracker.reset_mod_stats()
            encoded.task.loss(encoded.task.forward(model, batch), batch).sum().backward()  # type: ignore[no-untyped-call]
            trainee.optimizer.step()
            trainee.optimizer.zero_grad()
    taken = tracker.get_tracker_snapshot("peak")[CPU]["Total"]
    assert told.weights + told.optimizer + told.step / SCATTERED == pytest.approx(taken, rel=0.02)
    assert told.weights == sum(one.nbytes for one in (*model.parameters(), *model.buffers()))


def test_what_makes_it_more_and_less(make_recipe: MakeRecipe) -> None:
    whole = memory_of(make_recipe(train={"batch_size": 64}))
    for fewer in ("head", {"lora": {"r": 4}}):
        assert memory_of(make_recipe(model={"adapt": fewer}, train={"batch_size": 64})).peak < whole.peak
    shared = memory_of(make_recipe(train={"batch_size": 64}), workers=2)
    assert shared.step == pytest.approx(whole.step / 2, rel=0.1)
    assert shared.optimizer > whole.optimizer
    again = memory_of(make_recipe(train={"batch_size": 64, "activation_checkpointing": True}))
    assert again.step < 0.7 * whole.step
    parts = memory_of(make_recipe(train={"batch_size": 64, "tokens_per_device": 100}))
    assert parts.step < 0.2 * whole.step
    assert memory_of(make_recipe(train={"batch_size": 64, "precision": "bf16"})).step < whole.step


def test_check_tells_it_or_why_it_cannot(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe()
    sample = inspect(recipe, 100)
    told = rehearse(recipe, sample, plan(recipe)["workers"]).needs["memory of a worker (MiB)"]
    assert told["at its fullest"] >= told["program"] > 0
    one_label = {name: table.filter(pc.equal(table["topic"], "billing")) for name, table in sample.tables.items()}
    lacking = replace(sample, tables=one_label)
    assert sample.report["sampled"] == ["sentences"]
    assert rehearse(recipe, lacking, 1).needs["memory of a worker"].startswith("not to be told beforehand: ")
    with pytest.raises(UserError, match="has 1 label"):
        rehearse(recipe, replace(lacking, report={**sample.report, "sampled": []}), 1)


EXPERTS = {
    "type": "mixtral",
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "num_local_experts": 2,
}


@pytest.mark.parametrize(
    ("sections", "reason"),
    [
        ({"train": {"strategy": "fsdp"}}, "fsdp parts the model over the workers"),
        ({"model": {"base": {"new": EXPERTS, "tokenizer": "train", "vocabulary": 300}}}, "shapes alone do not tell"),
    ],
)
def test_what_shapes_do_not_tell_is_said(make_recipe: MakeRecipe, sections: Any, reason: str) -> None:
    recipe = make_recipe(**sections)
    assert reason in rehearse(recipe, inspect(recipe, 100), 1).needs["memory of a worker"]


def test_a_new_base_needs_no_weights_to_be_told_of(make_recipe: MakeRecipe, home: Path) -> None:
    new = {"type": "bert", "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 96}
    recipe = make_recipe(model={"base": {"new": new, "tokenizer": "train", "vocabulary": 300}})
    told = memory_of(recipe)
    encoded = encode(recipe, fuse(recipe))
    model = encoded.task.build(encoded.base)
    assert told.weights == pytest.approx(sum(one.nbytes for one in model.parameters()), rel=0.1)
    assert told.step > 0


def test_what_a_process_has_held_only_grows() -> None:
    before = most_held(CPU)
    held = torch.ones(50_000_000)
    assert most_held(CPU) >= max(before, held.nbytes)
