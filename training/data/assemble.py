"""From landed sources to splits: the statement, the cleaning and the parting, with the limits that stop a run."""

from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from cluster.complaints import nearest
from cluster.errors import UserError
from training.data.clean import Cleaned, clean
from training.data.joined import Fusion
from training.data.landing import Landed, Reject
from training.data.recipe import Clean, HeldOut
from training.data.recipe import Split as SplitOptions
from training.data.report import MAIN, make_report
from training.data.rows import Rows
from training.data.same_types import same_types
from training.data.split import Parted, compared_columns, split
from training.recipe import Recipe

SHOWN_REJECTS = 3


@dataclass(frozen=True)
class Assembled:
    """All that the stage computes, before it is written."""

    parted: Parted
    rejects: list[Reject]
    report: dict[str, Any]
    corpus: pa.Table | None


def assemble(recipe: Recipe, landed: dict[str, Landed], *, max_rejected: float) -> Assembled:
    """Joins, cleans and splits landed sources, and says what was done.

    Raises:
        TooManyRejectedError: a greater share of the rows of a source, or of the fused rows, is rejected.
        UserError: the statement, or a column that the recipe names, is at fault.
    """
    for name, table in landed.items():
        _stop_at_limit(name, table.rejected_rows, table.rows + table.rejected_rows, max_rejected, table.rejects)
    held_out = held_out_sources(recipe.data.split)
    fusion = Fusion(recipe.data.fuse, landed, set(held_out.values()))
    fused: dict[str, Rows] = {}
    cleaned: dict[str, Cleaned] = {}
    for source in [None, *held_out.values()]:
        rows = fusion.rows(source)
        _check_columns(recipe, rows, source)
        done = clean(rows, recipe.data.clean, recipe.model)
        _stop_at_limit(source or "fuse", done.rejected_rows, len(rows), max_rejected, done.rejects)
        if not len(done.rows):
            raise UserError(_nothing_left(recipe.data.fuse, landed, source, len(rows), done))
        fused[source or MAIN], cleaned[source or MAIN] = rows, done
    alone = {source: cleaned[source].rows.table for source in held_out.values()}
    main, alike, notes = same_types(cleaned[MAIN].rows.table, alone)
    others = {part: alike[source] for part, source in held_out.items()}
    parted = split(main, others, recipe.data.split, compared_columns(recipe.model))
    rejects = [one for table in landed.values() for one in table.rejects]
    rejects += [one for done in cleaned.values() for one in done.rejects]
    corpus = _corpus(recipe, landed)
    report = make_report(recipe, landed, fusion, fused, cleaned, parted, corpus, notes)
    return Assembled(parted, rejects, report, corpus)


def _corpus(recipe: Recipe, landed: dict[str, Landed]) -> pa.Table | None:
    """What there is to be found, in the Unicode form of the rows; it belongs to no split, since nothing is asked of it.

    Raises:
        UserError: the statement is at fault, or gives no column that the model reads.
    """
    if recipe.data.corpus is None:
        return None
    rows = Fusion(recipe.data.corpus, landed, set(), "data.corpus").rows()
    there = set(rows.table.column_names)
    inputs = {role: columns for role, columns in recipe.model.inputs.items() if there.issuperset(columns)}
    if not inputs:
        raise UserError(
            f"data.corpus: its columns ({', '.join(rows.table.column_names)}) fill no role of model.inputs; "
            "name them with AS like the columns of the rows"
        )
    model = recipe.model.model_copy(update={"inputs": inputs, "target": None})
    return clean(rows, Clean(unicode=recipe.data.clean.unicode), model).rows.table


def held_out_sources(options: SplitOptions) -> dict[str, str]:
    """Split to source, for those that are a source of their own."""
    parts = {"validation": options.validation, "test": options.test}
    sources = {part: value.source for part, value in parts.items() if isinstance(value, HeldOut)}
    if len(set(sources.values())) < len(sources):
        raise UserError(f"data.split: validation and test are both '{sources['test']}'; hold out one source for each")
    return sources


