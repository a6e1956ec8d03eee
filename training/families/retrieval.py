"""What tasks that search have in common: who is relevant to whom, and texts read several to an example.

A *question row* is what such a task makes of fused rows: a query with passages beside it, by number. Passages are told
apart by what they say, so two rows with one text are one passage, and nothing counts as irrelevant that somewhere is
said to be relevant.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
import torch

from cluster.errors import UserError
from training.inputs.text import Reader, padded
from training.recipe import Model
from training.tasks.task import Batch, Row

PARTS = 4
"""Forward passes over a training batch. Queries are short and passages long: read in one, queries would be padding."""

BUDGET = 16_384
"""Padded tokens of one forward pass when the model is only read."""

SPREAD = 0.75
"""Texts shorter than this share of a pass's longest begin another pass when the model is only read."""


@dataclass
class Relevance:
    """Queries, the passages among which theirs are found, and how relevant these are.

    Attributes:
        passages: each distinct passage; the first has number 1.
        grades: query to the numbers of its relevant passages with their grades, all above 0.
    """

    passages: list[str] = field(default_factory=list)
    grades: dict[str, dict[int, float]] = field(default_factory=dict)
    _numbers: dict[str, int] = field(default_factory=dict)

    def number(self, passage: str) -> int:
        """The number of a passage, a new one where it has none yet; 0 for one that says nothing."""
        if not passage.strip():
            return 0
        if passage not in self._numbers:
            self.passages.append(passage)
            self._numbers[passage] = len(self.passages)
        return self._numbers[passage]

    def note(self, query: str, passage: str, grade: float) -> int:
        """Notes how relevant a passage is to a query (the highest grade of several) and returns its number."""
        number = self.number(passage)
        if number and grade > 0 and query.strip():
            known = self.grades.setdefault(query, {})
            known[number] = max(grade, known.get(number, 0.0))
        return number

    def known(self, query: str) -> tuple[list[int], list[float]]:
        """The numbers of what is relevant to a query, ascending, and their grades."""
        pairs = sorted(self.grades.get(query, {}).items())
        return [number for number, _ in pairs], [grade for _, grade in pairs]


@dataclass(frozen=True)
class Pairs:
    """How fused rows say that a passage is relevant to a query.

    Attributes:
        query: reads the query.
        passage: reads the passage.
        negative: reads a passage that is not relevant though it may look so, where there is such a column.
        grade: the column that says how relevant the passage is; every row's is where there is none.
    """

    query: Reader
    passage: Reader
    negative: Reader | None = None
    grade: str | None = None

    # --- made from data, kept in a folder -----------------------------------------------------------------------

    @classmethod
    def learn(cls, model: Model, base: Path, max_length: int | None, unicode: str) -> Self:
        """The readers of a recipe's roles ``query``, ``passage`` and, where it is filled, ``negative``."""
        readers = {role: Reader.learn(columns, base, max_length, unicode) for role, columns in model.inputs.items()}
        return cls(readers["query"], readers["passage"], readers.get("negative"), model.target)

    @classmethod
    def load(cls, settings: Mapping[str, Any], folder: Path) -> Self:
        """What :meth:`save` kept in ``folder`` and ``settings``."""
        query, passage, negative = (
            Reader.load(settings[role], folder) if settings[role] else None for role in ("query", "passage", "negative")
        )
        assert query is not None
        assert passage is not None
        return cls(query, passage, negative, settings["grade"])

    def save(self, folder: Path) -> dict[str, Any]:
        """Writes the tokenizer to ``folder`` and returns the rest as JSON."""
        return {
            "query": self.query.save(folder),
            "passage": self.passage.save(folder),
            "negative": self.negative.save(folder) if self.negative else None,
            "grade": self.grade,
        }

    # --- rows ---------------------------------------------------------------------------------------------------

    def collect(self, tables: Iterable[pa.Table]) -> Relevance:
        """The passages of all tables in order; a table without queries, a corpus, has passages alone."""
        found = Relevance()
        for table in tables:
            asked = set(self.query.columns) <= set(table.column_names)
            for row in table.to_pylist():
                query = self.query.text(row) if asked else ""
                found.note(query, self.passage.text(row), self.grade_of(row) if asked else 0.0)
                if asked and self.negative:
                    found.number(self.negative.text(row))
        return found

    def grade_of(self, row: Mapping[str, Any]) -> float:
        """How relevant a row's passage is to its query.

        Raises:
            UserError: its grade is no number.
        """
        if self.grade is None:
            return 1.0
        try:
            return float(row[self.grade])
        except (TypeError, ValueError):
            raise UserError(
                f"model.target: '{self.grade}' is no column of numbers; data.clean.types: {{{self.grade}: float}} "
                "rejects the rows that hold none"
            ) from None


