"""How good a finished model is: what was measured when it was trained, and what it does on other rows."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch

from cluster.errors import UserError
from cluster.progress import progress
from cluster.storage import home
from training.batches import by_length
from training.bundle import Bundle
from training.tasks.task import Example, Outputs, Row, Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BATCH = 32

SOME = 10
"""Labels that a message names."""


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
        rows = bundle.task().questions({"data": table})["data"].to_pylist()
        measured = measure(bundle, rows)
        result["metrics"] = {f"data/{name}": value for name, value in measured.items()} | result["metrics"]
        result["data"] = {"rows": len(rows)}
    return result


def measure(bundle: Bundle, rows: list[Row]) -> dict[str, float]:
    """The task's metrics on labelled rows."""
    if not rows:
        raise UserError("there are no rows to measure the model on")
    task = bundle.task()
    column = bundle.info["recipe"].get("model", {}).get("target")
    targets = [_target(task, column, number, row) if task.has_targets else None for number, row in enumerate(rows, 1)]
    examples = task.encode(task.rows(task.as_asked(rows)))
    if task.has_targets:
        examples = [{**example, "target": target} for example, target in zip(examples, targets, strict=True)]
    model = bundle.model(task).to("cuda" if torch.cuda.is_available() else "cpu")
    return task.metrics(outputs_of(task, model, examples), targets)


def _target(task: Task, column: Any, number: int, row: Row) -> Any:
    try:
        return task.encode_target(row)
    except KeyError as error:
        columns = [column] if isinstance(column, str) else column or ()
        if error.args[0] not in columns or error.args[0] in row:
            known = f"; it knows {', '.join(task.labels[:SOME])}{' …' if len(task.labels) > SOME else ''}"
            raise UserError(
                f"row {number}: {error} is no label that the model knows{known * bool(task.labels)}"
            ) from None
        raise UserError(f"the file has no column {error}, by which the model's answers are judged") from None
    except UserError as error:
        raise UserError(f"row {number}: {error}") from None


def outputs_of(task: Task, model: "PreTrainedModel", examples: Sequence[Example]) -> Outputs:
    """What a model says of each example, as it would be computed for an answer."""
    batches = by_length(np.array([task.length(example) for example in examples], dtype=np.int64), BATCH)
    outputs: list[Any] = [None] * len(examples)
    with torch.inference_mode(), progress("evaluating", total=len(examples), unit="rows") as bar:
        for batch in batches:
            own = [examples[index] for index in batch]
            tensors = {name: tensor.to(model.device) for name, tensor in task.collate(own).items()}
            for index, one in zip(batch, task.keep(task.infer(model, tensors), own), strict=True):
                outputs[index] = one
            bar.advance(len(batch))
    return outputs
