"""The data stage: from the sources that a recipe names to three splits, everything that was left out, and a report."""

import os
import platform
import shutil
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.errors import UserError
from cluster.machine import alive
from cluster.progress import heartbeat, say
from cluster.session import usable_cores
from cluster.storage import building, fingerprint, home, only_one, plain_disk_errors, read_json, write_json
from training import mapped
from training.data.assemble import TooManyRejectedError, assemble, held_out_sources
from training.data.joined import main_source
from training.data.landing import Landed, Reject
from training.data.recipe import Source
from training.data.report import FORMAT
from training.data.sources import identity, land
from training.data.split import SPLITS, compared_columns
from training.recipe import Recipe

REJECTED = pa.schema(
    {"source": pa.string(), "row": pa.int64(), "column": pa.string(), "value": pa.string(), "reason": pa.string()}
)

Result = TypeVar("Result")

LANDING = ".landing-"
CORPUS = "corpus"


@dataclass(frozen=True)
class Fused:
    """What the data stage made.

    Attributes:
        folder: holds ``train.arrow``, ``validation.arrow``, ``test.arrow``, where the recipe names one
            ``corpus.arrow``, ``rejected.parquet`` (columns source, row, column, value, reason: see
            :class:`training.data.landing.Reject`) and ``fuse.json``.
        fingerprint: of the rows of every source and of what the recipe does to them.
        report: the content of ``fuse.json``: see :func:`training.data.report.make_report`.
    """

    folder: Path
    fingerprint: str
    report: dict[str, Any]

    def split(self, name: str) -> pa.Table:
        """The rows of ``train``, ``validation`` or ``test``, mapped into memory; the latter two may have none."""
        assert name in SPLITS
        return mapped.kept(self.folder / f"{name}.arrow")

    def tables(self) -> dict[str, pa.Table]:
        """The splits by their names, training first, and the ``corpus`` where the recipe names one."""
        tables = {name: self.split(name) for name in SPLITS}
        corpus = self.folder / f"{CORPUS}.arrow"
        return tables | ({CORPUS: mapped.kept(corpus)} if corpus.exists() else {})


def fuse(recipe: Recipe) -> Fused:
    """Lands the sources, joins, cleans and splits them; the same recipe over the same rows is done only once.

    Raises:
        UserError: a source, the statement or the data is at fault, or more rows are rejected than the recipe allows.
        RunError: a database, the hub or the disk will not do, or another process is at work on the same.
    """
    with _workplace() as work:
        known = dict(_each(recipe, lambda name, source: identity(name, source, recipe.folder, work)))
        landed = {name: ready for name, (_, ready) in known.items() if ready is not None}
        mark = _fingerprint(recipe, {name: digest for name, (digest, _) in known.items()})
        folder = home() / "fused" / mark
        with only_one(folder, wait=True):
            if not folder.exists():
                _build(recipe, folder, landed, work)
    return Fused(folder, mark, read_json(folder / "fuse.json"))


def _fingerprint(recipe: Recipe, digests: dict[str, Any]) -> str:
    """Where files lie and how a database is reached does not matter; what they hold does."""
    data = recipe.data.model_dump(mode="json", exclude={"sources"})
    return fingerprint(FORMAT, digests, data, recipe.model.inputs, recipe.model.target, compared_columns(recipe.model))


@contextmanager
def _workplace() -> Iterator[Path]:
    """A folder for landed sources, where every node of a cluster can read it; it is gone afterwards."""
    place = home() / "fused"
    work = place / f"{LANDING}{platform.node()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    _sweep(place)
    try:
        with plain_disk_errors(work):
            work.mkdir(parents=True)
            yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _sweep(place: Path) -> None:
    """Removes what processes that were killed on this machine have left."""
    for folder in place.glob(f"{LANDING}*-*-*"):
        node, process, _ = folder.name.removeprefix(LANDING).rsplit("-", 2)  # a node's own name may hold dashes
        if node == platform.node() and process.isdigit() and not alive(int(process)):
            shutil.rmtree(folder, ignore_errors=True)


