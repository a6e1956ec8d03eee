"""What would run where, told before anything runs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from safetensors.torch import save_file

from cluster.errors import FewRowsError, UserError
from cluster.session import usable_cores
from cluster.settings import read
from training.preflight import count_weights, plan, task_problems
from training.recipe import Recipe
from training.tasks.task import task_class
from training.tasks.text_classification import TextClassification

MakeRecipe = Callable[..., Recipe]


def test_weights_are_counted_by_their_number_whatever_bytes_they_take(tmp_path: Path) -> None:
    tensors = {
        "half": torch.zeros(10, 3, dtype=torch.bfloat16),
        "whole": torch.zeros(7),
        "one": torch.zeros(()),
        "position_ids": torch.arange(512),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    assert count_weights(tmp_path / "model.safetensors") == 38


def test_weights_that_were_cut_short_are_said(tmp_path: Path) -> None:
    save_file({"one": torch.zeros(1000)}, tmp_path / "model.safetensors")
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[:100])
    with pytest.raises(UserError, match=r"model\.safetensors cannot be read"):
        count_weights(tmp_path / "model.safetensors")


def test_workers_are_those_that_training_would_start(make_recipe: MakeRecipe, tiny_base: Path) -> None:
    found = plan(make_recipe(train={"workers": "auto", "batch_size": 8}))
    assert found["runs on"] == "this machine"
    assert found["workers"] == 1  # further ones would have fewer rows each than they cost
    assert found["cores"] == usable_cores()
    assert 1 <= found["cores of a worker"] <= found["cores"]
    parameters = sum(tensor.numel() for tensor in _model(tiny_base).parameters())
    assert found["weights"] == parameters


def test_more_workers_than_there_are_are_refused_before_training(make_recipe: MakeRecipe) -> None:
    with pytest.raises(UserError, match=r"^train\.workers: 4096 workers need as many"):
        plan(make_recipe(train={"workers": 4096}))


@pytest.mark.parametrize(
    ("options", "headline"),
    [({}, "accuracy"), ({"problem": "regression"}, "rmse"), ({"problem": "multi-label"}, "micro_f1")],
)
def test_a_metric_is_one_of_the_problem(options: dict[str, str], headline: str) -> None:
    for task in ("text-classification", "image-classification"):
        known = task_class(task).metrics_with(options)
        assert {name for name in ("accuracy", "rmse", "micro_f1") if name in known} == {headline}
    wrong: dict[str, Any] = {"problem": ["regression"]}  # which is told as such, where options are checked
    assert "rmse" in task_class("text-classification").metrics_with(wrong)


def test_a_target_among_the_inputs_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    for inputs in ("[text, team]", "team"):
        model = f"{{task: text-classification, base: b, target: team,\n  inputs: {{text: {inputs}}}}}"
        path.write_text(f"name: x\ndata: {{sources: {{t: {{read: t.csv}}}}}}\nmodel: {model}\n", encoding="utf-8")
        assert task_problems(read(path)) == [
            "recipe.yaml:4 model.inputs.text: 'team' is the target; a model that reads it learns nothing else"
        ]


STARS = {"problem": "ordinal", "order": ["poor", "fair", "good"]}


@pytest.mark.parametrize(
    ("cells", "options", "message", "few"),
    [
        (["poor", "poor"], {}, "has 1 label", True),
        (["a,", "a"], {"problem": "multi-label"}, "has 1 label", True),
        ([4.0, 4.0], {"problem": "regression"}, "is 4 in every training row", True),
        (["poor", "fair"], STARS, "look at good", True),
        (["poor", "great"], STARS, "look at fair, good, great", False),
        (["poor", "fair"], {"problem": "ordinal"}, "the labels of 'c' are no numbers", False),
        (["poor", None], STARS, "1 of 2 train rows have no 'c'", False),
        (["a", "b"], {"problem": "regression"}, "is no column of numbers", False),
    ],
)
def test_what_further_rows_may_mend_is_told_from_what_they_cannot(
    make_recipe: MakeRecipe, cells: list[Any], options: dict[str, Any], message: str, few: bool
) -> None:
    model = make_recipe(model={"target": "c", "options": options}).model
    with pytest.raises(UserError, match=message) as error:
        TextClassification.learn_target(model, {"train": pa.table({"c": cells})}, "none")
    assert isinstance(error.value, FewRowsError) == few


def test_a_clusters_workers_are_not_told_from_this_machines_cores(
    make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "head.example:6379")
    found = plan(make_recipe(train={"workers": "auto"}))
    assert found["runs on"] == "the cluster at head.example:6379"
    assert found["workers"] == "chosen there: one per GPU, else one per core"
    assert found.keys() & {"cores", "gpus", "cores of a worker"} == set()
    assert plan(make_recipe(train={"workers": 4096}))["workers"] == 4096


def _model(base: Path) -> Any:
    from transformers import AutoModel

    return AutoModel.from_pretrained(base)
