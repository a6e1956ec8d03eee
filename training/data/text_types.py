"""Types of values that are written as text, as in CSV: one is taken only if the text could be written again from it."""

import pyarrow as pa
import pyarrow.compute as pc

BOOLEANS = (("true", "false"), ("True", "False"), ("TRUE", "FALSE"))
PATTERNS = {
    "integer": r"^(0|-?[1-9]\d{0,17})$",
    "float": r"^-?(0|[1-9]\d{0,14})(\.\d+)?([eE][+-]?\d{1,3})?$",
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
    """What the values of one column, seen so far, could all be."""

    def __init__(self) -> None:
        self.could_be: list[str | tuple[str, str]] = [*BOOLEANS, *PATTERNS]
        self.seen = False

    def narrow(self, texts: pa.Array) -> None:
        """Takes the next values."""
        present = no_blanks(texts).drop_null()
        if not len(present):
            return
        self.seen = True
        self.could_be = [kind for kind in self.could_be if _fits(present, kind)]

    def final(self) -> pa.DataType:
        """The type of the column whose values have all been seen."""
        if not self.seen or not self.could_be:
            return pa.string()
        return ARROW_TYPES.get(self.could_be[0], pa.bool_()) if isinstance(self.could_be[0], str) else pa.bool_()


def no_blanks(texts: pa.Array) -> pa.Array:
    """White space in a column of numbers or times stands for nothing; in a column of texts it stays as it is."""
    return pc.if_else(pc.equal(pc.utf8_trim_whitespace(texts), ""), pa.scalar(None, pa.string()), texts)


def _fits(present: pa.Array, kind: str | tuple[str, str]) -> bool:
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
