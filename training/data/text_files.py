"""CSV and JSON files, row by row: what cannot be read is put aside with its line, its text and the reason."""

import csv
import json
import re
from collections import deque
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from cluster.errors import UserError
from training.data import regular_csv
from training.data.encodings import UNDECODABLE, Encoding, open_text
from training.data.files import File
from training.data.landing import PART_CHARACTERS, PART_ROWS, Landing, as_text
from training.data.regular_csv import Ahead, without_empty

LONGEST_FIELD = 1 << 24  # characters; a longer one is a quote that was never closed
EXCELS_LINE, EXCELS_LINE_LENGTH = re.compile(r'"?sep=(.)"?\r?\n'), 10
OTHER_DELIMITERS = {";": "';'", "\t": '"\\t"', "|": "'|'"}


def land_csv(file: File, encoding: Encoding, delimiter: str, landing: Landing, *, named: bool = False) -> None:
    """Lands one CSV file. Empty values become null; a row with too few or too many values is rejected.

    Args:
        named: the recipe names the delimiter. Else Excel's first line ``sep=;`` does, where there is one.

    Raises:
        UserError: the file is empty, two columns have one name, or the delimiter is wrong.
    """
    csv.field_size_limit(LONGEST_FIELD)
    said = _said_delimiter(file, encoding)
    delimiter = said if said and not named else delimiter
    with open_text(file, encoding) as text:
        ahead = Ahead(text)
        records = _Records(ahead, delimiter)
        if said:
            next(iter(records), None)
            records.forget()
        first = next(iter(records), None)
        if first is None:
            raise UserError(f"data.sources.{landing.name}: {file.name} is empty; it needs a line of column names")
        names = _header(file, first[1], delimiter, landing.name)
        landing.declare(names)
        records.forget()
        while not landing.full:
            block = ahead.block() if records.between_blocks else ""
            if encoding.clean and (regular := regular_csv.read(block, delimiter, names, records.line + 1)):
                landing.add(*regular)
                records.pass_over(block)
            elif not _land_records(records, names, encoding, landing):
                return


def _said_delimiter(file: File, encoding: Encoding) -> str | None:
    with open_text(file, encoding) as text:
        found = EXCELS_LINE.match(text.read(EXCELS_LINE_LENGTH))
    return found[1] if found else None


def _land_records(records: "_Records", names: list[str], encoding: Encoding, landing: Landing) -> bool:
    """Lands what comes row by row, at least to the end of what is looked at together; False at the end of the file."""
    rows: list[list[str]] = []
    numbers: list[int] = []
    characters = 0
    for line, values, problem in records:
        problem = problem or _problem(values, names, encoding)
        if problem:
            landing.reject(line, None, records.give_up(), problem)
        else:
            rows.append(values)
            numbers.append(line)
            characters += sum(map(len, values))
        if len(rows) == PART_ROWS or characters > PART_CHARACTERS:
            _flush(landing, names, rows, numbers)
            characters = 0
        records.forget()
        if landing.full or records.between_blocks:
            _flush(landing, names, rows, numbers)
            return True
    _flush(landing, names, rows, numbers)
    return False


def _flush(landing: Landing, names: list[str], rows: list[list[str]], numbers: list[int]) -> None:
    if rows:
        columns = {
            name: without_empty(pa.array(values, pa.string()))
            for name, values in zip(names, zip(*rows, strict=True), strict=True)
        }
        landing.add(columns, numbers)
    rows.clear()
    numbers.clear()


def _problem(values: list[str], names: list[str], encoding: Encoding) -> str | None:
    if len(values) != len(names):
        return f"{len(values)} values for {len(names)} columns"
    if not encoding.clean and any(UNDECODABLE.search(value) for value in values):
        return f"bytes that are no {encoding.name} text"
    return None


def _header(file: File, values: list[str], delimiter: str, source: str) -> list[str]:
    names = [value.strip() or f"column_{index}" for index, value in enumerate(values, start=1)]
    if len(names) == 1:
        for other, written in OTHER_DELIMITERS.items():
            if other != delimiter and other in names[0]:
                raise UserError(
                    f"data.sources.{source}: {file.name} has one column, '{names[0][:60]}'; "
                    f"set data.sources.{source}.delimiter: {written}"
                )
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise UserError(f"data.sources.{source}: {file.name} has two columns named '{twice}'; rename one")
    return names


class _Records:
    """The records of a CSV file as ``(line, values, problem)``, where ``line`` is the one on which the record begins.

    A quote that is never closed swallows everything up to the next quote, or the end of the file. So when a
    record over several lines turns out broken, only its first line is given up and reading goes on at the second.
    """

    def __init__(self, text: Ahead, delimiter: str) -> None:
        self._text = text
        self._delimiter = delimiter
        self._again: deque[str] = deque()
        self._taken: list[str] = []
        self.line = 0  # the last line that was taken

    def __iter__(self) -> Iterator[tuple[int, list[str], str | None]]:
        while True:
            reader = csv.reader(self._lines(), delimiter=self._delimiter, strict=True)
            try:
                for values in reader:
                    if values:  # an empty line is no record
                        yield self.line - len(self._taken) + 1, values, None
                    self.forget()
                return
            except csv.Error as error:
                yield self.line - len(self._taken) + 1, [], _plain(error)
                self.forget()

    def forget(self) -> None:
        """The record is done."""
        self._taken.clear()

    @property
    def between_blocks(self) -> bool:
        """Whether the record that is done was the last of what is looked at together."""
        return not self._again and not self._taken and self._text.at_the_end_of_the_block

    def pass_over(self, block: str) -> None:
        """Somebody else has read these lines."""
        self._text.take()
        self.line += block.count("\n") + (not block.endswith("\n"))

    def give_up(self) -> str:
        """The text of the record that is being rejected; its lines after the first will be read again."""
        first, *others = self._taken
        if others:
            self._again.extendleft(reversed(others))
            self.line -= len(others)
            del self._taken[1:]
        return first.rstrip("\r\n").encode("utf-8", "backslashreplace").decode()

    def _lines(self) -> Iterator[str]:
        while True:
            line = self._again.popleft() if self._again else self._text.readline(LONGEST_FIELD)
            if not line:
                return
            self._taken.append(line)
            self.line += 1
            if len(line) == LONGEST_FIELD and not line.endswith("\n"):
                self._skip_line()
                raise csv.Error(f"a line of more than {LONGEST_FIELD} characters")
            yield line

    def _skip_line(self) -> None:
        """Passes over what is left of a line that is too long; it must not be taken for a row."""
        while (rest := self._text.readline(LONGEST_FIELD)) and not rest.endswith("\n"):
            pass


