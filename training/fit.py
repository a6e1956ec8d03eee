"""The driver of training: from a recipe to a registered model, each finished step kept.

fuse -> encode -> train on Ray -> measure -> bundle -> register
"""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import yaml
from safetensors.torch import load_file

from cluster.errors import RunError, UserError
from cluster.progress import progress, say
from cluster.session import Resources, outside_main_thread, resources, session
from cluster.storage import building, fingerprint, home, only_one, plain_disk_errors, read_json, write_json
from training import outputs
from training.bundle import MOST_HELD_OUT, Bundle, open_bundle, write_bundle
from training.data.fuse import Fused, fuse
from training.encode import SPLITS, Encoded, encode, located_rows
from training.evaluation.baselines import learned_from, measure
from training.evaluation.report import ReportData, write_report
from training.journal import Follower, Record, entries
from training.loop import check_early_stopping
from training.models import adapter
from training.recipe import Elastic, Recipe, Train
from training.registry import RunLog, register, start_run
from training.tasks.task import Outputs

if TYPE_CHECKING:
    from ray.train.torch import TorchTrainer

    from training.worker import Job

FORMAT = 4
"""Raised whenever the same recipe and data would give another model or other measurements."""

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

LEAST_SHARE = 8
"""Rows of a batch below which a further worker costs more in exchange than it brings."""


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
        if not bundle_folder.exists():
            with logged(recipe, public, key, folder) as log:
                if not (folder / "outputs").exists():
                    job = worker_job(recipe, encoded, folder)
                    with session(), followed(recipe, encoded, folder, log), plain_failures(recipe.train):
                        agreed(outside_main_thread(torch_trainer(job, recipe.train, resources()).fit))
                log.finish("FINISHED", finish(recipe, public, fused, encoded, folder, bundle_folder))
        else:
            say(f"{recipe.name}: this recipe and data were trained before; nothing to do")
        bundle = open_bundle(bundle_folder)
        version = register(bundle, run_id_of(folder))
        report = folder / "report.html"
        if not report.exists() and (folder / "outputs").exists():
            data = report_data(bundle, version, recipe, fused, encoded, folder)
            write_report(report, data, encoded.task.report_sections)
        tidy(folder)
    info = bundle.info
    return Run(recipe.name, version, bundle.folder, report, info["metrics"], info["baselines"], info["data"])


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
    log = start_run(public, recipe.name, key)
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
        say(f"{recipe.name}: continues a run that was interrupted after step {done[-1]['step']} of {done[-1]['steps']}")
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
        raise RunError(plain_cause(error, options.max_failures)) from error


def agreed(result: Any) -> None:
    """Raises what the workers agreed went wrong, if anything.

    Raises:
        UserError, RunError: a reason that starting again would not change.
    """
    told = result.return_value or {}
    if "failure" in told:
        raise (UserError if told["exit_code"] == UserError.exit_code else RunError)(told["failure"])


def worker_job(recipe: Recipe, encoded: Encoded, folder: Path) -> "Job":
    """What the workers of a run are given."""
    from training.worker import Job  # Ray Train, which takes a second to import

    return Job.of(recipe, encoded, folder)


def torch_trainer(job: "Job", options: Train, available: Resources) -> "TorchTrainer":
    """Ray Train over ``training.worker.run``, which finds its newest checkpoint by itself.

    Raises:
        UserError: the recipe asks for more workers than there are.
    """
    from ray.train import CheckpointConfig, FailureConfig, LoggingConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from training import worker

    workers, threads = spread(options, available)
    # Which checkpoint is the newest is read from the folders, which appear whole; Ray's own list of them can be cut
    # short by a kill, and Ray would then refuse to start.
    (Path(job.run) / "ray" / "checkpoint_manager_snapshot.json").unlink(missing_ok=True)
    return TorchTrainer(
        worker.run,
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
            checkpoint_config=CheckpointConfig(num_to_keep=worker.KEPT),
            logging_config=LoggingConfig(log_level="WARNING"),
        ),
    )


