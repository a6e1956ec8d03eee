"""One file of rows, read as a recipe's source is: for questions to a model that is finished."""

import re
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.errors import UserError
from cluster.progress import say
from training.data.files import ENDINGS, WORKBOOK, WORKBOOKS
from training.data.landing import ROW, Landed, Reject, written
from training.data.recipe import Source
from training.data.sources import land
from training.inputs import media

SOURCE = "file"
"""What the file is called where it is read as a recipe's source; its errors name it by its path instead."""

RECIPE_KEY = re.compile(rf"data\.sources\.{SOURCE}\.(\w+)(:?)")


SOME = 10
"""Rows that a message names."""

CHUNK, FILES_CHUNK = 10_000, 128
"""Rows that are held at once: enough for batches of equal lengths; fewer where each holds a picture or a sound."""


@dataclass(frozen=True)
class OpenTable:
    """A file of rows that is read some at a time.

    Attributes:
        rows: how many it has.
        chunks: one table after the other, once; where the file has no row, one without any.
    """

    rows: int
    chunks: Iterator[pa.Table]


def read_table(
    file: Path, signature: Mapping[str, Any], encoding: str | None = None, delimiter: str | None = None
) -> pa.Table:
    """The rows of :func:`open_table`, all together."""
    with open_table(file, signature, encoding, delimiter) as table:
        return pa.concat_tables(table.chunks)


@contextmanager
def open_table(
    file: Path,
    signature: Mapping[str, Any],
    encoding: str | None = None,
    delimiter: str | None = None,
    chunk: int | None = None,
) -> Iterator[OpenTable]:
    """The rows of a csv, json, jsonl or parquet file, in order; of a picture or a sound, the one row that it is.

    Where the model reads pictures or sounds, the files that rows name are read: relative ones beside ``file``. Whoever
    runs this can read them anyway; an endpoint, which is asked by others, reads none.

    Args:
        signature: of the model that is asked. The columns that it reads come as text exactly as written, as they come
            to an endpoint; what a Parquet file holds of another type, as Python writes it. Other columns get the types
            that they have in training.
        encoding: of a csv or json file; UTF-8 when left out.
        delimiter: of a csv file; a comma when left out, a tab in a ``.tsv``.
        chunk: the most rows of a table.

    Raises:
        UserError: the file is missing, or a row of it cannot be read: each row must get its answer.
    """
    if not file.is_file():
        raise UserError(f"{file}: no such file")
    held = media_columns(signature)
    if len(held) == 1 and not any(held.values()) and Path(file.name.removesuffix(".gz")).suffix.lower() not in ENDINGS:
        yield OpenTable(1, iter([_with_files(pa.table({next(iter(held)): [file.name]}), held, file)]))
        return
    as_text = [name for name in input_columns(signature) if name not in held]
    with tempfile.TemporaryDirectory(prefix="headrace-") as folder:
        landed = _land(file, _source(file, encoding, delimiter), Path(folder), as_text)
        if landed.rejects:
            first, *others = landed.rejects
            more = f", and {landed.rejected_rows - 1} more: rows {_some(others)}" if others else ""
            raise UserError(f"{file}:{first.row}: {first.reason}{more}; mend or remove them: each row gets an answer")
        _check_columns(file, pq.read_schema(landed.paths[0]).names, signature)
        for warning in landed.warnings:
            say(_for_options(warning))
        tables = _chunks(landed.paths, chunk or (FILES_CHUNK if held else CHUNK))
        yield OpenTable(landed.rows, _readable(tables, as_text, held, file))


def _some(rejects: Sequence[Reject]) -> str:
    """Rows of a file that could not be read; the first ones, where there are many."""
    return ", ".join(str(one.row) for one in rejects[:SOME]) + (" …" if len(rejects) > SOME else "")


def _check_columns(file: Path, names: Collection[str], signature: Mapping[str, Any]) -> None:
    """Refuses a file that lacks a column which the model reads; also one that a request may leave out, for in a file a
    wrong header would go unnoticed.

    Raises:
        UserError: naming the columns.
    """
    shapes = signature["input"].get("anyOf", [signature["input"]])
    needed = [columns for shape in shapes if "properties" in shape for columns in _needed(shape)]
    lacking = min(([name for name in columns if name not in names] for columns in needed), key=len, default=[])
    if lacking:
        raise UserError(
            f"{file}: has no column {', '.join(lacking)}, which the model reads; it has "
            f"{', '.join(name for name in names if name != ROW)}. Add it, empty where nothing is known"
        )


