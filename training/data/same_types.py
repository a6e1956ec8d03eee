"""Held out rows and those that are trained on with one type for each column, found for each source alone before."""

from collections.abc import Mapping, Sequence

import pyarrow as pa

from training.data.describe import type_name
from training.data.landing import convert
from training.data.text_types import ARROW_TYPES, TextType


def same_types(main: pa.Table, others: Mapping[str, pa.Table]) -> tuple[pa.Table, dict[str, pa.Table], list[str]]:
    """The tables with the columns of ``main``, each of one type that holds every value; what is missing is null.

    That is the type of ``main`` where the others' values fit, else that of another; text where none of them fits.

    Returns:
        ``main``, the others by their sources, and a sentence for each column that is text for being so in one of them.
    """
    kinds = {
        name: _common([main[name], *(other[name] for other in others.values() if name in other.column_names)])
        for name in main.column_names
    }
    notes = [
        f"{name}: {type_name(main[name].type)} in the rows to train on, {type_name(other[name].type)} in '{source}'; "
        "both are taken as text, unless data.clean.types says otherwise"
        for source, other in others.items()
        for name, kind in kinds.items()
        if name in other.column_names and kind == pa.string() != main[name].type != other[name].type
    ]
    return _with(main, kinds), {source: _with(other, kinds) for source, other in others.items()}, notes


def _common(columns: Sequence[pa.ChunkedArray]) -> pa.DataType:
    for kind in dict.fromkeys(column.type for column in columns):
        if all(_fits(column, kind) for column in columns):
            return kind
    return pa.string()


def _fits(column: pa.ChunkedArray, kind: pa.DataType) -> bool:
    """Whether the values are of ``kind`` too, and could be had back from it."""
    if column.type == kind or pa.types.is_string(kind) or column.null_count == len(column):
        return True
    if pa.types.is_string(column.type) and not pa.types.is_temporal(kind):
        return _reads_as(column, kind)
    try:
        if pa.types.is_string(column.type):
            return _as(column, kind) is not None
        if pa.types.is_temporal(column.type) != pa.types.is_temporal(kind):
            return False
        return bool(column.cast(kind).cast(column.type).equals(column))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return False


def _reads_as(texts: pa.ChunkedArray, kind: pa.DataType) -> bool:
    """As CSV is read: 01000 is no number."""
    found = TextType()
    for chunk in texts.chunks:
        found.narrow(chunk)
    types = [ARROW_TYPES[one] if isinstance(one, str) else pa.bool_() for one in found.could_be]
    return not found.rows or kind in types


def _with(table: pa.Table, kinds: Mapping[str, pa.DataType]) -> pa.Table:
    columns = {
        name: _as(table[name], kind) if name in table.column_names else pa.nulls(table.num_rows, kind)
        for name, kind in kinds.items()
    }
    return pa.table(columns)


def _as(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    if column.type == kind:
        return column
    if column.null_count == len(column):
        return pa.chunked_array([pa.nulls(len(column), kind)])
    return pa.chunked_array([convert(chunk, kind) for chunk in column.chunks], kind)
