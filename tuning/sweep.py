"""The driver of a sweep: from a recipe with `tune` to the best combination of what it searches.

    fuse -> encode -> trials on Ray Tune -> table, picture, best overrides

Every event is in the ledger before the next one is waited for. A driver that was killed is continued by the same
command: ended trials are kept, interrupted ones go on from their checkpoint, new ones are proposed as if nothing had
happened. A finished sweep is not run again; one whose `tune.trials` was raised goes on.
"""

import contextlib
import logging
import os
import shutil
import sys
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from cluster.errors import RunError, UserError
from cluster.progress import Progress, progress, say
from cluster.session import Resources, resources, session
from cluster.storage import fingerprint, home, only_one, plain_disk_errors, write_json, write_text
from training.data.fuse import fuse
from training.encode import Encoded, encode
from training.fit import FORMAT, OPERATIONAL
from training.job import Job
from training.preflight import check_early_stopping
from training.recipe import Recipe
from tuning.ledger import Ledger, Trial, better
from tuning.preflight import check_rows, judged
from tuning.recipe import Tune
from tuning.results import best_yaml, draw, overrides, text
from tuning.space import ENCODING_FIELDS, Space, apply, own_params

RAY_TUNE_SETTINGS = {
    # Several CSV, JSON and TensorBoard files for each trial, of what the ledger has already.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # A snapshot of the experiment every few seconds, which nothing reads: a sweep continues by its ledger.
    "TUNE_GLOBAL_CHECKPOINT_S": str(10**9),
    # A failed trial reports its error, which is no value of the metric.
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    # The other reporter prints boxes to stdout even where it was told to be silent.
    "RAY_AIR_NEW_OUTPUT": "0",
    # Tune would take Ctrl-C for the end of the sweep, and the best so far would be trained.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
}


RAY_FOLDER = "ray-"
"""How the folder begins that Ray Tune writes to; its name goes on at random, so that no two drivers share one."""


@dataclass(frozen=True)
class Sweep:
    """What a sweep found.

    Attributes:
        folder: where its ledger, ``best.yaml``, ``trials.json`` and picture lie.
        metric: what trials were judged by, on validation.
        mode: ``max`` or ``min``.
        records: every trial, by number.
        best: searched field: its best value.
        picture: a PNG.
    """

    folder: Path
    metric: str
    mode: str
    records: list[Trial]
    best: dict[str, Any]
    picture: Path

    @property
    def trials(self) -> list[dict[str, Any]]:
        """A row for each trial: trial, status, params, metrics, epochs, seconds, error."""
        return [trial.as_row() for trial in self.records]

    @property
    def overrides(self) -> list[str]:
        """``best`` as the arguments that override a recipe: ``["train.learning_rate=0.0002", …]``."""
        return overrides(self.best)

    def text(self) -> str:
        """The trials as lines, the best first."""
        return text(self.records, self.metric, self.mode)

    def as_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "trials": self.trials,
            "best": self.best,
            "overrides": self.overrides,
            "metric": self.metric,
            "mode": self.mode,
            "picture": str(self.picture),
            "sweep": str(self.folder),
        }


@dataclass(frozen=True)
class Setup:
    """What a sweep is made of.

    Attributes:
        recipe: whose fields are searched.
        tune: how.
        mode: whether more (``max``) or less (``min``) of the metric is better.
        space: the searched fields.
        encoded: the rows, by :func:`encoding_key`.
        ledger: what is known of the trials.
    """

    recipe: Recipe
    tune: Tune
    mode: str
    space: Space
    encoded: dict[str, Encoded]
    ledger: Ledger

    @property
    def total(self) -> int:
        """Trials of the sweep."""
        return self.space.trials(self.tune.trials)

    @property
    def remaining(self) -> int:
        """Trials that have not ended."""
        return len(self.ledger.unfinished()) + max(0, self.total - len(self.ledger.trials))

    @property
    def most_epochs(self) -> int:
        """The longest that a trial can be."""
        return max(apply(self.recipe, params).train.epochs for params in self.space.only(["train.epochs"]).grid())


