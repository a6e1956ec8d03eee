"""The data stage: from the sources that a recipe names to three splits, everything that was left out, and a report."""

import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.errors import UserError
from cluster.progress import say
from cluster.storage import building, fingerprint, home, only_one, plain_disk_errors, read_json, write_json
from training.data import describe
from training.data.clean import Cleaned, clean, input_columns, same_types
from training.data.joined import Fusion
from training.data.landing import Landed, Reject
from training.data.rows import Rows
from training.data.sources import identity, land
from training.data.split import SPLITS, Parted, split
from training.recipe import Clean, HeldOut, Recipe
from training.recipe import Split as SplitOptions

FORMAT = 1
"""Raised whenever the same recipe and data would give other rows: results of earlier versions are then made again."""

REJECTED = pa.schema(
    [
        ("source", pa.string()),
        ("row", pa.int64()),
        ("column", pa.string()),
        ("value", pa.string()),
        ("reason", pa.string()),
    ]
)
SHOWN_REJECTS = 3


@dataclass(frozen=True)
class Fused:
    """What the data stage made.

    Attributes:
        folder: holds ``train.parquet``, ``validation.parquet``, ``test.parquet``, ``rejected.parquet`` (columns source,
            row, column, value, reason) and ``fuse.json``.
        fingerprint: of the rows of every source and of what the recipe does to them.
        report: the content of ``fuse.json``; its numbers add up.
    """

    folder: Path
    fingerprint: str
    report: dict[str, Any]

    def split(self, name: str) -> pa.Table:
        """The rows of ``train``, ``validation`` or ``test``; the latter two may have none."""
        assert name in SPLITS
        return pq.read_table(self.folder / f"{name}.parquet", partitioning=None)


@dataclass(frozen=True)
class Pieces:
    """All that the stage computes, before it is written."""

    parted: Parted
    cleaned: dict[str, Cleaned]
    fused_rows: dict[str, int]
    rejects: list[Reject]
    report: dict[str, Any]


def fuse(recipe: Recipe) -> Fused:
    """Lands the sources, joins, cleans and splits them; the same recipe over the same rows is done only once.

    Raises:
        UserError: a source, the statement or the data is at fault, or more rows are rejected than the recipe allows.
        RunError: a database, the hub or the disk will not do, or another process is at work on the same.
    """
    with _workplace() as work:
        digests: dict[str, Any] = {}
        landed: dict[str, Landed] = {}
        for name, source in recipe.data.sources.items():
            digests[name], ready = identity(name, source, recipe.folder, work)
            if ready is not None:
                landed[name] = ready
        mark = _fingerprint(recipe, digests)
        folder = home() / "fused" / mark
        with only_one(folder):
            if not folder.exists():
                _build(recipe, folder, landed, work)
    return Fused(folder, mark, read_json(folder / "fuse.json"))


def _fingerprint(recipe: Recipe, digests: dict[str, Any]) -> str:
    """Where files lie and how a database is reached does not matter; what they hold does."""
    data = recipe.data.model_dump(mode="json", exclude={"sources"})
    return fingerprint(FORMAT, digests, data, recipe.model.inputs, recipe.model.target)


@contextmanager
def _workplace() -> Iterator[Path]:
    """A folder for landed sources, where every node of a cluster can read it; it is gone afterwards."""
    work = home() / "fused" / f".landing-{uuid.uuid4().hex[:12]}"
    try:
        with plain_disk_errors(work):
            work.mkdir(parents=True)
            yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _build(recipe: Recipe, folder: Path, landed: dict[str, Landed], work: Path) -> None:
    for name, source in recipe.data.sources.items():
        landed[name] = landed.get(name) or land(name, source, recipe.folder, work)
        say(f"read {name}: {landed[name].rows:,} rows")
    try:
        pieces = assemble(recipe, landed)
    except TooManyRejectedError as error:
        place = folder.with_name(f"{folder.name}-rejected.parquet")
        _write(_rejected_table(error.rejects), place)
        raise UserError(f"{error} All of them: {place}") from None
    with building(folder) as beside:
        for name in SPLITS:
            _write(pieces.parted.tables[name], beside / f"{name}.parquet")
        _write(_rejected_table(pieces.rejects), beside / "rejected.parquet")
        write_json(beside / "fuse.json", {"fingerprint": folder.name, **pieces.report})


def _write(table: pa.Table, path: Path) -> None:
    pq.write_table(table, path, compression="zstd")


def _rejected_table(rejects: list[Reject]) -> pa.Table:
    return pa.Table.from_pylist([asdict(one) for one in rejects], schema=REJECTED)


# --- from landed sources to splits ----------------------------------------------------------------------------------


def assemble(recipe: Recipe, landed: dict[str, Landed]) -> Pieces:
    """Joins, cleans and splits landed sources, and says what was done.

    Raises:
        TooManyRejectedError: more rows are rejected than the recipe allows.
        UserError: the statement, or a column that the recipe names, is at fault.
    """
    limit = recipe.data.max_rejected
    rejects = [one for source in landed.values() for one in source.rejects]
    for source in landed.values():
        _stop_at_limit(source.name, source.rejected_rows, source.rows + source.rejected_rows, limit, source.rejects)
    held_out = _held_out(recipe.data.split)
    fusion = Fusion(recipe.data.fuse, landed, set(held_out.values()))
    fused = {"main": fusion.rows()} | {part: fusion.rows(source) for part, source in held_out.items()}
    cleaned: dict[str, Cleaned] = {}
    for part, rows in fused.items():
        _check_columns(recipe, rows, held_out.get(part))
        cleaned[part] = clean(rows, recipe.data.clean, recipe.model)
        rejects += cleaned[part].rejects
        _stop_at_limit(held_out.get(part, "fuse"), cleaned[part].rejected_rows, len(rows), limit, cleaned[part].rejects)
    main = cleaned["main"].rows.table
    others = {part: same_types(cleaned[part].rows.table, main) for part in held_out}
    if not main.num_rows:
        raise UserError(_nothing_left(len(fused["main"]), cleaned["main"]))
    parted = split(main, others, recipe.data.split, input_columns(recipe.model))
    sizes = {part: len(rows) for part, rows in fused.items()}
    report = _report(recipe, landed, fusion, fused, cleaned, parted, rejects)
    _check_sums(report)
    return Pieces(parted, cleaned, sizes, rejects, report)


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


