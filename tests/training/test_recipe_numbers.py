"""Numbers of a recipe that a run could not compute with, and what is said of them."""

from pathlib import Path
from typing import Any

import pytest

from cluster.errors import RecipeError
from headrace import load_recipe

GOOD = """\
name: support-intent
data: {sources: {tickets: {read: tickets.jsonl}}}
model: {task: text-classification, base: unused, inputs: {text: text}, target: intent}
"""
HUGE = "99999999999999999999"
SEED = f"input should be less than or equal to 4294967295, not {HUGE}"
COUNT = "input should be less than or equal to 1000000000, not "
NO_TRUTH = "a number is needed, not "

WRONG = {
    f"train.seed={HUGE}": SEED,
    f"data.split.seed={HUGE}": SEED,
    f"train.epochs={HUGE}": COUNT + HUGE,
    "train.epochs=1000000001": COUNT + "1000000001",
    f"train.batch_size={HUGE}": COUNT + HUGE,
    f"train.checkpoint_every={HUGE}": COUNT + HUGE,
    f"train.max_failures={HUGE}": COUNT + HUGE,
    f"train.tokens_per_device={HUGE}": COUNT + HUGE,
    f"train.workers={HUGE}": COUNT + HUGE,
    f"train.early_stopping.patience={HUGE}": COUNT + HUGE,
    f"model.max_length={HUGE}": COUNT + HUGE,
    f"serve.max_queue={HUGE}": COUNT + HUGE,
    f"serve.replicas.max={HUGE}": COUNT + HUGE,
    "train.learning_rate=.inf": "input should be a finite number, not inf",
    "train.learning_rate=.nan": "input should be a finite number, not nan",
    "train.weight_decay=1e999": "input should be a finite number, not '1e999'",
    "serve.timeout_seconds=.inf": "input should be a finite number, not inf",
    "train.epochs=.inf": "input should be a finite number, not inf",
    "train.epochs=true": NO_TRUTH + "True",
    "train.seed=false": NO_TRUTH + "False",
    "train.seed=no": "input should be a valid integer, unable to parse string as an integer, not 'no'",
    "train.learning_rate=true": NO_TRUTH + "True",
    "train.tokens_per_device=true": NO_TRUTH + "True",
    "train.workers=true": "a whole number from 1 up, or auto, not True",
    "data.max_rejected=true": NO_TRUTH + "True",
    "serve.max_items=true": NO_TRUTH + "True",
}

SEARCHED = {
    f"tune.seed={HUGE}": ("tune.seed", SEED),
    f"tune.trials={HUGE}": ("tune.trials", COUNT + HUGE),
    "tune.trials=true": ("tune.trials", NO_TRUTH + "True"),
    "tune.search={train.warmup: {uniform: [false, 0.5]}}": (
        "tune.search.train.warmup.uniform",
        NO_TRUTH + "[False, 0.5]",
    ),
    "tune.search={train.learning_rate: {log_uniform: [1.0e-5, .inf]}}": (
        "tune.search.train.learning_rate.log_uniform.1",
        "input should be a finite number, not inf",
    ),
}


def problems(folder: Path, *overrides: str) -> list[str]:
    path = folder / "recipe.yaml"
    path.write_text(GOOD, encoding="utf-8")
    with pytest.raises(RecipeError) as raised:
        load_recipe(path, overrides)
    return raised.value.problems


@pytest.mark.parametrize(("override", "message"), WRONG.items())
def test_a_number_that_no_run_can_compute_with_is_refused(tmp_path: Path, override: str, message: str) -> None:
    assert problems(tmp_path, override) == [f"command line {override.partition('=')[0]}: {message}"]


@pytest.mark.parametrize(("override", "told"), SEARCHED.items())
def test_a_sweep_refuses_them_too(tmp_path: Path, override: str, told: tuple[str, str]) -> None:
    search = "tune.search={train.warmup: {uniform: [0, 0.5]}}"
    assert problems(tmp_path, search, override) == [f"command line {told[0]}: {told[1]}"]


@pytest.mark.parametrize(
    ("override", "section", "value"),
    [
        ("train.learning_rate=1e-5", "train", {"learning_rate": 1e-5}),
        ("train.epochs='4'", "train", {"epochs": 4}),
        ("train.seed=4294967295", "train", {"seed": 2**32 - 1}),
        ("train.compile=true", "train", {"compile": True}),
        ("data.clean.allowed={paid: [true, 1]}", "data", {}),
        ("serve.memory=4GiB", "serve", {"memory": 4 * 1024**3}),
    ],
)
def test_what_means_a_number_still_is_one(tmp_path: Path, override: str, section: str, value: dict[str, Any]) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(GOOD, encoding="utf-8")
    recipe, _ = load_recipe(path, [override])
    read = getattr(recipe, section).model_dump()
    assert {key: read[key] for key in value} == value
