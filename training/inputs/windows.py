"""Rows of many moments become windows: what was known at an origin, what is known of the steps after it, and the truth.

No window sees its own future. A window belongs to the split of the steps that it is asked about, all of which lie in
that split; what it may look back on are the rows before its origin, whatever split they are in: by then they are known.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cluster.errors import UserError
from training.inputs.cells import read_label, read_number
from training.inputs.columns import CYCLES, Category, Column, Number
from training.inputs.timeline import Timeline

HISTORY, FUTURE = "history", "future"

MOST_ENTRIES = 64
"""Values of a category that are told apart at each step; rarer ones are read as unknown."""

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Shape:
    """What a window is made of.

    Attributes:
        time: the column of moments.
        series: the column that tells series apart, where there are several.
        target: the column that is forecast.
        known: columns that are known of the future.
        past: columns that are known of the past alone.
        context: steps that it looks back on.
        horizon: steps that it is asked about.
        stride: steps from one origin to the next.
    """

    time: str
    series: str | None
    target: str
    known: tuple[str, ...]
    past: tuple[str, ...]
    context: int
    horizon: int
    stride: int

    @property
    def of_history(self) -> list[str]:
        """The columns that a window has of the past."""
        return [self.time, self.target, *self.known, *self.past]

    @property
    def of_future(self) -> list[str]:
        """The columns that a window has of the steps that it is asked about."""
        return [self.time, *self.known]

    @property
    def parts(self) -> dict[str, list[str]]:
        """What a window has of the past, and of the steps that it is asked about where anything is known of them."""
        return {HISTORY: self.of_history} | ({FUTURE: self.of_future} if self.known else {})

    def names(self, table: pa.Table) -> list[str]:
        """The series of each row, as text."""
        if self.series is None:
            return [""] * table.num_rows
        return ["" if cell is None else read_label(cell) for cell in table[self.series].to_pylist()]


@dataclass(frozen=True)
class Line:
    """One series on its grid.

    Attributes:
        name: the series.
        rows: for each step from its first to its last the number of its row, -1 where there is none.
        owner: for each step the split of its row, as a number; -1 where there is none.
    """

    name: str
    rows: Ints
    owner: Ints


def cut(shape: Shape, timeline: Timeline, splits: Mapping[str, pa.Table]) -> dict[str, pa.Table]:
    """The windows of each split, as tables of one row for each.

    Their columns are ``history`` and ``future``, each a structure of lists, the series where there is one, and the
    target: a list of ``horizon`` values, null where the truth is not known.

    Raises:
        UserError: a series has two rows for one step, or its splits lie mixed in time.
    """
    together = pa.concat_tables([_as_needed(shape, table) for table in splits.values()], promote_options="permissive")
    found: dict[str, list[tuple[Ints, Ints]]] = {name: [] for name in splits}
    names = list(splits)
    for line in lines(shape, timeline, splits):
        for owner, origins in _origins(shape, line, pc.is_valid(together[shape.target]).to_numpy()).items():
            for origin in origins:
                past = line.rows[max(0, origin + 1 - shape.context) : origin + 1]
                found[names[owner]].append((past[past >= 0], line.rows[origin + 1 : origin + 1 + shape.horizon]))
    return {name: _table(shape, together, windows) for name, windows in found.items()}


def lines(shape: Shape, timeline: Timeline, splits: Mapping[str, pa.Table]) -> list[Line]:
    """The series of all splits, each on its grid; rows are numbered through the splits in their order.

    Raises:
        UserError: as :func:`cut`.
    """
    names = np.array([name for table in splits.values() for name in shape.names(table)], dtype=object)
    times = [cell for table in splits.values() for cell in table[shape.time].to_pylist()]
    owners = np.repeat(np.arange(len(splits)), [table.num_rows for table in splits.values()])
    places = timeline.places(times, shape.time)
    _, series = np.unique(names.astype(str), return_inverse=True) if len(names) else (None, np.zeros(0, dtype=np.int64))
    order = np.lexsort((places, series))
    found = []
    for rows in np.split(order, np.flatnonzero(np.diff(series[order])) + 1) if len(order) else []:
        _check_order(shape, names[rows[0]], places[rows], owners[rows])
        size = int(places[rows[-1]] - places[rows[0]]) + 1
        line = Line(str(names[rows[0]]), np.full(size, -1), np.full(size, -1))
        line.rows[places[rows] - places[rows[0]]] = rows
        line.owner[places[rows] - places[rows[0]]] = owners[rows]
        found.append(line)
    return found


def _check_order(shape: Shape, name: str, places: Ints, owners: Ints) -> None:
    whose = f" of series '{name}'" if name else ""
    if (np.diff(places) == 0).any():
        raise UserError(
            f"model.inputs.time: two rows{whose} stand at one step of '{shape.time}'; sum or average them in data.fuse"
            + ("" if shape.series else ", or name what tells series apart under model.inputs.series")
        )
    if (np.diff(owners) < 0).any():
        raise UserError(
            f"data.split: the rows{whose} of train, validation and test lie mixed in time, so the future would be "
            f"learned from; say data.split: {{time: {shape.time}}}"
        )


def _origins(shape: Shape, line: Line, valid: npt.NDArray[np.bool_]) -> dict[int, list[int]]:
    """For each split the steps after which its windows begin, every ``stride`` of them, counted from the last.

    Each of them has a row: a window's own moments tell where its future begins. Before the first there are as many
    steps as are forecast, or as are looked back on, with a value among them.
    """
    horizon, size = shape.horizon, len(line.rows)
    origins = np.arange(min(horizon, shape.context) - 1, size - horizon)
    if not len(origins):
        return {}
    known = (line.rows >= 0) & valid[np.maximum(line.rows, 0)]
    told = np.r_[0, np.cumsum(known)]
    ahead = np.lib.stride_tricks.sliding_window_view(line.owner, horizon)[origins + 1]
    owner = ahead.max(axis=1)
    one = np.where(ahead < 0, owner[:, None], ahead).min(axis=1) == owner
    asked = told[origins + 1 + horizon] > told[origins + 1]
    seen = told[origins + 1] > told[np.maximum(0, origins + 1 - shape.context)]
    fit = one & asked & seen & (line.rows[origins] >= 0)
    return {
        int(split): origins[fit & (owner == split)][:: -shape.stride][::-1].tolist() for split in np.unique(owner[fit])
    }


def _as_needed(shape: Shape, table: pa.Table) -> pa.Table:
    names = [*shape.of_history, *([shape.series] if shape.series else [])]
    return table.select(list(dict.fromkeys(names)))


def _table(shape: Shape, rows: pa.Table, windows: list[tuple[Ints, Ints]]) -> pa.Table:
    past = [one for one, _ in windows]
    ahead = [two[two >= 0] for _, two in windows]
    truth = np.concatenate([two for _, two in windows]) if windows else np.zeros(0, dtype=np.int64)
    columns: dict[str, Any] = {
        HISTORY: _lists(rows, shape.of_history, past),
        FUTURE: _lists(rows, shape.of_future, ahead),
    }
    if shape.series:
        first = np.array([one[0] for one in past], dtype=np.int64)
        columns[shape.series] = rows[shape.series].combine_chunks().take(pa.array(first))
    taken = rows[shape.target].combine_chunks().take(pa.array(truth, mask=truth < 0))
    offsets = np.arange(len(windows) + 1, dtype=np.int32) * shape.horizon
    columns[shape.target] = pa.ListArray.from_arrays(pa.array(offsets), taken)
    return pa.table(columns)


def _lists(rows: pa.Table, names: list[str], chosen: list[Ints]) -> pa.StructArray:
    offsets = pa.array(np.r_[0, np.cumsum([len(one) for one in chosen])].astype(np.int32))
    flat = pa.array(np.concatenate(chosen) if chosen else np.zeros(0, dtype=np.int64))
    lists = [pa.ListArray.from_arrays(offsets, rows[name].combine_chunks().take(flat)) for name in names]
    return pa.StructArray.from_arrays(lists, names=names)


def seasons(timeline: Timeline, season: int, context: int) -> list[int]:
    """The lengths of season that a context holds: one that is told, and those of the calendar; else a single step."""
    cycles = [cycle // timeline.step for cycle in CYCLES.values() if cycle % timeline.step == 0]
    expected = {season, timeline.season, *(map(int, cycles) if timeline.unit == "second" else ())}
    return sorted(one for one in expected if 1 < one <= context) or [1]


def by_series(table: pa.Table, series: str | None) -> list[pa.Table]:
    """The rows of each series."""
    if series is None:
        return [table]
    codes = table[series].combine_chunks().dictionary_encode().indices.fill_null(-1).to_numpy()
    order = np.argsort(codes, kind="stable")
    return [table.take(rows) for rows in np.split(order, np.flatnonzero(np.diff(codes[order])) + 1)]


def features(column: Column, cells: Sequence[Any]) -> npt.NDArray[np.float64]:
    """A covariate at each step: ``[steps, features]``. Zeros where it is missing, which a flag then tells."""
    if isinstance(column, Number):
        values = (_fast(column, cells)[:, None] - column.mean) / column.spread
    else:
        known = {cell: column.known(cell) for cell in set(cells)}
        encoded = column.encode([known[cell] for cell in cells])
        if isinstance(column, Category):
            return np.eye(min(column.size, MOST_ENTRIES))[np.where(encoded < MOST_ENTRIES, encoded, 0)]
        return encoded  # a date, which says itself whether it is missing
    missing = np.isnan(values).any(axis=1, keepdims=True)
    return np.concatenate([np.nan_to_num(values), *([missing] if column.optional else [])], axis=1)


def _fast(column: Number, cells: Sequence[Any]) -> npt.NDArray[np.float64]:
    """The numbers of many cells at once; one by one where some are blank text."""
    try:
        values = np.array(cells, dtype=np.float64)
    except (TypeError, ValueError):
        read = [column.known(cell) for cell in cells]
        values = np.array([np.nan if value is None else value for value in read], dtype=np.float64)
    return np.where(np.isfinite(values), values, np.nan)


def numbers(cells: Sequence[Any], column: str) -> list[float]:
    """The values of a series, not a number where they are missing.

    Raises:
        UserError: one is none.
    """
    try:
        return [np.nan if number is None else number for number in map(read_number, cells)]
    except ValueError:
        raise UserError(f"model.target: '{column}' is no column of numbers") from None


def seasonal_errors(
    shape: Shape, timeline: Timeline, train: pa.Table, values: npt.NDArray[np.float64], season: int
) -> dict[str, float]:
    """Of each series the mean distance of two training values a season apart, which scaled errors are in units of.

    Hyndman and Koehler, "Another look at measures of forecast accuracy" (2006). A series that is too short, or that
    repeats exactly, has its mean value instead, and 1 where that is 0.
    """
    scales = {}
    for line in lines(shape, timeline, {"train": train}):
        known = np.where(line.rows >= 0, values[np.maximum(line.rows, 0)], np.nan)
        apart = np.abs(known[season:] - known[:-season])
        there, level = apart[~np.isnan(apart)], known[~np.isnan(known)]
        scale = float(there.mean()) if len(there) else 0.0
        scales[line.name] = scale or (float(np.abs(level).mean()) if len(level) else 0.0) or 1.0
    return scales