def _held_out(options: SplitOptions) -> dict[str, str]:
    """Split to source, for those that are a source of their own."""
    parts = {"validation": options.validation, "test": options.test}
    return {part: value.source for part, value in parts.items() if isinstance(value, HeldOut)}


def _check_columns(recipe: Recipe, rows: Rows, held_out: str | None) -> None:
    """Every column that the recipe names must be in the fused table."""
    there = rows.table.column_names
    of = f"'{held_out}'" if held_out else "the fused table"
    problems = [
        f"{key}: there is no column '{column}' in {of}; it has {', '.join(there)}"
        for key, column in _named_columns(recipe, held_out is not None)
        if column not in there
    ]
    if problems:
        raise UserError("\n".join(problems))


def _named_columns(recipe: Recipe, held_out: bool) -> list[tuple[str, str]]:
    named = [(f"model.inputs.{role}", column) for role, columns in recipe.model.inputs.items() for column in columns]
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


def _nothing_left(fused: int, cleaned: Cleaned) -> str:
    if not fused:
        return (
            "data.fuse: the statement gives no rows; look at its WHERE and at the keys of its joins (`headrace check`)"
        )
    steps = ", ".join(f"{step['step']} {step['removed']}" for step in cleaned.steps if step["removed"])
    return f"data.clean: none of {fused} fused rows is left; removed by {steps}"


# --- the report ------------------------------------------------------------------------------------------------------


def _report(
    recipe: Recipe,
    landed: dict[str, Landed],
    fusion: Fusion,
    fused: dict[str, Rows],
    cleaned: dict[str, Cleaned],
    parted: Parted,
    rejects: list[Reject],
) -> dict[str, Any]:
    tables = parted.tables
    whole = pa.concat_tables([tables[name] for name in SPLITS], promote_options="permissive")
    return {
        "format": FORMAT,
        "rows": whole.num_rows,
        "splits": {name: tables[name].num_rows for name in SPLITS},
        "sources": {name: _source(source) for name, source in landed.items()},
        "main": _main(fusion, fused["main"]),
        "joins": fusion.joins(),
        "fused": {_part_name(recipe, part): _fused(fused[part], cleaned[part]) for part in fused},
        "split": parted.report,
        "rejected": {"rows": _rejected_rows(landed, cleaned), "entries": len(rejects)},
        "target": recipe.model.target,
        "inputs": recipe.model.inputs,
        "labels": {name: describe.labels(tables[name], recipe.model.target) for name in SPLITS},
        "columns": describe.columns(whole),
    }


def _part_name(recipe: Recipe, part: str) -> str:
    return _held_out(recipe.data.split).get(part, part)


def _source(source: Landed) -> dict[str, Any]:
    report: dict[str, Any] = {
        "kind": source.kind,
        "files": source.files,
        "read": source.rows + source.rejected_rows,
        "rejected": source.rejected_rows,
        "rows": source.rows,
        "columns": {field.name: str(field.type) for field in source.schema},
    }
    return report | ({"warnings": source.warnings} if source.warnings else {})


def _main(fusion: Fusion, rows: Rows) -> dict[str, Any] | None:
    """How many rows of the main source stand in the fused table, and how often; None where rows are not its rows."""
    if fusion.main is None or fusion.main not in rows.origins:
        return None
    numbers = rows.origins[fusion.main]
    used = len(set(numbers[numbers > 0].tolist()))
    total = fusion.sources[fusion.main].rows
    return {"source": fusion.main, "rows": total, "used": used, "unused": total - used, "fused_rows": len(rows)}


def _fused(rows: Rows, cleaned: Cleaned) -> dict[str, Any]:
    return {"rows": len(rows), "cleaning": cleaned.steps, "kept": len(cleaned.rows)}


def _rejected_rows(landed: dict[str, Landed], cleaned: dict[str, Cleaned]) -> int:
    return sum(one.rejected_rows for one in landed.values()) + sum(one.rejected_rows for one in cleaned.values())


def _check_sums(report: dict[str, Any]) -> None:
    """The numbers of a report add up; where they do not, a step has lost or made up rows."""
    for name, source in report["sources"].items():
        assert source["read"] == source["rejected"] + source["rows"], f"rows of {name} do not add up"
    for name, part in report["fused"].items():
        removed = sum(step["removed"] for step in part["cleaning"])
        assert part["rows"] == removed + part["kept"], f"rows cleaned of {name} do not add up"
    for join in report["joins"]:
        for side in (join["left"], join["right"]):
            if "rows" in side:
                assert side["rows"] == side["matched"] + side["unmatched"] + side["without_key"], join["on"]
                assert side["keys"] == side["matched_keys"] + side["unmatched_keys"], join["on"]
    kept = sum(part["kept"] for part in report["fused"].values())
    copies = sum(report["split"]["near_copies"]["removed"].values())
    assert kept == copies + report["rows"] == copies + sum(report["splits"].values()), "rows split do not add up"
