"""Each cleaning step: what it changes, what it takes away, and how it is counted."""

import datetime as dt
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from training.data.clean import Cleaned, clean
from training.data.recipe import Clean
from training.data.rows import Rows
from training.recipe import Model

MODEL = Model.model_validate(
    {"task": "text-classification", "base": "unused", "inputs": {"text": ["text"]}, "target": "label"}
)


def cleaned(columns: dict[str, list[Any]], **options: Any) -> Cleaned:
    count = len(next(iter(columns.values())))
    table = pa.table({"text": [f"text {n}" for n in range(count)], "label": ["a"] * count, **columns})
    origins = {"tickets": np.arange(2, count + 2)}
    rows = Rows(table, origins, dict.fromkeys(table.column_names, "tickets"))
    return clean(rows, Clean.model_validate(options), MODEL)


def steps(done: Cleaned) -> dict[str, int]:
    return {step["step"]: step["removed"] for step in done.steps if step["removed"]}


@pytest.mark.parametrize(
    ("form", "expected"), [("NFC", "\u00e9 \uff46"), ("NFKC", "\u00e9 f"), ("none", "e\u0301 \uff46")]
)
def test_unicode_form(form: str, expected: str) -> None:
    assert cleaned({"text": ["e\u0301 \uff46"]}, unicode=form).rows.table["text"].to_pylist() == [expected]


def test_allowed_values_are_in_the_form_of_the_rows() -> None:
    values = {"label": ["（甲）", "(乙)", "丙"]}
    done = cleaned(values, unicode="NFKC", allowed={"label": ["（甲）", "（乙）"]})
    assert done.rows.table["label"].to_pylist() == ["(甲)", "(乙)"]
    as_it_is = cleaned(values, unicode="none", allowed={"label": ["（甲）", "（乙）"]})
    assert as_it_is.rows.table["label"].to_pylist() == ["（甲）"]


TYPES: dict[str, tuple[list[Any], list[Any], list[Any]]] = {
    "integer": (["1", " 2 ", "+3", "", None, "4.0", "x", "1_000"], [1, 2, 3, None, None], ["4.0", "x", "1_000"]),
    "float": (["1", "2.5", "1e3", None, "nan", "inf", "1,5"], [1.0, 2.5, 1000.0, None], ["nan", "inf", "1,5"]),
    "boolean": (["yes", "No", "TRUE", "0", "maybe", None], [True, False, True, False, None], ["maybe"]),
    "timestamp": (
        ["2024-02-29", "2024-02-29 12:30:00", "2024-02-29T12:30:00+02:00", "29.2.2024"],
        [dt.datetime(2024, 2, 29), dt.datetime(2024, 2, 29, 12, 30), dt.datetime(2024, 2, 29, 10, 30)],
        ["29.2.2024"],
    ),
    "string": ([1, 2, None], ["1", "2", None], []),
}


@pytest.mark.parametrize("kind", TYPES)
def test_types(kind: str) -> None:
    given, kept, rejected = TYPES[kind]
    done = cleaned({"value": given}, types={"value": kind})
    assert done.rows.table["value"].to_pylist() == kept
    assert [one.value for one in done.rejects] == rejected
    assert {one.reason for one in done.rejects} <= {f"no {kind}"}
    assert done.rejected_rows == len(rejected)


def test_numbers_become_whole_only_if_they_are() -> None:
    done = cleaned({"value": [1.0, 2.5, None]}, types={"value": "integer"})
    assert done.rows.table["value"].to_pylist() == [1, None]
    assert [(one.source, one.row, one.column, one.value) for one in done.rejects] == [("tickets", 3, "value", "2.5")]


def test_a_row_with_two_faults_is_one_row_and_two_entries() -> None:
    done = cleaned({"one": ["x", "1"], "two": ["y", "2"]}, types={"one": "integer", "two": "float"})
    assert (done.rejected_rows, len(done.rejects), len(done.rows)) == (1, 2, 1)


@pytest.mark.parametrize(
    ("values", "allowed", "kept"),
    [
        (["a", "b", None], ["a"], ["a", None]),
        ([1, 2, 3], [1, 3], [1, 3]),
        ([1.0, 2.0], [1], [1.0]),
        (["1", "2"], [1], ["1"]),
        ([True, False], [True], [True]),
    ],
)
def test_allowed(values: list[Any], allowed: list[Any], kept: list[Any]) -> None:
    done = cleaned({"value": values}, allowed={"value": allowed})
    assert done.rows.table["value"].to_pylist() == kept
    assert done.rejected_rows == len(values) - len(kept)


def test_empty_is_nothing_or_white_space() -> None:
    done = cleaned({"note": ["x", "", " \t", None, "　"], "n": [1.5, 1.0, 1.0, 1.0, 1.0]}, drop_empty=["note", "n"])
    assert done.rows.table["note"].to_pylist() == ["x"]
    assert done.steps[:2] == [
        {"step": "drop_empty", "removed": 4, "column": "note"},
        {"step": "drop_empty", "removed": 0, "column": "n"},
    ]


def test_rows_without_target_or_without_input_are_of_no_use() -> None:
    done = cleaned({"text": ["x", "y", None, " "], "label": ["a", None, "b", "b"]})
    assert steps(done) == {"without_target": 1, "without_input": 2}


def test_the_first_of_equal_rows_is_kept_and_conflicts_are_counted() -> None:
    columns: dict[str, list[Any]] = {
        "text": ["x", "y", "x", "x", "y"],
        "label": ["a", "b", "a", "b", "b"],
        "n": [1, 2, 3, 4, 5],
    }
    done = cleaned(columns, drop_duplicates=["text"])
    assert done.rows.table["n"].to_pylist() == [1, 2]
    assert done.steps[-1] == {"step": "drop_duplicates", "removed": 3, "columns": ["text"], "conflicting": 1}
    both = cleaned(columns, drop_duplicates=["text", "label"])
    assert both.rows.table["n"].to_pylist() == [1, 2, 4]
    nulls = cleaned({"k": [None, None, 1.5, 1.5]}, drop_duplicates=["k"])
    assert nulls.rows.origins["tickets"].tolist() == [2, 4]


def test_near_duplicates() -> None:
    long = "the parcel that i ordered three weeks ago has still not arrived at my door"
    done = cleaned(
        {"text": [long, long + "!", "other", long.upper()], "label": ["a", "b", "a", "a"]},
        drop_near_duplicates={"columns": "text"},
    )
    assert done.rows.table["text"].to_pylist() == [long, "other"]
    assert done.steps[-1] == {"step": "drop_near_duplicates", "removed": 2, "columns": ["text"], "conflicting": 1}
