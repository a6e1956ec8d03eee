"""Columns of a table as numbers: an encoder for each kind of column, learned from the training rows.

A :class:`Columns` is made once, kept beside the encoded data and in the bundle, and then reads rows the same way
wherever they come from: typed out of a fused table, or as text out of a request.
"""

import contextlib
import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from cluster.errors import FewRowsError, UserError
from training.inputs.cells import A_DATE, A_NUMBER, Kind, infer, read_label, read_number, read_seconds
from training.inputs.text import READABLE, in_form

LONGEST_SHOWN = 40
"""Characters of a value in an error."""

LEAST_SEEN = 2
"""Rows that a category must stand in; rarer ones are read as unknown, which teaches the model what that means."""

MOST_CATEGORIES = 10_000
CYCLES = {"day": 86_400.0, "week": 7 * 86_400.0, "year": 365.2425 * 86_400.0}
"""Seconds of the cycles that a date has a place in."""

DATE_FEATURES = 2 + 2 * len(CYCLES)
"""Numbers that a date becomes: whether it is missing, how late it is, and its place in each cycle."""

UNKNOWN, MISSING = 0, 1
"""Codes of a category; those that are known follow."""


class Column(ABC):
    """One column of the table.

    Attributes:
        name: the column's.
        optional: it was missing in some training row, so the model knows what that means.
    """

    kind: ClassVar[Kind]
    wanted: ClassVar[str]
    """What a cell must be, in an error."""

    def __init__(self, name: str, optional: bool) -> None:
        self.name, self.optional = name, optional

    @classmethod
    @abstractmethod
    def learn(cls, name: str, column: pa.ChunkedArray, settings: Mapping[str, Any]) -> Self:
        """The encoder of the training rows' cells.

        Args:
            settings: ``bins`` and ``unicode``.

        Raises:
            UserError: the cells are none of this kind, or there are none.
        """

    @abstractmethod
    def save(self) -> dict[str, Any]:
        """The arguments that make the same column again, as JSON."""

    @abstractmethod
    def read(self, cell: Any) -> Any:
        """What a cell means; None where it is missing: null, blank or not a finite number.

        Raises:
            ValueError: it means nothing of this kind.
        """

    @abstractmethod
    def encode(self, values: Sequence[Any]) -> npt.NDArray[Any]:
        """Numbers for what was read of each row."""

    @abstractmethod
    def schema(self) -> dict[str, Any]:
        """The JSON Schema of a cell in a request."""

    def known(self, cell: Any) -> Any:
        """As :meth:`read`; what means nothing of this kind is missing."""
        try:
            return self.read(cell)
        except ValueError:
            return None


class Number(Column):
    """A number, standardised; with the edges of bins that hold equally many training rows.

    Attributes:
        mean: of the training rows.
        spread: their standard deviation; 1 where they are all equal.
        edges: quantiles of the standardised training rows, ascending, from the least to the largest.
        middle: their median, which stands in for a missing number.
    """

    kind: ClassVar[Kind] = "number"
    wanted: ClassVar[str] = A_NUMBER

    def __init__(
        self, name: str, optional: bool, mean: float, spread: float, edges: Sequence[float], middle: float
    ) -> None:
        super().__init__(name, optional)
        self.mean, self.spread, self.edges, self.middle = mean, spread, list(edges), middle

    @classmethod
    def learn(cls, name: str, column: pa.ChunkedArray, settings: Mapping[str, Any]) -> Self:
        values = _read_all(name, column, read_number, cls.wanted)
        there = np.array([value for value in values if value is not None], dtype=np.float64)
        mean, spread = float(there.mean()), float(there.std()) or 1.0
        standard = (there - mean) / spread
        edges = np.unique(np.quantile(standard, np.linspace(0, 1, settings["bins"] + 1)))
        return cls(name, len(there) < len(values), mean, spread, edges.tolist(), float(np.median(standard)))

    def save(self) -> dict[str, Any]:
        statistics = {"mean": self.mean, "spread": self.spread, "edges": self.edges, "middle": self.middle}
        return {"name": self.name, "optional": self.optional, **statistics}

    def read(self, cell: Any) -> float | None:
        return read_number(cell)

    def encode(self, values: Sequence[Any]) -> npt.NDArray[np.float64]:
        """Standardised; not a number where it is missing."""
        numbers = np.array([math.nan if value is None else value for value in values], dtype=np.float64)
        return (numbers - self.mean) / self.spread

    def schema(self) -> dict[str, Any]:
        return {"type": ["number", "boolean", "string", "null"], "description": "a number, also as text; true is 1"}


