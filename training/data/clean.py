"""What is mended or removed after the fusion, step by step, with what each step took away."""

import datetime as dt
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal
from unicodedata import normalize

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from training.data.landing import Reject, as_text
from training.data.near_copies import first_of_copies
from training.data.recipe import Clean
from training.data.rows import Mask, Rows, digests, empty, texts
from training.inputs import entities
from training.inputs.cells import read_list
from training.mapped import changed, parts
from training.recipe import Model

TRUE, FALSE = {"true", "t", "yes", "y", "1"}, {"false", "f", "no", "n", "0"}
Form = Literal["NFC", "NFKC", "NFD", "NFKD"]
WHOLE = re.compile(r"[+-]?\d{1,18}")


@dataclass
class Cleaned:
    """Rows after cleaning.

    Attributes:
        rows: what is left.
        rejects: one for each value that broke a rule; ``rejected_rows`` counts the rows.
        steps: what each step removed: ``{"step", "removed", …}``; the ``removed`` add up to the rows that are gone.
    """

    rows: Rows
    rejects: list[Reject] = field(default_factory=list)
    rejected_rows: int = 0
    steps: list[dict[str, Any]] = field(default_factory=list)

    def drop(self, step: str, gone: Mask, **details: Any) -> None:
        """Removes rows and notes it."""
        self.steps.append({"step": step, "removed": int(gone.sum()), **details})
        self.rows = self.rows.keep(~gone)

    def put_aside(self, step: str, bad: dict[str, Mask], reasons: dict[str, str], before: Rows) -> None:
        """Rejects rows with values that break a rule: column to where, and why."""
        gone = np.zeros(len(self.rows), dtype=bool)
        for column, mask in bad.items():
            values = before.table[column]
            for index in np.flatnonzero(mask).tolist():
                self.rejects.append(before.reject(index, column, values[index].as_py(), reasons[column]))
            gone |= mask
        self.rejected_rows += int(gone.sum())
        self.drop(step, gone, rejected=True)


def clean(rows: Rows, options: Clean, model: Model) -> Cleaned:
    """The rows as the recipe's `clean` wants them; rows without target or without any input are dropped too."""
    done = Cleaned(rows)
    if options.unicode != "none":
        done.rows = _normalise(done.rows, options.unicode, model)
    if options.types:
        _types(done, options.types)
    if options.allowed:
        _allowed(done, options.allowed, options.unicode)
    for column in options.drop_empty:
        done.drop("drop_empty", empty(done.rows.table[column]), column=column)
    _unusable(done, model)
    if options.drop_duplicates:
        _duplicates(done, options.drop_duplicates, model.target)
    if options.drop_near_duplicates:
        near = options.drop_near_duplicates
        first = first_of_copies(texts(done.rows.table, near.columns), near.similarity)
        _copies(done, "drop_near_duplicates", first, near.columns, model.target)
    return done


def _normalise(rows: Rows, form: Form, model: Model) -> Rows:
    """Brings every text to a Unicode form, by Python's tables: Arrow's kernel decomposes even where NFC composes.

    Where the target holds character spans of a text that the form makes longer or shorter, they move with it.
    """

    def in_form(part: pa.Table) -> pa.Table:
        table = part
        for index, field_ in enumerate(part.schema):
            if pa.types.is_string(field_.type) and not pc.all(pc.string_is_ascii(part[field_.name])).as_py():
                texts_ = [_in_form(text, form) for text in part[field_.name].to_pylist()]
                table = table.set_column(index, field_, pa.array(texts_, pa.string()))
        for column in input_columns(model):
            if model.target in table.column_names and pa.types.is_string(table.schema.field(column).type):
                table = _move_spans(table, part[column].to_pylist(), column, str(model.target), form)
        return table

    return rows.with_table(changed(rows.table, in_form))


def _in_form(text: str | None, form: Form) -> str | None:
    """A text in a Unicode form. A list written as JSON stays one: a wide quotation mark in it must not end a string."""
    if text is None or text.isascii() or text == (changed := normalize(form, text)):
        return text
    value = read_list(text)
    if isinstance(value, list) and read_list(changed) == changed:
        return json.dumps(_inside(value, form), ensure_ascii=False)
    return changed


def _inside(value: Any, form: Form) -> Any:
    if isinstance(value, str):
        return normalize(form, value)
    if isinstance(value, list):
        return [_inside(one, form) for one in value]
    return {key: _inside(one, form) for key, one in value.items()} if isinstance(value, dict) else value


def _move_spans(table: pa.Table, before: list[str | None], column: str, target: str, form: Form) -> pa.Table:
    field_ = table.schema.field(target)
    if not (pa.types.is_string(field_.type) or pa.types.is_nested(field_.type)):
        return table
    after, cells = table[column].to_pylist(), table[target].to_pylist()
    changed = [row for row, (old, new) in enumerate(zip(before, after, strict=True)) if old != new]
    if not changed:
        return table
    for row in changed:
        cells[row] = entities.moved(cells[row], before[row] or "", form)
    return table.set_column(table.column_names.index(target), field_, pa.array(cells, field_.type))


