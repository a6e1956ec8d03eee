"""What is predicted of a row: cells to tensors, losses against references, outputs to answers."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, cohen_kappa_score, f1_score, mean_absolute_error, r2_score
from transformers import GPT2Config, GPT2Model, pipeline

from cluster.errors import UserError
from tests.training.recipes import recipe_of
from training.bundle import write_bundle
from training.data.fuse import fuse
from training.encode import CHUNK, encode
from training.loop import make_trainee, predict, train, validate
from training.recipe import Recipe
from training.targets import KINDS, ManyLabels, Number, OneLabel, Ordinal, Target, load_target

CPU = torch.device("cpu")


def learned(problem: str, cells: list[Any], **options: Any) -> Target:
    return KINDS[problem].learn("target", {"train": cells}, options, "none")


@pytest.mark.parametrize(
    ("problem", "cells"),
    [
        ("single-label", ["a", "b"]),
        ("ordinal", ["3", "1"]),
        ("multi-label", ["a,b", "b"]),
        ("regression", [1.5, 2.5]),
    ],
)
def test_a_target_is_the_same_after_it_was_kept(problem: str, cells: list[Any]) -> None:
    target = learned(problem, cells)
    again = load_target(target.save())
    assert type(again) is type(target)
    assert again.save() == target.save()
    assert list(map(str, map(again.encode, cells))) == list(map(str, map(target.encode, cells)))


def test_a_cell_of_several_labels_is_a_list_or_a_text() -> None:
    target = learned("multi-label", ["late; broken", "late", ["broken", "rude"]], separator=";")
    assert target.labels == ["broken", "late", "rude"]
    assert [target.encode(cell).tolist() for cell in ("late;broken", ["rude"], [], None, " late ;late")] == [
        [0, 1],
        [2],
        [],
        [],
        [1],
    ]
    assert target.tensor([[0, 2], []]).tolist() == [[1, 0, 1], [0, 0, 0]]


def test_lists_of_labels_in_a_file_of_json_are_labels(tmp_path: Path, tiny_base: Path, home: Path) -> None:
    """A table keeps a list as its JSON text; and a row without a label may come before all others."""
    rows = [{"text": f"row {number}", "labels": []} for number in range(2 * CHUNK)]
    rows += [{"text": "row", "labels": labels} for labels in (["late"], ["late", "broken, a bit"], ["rude"])]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    tree: dict[str, Any] = {
        "name": "complaints",
        "data": {"sources": {"rows": {"read": "rows.jsonl"}}, "split": {"validation": 0, "test": 0}},
        "model": {
            "task": "text-classification",
            "base": str(tiny_base),
            "inputs": {"text": "text"},
            "target": "labels",
            "options": {"problem": "multi-label"},
        },
        "train": {"workers": 1},
    }
    recipe = recipe_of(tree, tmp_path, {})
    encoded = encode(recipe, fuse(recipe))
    task: Any = encoded.task
    assert task.target.labels == ["broken, a bit", "late", "rude"]
    assert sorted(map(tuple, encoded.split("train").targets))[-3:] == [(0, 1), (1,), (2,)]


def test_an_ordinal_target_has_an_order() -> None:
    assert learned("ordinal", [10, 9, 1]).labels == ["1", "9", "10"]
    assert learned("ordinal", ["low", "high"], order=["low", "high"]).labels == ["low", "high"]
    with pytest.raises(UserError, match=r"model\.options\.order: the labels of 'target' are no numbers; list them"):
        learned("ordinal", ["low", "high"])
    with pytest.raises(UserError, match=r"model\.options\.order: must name every label of 'target' once; look at mid"):
        learned("ordinal", ["low", "mid", "high"], order=["low", "high"])


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        (["1", "much"], r"'target' is no column of numbers; data\.clean\.types: \{target: float\} rejects"),
        ([1.0, float("inf")], "'target' holds numbers that are not finite"),
        ([2.0, 2.0], "'target' is 2 in every training row; nothing can be learned"),
        ([2.0, None], "1 of 2 train rows have no 'target'"),
    ],
)
def test_what_is_no_number_to_learn_is_told(cells: list[Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        learned("regression", cells)


def test_metrics_equal_scikit_learns() -> None:
    chance = np.random.default_rng(3)
    stars = Ordinal("target", ["1", "2", "3", "5"])
    logits, truth = chance.normal(size=(60, 4)), chance.integers(0, 4, 60)
    answered = np.array([int(answer[0]["label"]) for answer in stars.decode(logits, {})])
    values = np.array([1, 2, 3, 5])
    measured = stars.metrics(logits, truth.tolist())
    assert measured["accuracy"] == pytest.approx(np.mean(values[truth] == answered))
    assert measured["mae"] == pytest.approx(mean_absolute_error(values[truth], answered))
    places = np.searchsorted(values, answered)
    assert measured["quadratic_kappa"] == pytest.approx(cohen_kappa_score(truth, places, weights="quadratic"))

    several = ManyLabels("target", ["a", "b", "c"], ",")
    logits, sets = chance.normal(size=(50, 3)), chance.random((50, 3)) < 0.4
    encoded = [np.flatnonzero(row).tolist() for row in sets]
    measured = several.metrics(logits, encoded)
    assert measured["micro_f1"] == pytest.approx(f1_score(sets, logits > 0, average="micro"))
    assert measured["macro_f1"] == pytest.approx(f1_score(sets, logits > 0, average="macro"))
    assert measured["average_precision"] == pytest.approx(average_precision_score(sets, logits))
    reference = torch.nn.functional.binary_cross_entropy_with_logits(torch.tensor(logits), torch.tensor(sets).double())
    assert measured["loss"] == pytest.approx(reference.item())

    number = Number("target", mean=10.0, spread=4.0)
    said, amounts = chance.normal(size=(40, 1)), chance.normal(10, 4, 40)
    measured = number.metrics(said, amounts.tolist())
    assert measured["mae"] == pytest.approx(mean_absolute_error(amounts, said[:, 0] * 4 + 10))
    assert measured["r2"] == pytest.approx(r2_score(amounts, said[:, 0] * 4 + 10))


def test_the_metrics_are_those_that_are_known() -> None:
    targets: list[tuple[Target, Any, list[Any]]] = [
        (OneLabel("t", ["a", "b"]), [[1.0, 0.0]], [0]),
        (Ordinal("t", ["1", "2"]), [[1.0, 0.0]], [0]),
        (ManyLabels("t", ["a", "b"], ","), [[1.0, 0.0]], [[0]]),
        (Number("t", 0.0, 1.0), [[1.0]], [2.0]),
    ]
    for target, outputs, truth in targets:
        assert target.metrics(np.array(outputs), truth).keys() == target.metrics_known.keys()
        assert target.headline in target.metrics_known
        assert target.of_probabilities <= target.metrics_known.keys()


@pytest.mark.parametrize("problem", ["multi-label", "regression"])
def test_a_text_model_learns_it_and_transformers_gives_the_same_answer(
    make_recipe: Callable[..., Recipe], tmp_path: Path, problem: str
) -> None:
    """Also that a number's scale is in the weights of what is kept, and not in ours alone."""
    columns = {
        "multi-label": "CASE WHEN topic = 'billing' THEN 'money,urgent' WHEN topic = 'delivery' THEN 'urgent' "
        "ELSE 'account' END",
        "regression": "CASE WHEN topic = 'billing' THEN 100.0 WHEN topic = 'delivery' THEN 250.0 ELSE 400.0 END",
    }
    recipe = make_recipe(
        rows=200,
        data={
            "fuse": f"SELECT text, {columns[problem]} AS wanted FROM sentences",
            "split": {"validation": 0.2, "test": 0.2},
        },
        model={"target": "wanted", "options": {"problem": problem}},
        train={"epochs": 8, "learning_rate": 3e-3},
    )
    encoded = encode(recipe, fuse(recipe))
    trainee = make_trainee(encoded, recipe.train, "full", CPU)
    list(train(trainee, encoded))
    measured = validate(trainee, encoded.split("test"))
    assert measured["micro_f1" if problem == "multi-label" else "r2"] > 0.8

    texts = ["please refund my money 7", "parcel lost 8"]
    task = encoded.task
    before = task.decode(predict(trainee, encoded.split("test")), [], {})
    settled = task.settle(trainee.model)
    folder = tmp_path / "bundle"
    folder.mkdir()
    bundle = write_bundle(
        folder, model=trainee.model, task=settled, name="m", recipe={}, metrics={}, baselines={}, data={}
    )
    opened = bundle.task()
    examples = opened.encode(opened.rows(texts))
    outputs = opened.keep(opened.infer(bundle.model(), opened.collate(examples)), examples)
    theirs = pipeline("text-classification", str(folder))(texts, top_k=5)
    for ours, other in zip(opened.decode(outputs, examples, {}), theirs, strict=True):
        assert [entry["label"] for entry in ours] == [entry["label"] for entry in other]
        assert [entry["score"] for entry in ours] == pytest.approx([entry["score"] for entry in other], rel=1e-5)
    trainee.task = opened
    after = opened.decode(predict(trainee, encoded.split("test")), [], {})
    assert [entry[0]["score"] for entry in after] == pytest.approx([entry[0]["score"] for entry in before], rel=1e-4)


