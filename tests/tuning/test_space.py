"""What may be searched, and what is said of everything else before anything runs."""

from pathlib import Path

import pytest
from pydantic import BaseModel

from cluster.errors import RecipeError
from cluster.settings import Document, read
from training.recipe import Lora, Recipe
from tuning.recipe import Tune
from tuning.space import Space, apply, check_search, own_params, searchable


class Settings(BaseModel):
    """As much of a recipe file as these tests need."""

    tune: Tune


def read_tune(folder: Path, text: str, *overrides: str) -> tuple[Tune, Document]:
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    document = read(path, overrides)
    return document.validate(Settings).tune, document


def problems_of(folder: Path, search: str, more: str = "") -> list[str]:
    tune, document = read_tune(folder, f"tune:\n  search:\n    {search}\n{more}")
    return check_search(tune, document)


@pytest.mark.parametrize(
    ("search", "message"),
    [
        ("train.learning_rat: {uniform: [0.1, 0.2]}", "no field of the recipe, did you mean 'train.learning_rate'?"),
        ("train.lr: {uniform: [0.1, 0.2]}", "no field of the recipe, did you mean 'train.learning_rate'?"),
        ("train.batch: {choice: [8, 16]}", "no field of the recipe, did you mean 'train.batch_size'?"),
        ("learning_rate: {uniform: [0.1, 0.2]}", "no field of the recipe, did you mean 'train.learning_rate'?"),
        ("train.epochs: {uniform: [1, 5]}", "takes whole numbers; use int_uniform instead of uniform"),
        ("train.batch_size: {log_uniform: [8, 64]}", "takes whole numbers; use int_uniform instead of log_uniform"),
        (
            "train.epochs: {int_uniform: [0, 3]}",
            "int_uniform reaches 0, and the field does not take it: input should be greater than or equal to 1",
        ),
        (
            "train.warmup: {uniform: [0.0, 1.0]}",
            "uniform reaches 1.0, and the field does not take it: input should be less than 1",
        ),
        (
            "train.schedule: {choice: [linear, cosin]}",
            "choice reaches 'cosin', and the field does not take it: input should be 'linear', 'cosine' or 'constant'",
        ),
        (
            "model.adapt: {choice: [full, {lorra: {r: 8}}]}",
            "choice reaches {'lorra': {'r': 8}}, and the field does not take it: "
            "full, head, {lora: …} or {freeze: …}, not {'lorra': {'r': 8}}",
        ),
        (
            "model.max_length: {int_uniform: [16, 64]}",
            "rows are encoded once for each of its values, so list them: {choice: [16, 64]}",
        ),
        ("name: {choice: [a, b]}", "cannot be searched: it says what the model is called, not how it learns"),
        ("data.split.seed: {choice: [1, 2]}", "cannot be searched: each trial would be measured on different rows"),
        ("data.sources.t.read: {choice: [a]}", "cannot be searched: each trial would be measured on different rows"),
        ("train.workers: {choice: [1, 2]}", "cannot be searched: it changes how fast a trial is, not what it learns"),
        (
            "serve.timeout_seconds: {choice: [1]}",
            "cannot be searched: it says how the model is hosted, not how it learns",
        ),
    ],
)
def test_a_range_that_cannot_be_searched(tmp_path: Path, search: str, message: str) -> None:
    name = search.partition(":")[0]
    assert problems_of(tmp_path, search) == [f"recipe.yaml:3 tune.search.{name}: {message}"]


def test_a_name_that_is_nothing_lists_what_there_is(tmp_path: Path) -> None:
    (problem,) = problems_of(tmp_path, "xyz: {choice: [1]}")
    assert problem.startswith("recipe.yaml:3 tune.search.xyz: no field of the recipe; searched can be model.base, ")
    assert "train.learning_rate" in problem
    assert " model.adapt, model.adapt.lora.r," in problem
    assert "train.workers" not in problem


RECIPE = """
name: x
data: {sources: {t: {read: t.csv}}}
model: {task: text-classification, base: b, inputs: {text: text}, target: y%s}
tune:
  search:
    %s
"""