def _build(recipe: Recipe, folder: Path, landed: dict[str, Landed], work: Path) -> None:
    there: dict[str, Landed] = {}

    def landed_now(name: str, source: Source) -> Landed:
        return landed.get(name) or land(name, source, recipe.folder, work, texts=_texts(recipe))

    for name, one in _each(recipe, landed_now):
        say(f"{name}: {one.rows:,} rows")
        there[name] = one
    with heartbeat(f"fusing {sum(one.rows for one in there.values()):,} rows"):
        _join_and_write(recipe, folder, there)


def _texts(recipe: Recipe) -> list[str]:
    """The columns that the recipe calls text: a type that is found first would cost them ``1.10`` or ``007``."""
    return [column for column, kind in recipe.data.clean.types.items() if kind == "string"]


def _each(recipe: Recipe, work: Callable[[str, Source], Result]) -> Iterator[tuple[str, Result]]:
    """What ``work`` makes of each source, in the recipe's order; as many at once as there are cores.

    Threads will do: nearly all of it is Arrow's and the disk's, which let go of the interpreter.
    """
    with ThreadPoolExecutor(usable_cores()) as threads:
        started = {name: threads.submit(work, name, source) for name, source in recipe.data.sources.items()}
        try:
            for name, one in started.items():
                yield name, one.result()
        finally:
            threads.shutdown(wait=True, cancel_futures=True)


def _join_and_write(recipe: Recipe, folder: Path, landed: dict[str, Landed]) -> None:
    try:
        done = assemble(recipe, landed, max_rejected=recipe.data.max_rejected)
    except TooManyRejectedError as error:
        place = folder.with_name(f"{folder.name}-rejected.parquet")
        _write_rejected(error.rejects, place)
        raise UserError(f"{error} All of them: {place}") from None
    with building(folder) as beside:
        for name in SPLITS:
            mapped.keep(done.parted.tables[name], beside / f"{name}.arrow")
        if done.corpus is not None:
            mapped.keep(done.corpus, beside / f"{CORPUS}.arrow")
        _write_rejected(done.rejects, beside / "rejected.parquet")
        write_json(beside / "fuse.json", {"fingerprint": folder.name, **done.report})


def _write_rejected(rejects: list[Reject], path: Path) -> None:
    pq.write_table(pa.Table.from_pylist([asdict(one) for one in rejects], schema=REJECTED), path)


@dataclass(frozen=True)
class Sample:
    """What the first rows of a recipe's data come to.

    Attributes:
        tables: as :meth:`Fused.tables`.
        report: as of :class:`Fused`, with ``sampled``: the sources of which only the first rows were read.
    """

    tables: dict[str, pa.Table]
    report: dict[str, Any]


def inspect(recipe: Recipe, sample_rows: int) -> Sample:
    """The same over the first ``sample_rows`` of the main source and of held out ones; joined tables are read whole.

    Nothing is kept on disk. Rejected rows stop it only where all rows were read: of a few rows they tell little.

    Raises:
        UserError, RunError: as :func:`fuse`.
    """
    held_out = set(held_out_sources(recipe.data.split).values())
    joined = [name for name in recipe.data.sources if name not in held_out]
    sampled = {main_source(recipe.data.fuse, joined), *held_out}
    with _workplace() as work:
        landed = {
            name: land(
                name, source, recipe.folder, work, limit=sample_rows if name in sampled else None, texts=_texts(recipe)
            )
            for name, source in recipe.data.sources.items()
        }
        cut = [name for name in landed if name in sampled and landed[name].rows >= sample_rows]
        done = assemble(recipe, landed, max_rejected=1.0 if cut else recipe.data.max_rejected)
    corpus = {} if done.corpus is None else {CORPUS: done.corpus}
    return Sample(done.parted.tables | corpus, {"sampled": cut, **done.report})