class Category(Column):
    """One of a set of values, which are compared as texts.

    Attributes:
        values: the known ones, most frequent first.
        written: the type that the training rows had: ``integer``, ``number``, ``boolean`` or ``text``; a value is
            brought to its text before it is looked up.
    """

    kind: ClassVar[Kind] = "category"
    wanted: ClassVar[str] = "a string, a number or true or false is needed"

    def __init__(self, name: str, optional: bool, values: Sequence[str], written: str, unicode: str) -> None:
        super().__init__(name, optional)
        self.values, self.written, self.unicode = list(values), written, unicode
        self._codes = {value: code for code, value in enumerate(self.values, MISSING + 1)}

    @classmethod
    def learn(cls, name: str, column: pa.ChunkedArray, settings: Mapping[str, Any]) -> Self:
        found = cls(name, False, [], _written(column.type), settings["unicode"])
        values = _read_all(name, column, found.read, cls.wanted)
        counts = Counter(value for value in values if value is not None)
        often = [value for value, count in counts.items() if count >= LEAST_SEEN]
        if not often:
            raise FewRowsError(
                f"model.inputs: '{name}' is another text in every row, which teaches nothing as a category; name it "
                "under `text` if it is prose, or leave it out"
            )
        values_kept = sorted(often, key=lambda value: (-counts[value], value))[:MOST_CATEGORIES]
        return cls(name, None in values, values_kept, found.written, found.unicode)

    def save(self) -> dict[str, Any]:
        fields = {"values": self.values, "written": self.written, "unicode": self.unicode}
        return {"name": self.name, "optional": self.optional, **fields}

    @property
    def size(self) -> int:
        """Codes that there are, those for unknown and missing among them."""
        return len(self.values) + MISSING + 1

    def read(self, cell: Any) -> str | None:
        if cell is not None and not isinstance(cell, READABLE):
            raise ValueError(self.wanted)
        cell = self._as_in_training(cell)
        text = "" if cell is None else in_form(read_label(cell), self.unicode).strip()
        return (text.lower() if self.written == "boolean" else text) or None

    def _as_in_training(self, cell: Any) -> Any:
        """A number as the training rows held it, for ``"3.0"`` and ``3`` are one category there; another cell as it is.

        Where they held whole numbers it keeps all its digits, of which a float has room for 15; where they held floats,
        theirs were rounded, and so must be what is asked.
        """
        asked = isinstance(cell, str | int) and not isinstance(cell, bool) and self.written in ("integer", "number")
        if asked or isinstance(cell, Decimal):
            with contextlib.suppress(ValueError, OverflowError):
                return _whole(cell) if self.written == "integer" else float(cell)
        return cell

    def encode(self, values: Sequence[Any]) -> npt.NDArray[np.int64]:
        """Codes: of unknown, of missing, or of the value."""
        codes = [MISSING if value is None else self._codes.get(value, UNKNOWN) for value in values]
        return np.array(codes, dtype=np.int64)

    def schema(self) -> dict[str, Any]:
        return {"type": ["string", "number", "boolean", "null"], "examples": self.values[:5]}


