"""How rows tell of the entities in their texts: which columns, and in which of the forms that data has."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import pyarrow as pa

from cluster.errors import FewRowsError, UserError
from training.inputs import entities
from training.inputs.cells import read_list
from training.inputs.entities import Entity, MisfitError, Places

MISFITS_SHOWN = 3

CHUNK = 2_000
"""Rows looked at together."""


@dataclass(frozen=True)
class Annotations:
    """The columns of marked texts.

    Attributes:
        column: holds texts, or lists of tokens.
        target: holds what is marked in them.
        spans: as character spans; else as a tag for each token.
        lists: the texts are lists of tokens, be it as JSON.
        tags: the names of tags that are numbers.
    """

    column: str
    target: str
    spans: bool
    lists: bool
    tags: Sequence[str] = ()

    @classmethod
    def learn(cls, column: str, target: str, tags: Sequence[str], splits: Mapping[str, pa.Table]) -> Self:
        """The form that the rows of these splits have."""
        spans, lists = False, any(table.num_rows for table in splits.values())
        for table in splits.values():
            for row in rows_of(table, column, target):
                spans = spans or _holds_spans(row[target])
                lists = lists and entities.read_tokens(row[column]) is not None
        return cls(column, target, spans, lists, list(tags))

    def save(self) -> dict[str, Any]:
        """The arguments that make the same again, as JSON."""
        return asdict(self)

    def read(self, row: Mapping[str, Any]) -> tuple[str, Places | None]:
        """A row's text and, where it is a list of tokens, where each of them stands."""
        cell = row[self.column]
        tokens = entities.read_tokens(cell) if self.lists or not isinstance(cell, str) else None
        return entities.join(tokens) if tokens is not None else ("" if cell is None else str(cell), None)

    def entities(self, row: Mapping[str, Any]) -> list[Entity]:
        """The entities of a row.

        Raises:
            MisfitError: they do not fit the text.
        """
        text, places = self.read(row)
        value = read_list(row[self.target])
        if self.spans:
            if not isinstance(value, list):
                raise MisfitError("a list of spans is needed, of {start, end, label} each")
            return entities.read_spans(value, text)
        if value is None:
            raise MisfitError("there are no tags")
        if places is None:
            places = entities.words(text)
        tags = entities.read_tags(value if isinstance(value, list) else str(value).split(), self.tags)
        if len(tags) != len(places):
            raise MisfitError(f"{len(tags)} tags for {len(places)} tokens")
        return entities.placed(entities.chunks(tags), places)

    def types(self, splits: Mapping[str, pa.Table]) -> list[str]:
        """The types of all entities.

        Raises:
            UserError: names the rows whose annotations do not fit their texts; or there is no entity.
        """
        types: set[str] = set()
        rows, misfits = 0, []
        for split, table in splits.items():
            for number, row in enumerate(rows_of(table, self.column, self.target), 1):
                rows += 1
                try:
                    types.update(one.type for one in self.entities(row))
                except MisfitError as misfit:
                    misfits.append(f"{split} row {number} ('{self.read(row)[0][:40]}'): {misfit}")
        if misfits:
            raise UserError(
                f"model.target: the '{self.target}' of {len(misfits)} of {rows} rows does not fit the '{self.column}': "
                f"{'; '.join(misfits[:MISFITS_SHOWN])}. Mend them, or leave them out with a WHERE in data.fuse"
            )
        if not types:
            raise FewRowsError(f"model.target: there is no entity in '{self.target}'; nothing can be learned")
        return sorted(types)


def rows_of(table: pa.Table, *columns: str) -> Iterator[Mapping[str, Any]]:
    """The rows of a table, never all of them at once."""
    for batch in table.select(columns).to_batches(max_chunksize=CHUNK):
        yield from batch.to_pylist()


def _holds_spans(cell: Any) -> bool:
    value = read_list(cell)
    return isinstance(value, list) and any(isinstance(one, Mapping | list | tuple) for one in value)
