"""Cells of a table as numbers, moments and names, and the kind that a column of them looks like."""

import datetime as dt
import math
from collections.abc import Sequence
from decimal import Decimal
from typing import Any, Literal

import pyarrow as pa

Kind = Literal["number", "category", "date"]

A_NUMBER = "a number is needed"
A_DATE = "a date such as 2026-03-31 or 2026-03-31T14:05:00 is needed"


def infer(column: pa.ChunkedArray) -> Kind:
    """The kind that a column of the training rows looks like.

    Text is a number where every value that is there reads as one and none starts with a padding zero, as codes do; a
    date where every value reads as one; else a category.
    """
    if pa.types.is_boolean(column.type):
        return "category"
    if pa.types.is_integer(column.type) or pa.types.is_floating(column.type) or pa.types.is_decimal(column.type):
        return "number"
    if pa.types.is_temporal(column.type):
        return "date"
    texts = [str(cell).strip() for cell in column.unique().to_pylist() if cell is not None and str(cell).strip()]
    if texts and _all_read(texts, read_number) and not any(_padded(text) for text in texts):
        return "number"
    return "date" if texts and _all_read(texts, read_seconds) else "category"


def read_number(cell: Any) -> float | None:
    """A cell as a number; None where it is missing.

    Raises:
        ValueError: it is none.
    """
    if isinstance(cell, str):
        cell = cell.strip() or None
    if cell is None:
        return None
    if not isinstance(cell, str | int | float | Decimal):
        raise ValueError(A_NUMBER)
    try:
        number = float(cell)
    except OverflowError:  # a whole number of more digits than a float has room for; as 1e999, which reads as infinite
        return None
    return number if math.isfinite(number) else None


def read_seconds(cell: Any) -> float | None:
    """A date or an ISO 8601 text as seconds since 1970, in UTC where it names a zone; None where it is missing.

    Raises:
        ValueError: it is none.
    """
    if isinstance(cell, str):
        cell = dt.datetime.fromisoformat(cell.strip()) if cell.strip() else None
    if cell is None:
        return None
    if isinstance(cell, dt.date) and not isinstance(cell, dt.datetime):
        cell = dt.datetime(cell.year, cell.month, cell.day)
    if not isinstance(cell, dt.datetime):
        raise ValueError(A_DATE)
    return (cell if cell.tzinfo else cell.replace(tzinfo=dt.UTC)).timestamp()


def read_label(cell: Any) -> str:
    """A cell as a label, so that ``3``, ``3.0`` and ``"3"`` are one label whatever engine read the column."""
    if isinstance(cell, bool):
        return str(cell).lower()
    if isinstance(cell, float) and cell.is_integer():
        return str(int(cell))
    return str(cell)


def _all_read(texts: Sequence[str], read: Any) -> bool:
    try:
        return all(read(text) is not None for text in texts)
    except ValueError:
        return False


def _padded(text: str) -> bool:
    return len(text) > 1 and text[0] == "0" and text[1].isdigit()