class Date(Column):
    """A moment: how late it is, and its place in the day, the week and the year.

    Attributes:
        mean: of the training rows, in seconds since 1970.
        spread: their standard deviation.
    """

    kind: ClassVar[Kind] = "date"
    wanted: ClassVar[str] = A_DATE

    def __init__(self, name: str, optional: bool, mean: float, spread: float) -> None:
        super().__init__(name, optional)
        self.mean, self.spread = mean, spread

    @classmethod
    def learn(cls, name: str, column: pa.ChunkedArray, settings: Mapping[str, Any]) -> Self:
        values = _read_all(name, column, read_seconds, cls.wanted)
        there = np.array([value for value in values if value is not None], dtype=np.float64)
        return cls(name, len(there) < len(values), float(there.mean()), float(there.std()) or 1.0)

    def save(self) -> dict[str, Any]:
        return {"name": self.name, "optional": self.optional, "mean": self.mean, "spread": self.spread}

    def read(self, cell: Any) -> float | None:
        return read_seconds(cell)

    def encode(self, values: Sequence[Any]) -> npt.NDArray[np.float64]:
        """Of shape ``[rows, DATE_FEATURES]``: zeros where the date is missing, except for the first, which says so."""
        seconds = np.array([math.nan if value is None else value for value in values], dtype=np.float64)
        missing = np.isnan(seconds)
        trend = np.clip((seconds - self.mean) / self.spread, -5, 5)
        features = np.stack([missing, trend, *cycles(seconds)], axis=1)
        return np.asarray(np.nan_to_num(features))

    def schema(self) -> dict[str, Any]:
        return {"type": ["string", "null"], "format": "date-time"}


ENCODERS: dict[str, type[Column]] = {kind.kind: kind for kind in (Number, Category, Date)}


