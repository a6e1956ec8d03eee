"""One spelling for a cell, with the type that its column was given or as the text that stands in a file."""

import datetime as dt
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from training.data.landing import Landing
from training.inputs.cells import spelled


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ([None, ""], ""),
        ([7, 7.0, "7", "7.0", "7.00", Decimal("7.00"), "7e0"], "7"),
        ([-0.0, "-0", "0.0", 0], "0"),
        ([10.5, "10.5", "10.50", Decimal("10.500"), "1.05e1"], "10.5"),
        ([True, "true", "TRUE", "True"], "true"),
        ([dt.date(2026, 3, 31), dt.datetime(2026, 3, 31), "2026-03-31", "2026-03-31 00:00:00"], "2026-03-31"),
        ([dt.datetime(2026, 3, 31, 14, 5), "2026-03-31 14:05:00", "2026-03-31T14:05:00"], "2026-03-31T14:05:00"),
        (
            [dt.datetime(2026, 3, 31, 14, tzinfo=dt.timezone(dt.timedelta(hours=2))), "2026-03-31T12:00:00Z"],
            "2026-03-31T12:00:00+00:00",
        ),
        ([1234567890123456789, "1234567890123456789"], "1234567890123456789"),
    ],
)
def test_a_value_has_one_spelling(values: list[Any], text: str) -> None:
    assert {spelled(value) for value in values} == {text}


@pytest.mark.parametrize(
    "text", ["007", "10.5 EUR", "+7", "1,000", "2026-02-30", "v1.10", " 7", "true story", "１０.５０", "7" * 41]
)
def test_other_texts_stay_as_they_are(text: str) -> None:
    assert spelled(text) == text


def test_columns_that_are_given_types_read_as_what_stood_in_the_file(tmp_path: Path) -> None:
    """What training has of a file, with types, against the same cells as texts, which is how a model is asked."""
    columns: dict[str, list[str | None]] = {
        "price": ["10.50", "7.00", "1e+3", "-0.5", None],
        "amount": ["3", "0", "-12", "123456789012345678", None],
        "express": ["true", "false", "true", None, "false"],
        "sold": ["2024-01-05", "2024-02-29", None, "1999-12-31", "2024-01-06"],
        "seen": ["2024-01-05 00:00:00", "2024-01-05T10:30:00.25", None, "2024-01-05 10:30:00", "2024-01-07 00:00:01"],
        "utc": ["2024-01-05T00:00:00Z", "2024-01-05 10:30:00.5Z", None, "2024-01-05 10:30:00Z", "2024-01-07 00:00:01Z"],
        "code": ["007", "7.0", "true", "2024-01-05", "10.50"],
    }
    landing = Landing(tmp_path, "sales", infer=True)
    landing.add({name: pa.array(cells, pa.string()) for name, cells in columns.items()}, range(1, 6))
    table = pq.read_table(landing.finish("csv").paths)
    kinds = [str(table.schema.field(name).type) for name in columns]
    assert kinds == ["double", "int64", "bool", "date32[day]", "timestamp[us]", "timestamp[us, tz=UTC]", "string"]
    for name, cells in columns.items():
        assert [spelled(cell) for cell in table[name].to_pylist()] == [spelled(cell) for cell in cells], name
