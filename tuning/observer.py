"""What Ray Tune tells the driver, written to the ledger and shown."""

from typing import Any

from ray.tune import Callback
from ray.tune.experiment import Trial as RayTrial

from cluster.progress import Progress, say
from tuning.ledger import FAILED, Ledger, Trial, better

EPOCH = ("epoch", "value", "metrics", "loss", "best", "last", "seconds")


class Observer(Callback):  # type: ignore[misc]  # Ray's class has no types
    """Keeps the ledger up to date with every report and every end of a trial."""

    def __init__(self, ledger: Ledger, metric: str, mode: str, bar: Progress) -> None:
        self._ledger, self._metric, self._direction, self._bar = ledger, metric, mode, bar

    def on_trial_result(
        self, iteration: int, trials: list[RayTrial], trial: RayTrial, result: dict[str, Any], **info: Any
    ) -> None:
        """An epoch's end, or the failure that the trial told of."""
        if "error" in result:
            self._ended(self._ledger.fail(_number(trial), result["error"], result["traceback"]))
        elif "epoch" in result:
            self._ledger.report(_number(trial), {key: result[key] for key in EPOCH})

    def on_trial_complete(self, iteration: int, trials: list[RayTrial], trial: RayTrial, **info: Any) -> None:
        """The trial ran to its end or was stopped by the scheduler."""
        if self._ledger.trials[_number(trial)].status != FAILED:
            self._ended(self._ledger.end(_number(trial)))

    def on_trial_recover(self, iteration: int, trials: list[RayTrial], trial: RayTrial, **info: Any) -> None:
        """The trial's worker was lost, and Ray starts another."""
        say(f"trial {_number(trial)} lost its worker and continues in another")

    def on_trial_error(self, iteration: int, trials: list[RayTrial], trial: RayTrial, **info: Any) -> None:
        """The trial's worker was lost too often."""
        error = trial.get_error()
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