class Columns:
    """The columns of a table, read together.

    Attributes:
        columns: in the order of the recipe.
    """

    def __init__(self, columns: Sequence[Column]) -> None:
        self.columns = list(columns)
        self.numbers = [one for one in columns if isinstance(one, Number)]
        self.categories = [one for one in columns if isinstance(one, Category)]
        self.dates = [one for one in columns if isinstance(one, Date)]
        self._middles = torch.tensor([one.middle for one in self.numbers], dtype=torch.float32)

    # --- made from data, kept in a folder -----------------------------------------------------------------------

    @classmethod
    def learn(
        cls, names: Sequence[str], train: pa.Table, kinds: Mapping[str, Kind], bins: int, unicode: str = "none"
    ) -> Self:
        """The encoders of the training rows; a column that ``kinds`` does not name is of the kind it looks like.

        Raises:
            UserError: a column has no values, or none of the kind that it is said to have.
        """
        for name in kinds.keys() - set(names):
            raise UserError(f"model.options.kinds: '{name}' is not among the columns that it could say something of")
        settings = {"bins": bins, "unicode": unicode}
        found = {name: kinds.get(name) or infer(train[name]) for name in names}
        return cls([ENCODERS[kind].learn(name, train[name], settings) for name, kind in found.items()])

    @classmethod
    def load(cls, settings: Sequence[Mapping[str, Any]]) -> Self:
        """The columns that :meth:`save` gave these settings for."""
        arguments = [dict(one) for one in settings]
        return cls([ENCODERS[one.pop("kind")](**one) for one in arguments])

    def save(self) -> list[dict[str, Any]]:
        """What makes the same columns again, as JSON."""
        return [{"kind": one.kind, **one.save()} for one in self.columns]

    # --- rows to tensors ------------------------------------------------------------------------------------------

    def row(self, index: int, value: Any) -> dict[str, Any]:
        """The input of a request at ``index`` as a row.

        A column that was missing in some training rows may be left out.

        Raises:
            UserError: the input is no object, lacks a column, or has a cell of another kind; never says its content.
        """
        if not isinstance(value, Mapping):
            raise UserError(f"inputs[{index}]: an object with the columns is needed, not {type(value).__name__}")
        row = dict(value)
        for column in self.columns:
            if column.name not in row and not column.optional:
                raise UserError(f"inputs[{index}].{column.name}: missing")
            try:
                column.read(row.setdefault(column.name, None))
            except ValueError:
                raise UserError(f"inputs[{index}].{column.name}: {column.wanted}") from None
        return row

    def text(self, row: Mapping[str, Any]) -> str:
        """What a person reads of a row."""
        told = ((one.name, row[one.name]) for one in self.columns)
        return ", ".join(f"{name}: {'–' if cell is None else read_label(cell)}" for name, cell in told)

    def encode(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Of each row ``numbers``, ``categories`` and ``dates``, where there are such columns."""
        parts: dict[str, npt.NDArray[Any]] = {}
        for name, columns in (("numbers", self.numbers), ("categories", self.categories), ("dates", self.dates)):
            if columns:
                read = [one.encode([one.known(row[one.name]) for row in rows]) for one in columns]
                parts[name] = np.stack(read, axis=1).reshape(len(rows), -1)
        values = {name: part.tolist() for name, part in parts.items()}
        return [{name: value[place] for name, value in values.items()} for place in range(len(rows))]

    def collate(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """``numbers`` with ``missing``, ``categories`` and ``dates``, all of shape ``[rows, columns, …]``.

        Numbers, of which a missing one is the median, and dates are in fp32, codes whole numbers.
        """
        batch: dict[str, torch.Tensor] = {}
        if self.numbers:
            numbers = torch.tensor([one["numbers"] for one in examples], dtype=torch.float64).float()
            missing = numbers.isnan()
            batch |= {"numbers": torch.where(missing, self._middles, numbers), "missing": missing.float()}
        if self.categories:
            batch["categories"] = torch.tensor([one["categories"] for one in examples], dtype=torch.int64)
        if self.dates:
            dates = torch.tensor([one["dates"] for one in examples], dtype=torch.float32)
            batch["dates"] = dates.reshape(len(examples), len(self.dates), DATE_FEATURES)
        return batch

    def schema(self) -> dict[str, Any]:
        """The JSON Schema of a row."""
        return {
            "type": "object",
            "properties": {one.name: one.schema() for one in self.columns},
            "required": [one.name for one in self.columns if not one.optional],
        }


def cycles(seconds: npt.NDArray[np.float64]) -> list[npt.NDArray[np.float64]]:
    """Sine and cosine of the place of each moment in each of ``CYCLES``."""
    angles = [2 * np.pi * seconds / length for length in CYCLES.values()]
    return [wave(angle) for angle in angles for wave in (np.sin, np.cos)]


def _read_all(name: str, column: pa.ChunkedArray, read: Any, wanted: str) -> list[Any]:
    values, wrong = [], []
    for cell in column.to_pylist():
        try:
            values.append(read(cell))
        except ValueError:
            wrong.append(cell)
    if wrong:
        found = ", ".join(f"'{one[:LONGEST_SHOWN]}'" for one in list(dict.fromkeys(map(str, wrong)))[:3])
        raise UserError(
            f"model.inputs: '{name}' cannot be read: {wanted}, and {len(wrong):,} of {len(column):,} training rows "
            f"have another value, as {found}; have data.fuse make it a number, a date or NULL, or change options.kinds"
        )
    if all(value is None for value in values):
        raise FewRowsError(f"model.inputs: '{name}' is empty in every training row; leave it out")
    return values


def _written(kind: pa.DataType) -> str:
    if pa.types.is_dictionary(kind):
        return _written(kind.value_type)
    if pa.types.is_boolean(kind):
        return "boolean"
    if pa.types.is_integer(kind) or (pa.types.is_decimal(kind) and kind.scale == 0):
        return "integer"
    return "number" if pa.types.is_floating(kind) or pa.types.is_decimal(kind) else "text"


def _whole(cell: str | int | Decimal) -> int | float:
    """A number with all its digits where it is written as a whole one."""
    if isinstance(cell, str):
        with contextlib.suppress(ValueError):
            return int(cell)
    return float(cell) if isinstance(cell, str) or cell != int(cell) else int(cell)
