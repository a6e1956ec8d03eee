"""The task file: rows, labels and answers, without training anything."""

import datetime as dt
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from cluster.errors import UserError
from training.inputs.cells import read_label
from training.recipe import Model
from training.tasks.task import task_class, task_names
from training.tasks.text_classification import TextClassification


def learned(
    tiny_base: Path, labels: list[Any], columns: list[str] | None = None, unicode: str = "none"
) -> TextClassification:
    columns = columns or ["text"]
    table = pa.table({**dict.fromkeys(columns, ["a good day"] * len(labels)), "label": labels})
    model = Model(task="text-classification", base="", inputs={"text": columns}, target="label")
    return TextClassification.learn(model, tiny_base, {"train": table}, unicode=unicode)


def test_labels_are_sorted_as_numbers_where_they_are_numbers(tiny_base: Path) -> None:
    assert learned(tiny_base, [10, 9, 1]).labels == ["1", "9", "10"]
    assert learned(tiny_base, ["b", "a"]).labels == ["a", "b"]


@pytest.mark.parametrize(
    ("value", "text"), [(3, "3"), (3.0, "3"), ("3", "3"), (True, "true"), (2.5, "2.5"), ("差", "差")]
)
def test_one_label_whatever_engine_read_the_column(value: Any, text: str) -> None:
    assert read_label(value) == text


def test_missing_targets_and_a_single_label_are_told(tiny_base: Path) -> None:
    with pytest.raises(UserError, match=r"model.target: 1 of 3 train rows have no 'label'; add it to data.clean"):
        learned(tiny_base, ["a", None, "b"])
    with pytest.raises(UserError, match=r"model.target: 'label' has 1 label; a classifier needs two or more"):
        learned(tiny_base, ["a", "a"])


def test_columns_are_joined_and_missing_values_read_as_nothing(tiny_base: Path) -> None:
    task = learned(tiny_base, ["a", "b"], ["title", "body"])
    assert task.text({"title": "a", "body": None}) == "a [SEP] "
    separator = task.reader.tokenizer.sep_token_id
    assert task.encode([{"title": "a", "body": "the"}])[0]["input_ids"].count(separator) == 2


def test_what_is_asked_is_brought_to_the_unicode_form_that_was_learned(tiny_base: Path, tmp_path: Path) -> None:
    task = learned(tiny_base, ["ｐａｒｃｅｌ", "refund"], unicode="NFKC")
    (tmp_path / "kept").mkdir()
    task = TextClassification.load(task.save(tmp_path / "kept"), tmp_path / "kept")
    wide, narrow = "Ｗｈｅｒｅ ｉｓ ｍｙ ｐａｒｃｅｌ？ １２３，快递！", "Where is my parcel? 123,快递!"
    assert task.text({"text": wide}) == narrow
    assert task.encode(task.rows([wide])) == task.encode(task.rows([narrow]))
    assert task.labels == ["parcel", "refund"]
    assert task.encode_target({"label": "ｐａｒｃｅｌ"}) == task.encode_target({"label": "parcel"}) == 0
    as_it_is = learned(tiny_base, ["a", "b"])
    assert as_it_is.text({"text": wide}) == wide


def test_a_column_of_dates_or_amounts_is_read_as_it_was_when_training(tiny_base: Path) -> None:
    task = learned(tiny_base, ["a", "b"], ["day", "amount"])
    row = {"day": dt.date(2026, 3, 1), "amount": Decimal("12.50")}
    assert task.rows([row]) == [row]
    assert task.text(row) == task.text({"day": "2026-03-01", "amount": "12.50"})
    assert task.rows([{"day": dt.datetime(2026, 3, 1, 9), "amount": dt.time(9)}])


def test_a_replica_loads_neither_the_baselines_nor_the_charts() -> None:
    """It opens the task file, and would pay for scikit-learn and matplotlib in seconds and in memory."""
    script = "import sys, training.tasks.text_classification; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert {
        "sklearn.svm",
        "matplotlib",
        "training.evaluation.sections",
        "training.evaluation.baselines",
    } & loaded == set()


def test_what_the_report_compares_by_is_among_its_metrics() -> None:
    for name in task_names():
        task = task_class(name)
        assert task.headline in task.metrics_known
        assert task.of_probabilities <= task.metrics_known.keys()


def test_long_texts_are_cut_with_their_last_token_kept(tiny_base: Path) -> None:
    task = learned(tiny_base, ["a", "b"])
    (example,) = task.encode([{"text": "the " * 500}])
    assert task.length(example) == task.reader.max_length == 64
    assert example["input_ids"][-1] == task.reader.tokenizer.sep_token_id


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([3], r"inputs\[0\]: a string or an object is needed, not int"),
        (["a", {"txt": "a"}], r"inputs\[1\]\.text: missing"),
        ([{"text": ["a"]}], r"inputs\[0\]\.text: a string is needed, not list"),
    ],
)
def test_wrong_inputs_are_named_by_place_and_never_quoted(tiny_base: Path, inputs: list[Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        learned(tiny_base, ["a", "b"]).rows(inputs)


def test_answers_are_softmax_sorted_and_cut(tiny_base: Path) -> None:
    task = learned(tiny_base, ["a", "b", "c"])
    outputs = [np.array([0.0, np.log(2), np.log(5)], dtype=np.float32)]
    (answer,) = task.decode(outputs, [], {"top_k": 2})
    assert [entry["label"] for entry in answer] == ["c", "b"]
    assert [entry["score"] for entry in answer] == pytest.approx([5 / 8, 2 / 8])
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"top_k": 0}, "top_k"),
        ({"top_k": True}, "top_k"),
        ({"beam": 1}, "beam"),
    ]
    for parameters, message in wrong:
        with pytest.raises(UserError, match=rf"parameters\.{message}"):
            task.decode(outputs, [], parameters)


def test_a_task_is_found_by_its_file(tmp_path: Path) -> None:
    assert "text-classification" in task_names()
    assert task_class("text-classification") is TextClassification
    with pytest.raises(UserError, match=r"there is no task 'poetry' in this version; there is .*text-classification"):
        task_class("poetry")
