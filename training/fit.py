"""The driver of training: from a recipe to a registered model, each finished step kept.

fuse -> encode -> train on Ray -> measure -> bundle -> register
"""

import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.errors import DiskError, RunError, UserError, reason
from cluster.imports import importing
from cluster.progress import progress, say
from cluster.session import Resources, resources, session
from cluster.storage import fingerprint, full, home, only_one, plain_disk_errors, read_json, write_json
from cluster.threads import beside_main_thread
from training.bundle import Bundle, ForeignFileError, open_bundle
from training.data.fuse import fuse
from training.encode import Encoded, encode
from training.finished import ASIDE
from training.job import Job, checkpoints
from training.journal import Follower, Record, entries
from training.preflight import check_early_stopping
from training.recipe import Elastic, Recipe, Train
from training.registry import RunLog, register, start_run
from training.workers import workers_and_threads

if TYPE_CHECKING:
    from ray.train.torch import TorchTrainer


FORMAT = 8
"""Raised whenever the same recipe and data would give another model or other measurements."""

KEPT = 2
"""Checkpoints that Ray Train leaves: the newest, and the one before it."""

OPERATIONAL = {
    "workers",
    "strategy",
    "tokens_per_device",
    "compile",
    "activation_checkpointing",
    "checkpoint_every",
    "max_failures",
}
"""Fields of ``train`` that change how a run is carried out and not what comes of it."""


@dataclass(frozen=True)
class Run:
    """What training brought.

    Attributes:
        model: the name in the registry.
        version: the version there.
        bundle: the folder that serving opens.
        report: the HTML report.
        metrics: ``{"test/accuracy": 0.92, …}``.
        baselines: for each baseline the same.
        data: ``rows``, ``splits`` and ``fingerprint``.
    """

    model: str
    version: int
    bundle: Path
    report: Path
    metrics: dict[str, float]
    baselines: dict[str, dict[str, float]]
    data: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return asdict(self) | {"bundle": str(self.bundle), "report": str(self.report)}


def fit(recipe: Recipe, public: dict[str, Any]) -> Run:
    """Carries a recipe out, skipping what is done and continuing what was interrupted.

    Args:
        public: the recipe as it may be stored (``Document.public``).

    Raises:
        UserError: the recipe or the data is at fault.
        RunError: the machine, the store or the training itself failed.
    """
    fused = fuse(recipe)
    encoded = encode(recipe, fused)
    check_early_stopping(encoded.task, recipe.train, len(encoded.split("validation")))
    key = run_key(recipe, encoded)
    folder = home() / "runs" / f"{recipe.name}-{key}"
    bundle_folder = home() / "models" / recipe.name / key
    with only_one(folder):
        bundle = kept_bundle(bundle_folder)
        if bundle is None:
            with logged(recipe, public, key, folder) as log:
                if not trained(folder):
                    with session(), followed(recipe, encoded, folder, log), plain_failures(recipe.train):
                        trainer = torch_trainer(Job.of(recipe, encoded, folder), recipe.train, resources())
                        result = beside_main_thread(trainer.fit)
                        with importing():  # what comes after training, while the workers start
                            import transformers.modeling_utils  # noqa: F401

                            import training.outcome  # noqa: F401
                        agreed(result())
                from training import outcome

                log.finish("FINISHED", outcome.finish(recipe, public, fused, encoded, folder, bundle_folder))
            bundle = open_bundle(bundle_folder)
        else:
            say(f"{recipe.name}: this recipe and data were trained before; nothing to do")
        version = register(bundle, run_id_of(folder))
        report = folder / "report.html"
        if not report.exists() and (folder / "outputs").exists():
            from training import outcome

            outcome.write(report, bundle, version, recipe, fused, encoded, folder)
        tidy(folder)
    info = bundle.info
    return Run(recipe.name, version, bundle.folder, report, info["metrics"], info["baselines"], info["data"])


def kept_bundle(folder: Path) -> Bundle | None:
    """The bundle that is there already. One that is not as it was written is moved aside, and counts for none.

    Raises:
        ForeignFileError: it is whole, and something else lies among its files.
    """
    if not folder.exists():
        return None
    try:
        return open_bundle(folder)
    except ForeignFileError:
        raise  # what a file manager leaves is no reason to train again
    except UserError as error:
        aside = folder.with_name(f"{folder.name}{ASIDE}{uuid.uuid4().hex[:8]}")
        with plain_disk_errors(folder):
            folder.rename(aside)
        say(f"{error}. It lies in {aside} from here on, and the model is trained again")
        return None


def trained(folder: Path) -> bool:
    """Whether a run's folder holds all that its workers leave; what is left of one whose model is gone is removed."""
    outputs, model = folder / "outputs", folder / "model"
    if outputs.exists() and not model.exists():  # its bundle was removed: it begins anew
        for told in ("metrics.jsonl", "report.html"):
            (folder / told).unlink(missing_ok=True)
        shutil.rmtree(outputs)
    return outputs.exists()


def run_key(recipe: Recipe, encoded: Encoded) -> str:
    """The fingerprint of a training run: equal for equal results."""
    options = recipe.train.model_dump(exclude=OPERATIONAL)
    kept = recipe.model.model_dump(include={"adapt", "bundle"})
    return fingerprint(FORMAT, encoded.fingerprint, recipe.name, kept, options)