def _needed(shape: Mapping[str, Any]) -> list[list[str]]:
    """The columns of a row of this shape, each way in which it may be whole."""
    if "anyOf" in shape:
        return [list(one["required"]) for one in shape["anyOf"]]
    return [list(shape.get("required") or shape["properties"])]


def _chunks(paths: Sequence[str], most: int) -> Iterator[pa.Table]:
    empty = True
    for path in paths:
        with pq.ParquetFile(path) as opened:
            for batch in opened.iter_batches(batch_size=most):
                if batch.num_rows:
                    empty = False
                    yield pa.Table.from_batches([batch])
    if empty:
        yield pq.read_schema(paths[0]).empty_table()


def _readable(
    tables: Iterable[pa.Table], as_text: Collection[str], held: Mapping[str, bool], file: Path
) -> Iterator[pa.Table]:
    """Tables whose columns are what the model reads."""
    before = 0
    for landed in tables:
        table = landed.drop_columns([ROW]) if ROW in landed.column_names else landed
        for name in as_text:
            if name in table.column_names and not pa.types.is_string(table.schema.field(name).type):
                table = table.set_column(table.column_names.index(name), name, _texts(table[name]))
        yield _with_files(table, held, file, before)
        before += table.num_rows


def _with_files(table: pa.Table, columns: Mapping[str, bool], beside: Path, before: int = 0) -> pa.Table:
    """The rows with the bytes of the pictures or sounds that they hold or name.

    Args:
        columns: each such column, and whether its file may be missing.
        before: the rows of the file that stand before these.
    """
    table = media.located(table, list(columns), beside.resolve().parent)
    for name in columns:
        if name not in table.column_names:
            continue
        read: list[bytes | None] = []
        for number, cell in enumerate(table[name].to_pylist(), before + 1):
            if columns[name] and media.absent(cell):
                read.append(None)
                continue
            try:
                read.append(media.content(cell))
            except media.UnreadableError as error:
                raise UserError(f"{beside}: row {number}, {name}: {media.name(cell)}: {error}") from None
        table = table.set_column(table.column_names.index(name), name, pa.array(read, pa.large_binary()))
    return table


def media_columns(signature: Mapping[str, Any]) -> dict[str, bool]:
    """The columns of pictures or sounds that a model with this signature reads, and whether each may be empty."""
    shapes = signature["input"].get("anyOf", [signature["input"]])
    properties = {name: kind for shape in shapes for name, kind in shape.get("properties", {}).items()}
    return {name: "null" in kind["type"] for name, kind in properties.items() if "contentMediaType" in kind}


def input_columns(signature: Mapping[str, Any]) -> list[str]:
    """The columns that a model with this signature reads."""
    shapes = signature["input"].get("anyOf", [signature["input"]])
    return [column for shape in shapes for column in shape.get("properties", {})]


def _source(file: Path, encoding: str | None, delimiter: str | None) -> Source:
    name = file.name.removesuffix(".gz")
    if Path(name).suffix.lower() in WORKBOOKS:
        raise UserError(f"{file} is {WORKBOOK}")
    if Path(name).suffix.lower() not in ENDINGS:
        raise UserError(f"{file}: its ending does not tell its format; let it end in .csv, .json, .jsonl or .parquet")
    given = {"encoding": encoding, "delimiter": "\t" if delimiter == r"\t" else delimiter}
    if delimiter is not None and len(given["delimiter"] or "") != 1:
        raise UserError(f"--delimiter: one character is needed, not '{delimiter}'")
    return Source(read=str(file.resolve()), **{key: value for key, value in given.items() if value is not None})


def _land(file: Path, source: Source, folder: Path, as_text: Collection[str]) -> Landed:
    try:
        return land(SOURCE, source, file.parent, folder, as_written=as_text)
    except UserError as error:
        message = str(error).removeprefix(f"data.sources.{SOURCE}: ")
        raise UserError(_for_options(message)) from None


def _for_options(message: str) -> str:
    """A message about a recipe's source as one about the command's options, for there is no recipe to change."""
    start = RECIPE_KEY.match(message)
    if start:
        message = f"--{start[1]}{start[2]}{message[start.end() :]}"
    return RECIPE_KEY.sub(r"--\1", message)


def _texts(column: pa.ChunkedArray) -> pa.Array:
    return pa.array([None if value is None else written(value) for value in column.to_pylist()], pa.string())
