"""Tables that lie on the disk and are mapped into memory, where only what is being looked at takes any.

Rows may be more than memory holds. So every step goes through them in parts and lays what it makes of each on the disk.
The file of a step in between has no name: it is gone with its table, even after SIGKILL.
"""

import itertools
import mmap
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cluster.storage import home

PART = 16 * 1024**2
"""Bytes of a table that are worked on at a time. A table that is no larger stays in memory."""

Rows = npt.NDArray[np.int64]


def mapped(some: Iterable[pa.Table], schema: pa.Schema) -> pa.Table:
    """Tables of one schema as one, on the disk where they are large; none is asked for before the last is laid down."""
    waiting = iter(some)
    held: list[pa.Table] = []
    size = 0
    for part in waiting:
        held.append(part)
        size += part.nbytes
        if size > PART:
            break
    else:
        return pa.concat_tables(held) if held else schema.empty_table()
    home().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=home()) as file:
        _write(itertools.chain(held, waiting), schema, file)
        file.flush()
        seen = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)  # outlives the file that is closed here
    return pa.ipc.open_file(pa.py_buffer(seen)).read_all()


def keep(table: pa.Table, path: Path) -> None:
    """Writes a table to a file of Arrow's IPC format, which :func:`kept` maps."""
    with path.open("wb") as file:
        _write(parts(table), table.schema, file)


def kept(path: Path) -> pa.Table:
    """The table of a file, mapped."""
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()


def _write(some: Iterable[pa.Table], schema: pa.Schema, file: IO[Any]) -> None:
    with pa.ipc.new_file(file, schema) as writer:
        for part in some:
            writer.write_table(part)


def parts(table: pa.Table) -> Iterator[pa.Table]:
    """The rows of a table in order, about :data:`PART` bytes at a time; of an empty one, itself."""
    rows = _rows_of_part(table)
    for start in range(0, max(table.num_rows, 1), rows):
        yield table.slice(start, rows)


def _rows_of_part(table: pa.Table) -> int:
    return max(1, int(table.num_rows) * PART // max(int(table.nbytes), 1))


def changed(table: pa.Table, change: Callable[[pa.Table], pa.Table]) -> pa.Table:
    """What ``change`` makes of a table, part by part; every part must get the same columns."""
    made = map(change, parts(table))
    first = next(made)
    return mapped(itertools.chain([first], made), first.schema)


def filtered(table: pa.Table, mask: npt.NDArray[np.bool_]) -> pa.Table:
    """The rows for which ``mask`` is true."""
    if mask.all():
        return table
    rows = _rows_of_part(table)
    starts = range(0, table.num_rows, rows)
    return mapped(
        (table.slice(start, rows).filter(pa.array(mask[start : start + rows])) for start in starts), table.schema
    )


def taken(table: pa.Table, order: Rows) -> pa.Table:
    """The rows at ``order``, in that order. Arrow's own ``take`` would first put the whole table together in memory."""
    if np.array_equal(order, np.arange(table.num_rows)):
        return table
    batches = table.to_batches()
    ends = np.cumsum([batch.num_rows for batch in batches])
    rows = _rows_of_part(table)
    starts = range(0, len(order), rows)
    return mapped((_gathered(batches, ends, order[start : start + rows]) for start in starts), table.schema)


def _gathered(batches: list[pa.RecordBatch], ends: Rows, rows: Rows) -> pa.Table:
    holders = np.searchsorted(ends, rows, side="right")
    found = []
    for holder in np.unique(holders).tolist():
        start = ends[holder] - batches[holder].num_rows
        found.append(batches[holder].take(pa.array(rows[holders == holder] - start)))
    places = np.empty(len(rows), dtype=np.int64)
    places[np.argsort(holders, kind="stable")] = np.arange(len(rows))
    return pa.Table.from_batches(found).combine_chunks().take(pa.array(places))
