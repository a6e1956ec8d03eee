"""Figures about the columns of a table: what is missing, how many values there are, how long texts are."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from training.data.landing import as_text
from training.data.rows import empty

MOST_VALUES = 200
"""A label column with more values than this is shown by its commonest ones."""


def columns(table: pa.Table) -> dict[str, dict[str, Any]]:
    """Figures of each column.

    ``type``, ``missing`` rows, ``distinct`` values; the ``characters`` of a text, the ``range`` of a number or time.
    """
    return {field.name: _column(table[field.name], field.type) for field in table.schema}


def labels(table: pa.Table, column: str | None) -> dict[str, int]:
    """The rows of each value of a label column, the commonest first; nothing for one of measurements or lists."""
    if column is None or not _holds_labels(table[column]):
        return {}
    counted = pc.value_counts(table[column].combine_chunks()).to_pylist()
    pairs = [(as_text(one["values"]), one["counts"]) for one in counted if one["values"] is not None]
    return dict(sorted(pairs, key=lambda pair: (-pair[1], pair[0]))[:MOST_VALUES])


def _holds_labels(column: pa.ChunkedArray) -> bool:
    if pa.types.is_nested(column.type) or pa.types.is_floating(column.type) or pa.types.is_temporal(column.type):
        return False
    if pa.types.is_string(column.type):
        return not _lists(column)
    return not pa.types.is_integer(column.type) or pc.count_distinct(column).as_py() <= MOST_VALUES


def _lists(texts: pa.ChunkedArray) -> bool:
    """Whether each text is a list as JSON."""
    ends = pc.and_(pc.starts_with(texts, "["), pc.ends_with(texts, "]"))
    return bool(pc.all(ends).as_py()) and len(texts) > 0


def _column(column: pa.ChunkedArray, kind: pa.DataType) -> dict[str, Any]:
    missing = empty(column)
    present = column.filter(pa.array(~missing))
    figures: dict[str, Any] = {"type": type_name(kind), "missing": int(missing.sum())}
    if not pa.types.is_nested(kind):
        figures["distinct"] = pc.count_distinct(present).as_py()
    if pa.types.is_string(kind):
        figures["characters"] = _lengths(present)
    elif len(present) and (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_temporal(kind)):
        ends = pc.min_max(present)
        figures["range"] = [_plain(ends["min"].as_py()), _plain(ends["max"].as_py())]
    return figures


def _lengths(texts: pa.ChunkedArray) -> dict[str, float]:
    if not len(texts):
        return {}
    lengths = pc.utf8_length(texts).to_numpy()
    shares = {"median": 50, "p95": 95, "max": 100}
    return {"mean": round(float(lengths.mean()), 1)} | {n: int(np.percentile(lengths, p)) for n, p in shares.items()}


def _plain(value: Any) -> Any:
    return value if isinstance(value, int | float) else as_text(value)


def type_name(kind: pa.DataType) -> str:
    """A type in the words of the recipe."""
    names = {
        "integer": pa.types.is_integer,
        "float": pa.types.is_floating,
        "boolean": pa.types.is_boolean,
        "text": pa.types.is_string,
        "timestamp": pa.types.is_timestamp,
        "date": pa.types.is_date,
    }
    return next((name for name, fits in names.items() if fits(kind)), str(kind))
