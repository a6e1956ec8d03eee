"""How good a finished model is: what was measured when it was trained, and what it does on other rows."""

from typing import Any

import numpy as np
import pyarrow as pa
import torch

from cluster.errors import UserError
from cluster.progress import progress
from cluster.storage import home
from training.batches import by_length
from training.bundle import Bundle
from training.tasks.task import Outputs, Row, Task

BATCH = 32


def evaluate(bundle: Bundle, table: pa.Table | None) -> dict[str, Any]:
    """A model's metrics and those of its baselines from training; with ``table``, also its metrics there.

    Args:
        table: rows with the model's input columns and its target, or None.

    Returns:
        ``model``, ``bundle``, ``report`` (where it is kept), ``metrics`` (those on ``table`` as ``data/…``),
        ``baselines``, and ``data``: the ``rows`` measured, else what the model was trained on.

    Raises:
        UserError: a column is missing, or a target is none that the model knows.
    """
    report = home() / "runs" / f"{bundle.name}-{bundle.folder.name}" / "report.html"
    result: dict[str, Any] = {
        "model": bundle.name,
        "bundle": str(bundle.folder),
        "report": str(report) if report.exists() else None,
        "metrics": bundle.info["metrics"],
        "baselines": bundle.info["baselines"],
        "data": bundle.info["data"],
    }
    if table is not None:
        measured = measure(bundle, table.to_pylist())
        result["metrics"] = {f"data/{name}": value for name, value in measured.items()} | result["metrics"]
        result["data"] = {"rows": table.num_rows}
    return result


def measure(bundle: Bundle, rows: list[Row]) -> dict[str, float]:
    """The task's metrics on labelled rows."""
    if not rows:
        raise UserError("there are no rows to measure the model on")
    task = bundle.task()
    targets = [_target(task, number, row) for number, row in enumerate(rows, 1)]
    return task.metrics(_outputs(bundle, task, task.rows(rows)), targets)


def _target(task: Task, number: int, row: Row) -> Any:
    try:
        return task.encode_target(row)
    except KeyError as error:
        raise UserError(
            f"row {number}: {error} is neither a column there nor a target that the model knows; "
            "the file needs the columns that the model was trained on"
        ) from None


def _outputs(bundle: Bundle, task: Task, rows: list[Row]) -> Outputs:
    examples = task.encode(rows)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = task.open(bundle.folder).to(device)
    batches = by_length(np.array([task.length(example) for example in examples]), BATCH)
    outputs: list[Any] = [None] * len(rows)
    with torch.inference_mode(), progress("evaluating", total=len(rows), unit="rows") as bar:
        for batch in batches:
            tensors = task.collate([examples[index] for index in batch])
            answers = task.infer(model, {name: tensor.to(device) for name, tensor in tensors.items()})
            for index, one in zip(batch, task.keep(answers, [examples[index] for index in batch]), strict=True):
                outputs[index] = one
            bar.advance(len(batch))
    return outputs
