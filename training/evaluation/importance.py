"""How much a finished model goes by each column: by how much it worsens when the column's values are shuffled.

Permutation importance: Breiman, "Random Forests" (2001); Fisher, Rudin and Dominici, "All Models are Wrong, but Many
are Useful" (2019).
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from training.batches import by_length
from training.tasks.task import Row, Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SEED = 7
MOST_ROWS = 600
"""Enough to tell what matters, few enough for a model with a text encoder."""

TIMES = 3
"""Shuffles of each column, whose mean is taken."""

BATCH = 64


def sample(rows: Sequence[Row]) -> list[Row]:
    """At most ``MOST_ROWS`` of the rows, in their order."""
    draw = np.random.default_rng(SEED)
    return [rows[place] for place in np.sort(draw.permutation(len(rows))[:MOST_ROWS])]


def shuffled(task: Task, model: "PreTrainedModel", chosen: Sequence[Row], columns: Sequence[str]) -> dict[str, float]:
    """By how much the task's headline worsens on rows when a column is shuffled; nothing where there are too few."""
    if len(chosen) < 2:
        return {}
    draw = np.random.default_rng(SEED)
    targets = [task.encode_target(row) for row in chosen]
    sign = 1 if task.metrics_known[task.headline] == "max" else -1
    whole = _headline(task, model, chosen, targets)
    found = {}
    for column in columns:
        values = [
            _headline(task, model, _with(chosen, column, draw.permutation(len(chosen))), targets) for _ in range(TIMES)
        ]
        found[column] = sign * (whole - float(np.mean(values)))
    return found


def _with(rows: Sequence[Row], column: str, order: Sequence[int] | Any) -> list[Mapping[str, Any]]:
    return [{**row, column: rows[other][column]} for row, other in zip(rows, order, strict=True)]


@torch.inference_mode()
def _headline(task: Task, model: "PreTrainedModel", rows: Sequence[Row], targets: Sequence[Any]) -> float:
    examples = task.encode(rows)
    outputs: list[Any] = [None] * len(rows)
    for batch in by_length(np.array([task.length(example) for example in examples]), BATCH):
        asked = [examples[place] for place in batch]
        said = task.keep(task.infer(model, task.collate(asked)), asked)
        for place, one in zip(batch.tolist(), said, strict=True):
            outputs[place] = one
    return task.metrics(outputs, targets)[task.headline]
