"""Types of held out rows beside those of the rows that are trained on."""

import datetime as dt
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from training.data.fuse import fuse
from training.data.same_types import same_types
from training.recipe import Recipe

DAY = dt.datetime(2024, 2, 3, 4, 5, 6)
CASES: dict[str, tuple[list[Any], list[Any], list[Any], list[Any]]] = {
    "text that is a number": ([1, 2], ["7", ""], [1, 2], [7, None]),
    "text that is a fraction": ([1.5, 2.0], ["7", "1.50"], [1.5, 2.0], [7.0, 1.5]),
    "text that is a time": ([DAY], ["2024-02-03 04:05:06"], [DAY], [DAY]),
    "zeros in front": ([1234, 2], ["01000"], ["1234", "2"], ["01000"]),
    "a word among numbers": ([1, None], ["5", "N/A"], ["1", None], ["5", "N/A"]),
    "numbers where there is text": (["x", "y"], [5], ["x", "y"], ["5"]),
    "fractions where there are whole numbers": ([1, 2], [0.5], [1.0, 2.0], [0.5]),
    "whole numbers that no float holds": ([2**53 + 1], [0.5], [str(2**53 + 1)], ["0.5"]),
    "words where there is truth": ([True], ["yes", "true"], ["true"], ["yes", "true"]),
    "numbers where there are times": ([DAY], [20240203], [DAY.isoformat()], ["20240203"]),
    "a day where there are times": ([DAY], [DAY.date()], [DAY], [dt.datetime(2024, 2, 3)]),
    "nothing": ([1], [None], [1], [None]),
}


@pytest.mark.parametrize("case", CASES)
def test_both_get_the_type_that_loses_nothing(case: str) -> None:
    main, other, main_after, other_after = CASES[case]
    first, others, _ = same_types(pa.table({"x": main}), {"later": pa.table({"more": other, "x": other})})
    assert first.column_names == others["later"].column_names == ["x"]
    assert first.schema == others["later"].schema
    assert (first["x"].to_pylist(), others["later"]["x"].to_pylist()) == (main_after, other_after)


def test_a_column_that_only_the_training_rows_have_is_empty() -> None:
    _, others, _ = same_types(pa.table({"x": [1], "y": [2]}), {"later": pa.table({"x": [3]})})
    assert others["later"].to_pylist() == [{"x": 3, "y": None}]


def test_zeros_in_a_held_out_file_stay_and_are_noted(
    tmp_path: Path, home: Path, make_recipe: Callable[..., Recipe]
) -> None:
    rows = [f"text number {n},{'ab'[n % 2]},{10_000 + n}" for n in range(40)]
    (tmp_path / "rows.csv").write_text("\n".join(["text,label,zip", *rows]))
    (tmp_path / "later.csv").write_text("text,label,zip\nanother one,a,01000\nand one more,b,N/A\n")
    sources = {"rows": {"read": "rows.csv"}, "later": {"read": "later.csv"}}
    done = fuse(make_recipe(sources, split={"test": {"source": "later"}}))
    assert done.split("test")["zip"].to_pylist() == ["01000", "N/A"]
    assert done.split("train")["zip"][0].as_py().startswith("10")
    assert done.report["notes"] == [
        "zip: integer in the rows to train on, text in 'later'; "
        "both are taken as text, unless data.clean.types says otherwise"
    ]
