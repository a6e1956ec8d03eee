"""Regular steps of time: what a series is counted in, found from its own moments.

A moment's *place* is the number of its step on a grid, so that gaps show, and the step after the last one has a number
before it has come.
"""

import datetime as dt
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from cluster.errors import FewRowsError, UserError
from training.inputs.cells import read_seconds
from training.inputs.columns import CYCLES, cycles

Places = npt.NDArray[np.int64]
Unit = Literal["second", "month", "count"]

EPOCH = dt.datetime(1970, 1, 1)
SEASONS = ((3600, 24), (86_400, 7), (7 * 86_400, 52))
"""Seconds of a step, and how many steps of that length (or next longer) make the season that one expects."""


@dataclass(frozen=True)
class Timeline:
    """A grid of equal steps.

    Attributes:
        unit: what ``step`` counts: seconds, calendar months, or nothing but order where moments are whole numbers.
        step: length of a step.
        phase: where on the grid the first step began, in seconds, months or counts.
        span: seconds from the first moment to the last; a cycle that it does not hold twice teaches nothing.
        within: seconds from the beginning of its month to a moment; only for months. Months that are told by their
            last day have -1.
    """

    unit: Unit
    step: int
    phase: int
    span: float = 0.0
    within: int = 0

    @classmethod
    def learn(cls, moments: Sequence[Sequence[Any]], column: str) -> "Timeline":
        """The grid of the moments of each series.

        Raises:
            UserError: they are no moments, dates written as whole numbers, or no series has two different ones.
        """
        every = [cell for one in moments for cell in one]
        if every and all(isinstance(cell, int) and not isinstance(cell, bool) for cell in every):
            _refuse_dates(every, column)
            lines = [np.unique(np.asarray(one, dtype=np.int64)) for one in moments]
            return cls("count", _commonest(lines, column), int(lines[0][0]) if len(lines[0]) else 0)
        seconds = [np.unique(np.asarray([_second(cell, column) for cell in one], dtype=np.int64)) for one in moments]
        told = np.concatenate(seconds)
        span = float(told.max() - told.min()) if len(told) else 0.0
        dates = [EPOCH + dt.timedelta(seconds=int(one)) for line in seconds for one in line]
        starts = {(date - dt.datetime(date.year, date.month, 1)).total_seconds() for date in dates}
        ends = all((date + dt.timedelta(days=1)).month != date.month for date in dates)
        if len(starts) == 1 or ends:
            months = [np.array([_month(int(one)) for one in line], dtype=np.int64) for line in seconds]
            if any(len(one) > 1 for one in months):
                within = -1 if len(starts) > 1 else int(starts.pop())
                return cls("month", _commonest(months, column), int(months[0][0]), span, within)
        return cls("second", _commonest(seconds, column), int(seconds[0][0]), span)

    def save(self) -> dict[str, Any]:
        """The arguments that make the same grid again."""
        return asdict(self)

    @property
    def season(self) -> int:
        """Steps of the season that one expects: a day of hours, a week of days, a year of weeks or months; else 1."""
        if self.unit == "month":
            return max(1, 12 // self.step)
        if self.unit == "second":
            for seconds, steps in SEASONS:
                if self.step <= seconds:
                    return max(1, seconds * steps // self.step)
        return 1

    def places(self, moments: Sequence[Any], column: str) -> Places:
        """The place of each moment on the grid; one between two steps belongs to the nearer.

        Raises:
            UserError: one is no moment; names the column, never the moment.
        """
        if self.unit == "count":
            if not all(isinstance(cell, int | float | str) and str(cell).lstrip("-").isdigit() for cell in moments):
                raise UserError(f"'{column}': a whole number is needed in every row")
            values = np.array([int(cell) for cell in moments], dtype=np.int64)
        else:
            values = np.array([_second(cell, column) for cell in moments], dtype=np.int64)
        if self.unit == "month":
            values = np.array([_month(int(value)) for value in values], dtype=np.int64)
        return np.asarray((2 * (values - self.phase) + self.step) // (2 * self.step), dtype=np.int64)

    def moment(self, place: int) -> str | int:
        """The moment at a place: an ISO 8601 text, or a whole number where moments are counted."""
        at = self.phase + place * self.step
        if self.unit == "count":
            return at
        if self.unit == "second":
            return (EPOCH + dt.timedelta(seconds=at)).isoformat()
        first = dt.datetime(1970 + at // 12, 1 + at % 12, 1)
        if self.within >= 0:
            return (first + dt.timedelta(seconds=self.within)).isoformat()
        following = dt.datetime(1970 + (at + 1) // 12, 1 + (at + 1) % 12, 1)
        return (following - dt.timedelta(days=1)).isoformat()

    def calendar(self, places: Places) -> npt.NDArray[np.float64]:
        """The place of each step in the cycles that are longer than it and were seen twice: ``[places, features]``."""
        if self.unit == "count":
            return np.zeros((len(places), 0))
        at = self.phase + places * self.step
        seconds = (at * (CYCLES["year"] / 12) if self.unit == "month" else at).astype(np.float64)
        length = self.step * (CYCLES["year"] / 12 if self.unit == "month" else 1)
        waves = cycles(seconds)
        chosen = [place for place, cycle in enumerate(CYCLES.values()) if length < cycle and 2 * cycle <= self.span]
        return (
            np.stack([waves[2 * place + side] for place in chosen for side in (0, 1)], axis=1)
            if chosen
            else (np.zeros((len(places), 0)))
        )


def _refuse_dates(numbers: Sequence[int], column: str) -> None:
    """Whole numbers such as 20240131, or 202401, count nothing: after 20240131 comes no 20240132."""
    for length, form, whole in ((8, "%Y%m%d", "{}"), (6, "%Y%m", "concat({}, '01')")):
        if all(_is_date(str(one), length, form) for one in numbers):
            text = whole.format(f"CAST({column} AS STRING)")
            raise UserError(
                f"model.inputs.time: '{column}' holds dates as whole numbers, as {numbers[0]}, which cannot be counted "
                f"on; select to_date({text}, '%Y%m%d') AS {column} in data.fuse"
            )


def _is_date(digits: str, length: int, form: str) -> bool:
    if len(digits) != length or not "1900" <= digits[:4] <= "2100":
        return False
    try:
        dt.datetime.strptime(digits, form)
    except ValueError:
        return False
    return True


def _second(cell: Any, column: str) -> int:
    try:
        seconds = read_seconds(cell)
    except ValueError:
        seconds = None
    if seconds is None:
        raise UserError(f"'{column}': a moment such as 2026-03-31T14:00:00 is needed in every row")
    return round(seconds)


def _month(seconds: int) -> int:
    date = EPOCH + dt.timedelta(seconds=seconds)
    return (date.year - 1970) * 12 + date.month - 1


def _commonest(lines: Sequence[npt.NDArray[np.int64]], column: str) -> int:
    """The commonest distance of two neighbours; the smallest of several equally common ones."""
    steps = np.concatenate([np.diff(one) for one in lines]) if lines else np.zeros(0, dtype=np.int64)
    if not len(steps):
        raise FewRowsError(f"model.inputs.time: '{column}' has no series of two different moments to learn from")
    found, counts = np.unique(steps, return_counts=True)
    return int(found[counts.argmax()])