@contextmanager
def logged(recipe: Recipe, public: dict[str, Any], key: str, folder: Path) -> Iterator[RunLog]:
    """The MLflow run of this fingerprint, which is never left running by a driver that has ended."""
    with plain_disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    log = start_run(public, recipe.name, key, run_id_of(folder))
    write_json(folder / "mlflow.json", {"run_id": log.run_id})
    done = entries(folder / "metrics.jsonl")  # a killed driver may not have told all that its workers did
    log.log([(record["step"], numbers(record)) for record in done])
    try:
        yield log
    except BaseException as error:
        log.finish("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED", {})
        raise


@contextmanager
def followed(recipe: Recipe, encoded: Encoded, folder: Path, log: RunLog) -> Iterator[None]:
    """Shows what the workers write while the block runs, and passes it on to MLflow."""
    rows = recipe.train.epochs * len(encoded.split("train"))
    done = entries(folder / "metrics.jsonl")
    if done:
        kept = max((path.name for path in checkpoints(folder).glob("step-*")), default=None)
        begins = (
            f"after step {int(kept.removeprefix('step-'))}, its last checkpoint," if kept else "before a checkpoint,"
        )
        anew = "continues a run" if kept else "begins anew: a run"
        say(f"{recipe.name}: {anew} that was interrupted {begins} of {done[-1]['steps']} steps")
    with progress("training", total=rows, unit="rows", start=rows_of(done)) as bar:

        def show(records: list[Record]) -> None:
            latest, seconds = records[-1], sum(record["seconds"] for record in records)
            pace = rows_of(records) / seconds  # of the steps alone: workers take a while to start
            bar.update(done=rows_until(latest, rows), rate=pace, step=latest["step"], loss=latest["loss"])
            log.log([(record["step"], numbers(record)) for record in records])

        with Follower(folder / "metrics.jsonl", show):
            yield


@contextmanager
def plain_failures(options: Train) -> Iterator[None]:
    """Turns what Ray Train raises when workers were lost too often into one sentence."""
    from ray.train import TrainingFailedError

    try:
        yield
    except TrainingFailedError as error:
        kind = DiskError if full(error) else RunError
        raise kind(plain_cause(error, options.max_failures)) from error


def agreed(result: Any) -> None:
    """Raises what the workers agreed went wrong, if anything.

    Raises:
        UserError, RunError, DiskError: a reason that starting again would not change.
    """
    told = result.return_value or {}
    if "failure" in told:
        kind = DiskError if told["disk"] else UserError if told["exit_code"] == UserError.exit_code else RunError
        raise kind(told["failure"])


def torch_trainer(job: Job, options: Train, available: Resources) -> "TorchTrainer":
    """Ray Train over ``training.worker.run``, which finds its newest checkpoint by itself.

    Raises:
        UserError: the recipe asks for more workers than there are.
    """
    from ray.train import CheckpointConfig, FailureConfig, LoggingConfig, RunConfig, ScalingConfig

    from training.trainer import Trainer

    def run(config: dict[str, Any]) -> dict[str, Any]:
        """Travels by its value, so that this process need not import what a worker does."""
        from cluster.imports import importing

        with importing():
            from training import worker

        return worker.run(config)

    workers, threads = workers_and_threads(options, available)
    # Which checkpoint is the newest is read from the folders, which appear whole; Ray's own list of them can be cut
    # short by a kill, and Ray would then refuse to start.
    (Path(job.run) / "ray" / "checkpoint_manager_snapshot.json").unlink(missing_ok=True)
    return Trainer(
        run,
        train_loop_config=replace(job, threads=threads).as_config(),
        scaling_config=ScalingConfig(
            num_workers=(elastic.min, elastic.max) if isinstance(elastic := options.workers, Elastic) else workers,
            use_gpu=available.gpus > 0,
            resources_per_worker={"CPU": threads} | ({"GPU": 1} if available.gpus else {}),
        ),
        run_config=RunConfig(
            name="ray",
            storage_path=job.run,
            failure_config=FailureConfig(max_failures=options.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=KEPT),
            logging_config=LoggingConfig(log_level="WARNING"),
        ),
    )


def tidy(folder: Path) -> None:
    """Removes what only a run that has not ended needs."""
    shutil.rmtree(folder / "ray", ignore_errors=True)
    shutil.rmtree(folder / "model", ignore_errors=True)
    (folder / "best.safetensors").unlink(missing_ok=True)


def run_id_of(folder: Path) -> str | None:
    """MLflow's name for the run, where the run's folder is still there."""
    kept = folder / "mlflow.json"
    return str(read_json(kept)["run_id"]) if kept.exists() else None


def plain_cause(error: Exception, max_failures: int) -> str:
    """One sentence for what made Ray Train give up."""
    if full(error):
        return f"training stopped because {home()} is full; free some space and run the command again: it continues"
    return (
        f"training failed {max_failures + 1} times, the last time with: {reason(error)}. The checkpoints are kept: "
        "the same command continues from the newest."
    )


def rows_of(records: Sequence[Record]) -> int:
    """Rows seen by the steps of ``records``."""
    return int(sum(record["rows"] for record in records))


def rows_until(record: Record, rows: int) -> int:
    """About how many of a run's ``rows`` had been seen at ``record``; exact at the end."""
    return int(rows * record["step"] / record["steps"])


def numbers(record: Record) -> dict[str, float]:
    """What of a record has a curve."""
    hidden = {"step", "steps", "rows", "best", "checkpoint_due", "last", "workers", "memory"}
    return {name: value for name, value in record.items() if name not in hidden and value is not None}
