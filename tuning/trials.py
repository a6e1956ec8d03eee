"""What a trial is for the worker that runs it: training by the same loop, told to Ray Tune after each epoch.

A trial that fits one worker is a plain function in a process that runs many of them: what takes long (starting it,
importing torch) is paid once for the sweep. A trial of several workers drives Ray Train from a function of its own.
"""

import contextlib
import math
import traceback
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from ray import tune

from cluster.errors import DiskError, HeadraceError, RunError
from cluster.session import Resources
from cluster.storage import building, plain_disk_errors
from training import checkpoint
from training.job import Job, checkpoints
from training.journal import Follower, Journal, Record, entries
from training.loop import Trainee, as_record, train
from training.recipe import Train
from training.worker import ready
from tuning.ledger import Epoch

VALIDATION = "validation/"


@dataclass(frozen=True)
class Assignment:
    """What a worker is given; plain values only, and none of the recipe's data section with its secrets.

    Attributes:
        trial: its number.
        job: what the training workers are given: encoded data, the trial's folder, what learns and how.
        metric: what the sweep looks at.
        seconds: that the trial worked before this driver began.
        share: cores, GPUs and nodes that are this trial's.
    """

    trial: int
    job: dict[str, Any]
    metric: str
    seconds: float
    share: dict[str, int]

    def as_config(self) -> dict[str, Any]:
        """For Ray Tune."""
        return asdict(self)


def run_here(config: dict[str, Any]) -> None:
    """A trial in this process; a failure that starting again would not change is told, not raised."""
    assignment = Assignment(**config)
    with _failures_told(assignment):
        for epoch in epochs(assignment):
            tune.report(epoch)


def run_on_ray_train(config: dict[str, Any]) -> None:
    """A trial of several workers; this process only starts them and follows what they write."""
    from training.fit import agreed, plain_failures, torch_trainer  # what a one-worker trial has no use for

    assignment = Assignment(**config)
    job = Job(**assignment.job)
    journal = Path(job.run) / "metrics.jsonl"
    began = perf_counter() - assignment.seconds

    def tell(records: list[Record]) -> None:
        for record in records:
            if _validated(record):
                tune.report(_epoch(record, assignment.metric, perf_counter() - began))

    with _failures_told(assignment):
        tell(entries(journal))
        options = Train(**job.options)
        with Follower(journal, tell), plain_failures(options):
            agreed(torch_trainer(job, options, Resources(**assignment.share)).fit())


def epochs(assignment: Assignment) -> Iterator[Epoch]:
    """Trains from where the trial stands, and yields what each epoch brought; those of an earlier process again."""
    began = perf_counter() - assignment.seconds
    job = Job(**assignment.job)
    torch.set_num_threads(job.threads)
    encoded, trainee = ready(job, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    for record in entries(Path(job.run) / "metrics.jsonl"):
        if record["step"] <= trainee.position.step and _validated(record):
            yield _epoch(record, assignment.metric, assignment.seconds)
    with Journal(Path(job.run) / "metrics.jsonl") as journal:
        for moment in train(trainee, encoded):
            record = as_record(moment)
            journal.write(record)
            if moment.checkpoint_due and not moment.last:
                _keep(trainee, Path(job.run), moment.step)
            if moment.validation:
                yield _epoch(record, assignment.metric, perf_counter() - began)


def _keep(trainee: Trainee, folder: Path, step: int) -> None:
    """The checkpoint that a killed sweep continues this trial from."""
    place = checkpoints(folder) / f"step-{step:08d}"
    with building(place) as unfinished:
        checkpoint.save(unfinished, trainee)
    checkpoint.prune(place.parent, 1)


def _validated(record: Record) -> bool:
    return any(name.startswith(VALIDATION) for name in record)


def _epoch(record: Record, metric: str, seconds: float) -> Epoch:
    """What an epoch brought.

    Raises:
        RunError: the metric is no number that trials could be compared by.
    """
    metrics = {name.removeprefix(VALIDATION): value for name, value in record.items() if name.startswith(VALIDATION)}
    if not math.isfinite(metrics[metric]):
        raise RunError(
            f"epoch {record['epoch'] + 1}: {metric} on validation is {metrics[metric]}, which compares with nothing; "
            "lower train.learning_rate, or name another tune.metric"
        )
    return {
        "epoch": record["epoch"] + 1,
        "value": metrics[metric],
        "metrics": metrics,
        "loss": record["loss"],
        "best": record["best"],
        "last": record["last"],
        "seconds": seconds,
    }


@contextlib.contextmanager
def _failures_told(assignment: Assignment) -> Iterator[None]:
    """Reports an exception as this trial's result: what the disk is at fault for as ``stopped``, all else as ``error``.

    Ray would begin a trial that raised again, as it does one whose worker was lost, and would end its process.
    """
    try:
        with plain_disk_errors(Path(assignment.job["run"])):
            yield
    except DiskError as error:
        tune.report({"stopped": str(error)})
    except Exception as error:  # noqa: BLE001  whatever it is, it is told, and the sweep goes on
        plain = isinstance(error, HeadraceError)
        first = (str(error).strip().splitlines() or [""])[0]
        line = first if plain else f"{type(error).__name__}: {first}".removesuffix(": ")
        tune.report({"error": line, "traceback": str(error) if plain else traceback.format_exc()})
