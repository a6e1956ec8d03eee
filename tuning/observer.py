"""What Ray Tune tells the driver, written to the ledger and shown."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ray.tune import Callback, Stopper
from ray.tune.experiment import Trial as RayTrial

from cluster.errors import DiskError, HeadraceError
from cluster.progress import Progress, say
from cluster.storage import full
from tuning.ledger import FAILED, Ledger, Trial, better

EPOCH = ("epoch", "value", "metrics", "loss", "best", "last", "seconds")


class Trouble(Stopper):  # type: ignore[misc]  # Ray's class has no types
    """What ends a sweep early: an error that is no trial's, after which the same command goes on where it was.

    Ray would take what is raised to it for the fault of a trial, or bury it in an error of its own.
    """

    def __init__(self) -> None:
        self.error: HeadraceError | None = None

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """No trial is stopped alone."""
        return False

    def stop_all(self) -> bool:
        """Ray asks at every step; trials that run are ended and keep their checkpoints."""
        return self.error is not None

    @contextmanager
    def raised(self) -> Iterator[None]:
        """Raises the error at the end of the block, in the place of what Ray makes of it."""
        try:
            yield
        except Exception:
            if self.error is None:
                raise
        if self.error is not None:
            raise self.error

    def __getstate__(self) -> dict[str, Any]:
        return {}  # as of the observer


def noted(hook: Callable[..., None]) -> Callable[..., None]:
    """Has an observer's hook keep what it raises, and be quiet after that: trials are then told of as they are ended,
    which is no end of theirs."""

    @functools.wraps(hook)
    def quiet(self: "Observer", *given: Any, **named: Any) -> None:
        if self.trouble.error is None:
            try:
                hook(self, *given, **named)
            except HeadraceError as error:
                self.trouble.error = error

    return quiet


class Observer(Callback):  # type: ignore[misc]  # Ray's class has no types
    """Keeps the ledger up to date with every report and every end of a trial.

    Attributes:
        trouble: what has gone wrong, for which the sweep is to end and the trials that run are not.
    """

    def __init__(self, ledger: Ledger, metric: str, mode: str, bar: Progress) -> None:
        self._ledger, self._metric, self._direction, self._bar = ledger, metric, mode, bar
        self.trouble = Trouble()

    @noted
    def on_trial_result(
        self, iteration: int, trials: list[RayTrial], trial: RayTrial, result: dict[str, Any], **info: Any
    ) -> None:
        """An epoch's end, or the failure that the trial told of."""
        if "stopped" in result:
            raise DiskError(result["stopped"])
        if "error" in result:
            self._ended(self._ledger.fail(_number(trial), result["error"], result["traceback"]))
        elif "epoch" in result:
            self._ledger.report(_number(trial), {key: result[key] for key in EPOCH})

    @noted
    def on_trial_complete(self, iteration: int, trials: list[RayTrial], trial: RayTrial, **info: Any) -> None:
        """The trial ran to its end or was stopped by the scheduler."""
        if self._ledger.trials[_number(trial)].status != FAILED:
            self._ended(self._ledger.end(_number(trial)))

    @noted
    def on_trial_recover(self, iteration: int, trials: list[RayTrial], trial: RayTrial, **info: Any) -> None:
        """The trial's worker was lost, and Ray starts another."""
        say(f"trial {_number(trial)} lost its worker and continues in another")

    @noted
    def on_trial_error(self, iteration: int, trials: list[RayTrial], trial: RayTrial, **info: Any) -> None:
        """The trial's worker was lost too often."""
        error = trial.get_error()
        if full(str(error)):
            place = self._ledger.folder
            raise DiskError(f"the sweep stopped because {place} is full; free some space and run the command again")
        last = (str(error).strip().splitlines() or ["it does not say why"])[0]
        self._ended(self._ledger.fail(_number(trial), f"its worker was lost: {last}", str(error)))

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Ray pickles its callbacks for its own restore, which is not what a sweep continues by

    def _ended(self, trial: Trial) -> None:
        say(f"trial {trial.number} {trial.status}{self._outcome(trial)}")
        best = better(list(self._ledger.trials.values()), self._direction)
        known: dict[str, Any] = {f"best_{self._metric}": best[0].value} if best else {}
        self._bar.update(done=len(self._ledger.ended()), **known)

    def _outcome(self, trial: Trial) -> str:
        if trial.status == FAILED:
            return f": {trial.error}"
        params = " ".join(f"{name}={value}" for name, value in trial.params.items())
        value = "" if trial.value is None else f" with {self._metric} {trial.value:.4f}"
        epochs = f" after {len(trial.epochs)} epoch{'s' * (len(trial.epochs) != 1)}"
        return f"{epochs}{value} in {trial.seconds:.1f} s: {params}"


def trial_name(trial: RayTrial) -> str:
    """What Ray calls a trial, and its folder."""
    return f"trial-{_number(trial):03d}"


def _number(trial: RayTrial) -> int:
    number: int = trial.config["trial"]
    return number
