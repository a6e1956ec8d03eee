"""How good a finder of entities is: the baseline that it must beat, and what its report shows."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import pyarrow as pa
from markupsafe import Markup, escape

from training.evaluation import page, sections
from training.evaluation.page import Fragment
from training.evaluation.sections import ReportData, Section
from training.inputs import entities
from training.inputs.annotations import Annotations
from training.inputs.entities import Entity
from training.tasks.task import Outputs, Task

UNSPACED = "\u0e00-\u0eff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
"""Scripts that put no space between words: Thai, Lao, kana, Chinese characters. Each character is a piece."""

PIECE = re.compile(rf"[{UNSPACED}]|[^\W{UNSPACED}]+|[^\w\s]")

MOST_SHOWN = 4
"""Mistakes of each kind."""

AROUND = 140
"""Characters of a text that are shown on either side of a mistake."""

KINDS = {
    "type": "right place, wrong type",
    "boundary": "right type, wrong boundary",
    "both": "wrong type and boundary",
    "invented": "nothing is there",
    "missed": "not found",
}

Pieces = tuple[str, ...]


class EntityFinder(Protocol):
    """What the baseline asks of a task besides what every task can do."""

    labels: Sequence[str]
    annotations: Annotations


# --- the baseline ---------------------------------------------------------------------------------------------------


def dictionary(task: Task, base: Path, train: pa.Table, others: Sequence[pa.Table]) -> list[Outputs]:
    """Finds again what training has seen: the longest stretch that was an entity there, with its commonest type.

    The baseline of CoNLL-2003 (Tjong Kim Sang and De Meulder, 2003), but for what it does of ambiguous stretches: one
    is known where at least half of its appearances in the training texts were entities.
    """
    finder = cast(EntityFinder, task)
    rows = train.to_pylist()
    texts, true = [finder.annotations.read(row)[0] for row in rows], [finder.annotations.entities(row) for row in rows]
    book = Dictionary(texts, true)
    index = {label: number for number, label in enumerate(finder.labels)}
    return [
        [
            np.array(
                [[one.start, one.end, index[one.type], 1.0] for one in book.find(finder.annotations.read(row)[0])],
                dtype=np.float64,
            ).reshape(-1, 4)
            for row in table.to_pylist()
        ]
        for table in others
    ]


class Dictionary:
    """The entities of some texts, known by how they are written."""

    def __init__(self, texts: Sequence[str], true: Sequence[Sequence[Entity]]) -> None:
        types: dict[Pieces, Counter[str]] = defaultdict(Counter)
        for text, found in zip(texts, true, strict=True):
            for one in found:
                types[tuple(PIECE.findall(text[one.start : one.end]))][one.type] += 1
        types.pop((), None)
        self._type = {pieces: counted.most_common(1)[0][0] for pieces, counted in types.items()}
        self._lengths = self._by_first_piece()
        self._forget(texts, true)

    def find(self, text: str) -> list[Entity]:
        """The longest known stretches, from left to right, none within another."""
        places = [match.span() for match in PIECE.finditer(text)]
        pieces = [text[start:end] for start, end in places]
        found, at = [], 0
        while at < len(pieces):
            starting = (tuple(pieces[at : at + length]) for length in self._lengths.get(pieces[at], ()))
            known = next((some for some in starting if some in self._type), ())
            if known:
                found.append(Entity(places[at][0], places[at + len(known) - 1][1], self._type[known]))
            at += len(known) or 1
        return found

    def _by_first_piece(self) -> dict[str, list[int]]:
        """How many pieces the entities have that begin with a piece, most first."""
        lengths: dict[str, set[int]] = defaultdict(set)
        for pieces in self._type:
            lengths[pieces[0]].add(len(pieces))
        return {first: sorted(those, reverse=True) for first, those in lengths.items()}

    def _forget(self, texts: Sequence[str], true: Sequence[Sequence[Entity]]) -> None:
        """Drops what is more often no entity where it stands."""
        right, said = Counter[Pieces](), Counter[Pieces]()
        for text, wanted in zip(texts, true, strict=True):
            places = {(one.start, one.end) for one in wanted}
            for one in self.find(text):
                pieces = tuple(PIECE.findall(text[one.start : one.end]))
                said[pieces] += 1
                right[pieces] += (one.start, one.end) in places
        self._type = {pieces: kind for pieces, kind in self._type.items() if 2 * right[pieces] >= said[pieces]}
        self._lengths = self._by_first_piece()


# --- the report -----------------------------------------------------------------------------------------------------


def types(data: ReportData) -> Fragment | None:
    """Every type's precision, recall and F1; the weakest first."""
    if data.outputs is None or not data.rows:
        return None
    rows = entities.by_type(*_found_and_true(data), data.labels)
    return page.rates("Type", "There", "An entity is found where its start, its end and its type are right.", rows)


