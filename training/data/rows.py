"""Fused rows, and where each came from."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from training.data.landing import FILE_ROWS, Reject, as_text
from training.mapped import filtered, parts

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Rows:
    """A fused table.

    Attributes:
        table: the columns that the statement selects.
        origins: source to the number of the row there, for each fused row; 0 where an outer join found none.
        column_source: column to the source whose rows are named when one of its values is rejected.
        files: sources of several files, each of which numbers its rows from the start; see ``landing.FILE_ROWS``.
    """

    table: pa.Table
    origins: Mapping[str, npt.NDArray[np.int64]] = field(default_factory=dict)
    column_source: Mapping[str, str] = field(default_factory=dict)
    files: frozenset[str] = frozenset()

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def keep(self, mask: Mask) -> "Rows":
        """The rows for which ``mask`` is true."""
        if mask.all():
            return self
        origins = {source: numbers[mask] for source, numbers in self.origins.items()}
        return replace(self, table=filtered(self.table, mask), origins=origins)

    def with_table(self, table: pa.Table) -> "Rows":
        """The same rows with changed values."""
        return replace(self, table=table)

    def reject(self, index: int, column: str, value: object, reason: str) -> Reject:
        """The row at ``index``, put aside for a value of ``column``."""
        source = self.column_source.get(column, "fuse")
        number = int(self.origins[source][index]) if source in self.origins else index + 1
        file, row = divmod(number, FILE_ROWS)
        if row and source in self.files:
            reason = f"{reason} (in file {file + 1} of {source})"
        elif file:  # a partition of a cluster, whose ids do not tell which row it is
            row = 0
        return Reject(source, row or None, column, None if value is None else as_text(value), reason)


def ranks(column: pa.ChunkedArray, *, descending: bool = False, nulls_first: bool = False) -> npt.NDArray[np.int64]:
    """The place of each value among the column's distinct ones, nulls at the named end."""
    kind = column.type
    if pa.types.is_null(kind) or not len(column):
        return np.zeros(len(column), dtype=np.int64)
    if pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_boolean(kind):
        written = (
            [None if value is None else as_text(value) for value in chunk.to_pylist()] for chunk in column.chunks
        )
        column = pa.chunked_array([pa.array(values, pa.string()) for values in written])
    if pa.types.is_signed_integer(kind) or pa.types.is_timestamp(kind):
        return _ranks_of_numbers(column, descending, nulls_first)
    encoded = column.dictionary_encode()  # over all chunks: they share one dictionary
    values = encoded.chunk(0).dictionary
    order = pc.array_sort_indices(values, order="descending" if descending else "ascending")
    places = np.empty(len(values) + 1, dtype=np.int64)
    places[order.to_numpy()] = np.arange(len(values))
    places[len(values)] = -1 if nulls_first else len(values)
    codes = [chunk.indices.fill_null(len(values)).to_numpy(zero_copy_only=False) for chunk in encoded.chunks]
    return np.asarray(places[np.concatenate(codes)], dtype=np.int64)


def _ranks_of_numbers(column: pa.ChunkedArray, descending: bool, nulls_first: bool) -> npt.NDArray[np.int64]:
    """As :func:`ranks`, without a dictionary of what sorts by itself."""
    present = np.asarray(column.is_valid().to_numpy(), dtype=bool)
    values = column.drop_null().cast(pa.int64()).to_numpy()
    distinct, places = np.unique(values, return_inverse=True)
    found = np.full(len(column), -1 if nulls_first else len(distinct), dtype=np.int64)
    found[present] = len(distinct) - 1 - places if descending else places
    return found


def digests(table: pa.Table, salt: str = "", missing: str = "") -> npt.NDArray[np.uint64]:
    """A 64-bit hash of the content of each row. Of a million rows two different ones are equal with a chance of 3e-8.

    Args:
        salt: goes before each row's content.
        missing: what a null is hashed as.
    """
    found = [np.zeros(0, dtype=np.uint64)]
    for part in parts(table):
        columns = [[missing if value is None else as_text(value) for value in one.to_pylist()] for one in part.columns]
        contents = (salt + "\0".join(row) for row in zip(*columns, strict=True))
        found.append(np.array([digest(content) for content in contents], dtype=np.uint64))
    return np.concatenate(found)


def digest(text: str) -> int:
    """A 64-bit hash of a text."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest())


def texts(table: pa.Table, columns: list[str]) -> Iterator[str]:
    """The values of the columns of each row as one text; nulls are empty."""
    for part in parts(table.select(columns)):
        values = [["" if value is None else as_text(value) for value in one.to_pylist()] for one in part.columns]
        yield from map("\n".join, zip(*values, strict=True))


def empty(column: pa.ChunkedArray) -> Mask:
    """Where there is nothing: null, or text of white space alone."""
    return np.concatenate([np.zeros(0, dtype=bool), *map(_empty, column.chunks)])


def _empty(values: pa.Array) -> Mask:
    missing = pc.is_null(values, nan_is_null=pa.types.is_floating(values.type))
    if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
        missing = pc.or_(missing, pc.fill_null(pc.equal(pc.utf8_trim_whitespace(values), ""), True))
    return np.asarray(missing.to_numpy(zero_copy_only=False), dtype=bool)
