"""Decimals of databases and Parquet files: numbers where those hold them, else text, so that no key loses a digit."""

import decimal
import math
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

LARGEST_FRACTION = 10**15
"""From here on a float holds hardly a digit behind the point. Below it the last ones of an average may be rounded."""

WHOLE = pa.decimal256(76, 0)


def plain(value: decimal.Decimal) -> str:
    """A decimal in digits, without zeros that say nothing: the same text whatever scale a column has."""
    text = format(value, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


def finite(values: Sequence[Any]) -> bool:
    """Whether none of the values is infinite, which a database may have among its decimals."""
    return not any(isinstance(value, decimal.Decimal) and value.is_infinite() for value in values)


def array(values: Sequence[Any]) -> pa.Array:
    """Finite decimals, whole numbers and None as an array; NaN, which databases have for a missing number, is null.

    Raises:
        pyarrow.ArrowInvalid: one has more digits than an array holds.
    """
    return pa.array([None if isinstance(one, decimal.Decimal) and one.is_nan() else one for one in values])


class Decimals:
    """What has been seen of the decimals of one column."""

    def __init__(self) -> None:
        self.whole = True
        self.largest = 0

    def see(self, values: pa.Array) -> None:
        """Takes the next values, an array of any precision and scale."""
        ends = pc.min_max(values)
        self.largest = max(self.largest, *(math.ceil(abs(ends[end].as_py() or 0)) for end in ("min", "max")))
        self.whole = self.whole and _is_whole(values)

    def type(self) -> pa.DataType:
        """Whole decimals are whole numbers, others floats; text where they are too large for that."""
        if self.whole:
            return pa.int64() if self.largest < 2**63 else pa.string()
        return pa.float64() if self.largest < LARGEST_FRACTION else pa.string()


def converted(values: pa.Array, kind: pa.DataType) -> pa.Array:
    """Decimals as ``kind``, which holds them all."""
    if pa.types.is_integer(kind):
        return values.cast(kind)
    if pa.types.is_floating(kind):
        return values.cast(pa.string()).cast(kind)  # Arrow's own way from one to the other is off in the last digit
    return pa.array([None if value is None else plain(value) for value in values.to_pylist()], kind)


def _is_whole(values: pa.Array) -> bool:
    try:
        values.cast(WHOLE)
    except pa.ArrowInvalid:
        return False
    return True