def sweep(recipe: Recipe, tune: Tune, public: dict[str, Any]) -> Sweep:
    """Runs a sweep to its end, continues an interrupted one, or finds it done.

    Args:
        tune: checked by ``tuning.space.check_search``.
        public: the recipe as it may be stored (``Document.public``).

    Raises:
        UserError: the recipe or the data is at fault.
        RunError: every trial failed, or the machine or the store did.
    """
    space = Space.of(tune)
    fused = fuse(recipe)
    encoded = {encoding_key(params): encode(apply(recipe, params), fused) for params in space.encodings()}
    for one in encoded.values():
        rows = len(one.split("validation"))
        check_rows(rows)
        check_early_stopping(one.task, recipe.train, rows)
    task = next(iter(encoded.values())).task
    tune = judged(tune, task)
    mode = task.metrics_known[tune.judge]
    folder = home() / "sweeps" / f"{recipe.name}-{sweep_key(recipe, tune, list(encoded.values()))}"
    with only_one(folder):
        with plain_disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            write_json(folder / "sweep.json", public)
        setup = Setup(recipe, tune, mode, space, encoded, Ledger(folder))
        if setup.remaining:
            run_trials(setup)
        return conclude(setup)


def sweep_key(recipe: Recipe, tune: Tune, encoded: list[Encoded]) -> str:
    """The fingerprint of a sweep. How many trials it has is left out: a sweep with more trials is the same one."""
    options = recipe.train.model_dump(exclude=OPERATIONAL)
    prints = [one.fingerprint for one in encoded]
    return fingerprint(FORMAT, prints, recipe.model.model_dump()["adapt"], options, tune.model_dump(exclude={"trials"}))


def encoding_key(params: dict[str, Any]) -> str:
    """What of a combination decides how rows are encoded."""
    return fingerprint({name: value for name, value in params.items() if name in ENCODING_FIELDS})


def run_trials(setup: Setup) -> None:
    """Has Ray Tune run every trial that has not ended.

    Raises:
        KeyboardInterrupt: Ray took the Ctrl-C for itself; what ended until then is kept.
    """
    ledger, ended = setup.ledger, len(setup.ledger.ended())
    ledger.tidy()
    for left in ledger.folder.glob(f"{RAY_FOLDER}*"):  # by a driver that was killed
        shutil.rmtree(left, ignore_errors=True)
    with session(), progress("trials", total=setup.total, start=ended) as bar:
        if ledger.trials:
            say(f"{setup.recipe.name}: continues a sweep; {ended} of {setup.total} trials have ended")
        run_on_ray_tune(setup, plan_for(setup.recipe, resources(), setup.remaining), bar)
    if setup.remaining:
        say(f"{len(ledger.ended())} of {setup.total} trials have ended; the same command goes on from there")
        raise KeyboardInterrupt


def conclude(setup: Setup) -> Sweep:
    """Writes what the sweep found beside its ledger.

    Raises:
        RunError: every trial failed.
    """
    folder, tune = setup.ledger.folder, setup.tune
    trials = [setup.ledger.trials[number] for number in sorted(setup.ledger.trials)]
    ranked = better(trials, setup.mode)
    write_json(folder / "trials.json", [trial.as_row() for trial in trials])
    if not ranked:
        first = trials[0]
        raise RunError(
            f"all {len(trials)} trials failed, trial {first.number} with: {first.error}. "
            f"The full errors lie in {folder / 'trials'}/*/error.txt; remove {folder} to try again."
        )
    best = ranked[0]
    write_text(folder / "best.yaml", best_yaml(best, tune.judge))
    picture = folder / "sweep.png"
    draw(trials, tune, setup.mode, picture)
    return Sweep(folder, tune.judge, setup.mode, trials, best.params, picture)


@dataclass(frozen=True)
class Plan:
    """How trials are spread over a session.

    Attributes:
        workers: of one trial.
        at_once: trials that run side by side.
        share: what one trial may use.
        bundle: what Ray reserves for the process of a trial.
    """

    workers: int
    at_once: int
    share: Resources
    bundle: dict[str, int]


