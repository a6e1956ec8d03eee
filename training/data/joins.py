"""What each join of the fuse statement did: how many rows and keys of either side found a partner."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from training.data.engine import StatementError, collect, lazy_frame
from training.data.statement import Join, Relation, Statement

if TYPE_CHECKING:
    import daft

COUNT = "headrace_count"


def measure(statement: Statement, tables: "Mapping[str, daft.DataFrame]") -> list[dict[str, Any]]:
    """One entry for each join, in the order of :meth:`Statement.joins`.

    ``left`` and ``right`` say of each side: ``rows``, and among them ``matched``, ``unmatched`` and ``without_key`` (a
    null in the key never matches), which add up; distinct ``keys``, and among them ``matched_keys`` and
    ``unmatched_keys``; ``repeated_keys`` stand in more than one row. The sides are counted as they are before any join.
    ``types`` says so where the two keys have different types, and ``note`` where something was not counted.
    """
    return [_measure(join, tables) for join in statement.joins()]


def _measure(join: Join, tables: "Mapping[str, daft.DataFrame]") -> dict[str, Any]:
    entry: dict[str, Any] = {"kind": join.kind, "right": {"table": join.right.name}, "on": join.on}
    if not join.keys:
        return {
            **entry,
            "left": {"table": join.lefts[-1].name},
            "note": "not counted: no equality of two tables' columns",
        }
    left = _left(join, tables)
    entry["left"] = {"table": left.name}
    try:
        left_keys = _keys(join, left, [key[1] for key in join.keys], tables)
        right_keys = _keys(join, join.right, [key[2] for key in join.keys], tables)
        counted = _count(left_keys, right_keys, len(join.keys))
    except StatementError as error:
        return {**entry, "note": f"not counted: {error}"}
    for side in ("left", "right"):
        entry[side].update(counted[side])
    if counted["types"]:
        entry["types"] = counted["types"]
    if join.rest:
        entry["note"] = "counted by the equal columns alone; the condition has other parts"
    return entry


def _left(join: Join, tables: "Mapping[str, daft.DataFrame]") -> Relation:
    """The table that the left keys belong to. A USING does not say which; it is the first that has the column."""
    named = next(relation for relation in join.lefts if relation.alias == join.keys[0][0])
    if not join.on.startswith("USING"):
        return named
    column = join.keys[0][1].strip('"')
    having = [one for one in join.lefts if one.source is None or column in tables[one.source].column_names]
    return having[0] if having else named


def _keys(
    join: Join, relation: Relation, expressions: list[str], tables: "Mapping[str, daft.DataFrame]"
) -> "daft.DataFrame":
    """The distinct keys ``k0``, ``k1``, … of a side, with the number of rows that have each."""
    names = [f"k{index}" for index in range(len(expressions))]
    chosen = ", ".join(f"{expression} AS {name}" for expression, name in zip(expressions, names, strict=True))
    place = relation.sql if relation.sql.startswith('"') else f"({relation.sql})"
    grouped = ", ".join(names)
    # Pasted together from the user's own statement, and run over nothing but the user's own tables.
    inner = f'SELECT {chosen} FROM {place} AS "{relation.alias}"'  # noqa: S608
    counted = f"{join.context}SELECT {grouped}, COUNT(*) AS {COUNT} FROM ({inner}) AS q GROUP BY {grouped}"  # noqa: S608
    return lazy_frame(counted, tables)


def _count(left: "daft.DataFrame", right: "daft.DataFrame", keys: int) -> dict[str, Any]:
    names = [f"k{index}" for index in range(keys)]
    differ = [name for name in names if not _comparable(left, right, name)]
    note = None
    if differ:
        one, other = (_type_name(side, differ[0]) for side in (left, right))
        note = f"the key is {one} on the left and {other} on the right; equal only where their texts are equal"
    left, right = _as_text(left, differ).collect(), _as_text(right, differ).collect()
    matches = left.join(right.with_column_renamed(COUNT, "other"), on=names)
    matched = collect(_summed(matches, {COUNT: "left", "other": "right"}))
    return {
        "left": _side(left, names, matched, "left"),
        "right": _side(right, names, matched, "right"),
        "types": note,
    }


def _side(side: "daft.DataFrame", names: list[str], matched: pa.Table, which: str) -> dict[str, int]:
    missing = side[names[0]].is_null()
    for name in names[1:]:
        missing = missing | side[name].is_null()
    present = side.where(~missing)
    whole = collect(_summed(side, {COUNT: "rows"}))
    known = collect(_summed(present, {COUNT: "rows"}))
    repeated = collect(_summed(present.where(present[COUNT] > 1), {COUNT: "rows"}))
    rows, with_key, found = _number(whole, "rows"), _number(known, "rows"), _number(matched, which)
    keys, matched_keys = _number(known, "keys"), _number(matched, "keys")
    return {
        "rows": rows,
        "matched": found,
        "unmatched": with_key - found,
        "without_key": rows - with_key,
        "keys": keys,
        "matched_keys": matched_keys,
        "unmatched_keys": keys - matched_keys,
        "repeated_keys": _number(repeated, "keys"),
    }


def _summed(frame: "daft.DataFrame", columns: dict[str, str]) -> "daft.DataFrame":
    first = next(iter(columns))
    sums = [frame[column].sum().alias(name) for column, name in columns.items()]
    return frame.agg(*sums, frame[first].count().alias("keys"))


def _number(table: pa.Table, column: str) -> int:
    value = table[column][0].as_py() if table.num_rows else 0
    return int(value or 0)


def _comparable(left: "daft.DataFrame", right: "daft.DataFrame", name: str) -> bool:
    one, other = left.schema()[name].dtype, right.schema()[name].dtype
    return bool(one == other or (one.is_numeric() and other.is_numeric()))


def _type_name(side: "daft.DataFrame", name: str) -> str:
    dtype = side.schema()[name].dtype
    return "text" if dtype.is_string() else str(dtype).lower()


def _as_text(side: "daft.DataFrame", names: list[str]) -> "daft.DataFrame":
    import daft

    for name in names:
        side = side.with_column(name, side[name].cast(daft.DataType.string()))
    return side