def test_a_number_that_a_decoder_says_stays_in_its_unit(
    make_recipe: Callable[..., Recipe], tiny_base: Path, tmp_path: Path
) -> None:
    """A decoder's last layer has no bias that the mean could be added to."""
    shutil.copytree(tiny_base, tmp_path / "decoder")
    config = GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=300, bos_token_id=0, eos_token_id=0)
    GPT2Model(config).save_pretrained(tmp_path / "decoder")
    recipe = make_recipe(
        data={
            "fuse": "SELECT text, CASE WHEN topic = 'billing' THEN 1000.0 ELSE 1300.0 END AS wanted FROM sentences",
            "split": {"validation": 0.2, "test": 0.2},
        },
        model={"base": "decoder", "target": "wanted", "options": {"problem": "regression"}},
        train={"epochs": 1},
    )
    encoded = encode(recipe, fuse(recipe))
    trainee = make_trainee(encoded, recipe.train, "full", CPU)
    list(train(trainee, encoded))
    before = encoded.task.decode(predict(trainee, encoded.split("test")), [], {})
    trainee.task = encoded.task.settle(trainee.model)
    trainee.model.save_pretrained(tmp_path / "kept")
    trainee.model = trainee.task.open(tmp_path / "kept")
    after = trainee.task.decode(predict(trainee, encoded.split("test")), [], {})
    assert [one[0]["score"] for one in after] == pytest.approx([one[0]["score"] for one in before], rel=1e-4)
    assert 900 < after[0][0]["score"] < 1400