def mistakes(data: ReportData) -> Fragment | None:
    """The ways in which it errs, counted, with the clearest examples of each."""
    if data.outputs is None or not data.rows or not data.texts:
        return None
    found, true = _found_and_true(data)
    scores = [
        {entity: line[3] for entity, line in zip(own, lines, strict=True)}
        for own, lines in zip(found, data.outputs, strict=True)
    ]
    every: list[dict[str, Any]] = [
        {"kind": kind, "row": row, "said": said, "true": wanted, "score": scores[row].get(said) if said else None}
        for row in range(data.rows)
        for kind, said, wanted in compare(found[row], true[row])
    ]
    if not every:
        return None
    groups: list[dict[str, Any]] = []
    for kind, title in KINDS.items():
        some = [one for one in every if one["kind"] == kind]
        some.sort(key=lambda one: -(one["score"] or 0))
        if some:
            shown = [_shown(one, data.texts[one["row"]]) for one in some[:MOST_SHOWN]]
            groups.append({"title": title, "count": len(some), "shown": shown})
    groups.sort(key=lambda group: -group["count"])
    total = sum(map(len, true))
    return page.fragment("What it gets wrong", "mistakes", groups=groups, total=total, mistakes=len(every))


def compare(found: Sequence[Entity], true: Sequence[Entity]) -> list[tuple[str, Entity | None, Entity | None]]:
    """The mistakes in one text: a kind of ``KINDS``, the entity that was said and the true one, where there are such.

    A true entity that overlaps several said ones is set against the one of its type, or the first.
    """
    right = set(found) & set(true)
    said, wanted = [one for one in found if one not in right], [one for one in true if one not in right]
    mistakes: list[tuple[str, Entity | None, Entity | None]] = []
    for one in wanted:
        near = [other for other in said if other.start < one.end and one.start < other.end]
        near.sort(key=lambda other: (other.type != one.type, other.start))
        if not near:
            mistakes.append(("missed", None, one))
        elif near[0][:2] == one[:2]:
            mistakes.append(("type", near[0], one))
        else:
            mistakes.append(("boundary" if near[0].type == one.type else "both", near[0], one))
    for other in said:
        if not any(other.start < one.end and one.start < other.end for one in wanted):
            mistakes.append(("invented", other, None))
    return mistakes


def _found_and_true(data: ReportData) -> tuple[list[list[Entity]], list[list[Entity]]]:
    assert data.outputs is not None
    found = [entities.from_numbers(one, data.labels) for one in data.outputs]
    return found, [entities.from_numbers(one, data.labels) for one in data.targets]


def _shown(mistake: Mapping[str, Any], text: str) -> dict[str, Any]:
    """A mistake as the page shows it: the text around it, with what was said and what is true set off."""
    said, wanted = mistake["said"], mistake["true"]
    there = [one for one in (said, wanted) if one]
    start, end = min(one.start for one in there), max(one.end for one in there)
    first, last = max(0, start - AROUND), min(len(text), end + AROUND)
    return {
        "text": _marked(text, first, last, there),
        "said": said and {"type": said.type, "text": text[said.start : said.end]},
        "true": wanted and {"type": wanted.type, "text": text[wanted.start : wanted.end]},
        "score": mistake["score"],
    }


def _marked(text: str, first: int, last: int, there: Iterable[Entity]) -> Markup:
    start, end = min(one.start for one in there), max(one.end for one in there)
    parts = [text[first:start], text[start:end], text[end:last]]
    before, marked, after = (escape(part) for part in parts)
    dots = ("…" if first else "", "…" if last < len(text) else "")
    return Markup("{}{}<mark>{}</mark>{}{}").format(dots[0], before, marked, after, dots[1])


SECTIONS: tuple[Section, ...] = (
    sections.verdict,
    sections.comparison,
    sections.learning,
    types,
    mistakes,
    sections.sources,
    sections.recipe,
    sections.making,
)
"""The sections of the report, in their order."""