def _types(done: Cleaned, types: Mapping[str, str]) -> None:
    before = done.rows
    found: dict[str, list[Mask]] = {column: [] for column in types}

    def typed_(part: pa.Table) -> pa.Table:
        for column, kind in types.items():
            array, mask = _as_type(part[column], kind)
            found[column].append(mask)
            part = part.set_column(part.schema.get_field_index(column), column, array)
        return part

    done.rows = before.with_table(changed(before.table, typed_))
    bad = {column: np.concatenate(masks) for column, masks in found.items()}
    done.put_aside("types", bad, {column: f"no {kind}" for column, kind in types.items()}, before)


def _as_type(column: pa.ChunkedArray, kind: str) -> tuple[pa.Array, Mask]:
    """The column as another type, and where a value does not fit. Each distinct value is converted once."""
    encoded = column.combine_chunks().dictionary_encode()
    read, arrow = READERS[kind]
    values: list[Any] = []
    misfits: list[bool] = []
    for value in encoded.dictionary.to_pylist():
        try:
            values.append(None if _blank(value) else read(value))
            misfits.append(False)
        except (ValueError, OverflowError):
            values.append(None)
            misfits.append(True)
    codes = encoded.indices
    converted = pa.array(values, arrow).take(codes)
    bad = pc.fill_null(pa.array(misfits, pa.bool_()).take(codes), False)
    return converted, np.asarray(bad.to_numpy(zero_copy_only=False), dtype=bool)


def _blank(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def _integer(value: Any) -> int:
    if isinstance(value, str):
        text = value.strip()
        if not WHOLE.fullmatch(text):
            raise ValueError
        return int(text)
    if int(value) != value:
        raise ValueError
    return int(value)


def _float(value: Any) -> float:
    number = float(value.strip() if isinstance(value, str) else value)
    if not math.isfinite(number) or (isinstance(value, str) and "_" in value):
        raise ValueError
    return number


def _boolean(value: Any) -> bool:
    text = as_text(value).strip().lower()
    if text not in TRUE | FALSE:
        raise ValueError
    return text in TRUE


def _timestamp(value: Any) -> dt.datetime:
    if isinstance(value, dt.date) and not isinstance(value, dt.datetime):
        value = dt.datetime(value.year, value.month, value.day)
    if isinstance(value, str):
        value = dt.datetime.fromisoformat(value.strip())
    if not isinstance(value, dt.datetime):
        raise ValueError
    return value.astimezone(dt.UTC).replace(tzinfo=None) if value.tzinfo else value


READERS: dict[str, tuple[Callable[[Any], Any], pa.DataType]] = {
    "integer": (_integer, pa.int64()),
    "float": (_float, pa.float64()),
    "boolean": (_boolean, pa.bool_()),
    "timestamp": (_timestamp, pa.timestamp("us")),
    "string": (as_text, pa.string()),
}


def _allowed(done: Cleaned, allowed: Mapping[str, list[Any]], form: Form | Literal["none"]) -> None:
    """A missing value is no other value: it is `drop_empty` that removes it. Those allowed are in the rows' form."""
    bad: dict[str, Mask] = {}
    for column, values in allowed.items():
        known = {as_text(value) if form == "none" else normalize(form, as_text(value)) for value in values}
        known |= {as_text(float(value)) for value in values if isinstance(value, int) and not isinstance(value, bool)}
        bad[column] = np.concatenate([_unknown(part[column], known) for part in parts(done.rows.table)])
    reasons = {column: f"not one of {_shown(values)}" for column, values in allowed.items()}
    done.put_aside("allowed", bad, reasons, done.rows)


def _unknown(column: pa.ChunkedArray, known: set[str]) -> Mask:
    encoded = column.combine_chunks().dictionary_encode()
    wrong = [as_text(value) not in known for value in encoded.dictionary.to_pylist()]
    found = pc.fill_null(pa.array(wrong, pa.bool_()).take(encoded.indices), False)
    return np.asarray(found.to_numpy(zero_copy_only=False), dtype=bool)


def _shown(values: list[Any]) -> str:
    shown = ", ".join(map(as_text, values[:8]))
    return f"{shown}, … ({len(values)} in all)" if len(values) > 8 else shown


def _unusable(done: Cleaned, model: Model) -> None:
    """Nothing can be learned from a row without its target, nor from one with nothing to read."""
    if model.target:
        done.drop("without_target", empty(done.rows.table[model.target]), column=model.target)
    inputs = input_columns(model)
    nothing = np.ones(len(done.rows), dtype=bool)
    for column in inputs:
        nothing &= empty(done.rows.table[column])
    done.drop("without_input", nothing, columns=inputs)


def input_columns(model: Model) -> list[str]:
    """The columns that the model reads, each once."""
    return list(dict.fromkeys(column for columns in model.inputs.values() for column in columns))


def _duplicates(done: Cleaned, columns: list[str], target: str | None) -> None:
    _, first, group = np.unique(_contents(done.rows, columns), return_index=True, return_inverse=True)
    _copies(done, "drop_duplicates", first[group], columns, target)


def _copies(done: Cleaned, step: str, first: Any, columns: list[str], target: str | None) -> None:
    """Drops rows that copy an earlier one; ``conflicting`` counts those whose target is another than the kept row's."""
    gone = first != np.arange(len(first))
    conflicting = 0
    if target:
        targets = _contents(done.rows, [target])
        conflicting = int((targets[gone] != targets[first[gone]]).sum())
    done.drop(step, gone, columns=columns, conflicting=conflicting)


def _contents(rows: Rows, columns: list[str]) -> npt.NDArray[np.uint64]:
    return digests(rows.table.select(columns), missing="\0null")  # unlike an empty text
