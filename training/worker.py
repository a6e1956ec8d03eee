"""What every Ray worker runs: it trains its share, keeps checkpoints, and says what happened in a file.

Rank 0 writes. What it writes to lies in the run's folder, which every node sees:

    metrics.jsonl                one line for each step; the driver follows it
    ray/checkpoints/step-…/      the newest two; complete or absent, since each is built beside its place and renamed
    best.safetensors             the weights of the best epoch
    model/ outputs/              what the run leaves: the fine-tuned model, and its outputs on each held-out split
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray.train
import torch
import torch.distributed as dist
from ray.train import Checkpoint, CheckpointUploadMode
from ray.train.torch import get_device
from safetensors.torch import load_file, save_file

from cluster.errors import HeadraceError, RunError
from cluster.storage import building, plain_disk_errors
from training import checkpoint
from training.encode import Encoded, open_encoded
from training.journal import Journal
from training.loop import Moment, Trainee, as_record, make_trainee, predict, train
from training.recipe import Train

KEPT = 2
"""Checkpoints that Ray Train leaves: the newest, and the one before it."""


@dataclass(frozen=True)
class Job:
    """What a worker is given; plain values only.

    Attributes:
        encoded: the folder of the encoded data.
        run: the run's folder.
        adapt: which weights learn.
        options: the recipe's ``train`` section.
        threads: that this worker may compute with.
    """

    encoded: str
    run: str
    adapt: str
    options: dict[str, Any]
    threads: int

    def as_config(self) -> dict[str, Any]:
        """For ``train_loop_config``."""
        return asdict(self)


def run(config: dict[str, Any]) -> dict[str, Any]:
    """Trains from the newest checkpoint, or from the base, to the end of the run.

    Returns:
        ``{}``, or ``{"failure": message}`` where all workers ended for a reason that trying again would not change.
    """
    job = Job(**config)
    torch.set_num_threads(job.threads)
    try:
        encoded = open_encoded(Path(job.encoded))
        trainee = make_trainee(encoded, Train(**job.options), job.adapt, get_device())
        newest = checkpoint.newest(checkpoints(Path(job.run)))
        if newest:
            checkpoint.load(newest, trainee)
        learn(trainee, encoded, Path(job.run))
        leave(trainee, encoded, Path(job.run))
    except HeadraceError as error:
        return {"failure": str(error)}
    return {}


def learn(trainee: Trainee, encoded: Encoded, folder: Path) -> None:
    """Runs the loop and keeps what must outlive this process."""
    with Journal(folder / "metrics.jsonl") as journal:
        for moment in train(trainee, encoded):
            if trainee.rank == 0:
                journal.write(as_record(moment))
            if moment.best and trainee.options.early_stopping:
                on_rank_0(trainee, lambda: keep_best(trainee, folder))
            if moment.checkpoint_due:
                keep(trainee, folder, moment)


def keep(trainee: Trainee, folder: Path, moment: Moment) -> None:
    """Saves a checkpoint and reports it to Ray Train, which sees progress by it and removes the old ones."""
    place = checkpoints(folder) / f"step-{moment.step:08d}"

    def save() -> None:
        with building(place) as unfinished:
            checkpoint.save(unfinished, trainee)

    on_rank_0(trainee, save)
    reported = Checkpoint(str(place)) if trainee.rank == 0 else None
    record = {"step": moment.step, "loss": moment.loss} | (moment.validation or {})
    ray.train.report(record, checkpoint=reported, checkpoint_upload_mode=CheckpointUploadMode.NO_UPLOAD)


def keep_best(trainee: Trainee, folder: Path) -> None:
    """The weights of the best epoch, beside the checkpoints, for the end of the run."""
    beside = folder / ".best.safetensors"
    with plain_disk_errors(folder):
        save_file(checkpoint.learning(trainee), beside)
        beside.replace(folder / "best.safetensors")


def leave(trainee: Trainee, encoded: Encoded, folder: Path) -> None:
    """The run's yield: the fine-tuned model, and what it says of every held-out row."""
    best = folder / "best.safetensors"
    if trainee.options.early_stopping and best.exists():
        own = checkpoint.learning(trainee)
        for name, value in load_file(best, device=str(trainee.device)).items():
            own[name].copy_(value)
    outputs = {name: predict(trainee, encoded.split(name)) for name in ("validation", "test")}

    def write() -> None:
        with building(folder / "outputs") as unfinished:
            for name, values in outputs.items():
                np.save(unfinished / f"{name}.npy", values)
        with building(folder / "model") as unfinished:
            trainee.model.save_pretrained(unfinished)

    on_rank_0(trainee, write)


def checkpoints(folder: Path) -> Path:
    """Where a run keeps its checkpoints: inside what Ray Train takes for its own, so that it accepts them."""
    return folder / "ray" / "checkpoints"


def on_rank_0(trainee: Trainee, action: Callable[[], None]) -> None:
    """Has rank 0 do what touches the disk, and every worker learn how it went.

    A failure that only rank 0 saw would leave the others waiting for it for ever.

    Raises:
        RunError: on every worker, with what went wrong on rank 0.
    """
    failure: list[str | None] = [None]
    if trainee.rank == 0:
        try:
            action()
        except (HeadraceError, OSError) as error:
            failure = [str(error)]
    if trainee.world > 1:
        dist.broadcast_object_list(failure, device=trainee.device)
    if failure[0] is not None:
        raise RunError(failure[0])
