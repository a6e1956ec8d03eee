"""What every Ray worker runs: it trains its share, keeps checkpoints, and says what happened in a file.

Rank 0 writes. What it writes to lies in the run's folder, which every node sees:

    metrics.jsonl                one line for each step; the driver follows it
    ray/checkpoints/step-…/      the newest two; complete or absent, since each is built beside its place and renamed
    best.safetensors             the weights of the best epoch
    model/ outputs/              what the run leaves: the fine-tuned model, and its outputs on each held-out split
"""

import functools
import gc
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import ray.train
import torch
import torch.distributed as dist
from ray.train import Checkpoint, CheckpointUploadMode
from ray.train.torch import get_device
from safetensors.torch import load_file, save_file

from cluster.errors import DiskError, HeadraceError, RunError, UserError
from cluster.storage import appear, building, plain_disk_errors
from training import checkpoint, outputs
from training.budget import find_budget
from training.encode import Encoded
from training.job import Job, checkpoints
from training.journal import Journal
from training.loop import Moment, Trainee, as_record, make_trainee, predict, train
from training.memory import most_held
from training.models.adapt import merge, read_adapt
from training.models.adapter import WEIGHTS, put_together
from training.recipe import Train
from training.strategy import is_parted

Result = TypeVar("Result")

LOOK_EVERY = 10
"""Steps between two looks at whether a node is about to be taken away; each look has all workers meet."""


