"""Landing: rows of any source become one Parquet file whose columns have one type each, with bounded memory.

A column's type is only known when its last row has been read. So rows are kept batch by batch as they come (parts), and
written once more in their final types at the end. A type is taken only if nothing is lost by it: ``00123`` stays text.
"""

import datetime as dt
import decimal
import json
import math
import shutil
import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.ipc
import pyarrow.parquet as pq

from cluster.errors import UserError
from training.data import decimals
from training.data.decimals import Decimals
from training.data.row_digest import RowDigest
from training.data.text_types import TextType, no_blanks, without
from training.mapped import PART

HIDDEN = "__headrace_"
"""The prefix of columns that are ours and never reach a fused table."""

ROW = HIDDEN + "row"
"""The column of a landed file that holds each row's number in its file, and above :data:`FILE_ROWS` which file."""

FILE_ROWS = 2**36
"""Added to row numbers for each file of the source before theirs; Daft's own ids count partitions in the same way."""

PART_ROWS = 50_000
PART_CHARACTERS = 16_000_000  # of a text file, where its rows are long
LARGEST_EXACT = 2**53  # beyond it a float cannot hold every whole number
DECIMAL = pa.decimal256(76, 0)  # stands for decimals of any precision and scale until all are seen
STRANGE = {  # types that Daft does not read, and those that hold the same
    pa.string_view(): pa.string(),
    pa.binary_view(): pa.binary(),
    pa.time32("s"): pa.time64("us"),
    pa.time32("ms"): pa.time64("us"),
}


@dataclass(frozen=True)
class Reject:
    """One row that could not be used.

    Attributes:
        source: the source's name, or ``fuse`` where the row exists only in the fused table.
        row: in a text file the line on which the row begins (the first line is 1); elsewhere the row's number from 1.
        column: the column at fault, where one is.
        value: the value at fault, or the whole row as text.
        reason: why, in a few words.
    """

    source: str
    row: int | None
    column: str | None
    value: str | None
    reason: str