def plan_for(recipe: Recipe, available: Resources, remaining: int) -> Plan:
    """As many trials at once as there are GPUs, else cores; each with its share of the cores.

    `workers` that are no fixed number mean one for each trial.

    Raises:
        UserError: one trial wants more workers than there are.
    """
    workers = recipe.train.workers if isinstance(recipe.train.workers, int) else 1
    most = available.gpus or available.cpus
    if workers > most:
        kind = "GPUs" if available.gpus else "cores"
        raise UserError(
            f"train.workers: {workers} workers need as many {kind}, and there are {most}; use auto or {most}"
        )
    at_once = min(most // workers, remaining)
    gpus = workers if available.gpus else 0
    if workers > 1:  # the workers reserve cores for themselves; their driver only waits, and must not take one of them
        return Plan(workers, at_once, Resources(available.cpus // at_once, gpus, available.nodes), {"memory": 1})
    # A share larger than the smallest node would wait for ever; only a single node is known to have them all.
    cpus = max(1, available.cpus // at_once) if available.nodes == 1 else 1
    return Plan(1, at_once, Resources(cpus, gpus, 1), {"CPU": cpus} | ({"GPU": 1} if gpus else {}))


def run_on_ray_tune(setup: Setup, plan: Plan, bar: Progress) -> None:
    """Gives the trials to Ray Tune and waits for them.

    Raises:
        DiskError: there is no room; trials that have not ended keep their checkpoints.
    """
    from ray.tune import FailureConfig, PlacementGroupFactory, RunConfig, TuneConfig, Tuner, with_resources

    from tuning.observer import Observer, trial_name
    from tuning.search import NextTrial, scheduler
    from tuning.trials import run_here, run_on_ray_train

    ledger, tune, mode = setup.ledger, setup.tune, setup.mode
    name = f"{RAY_FOLDER}{uuid.uuid4().hex[:8]}"
    observer = Observer(ledger, tune.judge, mode, bar)
    tuner = Tuner(
        with_resources(run_here if plan.workers == 1 else run_on_ray_train, PlacementGroupFactory([plan.bundle])),
        tune_config=TuneConfig(
            num_samples=setup.remaining,
            max_concurrent_trials=plan.at_once,
            search_alg=NextTrial(
                ledger,
                setup.space,
                tune,
                mode,
                lambda trial: assignment(setup, plan, trial),
                own_params(setup.recipe, setup.space),
            ),
            scheduler=scheduler(tune, mode, setup.most_epochs, ledger.ended()),
            reuse_actors=plan.workers == 1,
            trial_name_creator=trial_name,
            trial_dirname_creator=trial_name,
        ),
        run_config=RunConfig(
            name=name,
            storage_path=str(ledger.folder),
            callbacks=[observer],
            stop=observer.trouble,
            failure_config=FailureConfig(max_failures=setup.recipe.train.max_failures),
            verbose=0,
        ),
    )
    try:
        with observer.trouble.raised(), plain_disk_errors(ledger.folder), ray_tune_settings():
            tuner.fit()
    finally:
        shutil.rmtree(ledger.folder / name, ignore_errors=True)


def assignment(setup: Setup, plan: Plan, trial: Trial) -> dict[str, Any]:
    """What the process of a trial is given."""
    from tuning.trials import Assignment

    own = apply(setup.recipe, trial.params)
    job = Job.of(own, setup.encoded[encoding_key(trial.params)], setup.ledger.place(trial.number))
    job = replace(job, options=job.options | {"workers": plan.workers}, threads=plan.share.cpus)
    share = asdict(plan.share)
    return Assignment(trial.number, job.as_config(), setup.tune.judge, trial.seconds, share).as_config()


@contextlib.contextmanager
def ray_tune_settings() -> Iterator[None]:
    """Ray Tune as we need it, and silent: what it would tell is in the ledger, and stdout is for results."""
    before = {name: os.environ.get(name) for name in RAY_TUNE_SETTINGS}
    loggers = [logging.getLogger(name) for name in ("ray.tune", "ray.air", "ray.train")]
    levels = [logger.level for logger in loggers]
    os.environ.update(RAY_TUNE_SETTINGS)
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
