"""Cells of a table as numbers, moments and names, and the kind that a column of them looks like."""

import contextlib
import datetime as dt
import json
import math
import re
from collections.abc import Sequence
from decimal import Decimal
from typing import Any, Literal

import pyarrow as pa

Kind = Literal["number", "category", "date"]

NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d{1,3})?", re.ASCII)
MOMENT = re.compile(r"\d{4}-\d\d-\d\d([ T]\d\d:\d\d:\d\d(\.\d{1,6})?Z?)?", re.ASCII)
LONGEST_VALUE = 40
"""Characters of a text that may be a number or a moment; a sentence need not be looked at."""

NO_NUMBER = ("nan", "+nan", "-nan")
"""Texts, in small letters, that :func:`read_number` takes for a missing number."""

A_NUMBER = "a number is needed"
A_DATE = "a date such as 2026-03-31 or 2026-03-31T14:05:00 is needed"


def infer(column: pa.ChunkedArray) -> Kind:
    """The kind that a column of the training rows looks like.

    Text is a number where every value that is there reads as one and none starts with a padding zero, as codes do; a
    date where every value reads as one; else a category. What says that it is no number, ``NaN``, is not there.
    """
    if pa.types.is_boolean(column.type):
        return "category"
    if pa.types.is_integer(column.type) or pa.types.is_floating(column.type) or pa.types.is_decimal(column.type):
        return "number"
    if pa.types.is_temporal(column.type):
        return "date"
    texts = [str(cell).strip() for cell in column.unique().to_pylist() if cell is not None and str(cell).strip()]
    numbers = [text for text in texts if text.lower() not in NO_NUMBER]
    if numbers and _all_read(numbers, read_number) and not any(_padded(text) for text in numbers):
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


def read_list(cell: Any) -> Any:
    """A list that a cell holds, be it as JSON text, which is how a table keeps one; else the cell itself."""
    if isinstance(cell, str) and cell.lstrip().startswith("["):
        try:
            return json.loads(cell)
        except ValueError:
            return cell
    return list(cell) if isinstance(cell, tuple) else cell


def read_labels(cell: Any, separator: str) -> list[str]:
    """The labels in a cell: a list of them, or a text with ``separator`` between; an empty or missing one has none."""
    value = read_list(cell)
    parts = value if isinstance(value, list) else value.split(separator) if isinstance(value, str) else [value]
    labels = (read_label(part).strip() for part in parts if part is not None)
    return [label for label in labels if label]


def spelled(cell: Any) -> str:
    """A cell as the text that a model reads; a missing one is nothing.

    One spelling for a value, whether it comes with a type or as the text that stands in a file: what is trained on has
    the types that all rows of a column allow, and what is asked later comes one by one, as it was written. ``10.50``
    and ``10.5``, ``TRUE`` and a boolean, ``2026-03-31T00:00:00`` and a date are one text each; ``007`` is itself.
    """
    value = _value(cell) if isinstance(cell, str) else cell
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float | Decimal):
        number = float(value)
        return str(int(number)) if number.is_integer() else repr(number)
    if isinstance(value, dt.datetime):
        moment = value.astimezone(dt.UTC) if value.tzinfo else value
        return (moment if moment.tzinfo or moment.time() != dt.time() else moment.date()).isoformat()
    return value.isoformat() if isinstance(value, dt.date) else str(value)


def _value(text: str) -> Any:
    """The number, boolean or moment that a text is, where it is one; else the text."""
    if len(text) > LONGEST_VALUE:
        return text
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    if NUMBER.fullmatch(text):
        return int(text) if text.lstrip("-").isdigit() else float(text)
    if MOMENT.fullmatch(text):
        with contextlib.suppress(ValueError):  # 2026-02-30 looks like a date and is none
            return dt.datetime.fromisoformat(text)
    return text


def _all_read(texts: Sequence[str], read: Any) -> bool:
    try:
        return all(read(text) is not None for text in texts)
    except ValueError:
        return False


def _padded(text: str) -> bool:
    return len(text) > 1 and text[0] == "0" and text[1].isdigit()