def spread(options: Train, available: Resources) -> tuple[int, int]:
    """How many workers, and how many CPU threads each: one worker per GPU, else one per core.

    Raises:
        UserError: the recipe asks for more workers than there are.
    """
    most = available.gpus or available.cpus
    kind = "GPUs" if available.gpus else "cores"
    if options.workers == "auto":
        workers = max(1, min(most, options.batch_size // LEAST_SHARE))
    elif isinstance(options.workers, Elastic):
        workers = max(options.workers.min, min(most, options.workers.max))
    else:
        workers = options.workers
    if workers > most:
        raise UserError(f"train.workers: {workers} workers need as many {kind}, and there are {most}; or say auto")
    return workers, threads_each(workers, available)


def threads_each(workers: int, available: Resources) -> int:
    """The most cores that each worker can have where no worker lies on two nodes; nodes are taken to be alike."""
    cores = max(1, available.cpus // available.nodes)
    fitting = (threads for threads in range(cores, 0, -1) if available.nodes * (cores // threads) >= workers)
    return next(fitting, 1)


def finish(
    recipe: Recipe,
    public: dict[str, Any],
    fused: Fused,
    encoded: Encoded,
    folder: Path,
    bundle_folder: Path,
) -> dict[str, float]:
    """Measures what was trained next to its baselines and writes the bundle; returns the metrics."""
    task = encoded.task
    metrics = {
        f"{name}/{metric}": value
        for name in SPLITS[1:]
        if len(encoded.split(name))
        for metric, value in task.metrics(said(folder, name), encoded.split(name).targets).items()
    }
    baselines = measured_baselines(recipe, fused, encoded)
    data = {
        "rows": sum(len(encoded.split(name)) for name in SPLITS),
        "splits": {name: len(encoded.split(name)) for name in SPLITS},
        "fingerprint": fused.fingerprint,
        "baselines_learned_from": baselines["learned_from"],
    }
    if recipe.model.bundle == "adapter":
        weights = load_file(folder / "model" / adapter.WEIGHTS)
        model = adapter.put_together(task, encoded.base, recipe.model.adapt, weights).eval()
    else:
        model = task.open(folder / "model")
    with building(bundle_folder) as unfinished:
        write_bundle(
            unfinished,
            model=model,
            task=task.settle(model),
            name=recipe.name,
            recipe=public,
            metrics=metrics,
            baselines=baselines["metrics"],
            data=data,
            base=adapter.describe(recipe, encoded.base) if recipe.model.bundle == "adapter" else None,
            held_out=encoded.held_out(MOST_HELD_OUT),
        )
    return metrics


def said(folder: Path, split: str) -> Outputs:
    """What the run's model said of a split's rows."""
    return outputs.load(folder / "outputs" / f"{split}.safetensors")


def tidy(folder: Path) -> None:
    """Removes what only a run that has not ended needs."""
    shutil.rmtree(folder / "ray", ignore_errors=True)
    shutil.rmtree(folder / "model", ignore_errors=True)
    (folder / "best.safetensors").unlink(missing_ok=True)


def run_id_of(folder: Path) -> str | None:
    """MLflow's name for the run, where the run's folder is still there."""
    kept = folder / "mlflow.json"
    return str(read_json(kept)["run_id"]) if kept.exists() else None


def report_data(
    bundle: Bundle, version: int, recipe: Recipe, fused: Fused, encoded: Encoded, folder: Path
) -> ReportData:
    """What the report shows of a run: the test split's answers, or the validation split's where there is no test."""
    judged = "test" if len(encoded.split("test")) else "validation"
    history = entries(folder / "metrics.jsonl")
    headline = encoded.task.final_headline or encoded.task.headline
    rows = asked(recipe, fused, encoded)[judged].to_pylist()
    return ReportData(
        name=recipe.name,
        description=bundle.info["recipe"].get("description", ""),  # as written: the recipe's may hold a secret
        version=version,
        created=bundle.info["created"],
        task=bundle.info["task"],
        metrics=bundle.info["metrics"],
        baselines=bundle.info["baselines"],
        judged=judged,
        headline=headline,
        direction=(encoded.task.metrics_known | encoded.task.metrics_of_answers)[headline],
        titles={name: baseline.title for name, baseline in encoded.task.baselines.items()},
        labels=encoded.task.labels,
        outputs=said(folder, judged),
        targets=encoded.split(judged).targets,
        texts=[encoded.task.text(row) for row in rows],
        shown=lambda index: encoded.task.shown(encoded.split(judged).examples([index])[0]),
        importance=lambda: bundle.task().importance(bundle.model(), rows),
        history=[record | {"validation": of_validation(record)} for record in history],
        data=fused.report,
        learned_from=bundle.info["data"]["baselines_learned_from"],
        recipe=yaml.safe_dump(bundle.info["recipe"], sort_keys=False, allow_unicode=True),
        versions=bundle.info["versions"],
        seconds=sum(record["seconds"] for record in history),
        memory=max((record.get("memory", 0) for record in history), default=0),
    )


def measured_baselines(recipe: Recipe, fused: Fused, encoded: Encoded) -> dict[str, Any]:
    """The baselines' ``metrics`` on the same splits, and how many training rows those of texts ``learned_from``.

    They are kept, since they depend on the data and the base alone.
    """
    kept = home() / "baselines" / f"{encoded.fingerprint}-{FORMAT}.json"
    if not kept.exists():
        tables = asked(recipe, fused, encoded)
        rows, seen = tables["train"].num_rows, len(learned_from(encoded.task, tables["train"]))
        say("measuring the baselines" + (f"; those of texts learn from {seen:,} of {rows:,} rows" * (seen < rows)))
        write_json(kept, {"learned_from": seen, "metrics": measure(encoded.task, encoded.base, tables)})
    measured: dict[str, Any] = read_json(kept)
    return measured


def asked(recipe: Recipe, fused: Fused, encoded: Encoded) -> Mapping[str, pa.Table]:
    """What the model is asked about the rows of each split, row by row what it has examples of."""
    return encoded.kept(encoded.task.questions(located_rows(recipe, fused.tables())))


def plain_cause(error: Exception, max_failures: int) -> str:
    """One sentence for what made Ray Train give up."""
    told = str(error).strip()
    last = told.splitlines()[-1] if told else type(error).__name__
    if "No space left" in told or "Disk quota" in told:
        return f"training stopped because {home()} is full; free some space and run the command again: it continues"
    return (
        f"training failed {max_failures + 1} times, the last time with: {last}. The checkpoints are kept: "
        "the same command continues from the newest."
    )


def rows_of(records: Sequence[Record]) -> int:
    """Rows seen by the steps of ``records``."""
    return int(sum(record["rows"] for record in records))


def rows_until(record: Record, rows: int) -> int:
    """About how many of a run's ``rows`` had been seen at ``record``; exact at the end."""
    return int(rows * record["step"] / record["steps"])


def of_validation(record: Record) -> dict[str, float]:
    """The validation metrics of a record; only those of an epoch's end have any."""
    return {name.removeprefix("validation/"): value for name, value in record.items() if name.startswith("validation/")}


def numbers(record: Record) -> dict[str, float]:
    """What of a record has a curve."""
    hidden = {"step", "steps", "rows", "best", "checkpoint_due", "last", "workers", "memory"}
    return {name: value for name, value in record.items() if name not in hidden and value is not None}
