"""The fuse statement, read with sqlglot: its main table, the joins it makes, the order of its rows.

Daft runs the statement as the user wrote it. All that is ever added is, to the outermost SELECT, hidden columns that
carry the row numbers of its tables: with them the result has one order whatever the engine's parallelism, and a
rejected row can be found again in its source.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import sqlglot
from sqlglot import expressions as exp
from sqlglot.errors import SqlglotError
from sqlglot.tokens import TokenType  # type: ignore[attr-defined]

from training.data.landing import HIDDEN

DIALECT = "postgres"  # the one that Daft's SQL is nearest to; its ORDER BY puts nulls last
ORIGIN = HIDDEN + "from_"
ORDER = HIDDEN + "order_"


class UnreadableError(Exception):
    """sqlglot does not understand the statement; Daft still may."""


@dataclass(frozen=True)
class Relation:
    """One side of a join: a table of a source or a WITH, or a subquery."""

    alias: str
    name: str
    sql: str
    source: str | None


@dataclass(frozen=True)
class Join:
    """One join.

    Attributes:
        kind: inner, left, right, full, …
        on: the condition as written.
        lefts: what stands left of it and may be joined with.
        right: what is joined.
        keys: pairs of expressions that must be equal, ``(left alias, left, right)``; empty where the condition is of
            another form.
        rest: the condition has other parts than equalities.
        context: the WITH clauses, to run the sides with.
    """

    kind: str
    on: str
    lefts: tuple[Relation, ...]
    right: Relation
    keys: tuple[tuple[str, str, str], ...]
    rest: bool
    context: str


@dataclass(frozen=True)
class Cast:
    """A cast of what one source has.

    Attributes:
        written: the cast as SQL.
        source: whose values are cast; ``alias`` is what the statement calls it there.
        operand: what is cast, of this source's columns alone.
        kind: the type.
    """

    written: str
    source: str
    alias: str
    operand: str
    kind: str


class Statement:
    """A fuse statement over ``sources``.

    Raises:
        UnreadableError: it cannot be parsed.
    """

    def __init__(self, text: str, sources: Collection[str]) -> None:
        self.sources = set(sources)
        try:
            self.text = _without_end(text)
            trees = sqlglot.parse(self.text, dialect=DIALECT)
        except SqlglotError as error:
            raise UnreadableError(str(error).splitlines()[0]) from None
        if len(trees) != 1 or not isinstance(trees[0], exp.Query):
            raise UnreadableError("it is not one SELECT statement")
        self._tree: exp.Query = trees[0]

    def named(self) -> set[str]:
        """The sources that the statement reads."""
        return {table.name for table in self._tree.find_all(exp.Table) if self._source(table)}

    def misread(self) -> str | None:
        """A function that Daft runs, and takes for another than SQL does, with what to write instead."""
        words = list(sqlglot.tokenize(self.text, DIALECT))
        for word, after in pairwise(words):
            if word.text.upper() == "SUBSTR" and after.token_type == TokenType.L_PAREN:
                return "substr would count from 0, and SQL's from 1; write substring(text, start, length)"
        return None

    def main(self) -> str | None:
        """The source whose rows become the rows of the result: the first table of the outermost FROM.

        Where a subquery or a WITH stands there, its own first table, and so on.
        """
        return self._first(self._tree, set())

    def tracked(self, row_column: Callable[[str], str]) -> tuple[str, dict[str, str]] | None:
        """The statement with hidden columns, and what they hold: hidden column to source. None where rows of the result
        are not rows of the sources (GROUP BY, DISTINCT, UNION), or a ``*`` further in would pass hidden columns on.
        """
        tree = self._tree
        if not isinstance(tree, exp.Select) or not self._keeps_rows(tree):
            return None
        added: list[str] = []
        origins: dict[str, str] = {}
        for index, table in enumerate(_outer_tables(tree)):
            source = self._source(table)
            if source:
                origins[f"{ORIGIN}{index}"] = source
                added.append(f'{quoted(table.alias_or_name)}."{row_column(source)}" AS "{ORIGIN}{index}"')
        for index, (ordered, column) in enumerate(self._order()):
            if column is None:
                added.append(f'{ordered.this.sql(DIALECT)} AS "{ORDER}{index}"')
        before, position = _outer_from(self.text)
        if position is None or not origins:
            return None
        comma = "" if before == TokenType.COMMA else ", "
        # On a line of its own: what stands before the FROM may be a comment that goes to the line's end.
        return f"{self.text[:position].rstrip()}\n{comma}{', '.join(added)} {self.text[position:]}", origins

    def only_joins(self) -> bool:
        """Whether there can be more rows than the main source has only because joins find several partners."""
        return bool(self._tree.find(exp.Join)) and not self._tree.find(exp.SetOperation)

    def outputs(self) -> list[str | None] | None:
        """The names of the result's columns, None for one without a name; None where a ``*`` leaves them open."""
        return None if self._tree.is_star else [_output_name(one) for one in self._tree.selects]

    def order(self, columns: Sequence[str]) -> list[tuple[str, bool, bool]]:
        """The outermost ORDER BY as ``(column of the result, descending, nulls first)``.

        Args:
            columns: of the result, hidden ones last; what is ordered by something else is left out.
        """
        items = []
        for index, (ordered, column) in enumerate(self._order()):
            name = f"{ORDER}{index}" if column is None else column
            name = columns[name] if isinstance(name, int) else name
            if name in columns:
                items.append((name, bool(ordered.args.get("desc")), bool(ordered.args.get("nulls_first"))))
        return items

    def joins(self) -> Iterator[Join]:
        """Every join of the statement, the outermost first."""
        with_ = self._tree.args.get("with_")
        context = f"{with_.sql(DIALECT)} " if with_ else ""
        for select in self._tree.find_all(exp.Select):
            start = select.args.get("from_")
            if start is None:
                continue
            before = [self._relation(start.this)]
            for join in select.args.get("joins") or []:
                right = self._relation(join.this)
                yield _join(join, tuple(before), right, context)
                before.append(right)

    def casts(self, columns: Mapping[str, Collection[str]]) -> Iterator[Cast]:
        """Every cast of what one source has, but to text, which loses nothing, and in a CASE, which may look first.

        Args:
            columns: of each source.
        """
        for cast in self._tree.find_all(exp.Cast):
            select = cast.find_ancestor(exp.Select)
            if select is None or cast.to.is_type(*exp.DataType.TEXT_TYPES) or cast.find_ancestor(exp.Case):
                continue
            if cast.this.find(exp.AggFunc, exp.Window, exp.Query):
                continue
            sides = {side.alias_or_name: self._source(side) for side in _outer_tables(select)}
            owners = {_side_of(column, sides, columns) for column in cast.this.find_all(exp.Column)}
            alias = owners.pop() if len(owners) == 1 else None
            source = sides.get(alias) if alias else None
            if alias and source:
                yield Cast(cast.sql(), source, alias, cast.this.sql(DIALECT), cast.to.sql())

    def _relation(self, node: exp.Expr) -> Relation:
        alias = node.alias_or_name
        if isinstance(node, exp.Table):
            return Relation(alias, node.name, quoted(node.name), self._source(node))
        inner = self._first(node.this, set()) if isinstance(node, exp.Subquery) else None
        return Relation(alias, f"{alias} (over {inner})" if inner else alias, node.this.sql(DIALECT), None)

    def _source(self, table: exp.Table) -> str | None:
        return table.name if table.name in self.sources and table.name not in self._with_names() else None

    def _with_names(self) -> set[str]:
        return {cte.alias for cte in self._tree.find_all(exp.CTE)}

    def _first(self, node: exp.Expr | None, seen: set[str]) -> str | None:
        if isinstance(node, exp.Subquery):
            return self._first(node.this, seen)
        if isinstance(node, exp.SetOperation):
            return self._first(node.this, seen)
        if isinstance(node, exp.Select):
            start = node.args.get("from_")
            return self._first(start.this, seen) if start else None
        if not isinstance(node, exp.Table):
            return None
        cte = next((cte for cte in self._tree.find_all(exp.CTE) if cte.alias == node.name), None)
        if cte is not None and node.name not in seen:
            return self._first(cte.this, seen | {node.name})
        return node.name if node.name in self.sources else None

    def _keeps_rows(self, tree: exp.Select) -> bool:
        if any(tree.args.get(part) for part in ("distinct", "group", "having", "qualify")):
            return False
        inner_star = any(
            star.find_ancestor(exp.Select) is not tree for star in tree.find_all(exp.Star) if not _counted(star)
        )
        natural = any(join.args.get("method") for join in tree.find_all(exp.Join))
        return not inner_star and not natural and not any(_aggregates(one) for one in tree.expressions)

    def _order(self) -> list[tuple[exp.Ordered, int | str | None]]:
        """The ORDER BY's items, with the name or the place of the result's column that each names, if it names one."""
        order = self._tree.args.get("order")
        outputs = [_output_name(one) for one in self._tree.selects]
        items: list[tuple[exp.Ordered, int | str | None]] = []
        for ordered in order.expressions if order else []:
            key = ordered.this
            column: int | str | None = None
            if isinstance(key, exp.Literal) and not key.is_string and 0 < int(key.name) <= len(outputs):
                column = int(key.name) - 1
            elif isinstance(key, exp.Column) and not key.table and key.name in outputs:
                column = key.name
            items.append((ordered, column))
        return items


