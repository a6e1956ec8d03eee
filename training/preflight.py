"""What can be known of a recipe before anything runs: whether the task takes it, and what would run where."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from cluster.complaints import complaints, unknown_key
from cluster.errors import FewRowsError, UserError
from cluster.session import Resources, cluster_address, on_cluster, usable_cores
from cluster.settings import Document
from training.models.base import resolve_base
from training.recipe import Elastic, NewBase, Recipe, Train
from training.tasks.task import Task, parts_misfit, task_class
from training.workers import workers_and_threads

if TYPE_CHECKING:
    from training.data.fuse import Sample
    from training.memory import Memory

METRICS = (("train", "early_stopping", "metric"), ("tune", "metric"))
"""Where a recipe names a metric of its task."""


def task_problems(document: Document) -> list[str]:
    """What the recipe's task finds wrong: a finished line, with file, line and cure, for each problem.

    Reads the recipe as written, so that these problems are told together with those of its form.
    """
    model = document.values.get("model")
    if not isinstance(model, dict) or not isinstance(model.get("task"), str):
        return []
    try:
        task = task_class(model["task"])
    except UserError as error:
        return [document.problem(("model", "task"), str(error))]
    problems = []
    if isinstance(inputs := model.get("inputs"), dict):
        roles = task.roles | task.optional_roles
        for role in inputs.keys() - roles.keys():
            problems.append(document.problem(("model", "inputs", role), unknown_key(role, list(roles))))
        for role, columns in inputs.items():
            if (target := model.get("target")) and target in (columns if isinstance(columns, list) else [columns]):
                message = f"'{target}' is the target; a model that reads it learns nothing else"
                problems.append(document.problem(("model", "inputs", role), message))
        for role in task.roles.keys() - inputs.keys():
            message = f"{task.name} needs '{role}': {task.roles[role]}"
            problems.append(document.problem(("model", "inputs"), message))
    if _look_up(document.values, ("data", "corpus")) is not None and not task.corpus_read:
        problems.append(document.problem(("data", "corpus"), f"{task.name} searches nothing and reads no corpus"))
    if model.get("adapt") == "head" and not task.new_head:
        message = f"{task.name} puts no new weights on its base; use full, {{lora: …}} or {{freeze: …}}"
        problems.append(document.problem(("model", "adapt"), message))
    problems += _missing(document, task, model) + _wrong_options(document, task, model.get("options"))
    problems += _misfits(document, task)
    for keys in METRICS:
        metric = _look_up(document.values, keys)
        options = model.get("options")
        known = task.metrics_with(options if isinstance(options, dict) else {})
        if isinstance(metric, str) and metric not in known:
            named = ", ".join(known)
            problems.append(document.problem(keys, f"{task.name} has no metric '{metric}'; it has {named}"))
    return problems


def _missing(document: Document, task: type[Task], model: Mapping[str, Any]) -> list[str]:
    """Fields that some tasks need and others do not."""
    needed = {
        "target": (task.target_needed, "the column that holds what is to be learned"),
        "base": (task.base_needed, "the pre-trained weights to start from"),
    }
    return [
        document.problem(("model", field), f"missing; {task.name} needs {what}")
        for field, (is_needed, what) in needed.items()
        if is_needed and model.get(field) is None
    ]


def _misfits(document: Document, task: type[Task]) -> list[str]:
    """Ways of training that do not go with the task, or with each other."""
    keys = ("train", "tokens_per_device")
    tokens = _look_up(document.values, keys)
    misfit = parts_misfit(task, tokens)
    if tokens == "auto" and _look_up(document.values, ("train", "strategy")) == "fsdp":
        misfit = "auto cannot try out a model that is parted (fsdp); give a number"
    return [document.problem(keys, misfit)] if misfit else []


def _wrong_options(document: Document, task: type[Task], options: Any) -> list[str]:
    """What the task does not understand of ``model.options``."""
    if not isinstance(options, dict):
        return []
    try:
        task.options_known.model_validate(options)
    except ValidationError as error:
        return complaints(
            task.options_known, error, lambda keys, message: document.problem(("model", "options", *keys), message)
        )
    return []


def plan(recipe: Recipe) -> dict[str, Any]:
    """What would run where: place, workers and their cores. A cluster's workers are chosen there, for it may grow
    until then.

    Raises:
        UserError: the base is not there or is damaged, or the recipe asks for more workers than this machine has.
    """
    base = recipe.model.base
    if isinstance(base, NewBase):
        named, weights = f"a new {base.new['type']}", _weights_of_new(base)
    else:
        folder = resolve_base(base, recipe.folder)
        named, weights = str(folder), sum(count_weights(path) for path in folder.glob("*.safetensors"))
    return {
        **(_on_cluster(recipe) if on_cluster() else _on_this_machine(recipe)),
        "base": named,
        "weights": weights,
        "epochs": recipe.train.epochs,
        "batch_size": recipe.train.batch_size,
    }


@dataclass(frozen=True)
class Rehearsal:
    """What training would do before its first step.

    Attributes:
        task: as it learned from a sample; its class where the sample has too few rows for that.
        validation_rows: those that there are to choose the model by.
        needs: how much memory each worker will take at most, in MiB, or why that cannot be told.
    """

    task: Task | type[Task]
    validation_rows: int
    needs: dict[str, Any]


def rehearse(recipe: Recipe, sample: "Sample", workers: Any) -> Rehearsal:
    """Goes through what training does before its first step, with the rows of a sample and without weights.

    Args:
        workers: their number, or what is said of it where it is not known yet; one alone holds the most rows.

    Raises:
        UserError: what training would end with. What a sample lacks may stand in the rows that it left out.
    """
    from training.memory import UntoldError, foretold, learned_from  # torch, and a task's own libraries

    whole = not sample.report["sampled"]
    task: Task | type[Task] = task_class(recipe.model.task)
    rows = sample.tables["validation"].num_rows
    try:
        with learned_from(recipe, sample.tables) as learned:
            task, rows = learned.task, learned.questions["validation"].num_rows if whole else rows
            check_early_stopping(task, recipe.train, rows)
            needs = _in_mib(foretold(recipe, learned, workers if isinstance(workers, int) else 1))
    except UntoldError as error:
        needs = _untold(error)
    except FewRowsError as error:
        if whole:
            raise
        check_early_stopping(task, recipe.train, rows)
        needs = _untold(error)
    return Rehearsal(task, rows, needs)


def _untold(reason: Exception) -> dict[str, Any]:
    return {"memory of a worker": f"not to be told beforehand: {reason}"}


def _in_mib(memory: "Memory") -> dict[str, Any]:
    from training.memory import MIB

    parts = {"program": memory.process, "weights": memory.weights, "optimizer": memory.optimizer, "step": memory.step}
    told = {name: round(size / MIB) for name, size in parts.items()}
    return {"memory of a worker (MiB)": {"at its fullest": round(memory.peak / MIB), **told}}


def count_weights(file: Path) -> int:
    """The weights in a safetensors file, as its header tells; buffers of whole numbers are not among them.

    Raises:
        UserError: it is no safetensors file, or is cut short.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy") as tensors:
            parts = [tensors.get_slice(name) for name in tensors.keys()]  # noqa: SIM118  it is no mapping
            return sum(math.prod(part.get_shape()) for part in parts if "F" in part.get_dtype())
    except SafetensorError as error:
        raise UserError(f"model.base: {file} cannot be read ({error}); fetch it again") from None