@pytest.mark.parametrize(
    ("model", "search", "message"),
    [
        (
            ", adapt: {lora: {}}, bundle: adapter",
            "model.adapt: {choice: [full, head]}",
            "recipe.yaml:7 tune.search.model.adapt: the recipe does not take model.adapt: full: bundle: adapter leaves "
            "the base out, which adapt: full and freeze change; say lora or head",
        ),
        (
            ", adapt: {freeze: [layer]}",
            "model.adapt.lora.r: {choice: [4]}",
            "recipe.yaml:7 tune.search.model.adapt.lora.r: the recipe does not take model.adapt.lora.r: 4: "
            "full, head, {lora: …} or {freeze: …}, not {'freeze': ['layer'], 'lora': {'r': 4}}",
        ),
        (
            "",
            "model.bundle: {choice: [whole, adapter]}",
            "recipe.yaml:7 tune.search.model.bundle: the recipe does not take model.bundle: adapter: bundle: adapter "
            "leaves the base out, which adapt: full and freeze change; say lora or head",
        ),
        ("", "{model.bundle: {choice: [whole, adapter]}, model.adapt: {choice: [head]}}", None),
        ("", "model.adapt.lora.r: {choice: [4, 8]}", None),
        (
            "",
            "{model.adapt: {choice: [head]}, model.adapt.lora.r: {choice: [4, 8]}}",
            "recipe.yaml:7 tune.search.model.adapt.lora.r: stands within model.adapt, which is searched too; "
            "search one of them",
        ),
        (
            "",
            "train.epochs: {int_uniform: [1, 4]}",
            "recipe.yaml:7 tune.search.train.epochs: asha compares trials epoch by epoch, and one of few epochs has "
            "lowered its learning rate earlier; set tune.scheduler: none, or leave train.epochs out",
        ),
    ],
)
def test_values_that_do_not_go_with_the_rest_of_the_recipe(
    tmp_path: Path, model: str, search: str, message: str | None
) -> None:
    tune, document = read_tune(tmp_path, RECIPE % (model, search))
    assert check_search(tune, document) == ([message] if message else [])


def test_values_that_the_task_does_not_take(tmp_path: Path) -> None:
    text = RECIPE % ("", "model.adapt: {choice: [full, head]}")
    tune, document = read_tune(tmp_path, text.replace("text-classification", "fill-mask").replace(", target: y", ""))
    assert check_search(tune, document) == [
        "recipe.yaml:7 tune.search.model.adapt: the recipe does not take model.adapt: head: fill-mask puts no new "
        "weights on its base; use full, {lora: …} or {freeze: …}"
    ]


def test_a_recipes_own_values_are_known_where_they_lie_inside(tmp_path: Path) -> None:
    def own(search: dict[str, object]) -> dict[str, object] | None:
        return own_params(recipe, Space.of(Tune.model_validate({"search": search})))

    _, document = read_tune(tmp_path, RECIPE % (", adapt: {lora: {}}", "train.warmup: {choice: [0.1]}"))
    values = {name: value for name, value in document.values.items() if name != "tune"}
    recipe = Recipe.model_validate(values)
    inside = {"train.learning_rate": {"log_uniform": [1e-5, 1e-3]}, "model.adapt": {"choice": ["full", {"lora": {}}]}}
    assert own(inside) == {"train.learning_rate": 1e-4, "model.adapt": {"lora": {}}}
    assert own({"train.learning_rate": {"uniform": [0.01, 0.1]}}) is None
    assert own({"train.early_stopping.patience": {"int_uniform": [1, 3]}}) is None
    assert own({"model.adapt.lora.r": {"int_uniform": [4, 8]}}) == {"model.adapt.lora.r": 8}


def test_a_section_takes_the_place_of_a_word(tmp_path: Path) -> None:
    _, document = read_tune(tmp_path, RECIPE % ("", "train.warmup: {choice: [0.1]}"))
    recipe = Recipe.model_validate({name: value for name, value in document.values.items() if name != "tune"})
    adapt = apply(recipe, {"model.adapt.lora.r": 4}).model.adapt
    assert isinstance(adapt, Lora)
    assert adapt.lora.r == 4


@pytest.mark.parametrize(
    "search",
    [
        "train.learning_rate: {log_uniform: [1e-5, 5.0e-4]}",
        "train.epochs: {choice: [4]}",
        "train.early_stopping.patience: {int_uniform: [1, 4]}",
        "train.early_stopping: {choice: [null, {metric: accuracy, patience: 1}]}",
        "model.adapt: {choice: [full, head]}",
        "model.max_length: {choice: [32, null]}",
        "train.weight_decay: {uniform: [0, 0.1]}",
    ],
)
def test_a_range_that_can_be_searched(tmp_path: Path, search: str) -> None:
    assert problems_of(tmp_path, search) == []