def _outer_tables(tree: exp.Select) -> list[exp.Table]:
    start = tree.args.get("from_")
    sides = [start.this] if start else []
    sides += [join.this for join in tree.args.get("joins") or [] if join.args.get("kind") not in ("SEMI", "ANTI")]
    return [side for side in sides if isinstance(side, exp.Table)]


def _output_name(selected: exp.Expr) -> str | None:
    return selected.output_name or None


def _side_of(column: exp.Column, sides: Mapping[str, str | None], columns: Mapping[str, Collection[str]]) -> str | None:
    """The table of a FROM, by its alias, that a column belongs to; None where that cannot be told."""
    if column.table:
        return column.table
    having = [alias for alias, source in sides.items() if source is None or column.name in columns[source]]
    return having[0] if len(having) == 1 else None


def _counted(star: exp.Star) -> bool:
    return isinstance(star.parent, exp.Count)


def _aggregates(expression: exp.Expr) -> bool:
    return any(found.find_ancestor(exp.Window) is None for found in expression.find_all(exp.AggFunc))


def _without_end(text: str) -> str:
    """A statement without the semicolons, the comments and the white space after it."""
    tokens = list(sqlglot.tokenize(text, DIALECT))
    while tokens and tokens[-1].token_type == TokenType.SEMICOLON:
        tokens.pop()
    return text[: tokens[-1].end + 1].strip() if tokens else ""


