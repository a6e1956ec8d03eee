"""Rows become examples once: encoded by the driver, memory-mapped by every worker and every trial."""

import contextlib
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset

from cluster.errors import UserError
from cluster.progress import Progress, progress, say
from cluster.storage import building, fingerprint, home, only_one, read_json, write_json
from training.inputs import media
from training.mapped import parts
from training.models.base import base_digest
from training.models.new_base import find_base
from training.recipe import Recipe
from training.tasks.task import Example, Row, Task, task_class

if TYPE_CHECKING:
    from training.data.fuse import Fused  # a worker opens what is encoded and needs nothing of the data stage

FORMAT = 5
"""Raised whenever the same rows would be encoded differently: earlier results are then made again."""

SPLITS = ("train", "validation", "test")
CHUNK = 2_000
"""Rows encoded at once: enough to keep a tokenizer's threads busy, few enough to stay small in memory."""

FILES_CHUNK = 128
"""The same where rows name files, whose pictures or sounds are much larger than texts."""

REJECTED = "rejected.parquet"
SHOWN = 3


class EncodedSplit:
    """The examples of one split, read from a memory-mapped file as they are asked for.

    Attributes:
        lengths: tokens of each example, shape ``[rows]``.
        targets: the target of each example, in row order.
    """

    def __init__(self, file: Path) -> None:
        self._dataset = Dataset.from_file(str(file))
        self.lengths: npt.NDArray[np.int64] = np.asarray(self._dataset.data.column("length"), dtype=np.int64)
        self._examples = self._dataset.remove_columns("length")

    def __len__(self) -> int:
        return len(self._dataset)

    @functools.cached_property
    def targets(self) -> list[Any]:
        return list(self._dataset["target"]) if "target" in self._dataset.column_names else [None] * len(self)

    def examples(self, indices: Sequence[int] | npt.NDArray[np.int64]) -> list[Example]:
        """The examples at ``indices``, in that order, with their ``target`` where the task has one."""
        columns = self._examples[[int(index) for index in indices]]
        names = list(columns)
        return [dict(zip(names, values, strict=True)) for values in zip(*columns.values(), strict=True)]


@dataclass(frozen=True)
class Encoded:
    """A task that has seen the data, and its examples.

    Attributes:
        folder: where the files lie.
        fingerprint: of the fused data and everything that encoding depends on.
        task: with its labels and tokenizer.
        base: the folder of the pre-trained weights on this machine.
    """

    folder: Path
    fingerprint: str
    task: Task
    base: Path

    @functools.cache  # noqa: B019  an Encoded lives as long as its run
    def split(self, name: str) -> EncodedSplit:
        """``train``, ``validation`` or ``test``; the last two may be empty."""
        return EncodedSplit(self.folder / f"{name}.arrow")

    def held_out(self, most: int) -> list[Example]:
        """At most so many rows of the test split, or of the validation split where there is no test, from all over it.

        They come without their target: who looks at them compares answers.
        """
        rows = self.split("test" if len(self.split("test")) else "validation")
        places = np.unique(np.linspace(0, max(0, len(rows) - 1), min(len(rows), most)).astype(np.int64))
        return [{name: value for name, value in one.items() if name != "target"} for one in rows.examples(places)]

    def kept(self, tables: Mapping[str, pa.Table]) -> dict[str, pa.Table]:
        """The rows of each split that there are examples of: without those whose files could not be read."""
        if not (self.folder / REJECTED).exists():
            return dict(tables)
        lost = pq.read_table(self.folder / REJECTED, columns=["source", "row"]).to_pylist()
        masks = {name: np.ones(table.num_rows, dtype=bool) for name, table in tables.items()}
        for one in lost:
            masks[one["source"]][one["row"] - 1] = False
        return {name: table.filter(pa.array(masks[name])) for name, table in tables.items()}


def encode(recipe: Recipe, fused: "Fused") -> Encoded:
    """Encodes every split of ``fused`` for the recipe's task, or finds it done.

    Raises:
        UserError: the base cannot be had, or the target cannot be learned.
    """
    base = find_base(recipe, fused)
    parts = recipe.model.model_dump(include={"task", "inputs", "target", "options", "max_length"})
    parts["unicode"] = recipe.data.clean.unicode
    if columns := file_columns(recipe):
        parts["files"] = media.digest(located_rows(recipe, fused.tables()), columns)
    key = fingerprint(FORMAT, fused.fingerprint, base_digest(base), parts)
    folder = home() / "encoded" / key
    with only_one(folder, wait=True):
        if not folder.exists():
            with building(folder) as unfinished:
                _encode_into(unfinished, recipe, fused, base)
    return open_encoded(folder, base)