def ends_plainly(work: Callable[[dict[str, Any]], None]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Makes of a worker's work an answer to the driver, and holds nothing of it afterwards.

    The answer is ``{}``, or ``failure``, ``exit_code`` and whether the ``disk`` is at fault, where all workers ended
    for a reason that trying again would not change.
    """

    @functools.wraps(work)
    def answer(config: dict[str, Any]) -> dict[str, Any]:
        try:
            work(config)
        except HeadraceError as error:
            return {"failure": str(error), "exit_code": error.exit_code, "disk": isinstance(error, DiskError)}
        finally:
            gc.collect()  # DDP refers to itself; one that outlives the process group waits for ever when it is found
        return {}

    return answer


@ends_plainly
def run(config: dict[str, Any]) -> None:
    """Trains from the newest checkpoint, or from the base, to the end of the run."""
    job = Job(**config)
    folder = Path(job.run)
    torch.set_num_threads(job.threads)
    encoded, trainee = ready(job, get_device())
    with Journal(folder / "metrics.jsonl") as journal:
        for moment in train(trainee, encoded):
            if trainee.rank == 0:
                journal.write(as_record(moment) | {"workers": trainee.world, "memory": most_held(trainee.device)})
            if moment.best and trainee.options.early_stopping:
                keep_best(trainee, folder)
            if moment.checkpoint_due or node_is_leaving(moment.step):
                keep(trainee, folder, moment)
    leave(trainee, encoded, folder, apart=job.adapter)


def ready(job: Job, device: torch.device) -> tuple[Encoded, Trainee]:
    """A job's data, and a trainee that stands at its newest checkpoint, or at the base."""
    encoded = together(job.open)
    trainee = make_trainee(encoded, Train(**job.options), read_adapt(job.adapt), device)
    newest = checkpoint.newest(checkpoints(Path(job.run)))
    if newest:
        checkpoint.load(newest, trainee)
    if trainee.options.tokens_per_device == "auto":
        trainee.budget = find_budget(trainee, encoded.split("train"))
    return encoded, trainee


def node_is_leaving(step: int) -> bool:
    """Whether Ray was told that a node of this run will be taken away (drained, or a spot instance reclaimed).

    Every worker asks at the same steps and gets the same answer, so that all keep the checkpoint together.
    """
    return step % LOOK_EVERY == 0 and ray.train.get_preemption_info() is not None


def keep(trainee: Trainee, folder: Path, moment: Moment) -> None:
    """Saves a checkpoint and reports it to Ray Train, which sees progress by it and removes the old ones."""
    place = checkpoints(folder) / f"step-{moment.step:08d}"
    beside = place.with_name(f".{place.name}")
    on_rank_0(lambda: shutil.rmtree(beside, ignore_errors=True))  # what a killed worker began
    try:
        together(lambda: save(beside, trainee))
        on_rank_0(lambda: finish(beside, place))
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    reported = Checkpoint(str(place)) if trainee.rank == 0 else None
    record = {"step": moment.step, "loss": moment.loss} | (moment.validation or {})
    ray.train.report(record, checkpoint=reported, checkpoint_upload_mode=CheckpointUploadMode.NO_UPLOAD)


def save(beside: Path, trainee: Trainee) -> None:
    """Writes a worker's part of a checkpoint."""
    with plain_disk_errors(beside):
        checkpoint.save(beside, trainee)


def finish(beside: Path, place: Path) -> None:
    """Gives a whole checkpoint its name, unless the same step was kept before."""
    with plain_disk_errors(place):
        if not place.exists():
            appear(beside, place)


def keep_best(trainee: Trainee, folder: Path) -> None:
    """The weights of the best epoch, beside the checkpoints, for the end of the run."""
    weights, beside = checkpoint.gather(trainee), folder / ".best.safetensors"

    def write() -> None:
        with plain_disk_errors(folder):
            save_file(weights, beside)
            beside.replace(folder / "best.safetensors")

    on_rank_0(write)


def leave(trainee: Trainee, encoded: Encoded, folder: Path, *, apart: bool = False) -> None:
    """The run's yield: the fine-tuned model, and what it says of every held-out row.

    Args:
        apart: keep what was learned without the base.
    """
    best = folder / "best.safetensors"
    if trainee.options.early_stopping and best.exists():
        checkpoint.scatter(trainee, load_file(best, device=str(trainee.device)))
    said = {name: predict(trainee, encoded.split(name), final=True) for name in ("validation", "test")}
    weights = checkpoint.gather(trainee) if apart or is_parted(trainee.model) else None

    def write() -> None:
        with building(folder / "model") as unfinished:
            if apart and weights is not None:
                save_file(weights, unfinished / WEIGHTS)
            else:
                model = trainee.model
                if weights is not None:
                    model = put_together(trainee.task, encoded.base, trainee.adapt, weights)
                merge(model)
                model.save_pretrained(unfinished)
        with building(folder / "outputs") as unfinished:  # the last thing, by which the driver knows of the rest
            for name, values in said.items():
                outputs.save(unfinished / f"{name}.safetensors", values)

    on_rank_0(write)


def on_rank_0(action: Callable[[], None]) -> None:
    """Has rank 0 do what touches the disk, and every worker learn how it went.

    Raises:
        RunError: on every worker, with what went wrong on rank 0.
    """
    rank = dist.get_rank() if dist.is_initialized() else 0
    together(action if rank == 0 else lambda: None)


def together(action: Callable[[], Result]) -> Result:
    """Has every worker act; if one fails, all do. One that failed alone would leave the others waiting for ever.

    Raises:
        RunError, DiskError, UserError: on every worker, with what went wrong on the first that failed.
        Exception: on the worker that failed in a way that nobody foresaw.
    """
    result, failure, unforeseen = None, None, None
    try:
        result = action()
    except Exception as error:  # noqa: BLE001  it is raised, once the others know
        kind = next((kind for kind in (UserError, DiskError) if isinstance(error, kind)), RunError)
        failure = kind(str(error))
        unforeseen = None if isinstance(error, HeadraceError | OSError) else error
    failures = [failure]
    if dist.is_initialized() and dist.get_world_size() > 1:
        failures = [None] * dist.get_world_size()
        dist.all_gather_object(failures, failure)
    if unforeseen is not None:
        raise unforeseen
    first = next((one for one in failures if one is not None), None)
    if first is not None:
        raise first
    return cast(Result, result)