def _outer_from(text: str) -> tuple[TokenType | None, int | None]:
    """What stands before the FROM of the outermost SELECT, and where that begins."""
    depth, before = 0, None
    for token in sqlglot.tokenize(text, DIALECT):
        depth += (token.token_type == TokenType.L_PAREN) - (token.token_type == TokenType.R_PAREN)
        if depth == 0 and token.token_type == TokenType.FROM:
            return before, token.start
        before = token.token_type
    return before, None


def quoted(name: str) -> str:
    """A name as SQL takes it whatever letters it has."""
    return f'"{name}"'


def _join(join: exp.Join, lefts: tuple[Relation, ...], right: Relation, context: str) -> Join:
    kind = " ".join(part for part in (join.args.get("side"), join.args.get("kind")) if part).lower() or "inner"
    using = [identifier.name for identifier in join.args.get("using") or []]
    condition = join.args.get("on")
    if using:
        keys = tuple((lefts[0].alias, quoted(name), quoted(name)) for name in using)
        return Join(kind, f"USING ({', '.join(using)})", lefts, right, keys, False, context)
    parts = list(condition.flatten()) if isinstance(condition, exp.And) else [condition] if condition else []
    found = [_key(part, lefts, right) for part in parts]
    keys = tuple(key for key in found if key)
    if len({alias for alias, _, _ in keys}) > 1:  # a key of several tables: no single left side to count
        return Join(kind, condition.sql(DIALECT) if condition else "", lefts, right, (), True, context)
    return Join(kind, condition.sql(DIALECT) if condition else "", lefts, right, keys, None in found, context)


def _key(part: exp.Expr, lefts: tuple[Relation, ...], right: Relation) -> tuple[str, str, str] | None:
    if not isinstance(part, exp.EQ):
        return None
    for left_side, right_side in ((part.left, part.right), (part.right, part.left)):
        left, other = _owner(left_side), _owner(right_side)
        if other == right.alias and left in {relation.alias for relation in lefts} and left is not None:
            return left, left_side.sql(DIALECT), right_side.sql(DIALECT)
    return None


def _owner(expression: exp.Expr) -> str | None:
    """The one table whose columns the expression is made of."""
    owners = {column.table for column in expression.find_all(exp.Column)}
    return owners.pop() or None if len(owners) == 1 else None