def _weights_of_new(base: NewBase) -> int:
    """The weights that a new base will have; none is made. A tokenizer may learn fewer tokens than it is allowed."""
    import torch
    from transformers import AutoModel

    from training.models.new_base import new_config

    with torch.device("meta"):
        model = AutoModel.from_config(new_config(base, **({"vocab_size": base.vocabulary} if base.tokenizer else {})))
    return sum(weight.numel() for weight in model.parameters())


def _on_cluster(recipe: Recipe) -> dict[str, Any]:
    match recipe.train.workers:
        case "auto":
            workers: Any = "chosen there: one per GPU, else one per core"
        case Elastic(min=least, max=most):
            workers = f"{least} to {most}, as many as there are"
        case fixed:
            workers = fixed
    return {"runs on": f"the cluster at {cluster_address()}", "workers": workers}


def _on_this_machine(recipe: Recipe) -> dict[str, Any]:
    import torch

    here = Resources(cpus=usable_cores(), gpus=torch.cuda.device_count(), nodes=1)
    workers, threads = workers_and_threads(recipe.train, here)
    return {
        "runs on": "this machine",
        "cores": here.cpus,
        "gpus": here.gpus,
        "workers": workers,
        "cores of a worker": threads,
    }


def check_early_stopping(task: Task | type[Task], options: Train, validation_rows: int) -> None:
    """Raises a UserError where early stopping could not work."""
    stopping = options.early_stopping
    if stopping is None:
        return
    if stopping.metric and stopping.metric not in task.metrics_known:
        known = ", ".join(task.metrics_known)
        raise UserError(f"train.early_stopping.metric: {task.name} has no '{stopping.metric}'; it has {known}")
    if not validation_rows:
        raise UserError("train.early_stopping: there are no validation rows to watch; set data.split.validation")


def _look_up(values: Mapping[str, Any], keys: tuple[str, ...]) -> Any:
    inner: Any = values
    for key in keys:
        if not isinstance(inner, dict):
            return None
        inner = inner.get(key)
    return inner
