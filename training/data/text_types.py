"""Types of values that are written as text, as in CSV: one is taken only if the text could be written again from it."""

import json
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

FEW = 0.1
"""A share of values that are words among numbers or times: those of a missing value, most likely."""

MOST_WORDS = 5
"""Different ones; a column with more is one of texts."""

Kind = str | tuple[str, str]

BOOLEANS = (("true", "false"), ("True", "False"), ("TRUE", "FALSE"))
PATTERNS = {
    "integer": r"^(0|-?[1-9]\d{0,17})$",
    "float": r"^-?(0|[1-9]\d{0,14})(\.\d+([eE][+-]?\d{1,3})?|[eE][+-]\d{1,3})?$",  # 12E3 is an article's number
    "date": r"^\d{4}-\d\d-\d\d$",
    "timestamp": r"^\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(\.\d{1,6})?$",
    "instant": r"^\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(\.\d{1,6})?Z$",
}
ARROW_TYPES = {
    "integer": pa.int64(),
    "float": pa.float64(),
    "date": pa.date32(),
    "timestamp": pa.timestamp("us"),
    "instant": pa.timestamp("us", "UTC"),
}


class TextType:
    """What the values of one column, seen so far, could all be.

    Attributes:
        could_be: the types that fit all of them.
        alike: two of them that differ and are one number.
        words: what stands in the way of a type that fits all others, and how often; only while it may be so.
    """

    def __init__(self) -> None:
        self.could_be: list[Kind] = [*BOOLEANS, *PATTERNS]
        self.alike: tuple[str, str] | None = None
        self.words: Counter[str] = Counter()
        self.rows = 0
        self._others: list[Kind] = [*PATTERNS]  # the types that fit all values with a digit

    def narrow(self, texts: pa.Array) -> None:
        """Takes the next values."""
        present = no_blanks(texts).drop_null()
        if not len(present):
            return
        if not self.rows or self.could_be:
            self._others = [kind for kind in self.could_be if isinstance(kind, str)]
        self.rows += len(present)
        self.could_be = [kind for kind in self.could_be if _fits(present, kind)]
        if not self.could_be and self._others:
            self._set_words_aside(present)
        if self.could_be[:1] == ["float"] and self.alike is None:
            self.alike = _alike(present)

    def final(self) -> pa.DataType:
        """The type of the column whose values have all been seen."""
        if not self.rows or not self.could_be:
            return pa.string()
        return ARROW_TYPES.get(self.could_be[0], pa.bool_()) if isinstance(self.could_be[0], str) else pa.bool_()

    def note(self, source: str, column: str) -> str | None:
        """What a person would want to know of the type that was found."""
        if self.could_be[:1] == ["float"] and self.alike:
            first, second = self.alike
            return (
                f"{column}: {first} and {second} of {source} are read as one number; "
                f"data.clean.types: {{{column}: string}} keeps them apart"
            )
        count = sum(self.words.values())
        if self.could_be or not self._others or not 0 < count <= FEW * self.rows:
            return None
        shown = ", ".join(f"'{word}' {number:,}" for word, number in self.words.most_common())
        what = "numbers" if self._others[0] in ("integer", "float") else "times"
        words = json.dumps([*self.words], ensure_ascii=False)
        return (
            f"{column}: read as text, though all but {count:,} of {self.rows:,} values in {source} are {what} ({shown}"
            f"); data.sources.{source}.missing: {words} reads those as empty"
        )

    def _set_words_aside(self, present: pa.Array) -> None:
        a_word = pc.invert(pc.match_substring_regex(present, r"\d"))
        for one in present.filter(a_word).value_counts().to_pylist():
            self.words[one["values"]] += one["counts"]
            if len(self.words) > MOST_WORDS:
                self._others = []
                return
        others = present.filter(pc.invert(a_word))
        self._others = [kind for kind in self._others if not len(others) or _fits(others, kind)]


def no_blanks(texts: pa.Array) -> pa.Array:
    """White space in a column of numbers or times stands for nothing; in a column of texts it stays as it is."""
    return pc.if_else(pc.equal(pc.utf8_trim_whitespace(texts), ""), pa.scalar(None, pa.string()), texts)


def without(texts: pa.Array, missing: pa.Array) -> pa.Array:
    """Null for each text that is one of ``missing``, whatever white space is around it."""
    return pc.if_else(pc.is_in(pc.utf8_trim_whitespace(texts), missing), pa.scalar(None, pa.string()), texts)


def _fits(present: pa.Array, kind: Kind) -> bool:
    """Whether each value (text, none null) is of that kind and would read the same when written again."""
    if isinstance(kind, tuple):
        return bool(pc.all(pc.is_in(present, pa.array(kind))).as_py())
    if not pc.all(pc.match_substring_regex(present, PATTERNS[kind])).as_py():
        return False
    try:
        present.cast(ARROW_TYPES[kind])  # 2024-02-30 looks like a date and is none
    except pa.ArrowInvalid:
        return False
    return True


def _alike(present: pa.Array) -> tuple[str, str] | None:
    """The first two different texts among these that are one number, as 1.1 and 1.10."""
    texts = present.unique()
    numbers = texts.cast(pa.float64()).to_numpy()
    order = np.argsort(numbers, kind="stable")
    places = np.flatnonzero(np.diff(numbers[order]) == 0)
    if not len(places):
        return None
    first, second = sorted(texts[int(order[places[0] + step])].as_py() for step in (0, 1))
    return first, second