class TooManyRejectedError(UserError):
    """More rows are rejected than the recipe allows; ``rejects`` holds those of the source at fault."""

    def __init__(self, message: str, rejects: list[Reject]) -> None:
        super().__init__(message)
        self.rejects = rejects


def _stop_at_limit(source: str, rejected: int, rows: int, limit: float, rejects: list[Reject]) -> None:
    if rejected <= limit * rows:
        return
    first = "; ".join(_shown(one) for one in rejects[:SHOWN_REJECTS])
    raise TooManyRejectedError(
        f"{source}: {rejected:,} of {rows:,} rows cannot be used, more than data.max_rejected: {limit:g} allows. "
        f"{first}.",
        rejects,
    )


def _shown(reject: Reject) -> str:
    value = (reject.value or "").replace("\n", " ")
    value = value if len(value) <= 40 else value[:40] + "…"
    where = f"{reject.source} row {reject.row}" + (f", {reject.column}" if reject.column else "")
    return f"{where}: {reject.reason}: '{value}'"


def _check_columns(recipe: Recipe, rows: Rows, held_out: str | None) -> None:
    """Every column that the recipe names must be in the fused table, as something that the recipe can mean."""
    there = rows.table.column_names
    of = f"'{held_out}'" if held_out else "the fused table"
    problems = [
        f"{key}: there is no column '{column}' in {of}{_perhaps(column, there)} has {', '.join(there)}"
        for key, column in _named_columns(recipe, held_out is not None)
        if column not in there
    ]
    options: Clean = recipe.data.clean
    problems += [
        f"data.clean.{key}: '{column}' holds lists or mappings ({rows.table.schema.field(column).type}), and only "
        "single values have a type or are allowed; take them apart in data.fuse, or leave the column out here"
        for key, named in (("types", options.types), ("allowed", options.allowed))
        for column in named
        if column in there and pa.types.is_nested(rows.table.schema.field(column).type)
    ]
    if problems:
        raise UserError("\n".join(problems))


def _perhaps(column: str, there: list[str]) -> str:
    near = nearest(column, there)
    return f", did you mean '{near}'? It" if near else "; it"


def _named_columns(recipe: Recipe, held_out: bool) -> list[tuple[str, str]]:
    named = [(f"model.inputs.{role}", column) for role, columns in recipe.model.inputs.items() for column in columns]
    if recipe.model.target:
        named.append(("model.target", recipe.model.target))
    options: Clean = recipe.data.clean
    named += [("data.clean.types", column) for column in options.types]
    named += [("data.clean.allowed", column) for column in options.allowed]
    named += [("data.clean.drop_empty", column) for column in options.drop_empty]
    named += [("data.clean.drop_duplicates", column) for column in options.drop_duplicates]
    if options.drop_near_duplicates:
        named += [("data.clean.drop_near_duplicates", column) for column in options.drop_near_duplicates.columns]
    if not held_out:
        ways = {way: getattr(recipe.data.split, way) for way in ("stratify", "group", "time")}
        named += [(f"data.split.{way}", column) for way, column in ways.items() if column]
    return named


def _nothing_left(
    statement: str | None, landed: dict[str, Landed], held_out: str | None, fused: int, cleaned: Cleaned
) -> str:
    whose = f" of '{held_out}'" if held_out else ""
    if fused:
        steps = ", ".join(f"{step['step']} {step['removed']}" for step in cleaned.steps if step["removed"])
        return f"data.clean: none of {fused} fused rows{whose} is left; removed by {steps}"
    empty = [name for name, table in landed.items() if not table.rows]
    if empty and (statement is None or held_out in empty):
        return f"data.sources.{held_out or empty[0]}: the source has no rows"
    cure = f"{_said_of(empty)} none" if empty else "look at the WHERE and at the keys of the joins"
    return f"data.fuse: there are no rows{whose}; {cure}"


def _said_of(sources: list[str]) -> str:
    return f"the source {sources[0]} has" if len(sources) == 1 else f"the sources {' and '.join(sources)} have"