def test_every_searchable_field_is_one_of_the_recipe() -> None:
    assert {"model.adapt", "train.learning_rate", "train.epochs", "train.early_stopping.patience"} <= set(searchable())
    assert not [name for name in searchable() if name.startswith(("data", "name"))]


def test_a_grid_of_ranges_or_of_too_many_is_refused(tmp_path: Path) -> None:
    grid = "  algorithm: grid\n  scheduler: none\n"
    assert problems_of(tmp_path, "train.warmup: {uniform: [0, 0.2]}", grid) == [
        "recipe.yaml:3 tune.search.train.warmup: a grid needs a list of values, {choice: […]}, not a range; "
        "or use algorithm: optuna or random"
    ]
    assert problems_of(tmp_path, "train.epochs: {int_uniform: [1, 9]}", grid + "  trials: 8\n") == [
        "recipe.yaml:6 tune.trials: the grid has 9 combinations and tune.trials is 8; raise it or list fewer"
    ]
    assert problems_of(tmp_path, "train.epochs: {int_uniform: [1, 8]}", grid + "  trials: 8\n") == []


def test_all_problems_come_at_once_and_an_override_says_so(tmp_path: Path) -> None:
    text = "tune:\n  search:\n    train.epochs: {uniform: [1, 5]}\n    train.x: {choice: [1]}\n"
    tune, document = read_tune(tmp_path, text, "tune.search.train.seed={int_uniform: [-1, 2]}")
    assert [problem.partition(": ")[0] for problem in check_search(tune, document)] == [
        "recipe.yaml:3 tune.search.train.epochs",
        "recipe.yaml:4 tune.search.train.x",
        "command line tune.search.train.seed",
    ]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("{}", "give exactly one of log_uniform, uniform, int_uniform, choice"),
        ("{uniform: [0, 1], choice: [1]}", "give exactly one of log_uniform, uniform, int_uniform, choice"),
        ("{uniform: [1, 1]}", "the low end must be below the high end, not [1.0, 1.0]"),
        ("{log_uniform: [0, 1]}", "log_uniform needs a low end above 0, not 0"),
        ("{log_unifrm: [0.1, 1]}", "unknown key, did you mean 'log_uniform'?"),
    ],
)
def test_a_range_that_is_none(tmp_path: Path, given: str, message: str) -> None:
    with pytest.raises(RecipeError) as raised:
        read_tune(tmp_path, f"tune:\n  search:\n    train.warmup: {given}\n")
    assert all(problem.startswith("recipe.yaml:3 tune.search.train.warmup") for problem in raised.value.problems)
    assert any(problem.endswith(message) for problem in raised.value.problems), raised.value.problems


def test_choices_are_read_as_the_recipe_reads_them() -> None:
    space = Space.of(Tune.model_validate({"search": {"train.learning_rate": {"choice": ["1e-5", 0.00001, 2e-4]}}}))
    assert space.dimensions[0].values == (1e-5, 2e-4)  # YAML reads 1e-5 as a text, and twice the same is once
    assert space.combinations() == 2


def test_encodings_are_the_combinations_of_what_rows_are_encoded_by() -> None:
    search = {"model.max_length": {"choice": [16, 32]}, "train.epochs": {"int_uniform": [1, 3]}}
    space = Space.of(Tune.model_validate({"search": search}))
    assert space.encodings() == [{"model.max_length": 16}, {"model.max_length": 32}]
    assert space.combinations() == 6
    assert Space.of(Tune.model_validate({"search": {"train.warmup": {"uniform": [0, 0.1]}}})).encodings() == [{}]


def test_params_are_applied_to_the_recipe_and_validated(tmp_path: Path) -> None:
    tree = {
        "name": "x",
        "data": {"sources": {"t": {"read": "t.csv"}}},
        "model": {"task": "text-classification", "base": "b", "inputs": {"text": "text"}, "target": "y"},
    }
    recipe = Recipe.model_validate(tree, context={"folder": tmp_path})
    changed = apply(recipe, {"train.early_stopping.patience": 5, "model.adapt": "head", "train.learning_rate": 1e-3})
    assert changed.train.early_stopping is not None
    assert changed.train.early_stopping.patience == 5
    assert (changed.model.adapt, changed.train.learning_rate) == ("head", 1e-3)
    assert changed.folder == tmp_path
    assert recipe.train.early_stopping is None
