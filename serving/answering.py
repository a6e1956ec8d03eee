"""Answers to the rows of a file: as many rows in memory as a chunk has, however many the file has.

As lines of JSON; or as CSV, in which each row stands as it came with its answer after it.
"""

import csv
import json
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from cluster.errors import UserError
from cluster.printing import finite
from cluster.progress import progress
from cluster.storage import writing
from serving.predictor import Predictor

Chunks = Iterable[Sequence[Mapping[str, Any]]]
"""Rows, some at a time."""

Write = Callable[[Mapping[str, Any], Any], None]
"""Writes the answer to a row."""

PLACE = re.compile(r"^inputs\[(\d+)\]\.?")

ANSWER = "answer"
"""The column of a CSV file that an answer stands in; of one that has parts, each in ``answer_PART``."""


def answer_into(output: Path, predictor: Predictor, chunks: Chunks, parameters: Mapping[str, Any], total: int) -> int:
    """Writes an answer for each row to ``output``, which appears when it is whole; returns their number.

    Lines of JSON, but for a name that ends in ``.csv``.

    Raises:
        UserError: a row or a parameter is wrong; a row is named by its place among all.
        RunError: the file cannot be written.
    """
    with writing(output) as file:
        write = _to_csv(file) if output.suffix.lower() == ".csv" else _to(file)
        return _answer(predictor, chunks, parameters, total, write)


def answer_to(
    out: TextIO, predictor: Predictor, chunks: Chunks, parameters: Mapping[str, Any], total: int, *, as_json: bool
) -> int:
    """Prints one line of JSON for each row, or one object with all answers, once all are there; returns their number.

    They wait on the disk, for ``out`` holds results or nothing.

    Raises:
        UserError: as :func:`answer_into`.
    """
    with tempfile.TemporaryFile("w+", encoding="utf-8", newline="\n", prefix="headrace-") as kept:
        rows = _answer(predictor, chunks, parameters, total, _to(kept, finite if as_json else None))
        kept.seek(0)
        if not as_json:
            shutil.copyfileobj(kept, out)
        else:
            out.write(f'{{"rows": {rows}, "answers": [')
            for number, line in enumerate(kept):
                out.write(f"{', ' if number else ''}{line.rstrip()}")
            out.write("]}\n")
        out.flush()
    return rows


def _to(file: TextIO, form: Callable[[Any], Any] | None = None) -> Write:
    """What writes an answer as a line."""

    def write(row: Mapping[str, Any], one: Any) -> None:
        file.write(json.dumps(form(one) if form else one, ensure_ascii=False) + "\n")

    return write


def _to_csv(file: TextIO) -> Write:
    """What writes a row and its answer as a line of a table, whose columns are those of the first."""
    lines: list[csv.DictWriter[str]] = []

    def write(row: Mapping[str, Any], one: Any) -> None:
        cells = {name: _cell(value) for name, value in row.items() if not isinstance(value, bytes)} | _flat(one)
        if not lines:
            lines.append(csv.DictWriter(file, list(cells), lineterminator="\n", extrasaction="ignore"))
            lines[0].writeheader()
        lines[0].writerow(cells)

    return write


def _flat(answer: Any) -> dict[str, Any]:
    """An answer as cells: of labels with scores the likeliest, of an object its parts, of anything else its JSON."""
    if isinstance(answer, list) and answer and isinstance(answer[0], dict) and answer[0].keys() == {"label", "score"}:
        answer = answer[0]
    if isinstance(answer, dict):
        return {f"{ANSWER}_{part}": _cell(value) for part, value in answer.items()}
    return {ANSWER: _cell(answer)}


def _cell(value: Any) -> Any:
    return value if isinstance(value, str | int | float | None) else json.dumps(value, ensure_ascii=False, default=str)


def _answer(
    predictor: Predictor,
    chunks: Chunks,
    parameters: Mapping[str, Any],
    total: int,
    write: Write,
) -> int:
    done = 0
    with progress("predicting", total=total, unit="rows") as bar:
        for rows in chunks:
            try:
                answers = predictor.predict(predictor.task.as_asked(rows), parameters, bar.advance)
            except UserError as error:
                raise UserError(_placed(str(error), done)) from None
            for row, one in zip(rows, answers, strict=True):
                write(row, one)
            done += len(rows)
    return done


def _placed(message: str, before: int) -> str:
    """A message about a row of a chunk as one about a row of the file."""
    return PLACE.sub(lambda found: f"row {int(found[1]) + before + 1}: ", message)