@dataclass(frozen=True)
class Landed:
    """A source as Parquet.

    Attributes:
        paths: the Parquet files, in order.
        schema: the columns of the table (without :data:`ROW`).
        rows: how many rows can be used.
        rejects: one or more for each row that cannot.
        rejected_rows: how many rows that is.
        numbered: the files hold :data:`ROW`.
        ordered: the order of the rows means something and is the same each time they are read.
        digest: of the rows, and of their order where they are ``ordered``; only where it was asked for.
        warnings: what may be wrong with a file.
        notes: what the author of a recipe would want to know of the columns' types.
    """

    name: str
    kind: str
    paths: list[str]
    schema: pa.Schema
    rows: int
    rejects: list[Reject] = field(default_factory=list, repr=False)
    rejected_rows: int = 0
    numbered: bool = True
    ordered: bool = True
    digest: str | None = None
    files: int = 1
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class Landing:
    """Collects the rows of one source.

    Args:
        folder: where the Parquet file and the parts are written.
        name: the source's name.
        infer: values are text, as in CSV, and types are found by looking at all of them.
        limit: land no more rows than this.
        as_written: columns that stay text, whatever their values look like: ``1.50`` is not ``1.5``.
        missing: texts that stand for nothing, where types are inferred.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        *,
        infer: bool = False,
        limit: int | None = None,
        as_written: Collection[str] = (),
        missing: Collection[str] = (),
    ) -> None:
        self.folder = folder
        self.name = name
        self.infer = infer
        self.limit = limit
        self.as_written = as_written
        self.missing = pa.array(list(missing), pa.string())
        self.rows = 0
        self.rejects: list[Reject] = []
        self.rejected_rows = 0
        self.warnings: list[str] = []
        self.file = 0  # of several, the one that rows come from, counted from 0
        self._columns: dict[str, _Column] = {}
        self._parts: list[Path] = []
        self._part_folder = folder / f"{name}.parts-{uuid.uuid4().hex[:8]}"

    @property
    def full(self) -> bool:
        """As many rows have landed as were asked for."""
        return self.limit is not None and self.rows >= self.limit

    def declare(self, names: Iterable[str]) -> None:
        """Names columns that exist even if no row follows."""
        for name in names:
            self._column(name)

    def reject(self, row: int | None, column: str | None, value: Any, reason: str) -> None:
        """Puts one row aside."""
        self.rejects.append(Reject(self.name, row, column, None if value is None else as_text(value), reason))
        self.rejected_rows += 1

    def add(
        self, columns: Mapping[str, Sequence[Any] | pa.Array], numbers: Sequence[int] | npt.NDArray[np.int64]
    ) -> None:
        """Takes rows, column by column; ``numbers`` are their numbers in the source."""
        room = len(numbers) if self.limit is None else min(len(numbers), self.limit - self.rows)
        if room <= 0:
            return
        arrays = {ROW: pa.array(np.asarray(numbers[:room], dtype=np.int64) + self.file * FILE_ROWS)}
        for name, values in columns.items():
            array = _wide(values[:room]) if isinstance(values, pa.Array) else self._typed(name, values[:room])
            arrays[name] = without(array, self.missing) if self.infer and len(self.missing) else array
            self._column(name).see(arrays[name], self._infers(name))
        self._write_part(pa.table(arrays))
        self.rows += room

    def add_rows(self, records: Sequence[Mapping[str, Any]], numbers: Sequence[int]) -> None:
        """Takes rows as mappings, which need not have the same keys."""
        names = dict.fromkeys(name for record in records for name in record)
        self.add({name: [record.get(name) for record in records] for name in names}, numbers)

    def finish(self, kind: str, *, ordered: bool = True, digest: bool = False, files: int = 1) -> Landed:
        """Writes the Parquet files in their final types and removes the parts."""
        types = {name: column.final(self._infers(name)) for name, column in self._columns.items()}
        schema = pa.schema([*types.items(), (ROW, pa.int64())])
        total = RowDigest(ordered) if digest else None
        paths = self._write_files(schema, total)
        shutil.rmtree(self._part_folder, ignore_errors=True)
        return Landed(
            name=self.name,
            kind=kind,
            paths=paths,
            schema=pa.schema(list(types.items())),
            rows=self.rows,
            rejects=self.rejects,
            rejected_rows=self.rejected_rows,
            ordered=ordered,
            digest=total.hex(schema) if total else None,
            files=files,
            warnings=self.warnings,
            notes=self._notes(),
        )

    def _column(self, name: str) -> "_Column":
        if name.startswith(HIDDEN):
            raise UserError(f"data.sources.{self.name}: a column may not be called '{name}'; rename it")
        return self._columns.setdefault(name, _Column())

    def _notes(self) -> list[str]:
        inferred = {name: column for name, column in self._columns.items() if self._infers(name)}
        return [note for name, column in inferred.items() if (note := column.texts.note(self.name, name))]

    def _infers(self, name: str) -> bool:
        return self.infer and name not in self.as_written

    def _typed(self, name: str, values: Sequence[Any]) -> pa.Array:
        if name not in self.as_written:
            return typed(values)
        return pa.array([None if value is None else written(value) for value in values], pa.string())

    def _write_part(self, table: pa.Table) -> None:
        self._part_folder.mkdir(parents=True, exist_ok=True)
        path = self._part_folder / f"{len(self._parts):06d}.arrow"
        with pa.ipc.new_file(path, table.schema) as writer:
            writer.write_table(table)
        self._parts.append(path)

    def _write_files(self, schema: pa.Schema, total: "RowDigest | None") -> list[str]:
        """Several files where there are many rows: Daft reads each file as a whole, and some of them at a time."""
        paths: list[str] = []
        tables = self._read_parts(schema)
        table = next(tables, schema.empty_table())
        while table is not None:
            size = 0
            paths.append(str(self.folder / f"{self.name}.{len(paths):06d}.parquet"))
            with pq.ParquetWriter(paths[-1], schema) as writer:
                while table is not None and size < PART:
                    writer.write_table(table)
                    size += table.nbytes
                    if total:
                        total.add(table.drop_columns([ROW]))
                    table = next(tables, None)
        return paths

    def _read_parts(self, schema: pa.Schema) -> Iterator[pa.Table]:
        for path in self._parts:
            with pa.memory_map(str(path)) as file:
                part = pa.ipc.open_file(file).read_all()
                arrays = [
                    convert(part[name].combine_chunks(), kind)
                    if name in part.column_names
                    else pa.nulls(part.num_rows, kind)
                    for name, kind in zip(schema.names, schema.types, strict=True)
                ]
                yield pa.Table.from_arrays(arrays, schema=schema)


class _Column:
    """What has been seen of one column."""

    def __init__(self) -> None:
        self.types: set[pa.DataType] = set()
        self.decimals = Decimals()
        self.largest = 0
        self.texts = TextType()

    def see(self, array: pa.Array, infer: bool) -> None:
        kind = array.type
        if infer:
            self.texts.narrow(array)
        elif pa.types.is_decimal(kind):
            self.decimals.see(array)
            self.types.add(DECIMAL)
        elif not pa.types.is_null(kind):
            self.types.add(kind)
            if pa.types.is_int64(kind):
                ends = pc.min_max(array)
                self.largest = max(self.largest, *(abs(ends[end].as_py() or 0) for end in ("min", "max")))

    def final(self, infer: bool) -> pa.DataType:
        if infer:
            return self.texts.final()
        if DECIMAL in self.types:
            return one_type(self.types - {DECIMAL} | {self.decimals.type()}, max(self.largest, self.decimals.largest))
        return one_type(self.types, self.largest)


def one_type(types: set[pa.DataType], largest: int = 0) -> pa.DataType:
    """The type that holds values of all ``types`` without loss; text where there is no other.

    Args:
        largest: of the whole numbers among them, whatever its sign.
    """
    if not types:
        return pa.string()
    if len(types) == 1:
        return next(iter(types))
    if types <= {pa.int64(), pa.float64()} and largest <= LARGEST_EXACT:
        return pa.float64()
    if types <= {pa.date32(), pa.timestamp("us")}:
        return pa.timestamp("us")
    return pa.string()


def typed(values: Sequence[Any]) -> pa.Array:
    """Python values as an array of the narrowest type that holds them all; text where they are mixed."""
    kinds = {type(value) for value in values} - {type(None)}
    if not kinds:
        return pa.nulls(len(values))
    try:
        if kinds <= {decimal.Decimal, int} and decimal.Decimal in kinds and decimals.finite(values):
            return decimals.array(values)
        if kinds <= {decimal.Decimal, int, float} and kinds != {int}:
            return _floats(values)
        if kinds in ({int}, {bool}, {str}, {bytes}, {dt.date}):
            return pa.array(values)
        if kinds == {dt.datetime}:
            return _moments(values)
    except (OverflowError, pa.ArrowInvalid):
        pass
    return pa.array([None if value is None else as_text(value) for value in values], pa.string())


def _floats(values: Sequence[Any]) -> pa.Array:
    present = [None if value is None or math.isnan(value) else value for value in values]
    for value in present:
        if value is not None and not isinstance(value, float) and LARGEST_EXACT < abs(value) < math.inf:
            raise OverflowError
    return pa.array([None if value is None else float(value) for value in present], pa.float64())


def _moments(values: Sequence[dt.datetime | None]) -> pa.Array:
    aware = {value.tzinfo is not None for value in values if value is not None}
    if len(aware) > 1:
        raise OverflowError
    return pa.array(values, pa.timestamp("us", "UTC") if True in aware else pa.timestamp("us"))


def _wide(array: pa.Array) -> pa.Array:
    """``array`` in the widest type of its kind, so that the parts of a column have one type."""
    kind = array.type
    if pa.types.is_dictionary(kind):
        return _wide(array.dictionary_decode())
    if pa.types.is_integer(kind):
        return array.cast(pa.int64()) if kind != pa.uint64() else typed(array.to_pylist())
    if pa.types.is_floating(kind):
        return array.cast(pa.float64())
    if pa.types.is_large_string(kind):
        return array.cast(pa.string())
    if pa.types.is_timestamp(kind):
        return array.cast(pa.timestamp("us", kind.tz and "UTC"), safe=False)
    if kind in STRANGE:
        return array.cast(STRANGE[kind])
    return _texts(array) if _is_strange(kind) else array


def is_plain(kind: pa.DataType) -> bool:
    """Whether a column of that type may stay as it is: Daft reads it, and what follows loses no digit of it."""
    return not (_is_strange(kind) or pa.types.is_decimal(kind) or pa.types.is_uint64(kind))


def _is_strange(kind: pa.DataType) -> bool:
    if pa.types.is_nested(kind):
        return any(_is_strange(kind.field(index).type) for index in range(kind.num_fields))
    return kind in STRANGE


def _texts(array: pa.Array) -> pa.Array:
    return pa.array([None if value is None else as_text(value) for value in array.to_pylist()], pa.string())


def as_text(value: Any) -> str:
    """A value as the text that a person would write for it."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict | list):
        return json.dumps(value, ensure_ascii=False, default=str)
    if isinstance(value, dt.date):
        return value.isoformat()
    if isinstance(value, bytes | memoryview):
        return bytes(value).decode("utf-8", "backslashreplace")
    if isinstance(value, decimal.Decimal):
        return decimals.plain(value) if value.is_finite() else str(value)
    return str(value)


def written(value: Any) -> str:
    """A value that a model is asked about as the text it was; a list or a mapping as JSON."""
    return as_text(value) if isinstance(value, dict | list) else str(value)


def convert(array: pa.Array, kind: pa.DataType) -> pa.Array:
    """``array`` as ``kind``, which holds it without loss (see :func:`one_type`)."""
    if array.type == kind:
        return array
    if pa.types.is_string(array.type):
        array = no_blanks(array)
        return pc.equal(pc.utf8_lower(array), "true") if kind == pa.bool_() else array.cast(kind)
    if pa.types.is_decimal(array.type):
        return decimals.converted(array, kind)
    if kind == pa.string() and not pa.types.is_null(array.type):
        return _texts(array)
    return array.cast(kind)