def _plain(error: csv.Error) -> str:
    message = str(error)
    if "unexpected end of data" in message or "field larger" in message:
        return "a quote is opened and never closed"
    if "expected after" in message:
        return "text after a closing quote"
    return message


def land_jsonl(file: File, encoding: Encoding, landing: Landing) -> None:
    """Lands a file with one JSON object on each line. Objects inside objects become columns ``outer.inner``."""
    rows: list[dict[str, Any]] = []
    numbers: list[int] = []
    characters = 0
    with open_text(file, encoding) as text:
        for number, line in enumerate(text, start=1):
            if not line.strip():
                continue
            try:
                rows.append(_record(line.rstrip("\r\n")))
                numbers.append(number)
            except (ValueError, RecursionError) as error:  # nested deeper than Python reads
                shown = line.rstrip("\r\n").encode("utf-8", "backslashreplace").decode()
                landing.reject(number, None, shown, _json_problem(error, encoding, line))
            characters += len(line)
            if len(rows) == PART_ROWS or characters > PART_CHARACTERS:
                landing.add_rows(rows, numbers)
                rows, numbers, characters = [], [], 0
            if landing.full:
                return
    landing.add_rows(rows, numbers)


def land_json(file: File, encoding: Encoding, landing: Landing) -> None:
    """Lands a file that holds one JSON array of objects, or one object on each line.

    Raises:
        UserError: it is neither.
    """
    with open_text(file, encoding) as text:
        start = text.read(1 << 16).lstrip()
    if not start:
        raise UserError(f"data.sources.{landing.name}: {file.name} is empty; it needs an array of objects")
    if not start.startswith("["):
        if start.startswith("{") and not _is_object(start.splitlines()[0]):
            raise UserError(
                f"data.sources.{landing.name}: {file.name} holds one JSON object; "
                "it needs an array of objects, or one object on each line"
            )
        land_jsonl(file, encoding, landing)
        return
    with open_text(file, encoding) as text:
        content = text.read()
    try:
        values = json.loads(content, parse_constant=_no_number)
    except json.JSONDecodeError as error:
        raise UserError(
            f"data.sources.{landing.name}: {file.name} is no valid JSON (line {error.lineno}, column {error.colno}): "
            f"{error.msg}"
        ) from None
    except RecursionError:
        raise UserError(
            f"data.sources.{landing.name}: {file.name} is nested too deeply to be read; flatten what it holds"
        ) from None
    _land_array(values, encoding, landing, check="\\u" in content or not encoding.clean)


def _land_array(values: list[Any], encoding: Encoding, landing: Landing, *, check: bool) -> None:
    rows: list[dict[str, Any]] = []
    numbers: list[int] = []
    for number, value in enumerate(values, start=1):
        try:
            rows.append(_row(value, check=check))
            numbers.append(number)
        except (ValueError, RecursionError) as error:
            shown = as_text(value).encode("utf-8", "backslashreplace").decode()
            landing.reject(number, None, shown, _json_problem(error, encoding, as_text(value)))
        if len(rows) == PART_ROWS:
            landing.add_rows(rows, numbers)
            rows, numbers = [], []
    landing.add_rows(rows, numbers)


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _record(line: str) -> dict[str, Any]:
    value = json.loads(line, parse_constant=_no_number)
    check = "\\u" in line or not line.isascii()
    if check:
        line.encode()  # bytes that were no text
    return _row(value, check=check)


def _row(value: Any, *, check: bool) -> dict[str, Any]:
    """A JSON object as the columns that it fills; ``check`` looks for what is no text."""
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    if check:
        json.dumps(value, ensure_ascii=False).encode()  # half of a surrogate pair is no text
    return _flat(value)


def _json_problem(error: ValueError | RecursionError, encoding: Encoding, line: str) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"no valid JSON at column {error.colno}: {error.msg}"
    if isinstance(error, UnicodeEncodeError):
        undecoded = not encoding.clean and UNDECODABLE.search(line)
        return f"bytes that are no {encoding.name} text" if undecoded else "half of a \\u surrogate pair"
    return str(error)


def _no_number(constant: str) -> None:
    """NaN and Infinity, which JSON does not have but pandas writes, are missing values."""


def _flat(record: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in record.items():
        column = prefix + key
        found = _flat(value, f"{column}.") if isinstance(value, dict) else {column: value}
        if twice := flat.keys() & found.keys():
            raise ValueError(f"two values for '{min(twice)}'")
        flat.update(found)
    return flat
