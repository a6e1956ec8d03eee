"""The fuse statement run over landed sources: one table whose rows have one order and know where they came from."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from cluster.complaints import nearest
from cluster.errors import UserError
from training.data import casts, engine
from training.data.joins import measure
from training.data.landing import HIDDEN, Landed
from training.data.rows import Rows, digests, ranks
from training.data.statement import ORIGIN, Statement, UnreadableError, quoted
from training.mapped import taken

UNKNOWN_COLUMN = re.compile(r"Column (\"[^\"]*\"|\S+) not found")
UNKNOWN_TABLE = re.compile(r"Table not found: (\"[^\"]*\"|\S+)")


def main_source(statement: str | None, joined: Sequence[str]) -> str | None:
    """The source whose rows become the fused rows: the first table of the outermost FROM, or the only source."""
    if statement is None:
        return joined[0]
    try:
        return Statement(statement, joined).main()
    except UnreadableError:
        return joined[0] if len(joined) == 1 else None


class Fusion:
    """The recipe's way from sources to one table.

    ``held_out`` are the names of sources that are a split of their own. For one of those the statement runs again
    with it in the place of the main source, everywhere the statement names that: the first table of the outermost
    FROM. Without a statement a source is simply read. ``key`` is where in the recipe the statement stands.

    Raises:
        UserError: the statement names a held out source, whose rows would then be trained on, or calls a function that
            Daft takes for another than SQL does.
    """

    def __init__(
        self, statement: str | None, sources: Mapping[str, Landed], held_out: set[str], key: str = "data.fuse"
    ) -> None:
        self.sources = dict(sources)
        self.key = key
        self._text = statement
        self._statement: Statement | None = None
        self.joined = [name for name in sources if name not in held_out]
        self.main = main_source(statement, self.joined)
        if statement is None:
            return
        try:
            self._statement = Statement(statement, self.joined)
        except UnreadableError:  # Daft will say what is wrong, or understand it all the same
            return
        misread = Statement(statement, sources).misread()
        if misread:
            raise UserError(f"{key}: {misread}")
        leaked = Statement(statement, sources).named() & held_out
        if leaked:
            name = min(leaked)
            raise UserError(
                f"data.fuse: the statement reads '{name}', which data.split holds out: its rows would be trained on. "
                f"Leave it out; the statement runs on '{name}' too, in the place of '{self.main}'"
            )

    def rows(self, held_out: str | None = None) -> Rows:
        """The fused rows, or those of a held out source.

        Raises:
            UserError: Daft refuses the statement; names the reason, the tables and their columns.
        """
        if self._text is None:
            return self._read(held_out or self.joined[0])
        tables = {name: self.sources[name] for name in self.joined}
        if held_out:
            if self.main is None:
                raise UserError(f"data.fuse: cannot tell which table '{held_out}' is to stand for; simplify the FROM")
            tables[self.main] = self.sources[held_out]
        return self._run(self._text, tables, held_out)

    def joins(self) -> list[dict[str, Any]]:
        """What each join matched."""
        if self._statement is None:
            return []
        tables = {name: self.sources[name] for name in self.joined}
        return measure(self._statement, engine.tables(tables, numbered=False))

    def multiplied(self, rows: int) -> bool:
        """Whether the joins must have made several rows of one for there to be so many."""
        only_joins = self._statement is not None and self._statement.only_joins()
        return only_joins and self.main is not None and rows > self.sources[self.main].rows

    def casts(self) -> list[dict[str, Any]]:
        """What each cast could not read."""
        if self._statement is None:
            return []
        tables = {name: self.sources[name] for name in self.joined}
        return casts.measure(self._statement, engine.tables(tables, numbered=False))

    def _read(self, name: str) -> Rows:
        try:
            table = engine.collect(engine.tables({name: self.sources[name]}, numbered=True)[name])
        except engine.StatementError as error:
            raise UserError(f"data.sources.{name}: the source cannot be read: {error}") from None
        column = engine.row_column(name)
        table = table.rename_columns([f"{ORIGIN}0" if one == column else one for one in table.column_names])
        return self._ordered(table, {f"{ORIGIN}0": name}, [], {name: self.sources[name]})

    def _run(self, text: str, tables: dict[str, Landed], held_out: str | None) -> Rows:
        tracked = self._statement.tracked(engine.row_column) if self._statement else None
        if tracked and self._statement:
            try:
                table = self._named(engine.run(tracked[0], engine.tables(tables, numbered=True)))
                return self._ordered(table, tracked[1], self._statement.order(table.column_names), tables)
            except engine.StatementError:
                pass  # the statement as written gives the error that its author understands, or works
        try:
            table = self._named(engine.run(text.strip().rstrip(";"), engine.tables(tables, numbered=False)))
        except engine.StatementError as error:
            raise UserError(self._failure(str(error), tables, held_out)) from None
        order = self._statement.order(table.column_names) if self._statement else []
        return self._ordered(table, {}, order, tables)

    def _named(self, table: pa.Table) -> pa.Table:
        """Daft calls a column ``c.plan`` where another table has a ``plan`` too; SQL calls it ``plan``. An expression
        without a name is called as Daft calls it."""
        names = self._statement.outputs() if self._statement else None
        if not names or len(names) > table.num_columns:
            return table
        there = table.column_names
        given = [new or old for new, old in zip(names, there, strict=False)] + there[len(names) :]
        single = [new if given.count(new) == 1 else old for new, old in zip(given, there, strict=True)]
        return table.rename_columns(single)

    def _failure(self, reason: str, tables: dict[str, Landed], held_out: str | None) -> str:
        where = f"{self.key} (with '{held_out}' in the place of '{self.main}')" if held_out else self.key
        there = "; ".join(f"{name}({', '.join(landed.schema.names)})" for name, landed in tables.items())
        return f"{where}: {reason.rstrip('.')}{_perhaps(reason, tables)} The tables are {there}"

    def _ordered(
        self, table: pa.Table, origins: dict[str, str], order: list[tuple[str, bool, bool]], tables: dict[str, Landed]
    ) -> Rows:
        """The rows in the statement's ORDER BY, then as they stand in the sources, then by a hash."""
        keys: list[Any] = [ranks(table[name], descending=down, nulls_first=first) for name, down, first in order]
        keys += [ranks(table[name]) for name, source in origins.items() if tables[source].ordered]
        shown = [name for name in table.column_names if HIDDEN not in name]
        places = np.lexsort(keys[::-1]) if keys else np.arange(table.num_rows)
        if _ties(keys, places):
            places = np.lexsort([digests(table.select(shown)), *keys[::-1]])
        table = taken(table, places)
        numbers: dict[str, Any] = {}
        for hidden, source in origins.items():
            first = 0 if tables[source].numbered else 1  # Daft counts the rows of a Parquet file from 0
            numbers.setdefault(tables[source].name, table[hidden].fill_null(-first).to_numpy().astype(np.int64) + first)
        several = frozenset(
            one.name for one in tables.values() if one.numbered and one.files > 1 and one.kind != "files"
        )
        return Rows(table.select(shown), numbers, self._column_sources(shown, numbers), several)

    def _column_sources(self, columns: list[str], numbers: Mapping[str, Any]) -> dict[str, str]:
        """The source that a column is looked up in: the first table that has it, else the main one."""
        if not numbers:
            return {}
        main = next(iter(numbers))
        having = {name: set(self.sources[name].schema.names) for name in numbers}
        return {one: next((name for name, names in having.items() if one in names), main) for one in columns}


def _perhaps(reason: str, tables: Mapping[str, Landed]) -> str:
    """The name that was probably meant where Daft knows none like that; it tells capital letters from small ones."""
    column, table = UNKNOWN_COLUMN.search(reason), UNKNOWN_TABLE.search(reason)
    if column:
        known = [name for landed in tables.values() for name in landed.schema.names]
        near = nearest(column[1].strip('"'), known)
    else:
        near = nearest(table[1].strip('"'), tables) if table else None
    if near is None:
        return "."
    return f", did you mean {near if near.isidentifier() else quoted(near)}?"


def _ties(keys: list[Any], places: Any) -> bool:
    """Whether two rows, neighbours in this order, are equal in all keys."""
    equal = np.ones(max(len(places) - 1, 0), dtype=bool)
    for key in keys:
        ordered = key[places]
        equal &= ordered[1:] == ordered[:-1]
    return bool(equal.any())