def open_encoded(folder: Path, base: Path) -> Encoded:
    """The encoded data of ``folder``, which does not know where on this machine its base lies."""
    kept = read_json(folder / "task.json")
    return Encoded(folder, folder.name, task_class(kept["task"]).load(kept["settings"], folder), base)


def file_columns(recipe: Recipe) -> list[str]:
    """The columns that may name files."""
    task, inputs = task_class(recipe.model.task), recipe.model.inputs
    return [column for role in inputs if role in task.file_roles for column in inputs[role]]


def located_rows(recipe: Recipe, tables: Mapping[str, pa.Table]) -> dict[str, pa.Table]:
    """The fused rows of each split; files that they name, by their full paths."""
    folder = recipe.folder / Path(recipe.model.options.get("folder", ".")).expanduser()
    return {name: media.located(table, file_columns(recipe), folder) for name, table in tables.items()}


def _encode_into(folder: Path, recipe: Recipe, fused: "Fused", base: Path) -> None:
    tables = located_rows(recipe, fused.tables())
    if not tables["train"].num_rows:
        raise UserError("data: no row is left to train on; see the fuse report for where they went")
    task = task_class(recipe.model.task).learn(recipe.model, base, tables, unicode=recipe.data.clean.unicode)
    tables = dict(task.questions(tables))
    if not tables["train"].num_rows:
        raise UserError(f"data: the training rows are too few for {task.name} to learn from")
    schema: pa.Schema | None = None
    lost: list[dict[str, Any]] = []
    rows = sum(table.num_rows for table in tables.values())
    with progress("encoding", total=rows, unit="rows") as bar:
        for name, table in tables.items():  # train comes first, so that an empty split has its columns too
            schema, reasons = _write_split(folder / f"{name}.arrow", task, table, schema, bar)
            lost += [{"source": name, "row": index + 1, "reason": reason} for index, reason in reasons.items()]
    if lost:
        _put_aside(folder, lost, rows, recipe.data.max_rejected)
    write_json(folder / "task.json", {"task": task.name, "settings": task.save(folder)})


def labelled(task: Task, rows: Sequence[Row]) -> list[Example]:
    """Rows as examples with their ``target``, where the task has one, and their ``length``."""
    examples = task.encode(rows)
    if task.has_targets:
        examples = [{**example, "target": task.encode_target(row)} for example, row in zip(examples, rows, strict=True)]
    return [{**example, "length": task.length(example)} for example in examples]


def readable(task: Task, rows: Sequence[Row]) -> tuple[list[Example], dict[int, str]]:
    """:func:`labelled`, and why which rows are not among them: their files cannot be read."""
    try:
        return labelled(task, rows), {}
    except media.UnreadableError as error:
        if len(rows) == 1:
            return [], {0: str(error)}
    examples: list[Example] = []
    reasons: dict[int, str] = {}
    for index, row in enumerate(rows):
        found, reason = readable(task, [row])
        examples += found
        reasons |= dict.fromkeys([index] if reason else [], reason.get(0, ""))
    return examples, reasons


def _put_aside(folder: Path, lost: list[dict[str, Any]], rows: int, limit: float) -> None:
    """Keeps the rows whose files could not be read, with their reasons, where there are not too many."""
    told = "; ".join(f"{one['source']} row {one['row']}: {one['reason']}" for one in lost[:SHOWN])
    if len(lost) > limit * rows:
        raise UserError(
            f"model.inputs: {len(lost):,} of {rows:,} rows have files that cannot be used, more than "
            f"data.max_rejected: {limit:g} allows. {told}. Names are relative to the recipe's folder, or to "
            "model.options.folder"
        )
    pq.write_table(pa.Table.from_pylist(lost), folder / REJECTED)
    say(f"{len(lost):,} of {rows:,} rows have files that cannot be used and were left out. {told}")


def _write_split(
    file: Path, task: Task, table: pa.Table, schema: pa.Schema | None, bar: Progress
) -> tuple[pa.Schema | None, dict[int, str]]:
    """Writes the examples of a split; returns their columns, and why which rows have none."""
    lost: dict[int, str] = {}
    done = 0
    with contextlib.ExitStack() as stack:
        writer = stack.enter_context(pa.ipc.new_stream(str(file), schema)) if schema else None
        rows_each = FILES_CHUNK if task.file_roles else CHUNK
        for batch in (batch for part in parts(table) for batch in part.to_batches(max_chunksize=rows_each)):
            rows = batch.to_pylist()
            examples, reasons = readable(task, rows)
            lost |= {done + index: reason for index, reason in reasons.items()}
            done += len(rows)
            bar.advance(len(rows))
            if not examples and rows:
                continue
            encoded = pa.Table.from_pylist(examples, schema=schema)
            if writer is None:
                schema = encoded.schema
                writer = stack.enter_context(pa.ipc.new_stream(str(file), schema))
            writer.write_table(encoded)
    return schema, lost
