"""Answers to the rows of a file: as many rows in memory as a chunk has, however many the file has."""

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

PLACE = re.compile(r"^inputs\[(\d+)\]")


def answer_into(output: Path, predictor: Predictor, chunks: Chunks, parameters: Mapping[str, Any], total: int) -> int:
    """Writes one line of JSON for each row to ``output``, which appears when it is whole; returns their number.

    Raises:
        UserError: a row or a parameter is wrong; a row is named by its place among all.
        RunError: the file cannot be written.
    """
    with writing(output) as file:
        return _answer(predictor, chunks, parameters, total, _to(file))


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


def _to(file: TextIO, form: Callable[[Any], Any] | None = None) -> Callable[[Any], None]:
    """What writes an answer as a line."""

    def write(one: Any) -> None:
        file.write(json.dumps(form(one) if form else one, ensure_ascii=False) + "\n")

    return write


def _answer(
    predictor: Predictor,
    chunks: Chunks,
    parameters: Mapping[str, Any],
    total: int,
    write: Callable[[Any], None],
) -> int:
    done = 0
    with progress("predicting", total=total, unit="rows") as bar:
        for rows in chunks:
            try:
                answers = predictor.predict(predictor.task.as_asked(rows), parameters, bar.advance)
            except UserError as error:
                raise UserError(_placed(str(error), done)) from None
            for one in answers:
                write(one)
            done += len(rows)
    return done


def _placed(message: str, before: int) -> str:
    """A message about a row of a chunk as one about a row of the file."""
    return PLACE.sub(lambda found: f"inputs[{int(found[1]) + before}]", message)
