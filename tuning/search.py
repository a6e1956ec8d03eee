"""Which combination comes next, and which trial is too weak to go on: Optuna and ASHA over the ledger.

Both are made anew from the ledger whenever they are needed. So a driver that was killed goes on exactly where it was:
what is proposed as trial 5 depends on trials 1 to 4, the seed and the number 5, and on nothing that a process forgets.
"""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from tuning.ledger import FAILED, FINISHED, STOPPED, UNFINISHED, Epoch, Ledger, Trial
from tuning.recipe import Tune
from tuning.space import Dimension, Space

STATES = {
    UNFINISHED: TrialState.RUNNING,
    FINISHED: TrialState.COMPLETE,
    STOPPED: TrialState.PRUNED,
    FAILED: TrialState.FAIL,
}

HALVING = 2
"""ASHA keeps this fraction's inverse at each rung; rungs at 1, 2, 4, 8, … epochs. Ray's default of 4 would stop three
of four trials after their first epoch, on a handful of trials by luck more than by merit."""


ATTEMPTS = 20
"""How often a combination that was tried already is drawn again before it is tried twice."""


def propose(
    space: Space, trials: Sequence[Trial], tune: Tune, mode: str, own: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The combination of the next trial, given what is known of the earlier ones; a new one where there is one.

    Args:
        own: what the recipe itself has, which is tried before anything is drawn.
    """
    tried = [trial.params for trial in trials]
    combinations = space.combinations()
    if combinations is not None and combinations <= tune.trials:  # few enough for each, whatever the algorithm
        return next(params for params in space.grid() if params not in tried)
    if own is not None and own not in tried:
        return dict(own)
    params: dict[str, Any] = {}
    for attempt in range(ATTEMPTS):
        params = _ask(space, trials, tune, mode, attempt)
        if params not in tried:
            break
    return params


class NextTrial(Searcher):  # type: ignore[misc]  # Ray's class has no types
    """Gives Ray Tune the trials that were interrupted, then new ones, until the sweep is complete."""

    def __init__(
        self,
        ledger: Ledger,
        space: Space,
        tune: Tune,
        mode: str,
        assign: Callable[[Trial], Any],
        own: Mapping[str, Any] | None = None,
    ) -> None:
        """``assign`` turns a trial into what the worker is given; ``own`` is as of :func:`propose`."""
        super().__init__(metric="value", mode=mode)
        self._ledger, self._space, self._tune, self._direction, self._assign = ledger, space, tune, mode, assign
        self._own = own
        self._continued = ledger.unfinished()

    def suggest(self, trial_id: str) -> Any:
        """The next trial's assignment, or that there is none."""
        if self._continued:
            return self._assign(self._continued.pop(0))
        known = [self._ledger.trials[number] for number in sorted(self._ledger.trials)]
        if len(known) >= self._space.trials(self._tune.trials):
            return Searcher.FINISHED
        return self._assign(self._ledger.begin(propose(self._space, known, self._tune, self._direction, self._own)))

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Nothing: the ledger knows."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the ledger is what is kept."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: the ledger is what is read."""

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Ray pickles a searcher for its own restore, which is not what a sweep continues by


def scheduler(tune: Tune, mode: str, most_epochs: int, ended: Sequence[Trial]) -> TrialScheduler:
    """What stops weak trials, having seen every epoch of the trials that have ended."""
    if tune.scheduler == "none":
        return FIFOScheduler()
    asha = ASHAScheduler(
        time_attr="epoch", metric="value", mode=mode, max_t=most_epochs, grace_period=1, reduction_factor=HALVING
    )
    for trial in ended:
        stand_in: Any = SimpleNamespace(trial_id=f"ended-{trial.number}")
        nobody: Any = None
        asha.on_trial_add(nobody, stand_in)
        for epoch in filter(_is_valued, trial.epochs):
            asha.on_trial_result(nobody, stand_in, {"epoch": epoch["epoch"], "value": epoch["value"]})
    return asha


def _ask(space: Space, trials: Sequence[Trial], tune: Tune, mode: str, attempt: int) -> dict[str, Any]:
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # it tells of each study that is made
    # A seed for each trial: one seed for the sweep would, after a restart, draw the first trials' values again.
    seed = int(np.random.SeedSequence([tune.seed, len(trials) + 1, attempt]).generate_state(1)[0])
    study = optuna.create_study(
        direction="maximize" if mode == "max" else "minimize", sampler=_sampler(tune, seed, len(space.dimensions))
    )
    distributions = {dimension.name: _distribution(dimension) for dimension in space.dimensions}
    for trial in trials:
        study.add_trial(_as_optuna(trial, space, distributions))
    asked = study.ask(distributions).params
    return {dimension.name: _value(dimension, asked[dimension.name]) for dimension in space.dimensions}


def _sampler(tune: Tune, seed: int, dimensions: int) -> optuna.samplers.BaseSampler:
    if tune.algorithm == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.TPESampler(
            seed=seed,
            n_startup_trials=min(10, max(2 * dimensions, tune.trials // 3)),  # of 12 trials, 10 would be drawn blindly
            constant_liar=True,  # trials that run side by side must not be sent to the same place
        )


def _distribution(dimension: Dimension) -> BaseDistribution:
    if dimension.kind == "choice":
        return CategoricalDistribution(range(len(dimension.values)))  # by position: a value may be a mapping
    if dimension.kind == "int_uniform":
        return IntDistribution(int(dimension.low), int(dimension.high))
    return FloatDistribution(dimension.low, dimension.high, log=dimension.kind == "log_uniform")


def _value(dimension: Dimension, asked: Any) -> Any:
    if dimension.kind == "choice":
        return dimension.values[asked]
    return asked if dimension.kind == "int_uniform" else dimension.rounded(asked)


def _as_optuna(trial: Trial, space: Space, distributions: dict[str, BaseDistribution]) -> optuna.trial.FrozenTrial:
    values = {epoch["epoch"]: epoch["value"] for epoch in filter(_is_valued, trial.epochs)}
    finished = trial.status == FINISHED and trial.kept is not None and _is_valued(trial.kept)
    return optuna.trial.create_trial(
        state=STATES[FAILED if trial.status == FINISHED and not finished else trial.status],
        value=trial.value if finished else None,
        params={dimension.name: _asked(dimension, trial.params[dimension.name]) for dimension in space.dimensions},
        distributions=distributions,
        intermediate_values=values,
    )


def _is_valued(epoch: Epoch) -> bool:
    return math.isfinite(epoch["value"])


def _asked(dimension: Dimension, value: Any) -> Any:
    return dimension.values.index(value) if dimension.kind == "choice" else value
