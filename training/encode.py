"""Rows become examples once: encoded by the driver, memory-mapped by every worker and every trial."""

import contextlib
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from datasets import Dataset

from cluster.errors import UserError
from cluster.progress import Progress, progress
from cluster.storage import building, fingerprint, home, only_one, read_json, write_json
from training.base import base_digest
from training.new_base import find_base
from training.recipe import Recipe
from training.tasks.task import Example, Row, Task, task_class

if TYPE_CHECKING:
    from training.data.fuse import Fused  # a worker opens what is encoded and needs nothing of the data stage

FORMAT = 2
"""Raised whenever the same rows would be encoded differently: earlier results are then made again."""

SPLITS = ("train", "validation", "test")
CHUNK = 2_000
"""Rows encoded at once: enough to keep a tokenizer's threads busy, few enough to stay small in memory."""


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


def encode(recipe: Recipe, fused: "Fused") -> Encoded:
    """Encodes every split of ``fused`` for the recipe's task, or finds it done.

    Raises:
        UserError: the base cannot be had, or the target cannot be learned.
    """
    base = find_base(recipe, fused)
    parts = recipe.model.model_dump(include={"task", "inputs", "target", "options", "max_length"})
    parts["unicode"] = recipe.data.clean.unicode
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


def _encode_into(folder: Path, recipe: Recipe, fused: "Fused", base: Path) -> None:
    tables = {name: fused.split(name) for name in SPLITS}
    if not tables["train"].num_rows:
        raise UserError("data: no row is left to train on; see the fuse report for where they went")
    task = task_class(recipe.model.task).learn(recipe.model, base, tables, unicode=recipe.data.clean.unicode)
    schema: pa.Schema | None = None
    with progress("encoding", total=sum(table.num_rows for table in tables.values()), unit="rows") as bar:
        for name, table in tables.items():  # train comes first, so that an empty split has its columns too
            schema = _write_split(folder / f"{name}.arrow", task, table, schema, bar)
    write_json(folder / "task.json", {"task": task.name, "settings": task.save(folder)})


def labelled(task: Task, rows: Sequence[Row]) -> list[Example]:
    """Rows as examples with their ``target``, where the task has one, and their ``length``."""
    examples = task.encode(rows)
    targets = ({"target": task.encode_target(row)} if task.target_needed else {} for row in rows)
    return [
        {**example, "length": task.length(example), **target} for example, target in zip(examples, targets, strict=True)
    ]


def _write_split(file: Path, task: Task, table: pa.Table, schema: pa.Schema | None, bar: Progress) -> pa.Schema:
    with contextlib.ExitStack() as stack:
        writer = stack.enter_context(pa.ipc.new_stream(str(file), schema)) if schema else None
        for batch in table.to_batches(max_chunksize=CHUNK):
            rows = batch.to_pylist()
            encoded = pa.Table.from_pylist(labelled(task, rows), schema=schema)
            if writer is None:
                schema = encoded.schema
                writer = stack.enter_context(pa.ipc.new_stream(str(file), schema))
            writer.write_table(encoded)
            bar.advance(len(rows))
    assert schema is not None
    return schema
