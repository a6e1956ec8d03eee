"""Fused rows, and where each came from."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from training.data.landing import Reject, as_text

FIRST_PARTITION = 2**36  # from here on Daft's ids tell of a partition on a cluster, and no longer which row it is

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Rows:
    """A fused table.

    Attributes:
        table: the columns that the statement selects.
        origins: source to the number of the row there, for each fused row; 0 where an outer join found none.
        column_source: column to the source whose rows are named when one of its values is rejected.
    """

    table: pa.Table
    origins: Mapping[str, npt.NDArray[np.int64]] = field(default_factory=dict)
    column_source: Mapping[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def keep(self, mask: Mask) -> "Rows":
        """The rows for which ``mask`` is true."""
        if mask.all():
            return self
        origins = {source: numbers[mask] for source, numbers in self.origins.items()}
        return Rows(self.table.filter(pa.array(mask)), origins, self.column_source)

    def with_table(self, table: pa.Table) -> "Rows":
        """The same rows with changed values."""
        return Rows(table, self.origins, self.column_source)

    def reject(self, index: int, column: str, value: object, reason: str) -> Reject:
        """The row at ``index``, put aside for a value of ``column``."""
        source = self.column_source.get(column, "fuse")
        number = int(self.origins[source][index]) if source in self.origins else index + 1
        known = 0 < number < FIRST_PARTITION
        return Reject(source, number if known else None, column, None if value is None else as_text(value), reason)


def ranks(column: pa.ChunkedArray, *, descending: bool = False, nulls_first: bool = False) -> npt.NDArray[np.int64]:
    """The place of each value among the column's distinct ones, nulls at the named end."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if pa.types.is_nested(array.type) or pa.types.is_binary(array.type) or pa.types.is_boolean(array.type):
        array = pa.array([None if value is None else as_text(value) for value in array.to_pylist()], pa.string())
    if pa.types.is_null(array.type):
        return np.zeros(len(array), dtype=np.int64)
    encoded = array.dictionary_encode()
    count = len(encoded.dictionary)
    order = pc.array_sort_indices(encoded.dictionary, order="descending" if descending else "ascending")
    places = np.empty(count + 1, dtype=np.int64)
    places[order.to_numpy()] = np.arange(count)
    places[count] = -1 if nulls_first else count
    codes: npt.NDArray[np.int64] = places[encoded.indices.fill_null(count).to_numpy(zero_copy_only=False)]
    return codes


def texts(table: pa.Table, columns: list[str]) -> list[str]:
    """The values of the columns of each row as one text; nulls are empty."""
    parts = [["" if value is None else as_text(value) for value in table[column].to_pylist()] for column in columns]
    return ["\n".join(row) for row in zip(*parts, strict=True)] if parts else [""] * table.num_rows


def empty(column: pa.ChunkedArray) -> Mask:
    """Where there is nothing: null, or text of white space alone."""
    missing = pc.is_null(column, nan_is_null=pa.types.is_floating(column.type))
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        missing = pc.or_(missing, pc.fill_null(pc.equal(pc.utf8_trim_whitespace(column), ""), True))
    return np.asarray(
        missing.to_numpy(zero_copy_only=False) if isinstance(missing, pa.Array) else missing.to_numpy(), bool
    )
