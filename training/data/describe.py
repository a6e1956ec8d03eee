"""Figures about the columns of a table: what is missing, how many values there are, how long texts are."""

from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from training.data.landing import as_text
from training.data.rows import Mask, digest, empty

MOST_VALUES = 200
"""A label column with more values than this is shown by its commonest ones."""

LONGEST_LABEL = 200
"""Characters; what is longer on average is text."""


MEASURED = (pa.types.is_integer, pa.types.is_floating, pa.types.is_date, pa.types.is_timestamp, pa.types.is_time)
"""What has a range."""


def columns(table: pa.Table) -> dict[str, dict[str, Any]]:
    """Figures of each column.

    ``type``, ``missing`` rows, ``distinct`` values; the ``characters`` of a text, the ``range`` of a number or time.
    """
    return {field.name: _column(table[field.name], field.type) for field in table.schema}


def labels(table: pa.Table, column: str | None) -> dict[str, int]:
    """The rows of each value of a label column, the commonest first; nothing for measurements, lists and texts."""
    if column is None or not _holds_labels(table[column]):
        return {}
    counts: Counter[str] = Counter()
    for chunk in table[column].chunks:
        for one in pc.value_counts(chunk.drop_null()).to_pylist():
            counts[as_text(one["values"])] += one["counts"]
    return dict(sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))[:MOST_VALUES])


def _holds_labels(column: pa.ChunkedArray) -> bool:
    if pa.types.is_nested(column.type) or pa.types.is_floating(column.type) or pa.types.is_temporal(column.type):
        return False
    if pa.types.is_string(column.type):
        return not _lists(column) and (pc.mean(pc.utf8_length(column)).as_py() or 0) <= LONGEST_LABEL
    return not pa.types.is_integer(column.type) or pc.count_distinct(column).as_py() <= MOST_VALUES


def _lists(texts: pa.ChunkedArray) -> bool:
    """Whether each text is a list as JSON."""
    ends = pc.and_(pc.starts_with(texts, "["), pc.ends_with(texts, "]"))
    return bool(pc.all(ends).as_py()) and len(texts) > 0


def _column(column: pa.ChunkedArray, kind: pa.DataType) -> dict[str, Any]:
    missing = empty(column)
    figures: dict[str, Any] = {"type": type_name(kind), "missing": int(missing.sum())}
    if pa.types.is_string(kind):
        return figures | {"distinct": _different(column), "characters": _lengths(column, ~missing)}
    present = column.filter(pa.array(~missing))
    if not pa.types.is_nested(kind):
        figures["distinct"] = pc.count_distinct(present).as_py()
    if len(present) and any(fits(kind) for fits in MEASURED):
        ends = pc.min_max(present)
        figures["range"] = [_plain(ends["min"].as_py()), _plain(ends["max"].as_py())]
    return figures


def _different(texts: pa.ChunkedArray) -> int:
    """How many texts there are that are not empty; Arrow's own count would hold them all."""
    seen = [np.zeros(0, dtype=np.uint64)]
    for chunk in texts.chunks:
        different = chunk.unique().drop_null()
        present = different.filter(pa.array(~empty(pa.chunked_array([different]))))
        seen.append(np.array([digest(text) for text in present.to_pylist()], dtype=np.uint64))
    return len(np.unique(np.concatenate(seen)))


def _lengths(texts: pa.ChunkedArray, present: Mask) -> dict[str, float]:
    if not present.any():
        return {}
    lengths = pc.fill_null(pc.utf8_length(texts), 0).to_numpy()[present]
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