def parted(row: Row, name: str, most: int) -> list[Row]:
    """A row as several that hold at most so many of the texts in its list ``name``, where it has one."""
    texts = row.get(name) or ()
    starts = range(0, len(texts), most) if len(texts) > most else ()
    return [{**row, name: texts[start : start + most]} for start in starts] or [row]


# --- several texts to an example ----------------------------------------------------------------------------------


def pad_texts(examples: Sequence[Sequence[Sequence[int]]], fill: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The texts of each example side by side, padded with ``fill``, and a mask of what they hold.

    Returns:
        Two tensors of shape ``[examples, most texts, longest]``; a text that an example lacks is masked whole.
    """
    most = max(map(len, examples), default=0)
    flat = [text for texts in examples for text in [*texts, *([[]] * (most - len(texts)))]]
    values, mask = padded(flat, fill)
    shape = (len(examples), most, -1)
    return torch.from_numpy(values).reshape(shape), torch.from_numpy(mask).reshape(shape)


def pad_lists(lists: Sequence[Sequence[float]], dtype: torch.dtype) -> torch.Tensor:
    """Lists as the rows of one tensor, filled up with 0."""
    whole = torch.zeros(len(lists), max(map(len, lists), default=0), dtype=dtype)
    for row, values in zip(whole, lists, strict=True):
        row[: len(values)] = torch.tensor(values, dtype=dtype)
    return whole


def read_texts(batch: Batch, names: Sequence[str], read: Callable[[Batch], torch.Tensor]) -> torch.Tensor:
    """What the model says of each text of a batch whose examples hold several, without reading their padding.

    The texts are read in parts of similar lengths. A training batch has always the same number of parts: workers that
    share a model's weights must all enter it equally often.

    Args:
        names: the tensors of the batch that hold texts, of shape ``[examples, texts, tokens]``.
        read: what the model says of the texts of a part, tensors of shape ``[texts, tokens]``; its first dimension is
            the texts.

    Returns:
        Shape ``[examples, texts, …]``; zeros where an example has no text.
    """
    flat = {name: batch[name].flatten(0, 1) for name in names}
    lengths = flat["attention_mask"].sum(1)
    places = lengths.nonzero()[:, 0]
    order = places[torch.argsort(lengths[places], descending=True, stable=True)]
    parts = _equal(order) if torch.is_grad_enabled() else _similar(order, lengths[order].tolist())
    said = []
    for part in parts:
        longest = int(lengths[part].max())
        said.append(read({name: value[part, :longest] for name, value in flat.items()}))
    outputs = torch.cat(said)[: len(order)]
    whole = outputs.new_zeros((len(lengths), *outputs.shape[1:])).index_copy(0, order, outputs)
    return whole.reshape(*batch["attention_mask"].shape[:2], *outputs.shape[1:])


def _equal(order: torch.Tensor) -> list[torch.Tensor]:
    """Parts of equally many texts; where there are too few, the last is read again and what is said of it dropped."""
    missing = max(0, PARTS - len(order))
    return list(torch.cat([order, order[-1:].expand(missing)]).tensor_split(PARTS))


def _similar(order: torch.Tensor, lengths: Sequence[int]) -> list[torch.Tensor]:
    """Parts of similar lengths and of at most ``BUDGET`` padded tokens."""
    ends, first = [], 0
    for place, length in enumerate(lengths):
        if place > first and (length < SPREAD * lengths[first] or (place - first + 1) * lengths[first] > BUDGET):
            ends.append(place)
            first = place
    return list(order.tensor_split(ends))
