"""What is proposed next, and what ASHA remembers: functions of the ledger and nothing else."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tuning.ledger import Ledger, Trial, better
from tuning.recipe import Tune
from tuning.search import propose, scheduler
from tuning.space import Space

SEARCH = {"train.learning_rate": {"log_uniform": [1e-5, 1e-1]}, "model.adapt": {"choice": ["full", "head"]}}


def tune_of(**fields: Any) -> Tune:
    return Tune.model_validate({"search": SEARCH, **fields})


def epoch(number: int, value: float, last: bool = False, best: bool = True) -> dict[str, Any]:
    metrics = {"accuracy": value}
    return {
        "epoch": number,
        "value": value,
        "metrics": metrics,
        "loss": 1,
        "best": best,
        "last": last,
        "seconds": number,
    }


def run(ledger: Ledger, tune: Tune, trials: int) -> list[dict[str, Any]]:
    """Proposes and ends trials, each as good as its learning rate is near to 1e-3."""
    space = Space.of(tune)
    while len(ledger.trials) < trials:
        trial = ledger.begin(propose(space, list(ledger.trials.values()), tune, "max"))
        rate = trial.params["train.learning_rate"]
        ledger.report(trial.number, epoch(1, 1 - abs(rate - 1e-3), last=True))
        ledger.end(trial.number)
    return [trial.params for trial in ledger.trials.values()]


@pytest.mark.parametrize("algorithm", ["optuna", "random"])
def test_a_searcher_that_was_killed_proposes_what_it_would_have(tmp_path: Path, algorithm: str) -> None:
    tune = tune_of(algorithm=algorithm, trials=12)
    undisturbed = run(Ledger(tmp_path / "a"), tune, 12)
    run(Ledger(tmp_path / "b"), tune, 5)
    continued = run(Ledger(tmp_path / "b"), tune, 12)  # a new ledger: all that was known is read from files
    assert continued == undisturbed
    assert len({str(params) for params in undisturbed}) == 12  # a seed for the whole sweep would repeat the first ones


@pytest.mark.parametrize("algorithm", ["optuna", "random"])
def test_the_recipes_own_values_are_tried_first_and_once(algorithm: str) -> None:
    tune = tune_of(algorithm=algorithm)
    space, own = Space.of(tune), {"train.learning_rate": 2e-4, "model.adapt": "full"}
    trials = [Trial(1, propose(space, [], tune, "max", own), "finished", [epoch(1, 0.5, last=True)])]
    assert trials[0].params == own
    assert propose(space, trials, tune, "max", own) == propose(space, trials, tune, "max")
    earlier = [Trial(1, {"train.learning_rate": 1e-3, "model.adapt": "head"}, "finished", [epoch(1, 0.5, last=True)])]
    assert propose(space, earlier, tune, "max", own) == own  # a sweep that was begun without it


def test_what_is_no_number_is_worse_than_every_number() -> None:
    nan = float("nan")
    trials = [
        Trial(n, {}, "finished", [epoch(1, value, last=True)]) for n, value in enumerate([1.0, nan, 0.5, nan, 0.1])
    ]
    assert [trial.value for trial in better(trials, "min")] == [0.1, 0.5, 1.0]
    assert [trial.value for trial in better(trials, "max")] == [1.0, 0.5, 0.1]
    tune = tune_of()
    params = {"train.learning_rate": 1e-3, "model.adapt": "full"}
    known = [Trial(n, params, "finished", [epoch(1, value, last=True)]) for n, value in enumerate([nan, 0.5])]
    assert propose(Space.of(tune), known, tune, "max").keys() == params.keys()
    assert scheduler(tune, "max", 2, known)


def test_another_seed_proposes_something_else(tmp_path: Path) -> None:
    first, other = (run(Ledger(tmp_path / str(seed)), tune_of(seed=seed), 1) for seed in (1, 2))
    assert first != other


def test_optuna_learns_from_the_ledger(tmp_path: Path) -> None:
    params = run(Ledger(tmp_path), tune_of(trials=40), 40)
    late = [one["train.learning_rate"] for one in params[-10:]]
    assert sum(rate < 1e-2 for rate in late) >= 8  # the weak end, a quarter of the range, is left alone


def test_a_grid_tries_each_combination_once(tmp_path: Path) -> None:
    search = {"train.epochs": {"int_uniform": [1, 3]}, "model.adapt": {"choice": ["full", "head"]}}
    for algorithm in ("grid", "optuna"):  # so few are tried whole, whatever the algorithm
        tune = Tune.model_validate({"search": search, "algorithm": algorithm, "trials": 12})
        space = Space.of(tune)
        assert space.trials(tune.trials) == 6
        trials: list[Trial] = []
        for number in range(1, 7):
            trials.append(Trial(number, propose(space, trials, tune, "max")))
        assert [trial.params for trial in trials] == list(space.grid())


def test_no_combination_is_tried_twice_while_others_are_left(tmp_path: Path) -> None:
    search = {"train.epochs": {"int_uniform": [1, 4]}, "model.adapt": {"choice": ["full", "head"]}}
    space = Space.of(Tune.model_validate({"search": search}))
    trials: list[Trial] = []
    for number in range(1, 9):  # five trials at first; then the sweep is let grow to all eight combinations
        tune = Tune.model_validate({"search": search, "algorithm": "random", "trials": 5 if number <= 5 else 8})
        trials.append(Trial(number, propose(space, trials, tune, "max")))
    assert len({str(trial.params) for trial in trials}) == 8


def test_what_is_proposed_has_few_digits_and_stays_inside(tmp_path: Path) -> None:
    for params in run(Ledger(tmp_path), tune_of(algorithm="random"), 20):
        rate = params["train.learning_rate"]
        assert float(f"{rate:.4g}") == rate
        assert 1e-5 <= rate <= 1e-1


def test_asha_stops_by_what_ended_before_the_driver_was_killed() -> None:
    ended = [Trial(number, {}, "finished", [epoch(1, 0.9), epoch(2, 0.95, last=True)]) for number in range(1, 4)]
    nobody: Any = None
    for value, decision in ((0.5, "STOP"), (0.93, "CONTINUE")):
        asha = scheduler(tune_of(), "max", 2, ended)
        newcomer: Any = SimpleNamespace(trial_id="new")
        asha.on_trial_add(nobody, newcomer)
        assert asha.on_trial_result(nobody, newcomer, {"epoch": 1, "value": value}) == decision
    fresh = scheduler(tune_of(), "max", 2, [])
    fresh.on_trial_add(nobody, newcomer)
    assert fresh.on_trial_result(nobody, newcomer, {"epoch": 1, "value": 0.5}) == "CONTINUE"


def test_the_ledger_is_what_its_files_say(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    for _ in range(4):
        ledger.begin({"train.learning_rate": 1e-3})
    checkpoint = ledger.place(1) / "ray" / "checkpoints"
    checkpoint.mkdir(parents=True)
    ledger.report(1, epoch(1, 0.5))
    ledger.report(1, epoch(2, 0.7, last=True))
    ledger.end(1)
    ledger.report(2, epoch(1, 0.6))
    ledger.end(2)
    ledger.fail(3, "RunError: no", "all of it")
    ledger.report(4, epoch(1, 0.3))
    ledger.report(4, epoch(1, 0.4))  # told again by a trial that was continued
    again = Ledger(tmp_path)
    assert again.trials == ledger.trials
    assert [trial.status for trial in again.trials.values()] == ["finished", "stopped", "failed", "unfinished"]
    assert [trial.number for trial in again.unfinished()] == [4]
    assert [one["value"] for one in again.trials[4].epochs] == [0.4]
    assert (again.place(3) / "error.txt").read_text(encoding="utf-8") == "all of it"
    assert not checkpoint.exists()


def test_a_trial_counts_as_the_epoch_whose_weights_are_kept() -> None:
    stopped_early = Trial(1, {}, "finished", [epoch(1, 0.8), epoch(2, 0.6, best=False), epoch(3, 0.7, True, False)])
    to_the_end = Trial(2, {}, "finished", [epoch(1, 0.9), epoch(2, 0.75, last=True)])
    weak = Trial(3, {}, "stopped", [epoch(1, 0.99)])
    failed = Trial(4, {}, "failed", [epoch(1, 0.99)], error="no")
    assert (stopped_early.value, to_the_end.value) == (0.8, 0.75)
    ranked = better([failed, weak, to_the_end, stopped_early], "max")
    assert [trial.number for trial in ranked] == [1, 2, 3]
    assert [trial.number for trial in better([stopped_early, to_the_end], "min")] == [2, 1]
