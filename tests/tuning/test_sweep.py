"""Real sweeps on a local Ray: a failing trial, weak ones, more trials later, and a driver that is killed."""

import json
import math
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from PIL import Image

from cluster.errors import DiskError, RunError, UserError
from cluster.session import Resources
from cluster.settings import read
from cluster.storage import read_json
from tests.tuning.conftest import answer_of
from training.encode import open_encoded
from training.inputs.text import Reader
from training.job import Job
from training.journal import parse
from training.models.base import resolve_base
from training.recipe import Recipe, Train
from training.targets import OneLabel
from training.tasks.text_classification import TextClassification
from tuning.ledger import Ledger, Trial
from tuning.preflight import judged
from tuning.recipe import Tune
from tuning.search import propose
from tuning.space import Space, apply, own_params
from tuning.sweep import Sweep, plan_for, sweep
from tuning.trials import Assignment, _epoch, epochs

WriteRecipe = Callable[..., Path]
StartSweep = Callable[[Path], subprocess.Popen[str]]
WaitUntil = Callable[..., None]


class Full(Recipe):
    """A recipe with its sweep, as the command line reads it."""

    tune: Tune


def run(path: Path) -> Sweep:
    document = read(path)
    recipe = document.validate(Full)
    return sweep(recipe, recipe.tune, document.public)


def test_a_sweep_with_a_failing_trial(write_recipe: WriteRecipe, home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    search = {"train.learning_rate": {"choice": [1.0e-2, 1.0e30, 1.0e-5]}}
    train = {"epochs": 3, "batch_size": 16}
    path = write_recipe(train=train, tune={"trials": 3, "search": search, "metric": "macro_f1"})
    done = run(path)
    rows = {row["params"]["train.learning_rate"]: row for row in done.trials}
    assert [row["trial"] for row in done.trials] == [1, 2, 3]
    assert rows[1e-2]["status"] == "finished"
    assert rows[1e-2]["metrics"]["macro_f1"] > 0.4
    assert rows[1e30]["status"] == "failed"
    assert rows[1e30]["error"].startswith("step ")
    assert "learning rate" in rows[1e30]["error"]
    error_file = Ledger(done.folder).place(rows[1e30]["trial"]) / "error.txt"
    assert rows[1e30]["error"] in error_file.read_text(encoding="utf-8")
    assert rows[1e-5]["status"] in ("finished", "stopped")
    assert done.best == {"train.learning_rate": 1e-2}
    assert done.overrides == ["train.learning_rate=0.01"]
    assert yaml.safe_load((done.folder / "best.yaml").read_text(encoding="utf-8")) == {"train": {"learning_rate": 0.01}}
    with Image.open(done.picture) as picture:
        assert picture.size[0] > 1000
    assert read_json(done.folder / "trials.json") == json.loads(json.dumps(done.trials))
    names = {item.name for item in done.folder.iterdir()}
    assert names == {"sweep.json", "trials", "trials.json", "best.yaml", "sweep.png"}
    assert not list(done.folder.glob("trials/*/ray"))  # checkpoints are for trials that have not ended
    assert capfd.readouterr().out == ""
    assert "failed" in done.text()

    files = {file: file.stat().st_mtime_ns for file in done.folder.glob("trials/*/*")}
    assert run(path).trials == done.trials  # a finished sweep is found done
    assert {file: file.stat().st_mtime_ns for file in done.folder.glob("trials/*/*")} == files


def test_a_metric_that_is_no_number_fails_its_trial() -> None:
    record = {"step": 4, "epoch": 1, "loss": 0.1, "best": True, "last": True, "validation/loss": math.nan}
    with pytest.raises(RunError, match=r"^epoch 2: loss on validation is nan, which compares with nothing; lower "):
        _epoch(record, "loss", 1.0)


def test_where_all_trials_fail_the_sweep_does(write_recipe: WriteRecipe, home: Path) -> None:
    search = {"train.learning_rate": {"choice": [1.0e30, 1.0e31]}}
    path = write_recipe(train={"epochs": 1, "batch_size": 16}, tune={"search": search})
    with pytest.raises(RunError, match=r"^all 2 trials failed, trial 1 with: step \d+: the loss is .*error\.txt"):
        run(path)


def test_a_disk_that_cannot_be_written_ends_the_sweep_and_no_trial(write_recipe: WriteRecipe, home: Path) -> None:
    """What is in the way stands for a full disk: first of the driver, which writes the ledger, then of a trial."""
    train = {"epochs": 2, "batch_size": 16, "checkpoint_every": 3}
    search = {"train.learning_rate": {"log_uniform": [1.0e-3, 1.0e-2]}}
    tune = {"search": search, "scheduler": "none"}
    first = run(write_recipe(train=train, tune={"trials": 1, **tune}))
    path = write_recipe(train=train, tune={"trials": 2, **tune})
    place = Ledger(first.folder).place(2)

    place.write_text("in the way", encoding="utf-8")
    with pytest.raises(DiskError, match=f"^could not write below {place}: .*; free some space"):
        run(path)
    place.unlink()
    assert list(Ledger(first.folder).trials) == [1]

    place.mkdir()
    (place / "ray").write_text("in the way", encoding="utf-8")
    with pytest.raises(DiskError, match=f"^could not write below {place}/ray/checkpoints/step-.*; free some space"):
        run(path)
    assert [trial.number for trial in Ledger(first.folder).unfinished()] == [2]

    (place / "ray").unlink()
    done = run(path)
    assert done.trials[0] == first.trials[0]
    assert [(row["status"], row["epochs"], row["error"]) for row in done.trials] == [("finished", 2, None)] * 2


def test_a_killed_sweep_goes_on(
    write_recipe: WriteRecipe, start_sweep: StartSweep, home: Path, tmp_path: Path, wait_until: WaitUntil
) -> None:
    search = {"train.learning_rate": {"log_uniform": [1.0e-4, 1.0e-2]}}
    tune = {"trials": 4, "search": search, "scheduler": "none", "algorithm": "random"}
    path = write_recipe(train={"epochs": 8, "batch_size": 4}, tune=tune)
    recipe = read(path).validate(Full)

    def ledger() -> Ledger:
        return Ledger(next(home.glob("sweeps/*/sweep.json")).parent)

    def half_way() -> bool:
        if not list(home.glob("sweeps/*/sweep.json")):
            return False
        known = ledger()
        going = [trial for trial in known.unfinished() if 1 < len(trial.epochs) < 7]
        return bool(known.ended()) and bool(going)

    def caught() -> bool:
        """The driver alone writes the ledger: while it is stopped, what is seen is what the kill leaves."""
        if not half_way():
            return False
        driver.send_signal(signal.SIGSTOP)
        wait_until(lambda: psutil.Process(driver.pid).status() == psutil.STATUS_STOPPED)
        if half_way():
            return True
        driver.send_signal(signal.SIGCONT)
        return False

    driver = start_sweep(path)
    wait_until(lambda: driver.poll() is not None or caught(), seconds=300)
    driver.kill()
    driver.wait()
    before = ledger()
    kept = {trial.number: trial for trial in before.ended()}
    interrupted = {trial.number for trial in before.unfinished() if trial.epochs}
    assert 1 <= len(kept) < 4
    assert interrupted

    answer = answer_of(start_sweep(path))
    after = ledger()
    assert [row["trial"] for row in answer["trials"]] == [1, 2, 3, 4]
    assert {row["status"] for row in answer["trials"]} == {"finished"}
    assert {number: after.trials[number] for number in kept} == kept  # not touched, to the last digit
    for number in interrupted:
        assert after.trials[number].params == before.trials[number].params
        assert len(after.trials[number].epochs) == 8
        first_steps = [step for step in steps_of(after, number) if step == 1]
        assert len(first_steps) == 1, "it started over instead of going on"

        undisturbed = list(epochs(assignment_of(after.trials[number], recipe, home, tmp_path / "undisturbed")))
        assert [one["loss"] for one in after.trials[number].epochs] == pytest.approx(
            [one["loss"] for one in undisturbed], abs=1e-4
        )
    space, known = Space.of(recipe.tune), list(after.trials.values())
    own = own_params(recipe, space)
    assert own == {"train.learning_rate": recipe.train.learning_rate}
    proposed = [propose(space, known[:number], recipe.tune, "max", own) for number in range(4)]
    assert [row["params"] for row in answer["trials"]] == proposed


def assignment_of(trial: Trial, recipe: Full, home: Path, folder: Path) -> Assignment:
    """The trial as one worker of one thread would be given it, in a folder of its own."""
    (encoded,) = home.glob("encoded/*/task.json")
    own = apply(recipe, trial.params)
    assert isinstance(own.model.base, str)
    base = resolve_base(own.model.base, own.folder)
    job = Job.of(own, open_encoded(encoded.parent, base), folder / str(trial.number))
    return Assignment(trial.number, job.as_config(), "accuracy", 0.0, {})


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk takes root")
@pytest.mark.parametrize("workers", [1, 2])
def test_a_disk_that_fills_during_a_sweep(
    write_recipe: WriteRecipe, start_sweep: StartSweep, home: Path, tmp_path: Path, wait_until: WaitUntil, workers: int
) -> None:
    """Whoever finds it full first, a trial, the driver or Ray itself, no trial is taken for one that failed."""
    home.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(home)], check=False)
    if mounted.returncode:
        pytest.skip("this machine does not let its root mount a disk")
    try:
        search = {"train.learning_rate": {"log_uniform": [1.0e-4, 1.0e-2]}}
        tune = {"trials": 3, "search": search, "scheduler": "none", "algorithm": "random"}
        train = {"epochs": 8, "batch_size": 4, "checkpoint_every": 20, "workers": workers}
        path = write_recipe(train=train, tune=tune)
        driver = start_sweep(path)
        wait_until(
            lambda: driver.poll() is not None or list(home.glob("sweeps/*/trials/*/ray/checkpoints/step-*")), 300
        )
        (home / "filler").write_bytes(b"\0" * psutil.disk_usage(str(home)).free)
        driver.communicate(timeout=300)
        told = (tmp_path / "stderr-0.txt").read_text(encoding="utf-8")
        assert driver.returncode == 1
        assert told.strip().splitlines()[-1].startswith("cluster.errors.DiskError: "), told
        assert str(home) in told.strip().splitlines()[-1]
        (home / "filler").unlink()
        (ledger,) = [Ledger(file.parent) for file in home.glob("sweeps/*/sweep.json")]
        assert {trial.status for trial in ledger.trials.values()} <= {"unfinished", "finished"}
        answer = answer_of(start_sweep(path))
        assert [(row["status"], row["epochs"]) for row in answer["trials"]] == [("finished", 8)] * 3
    finally:
        subprocess.run(["umount", "--lazy", str(home)], check=True)


def steps_of(ledger: Ledger, number: int) -> list[int]:
    lines = (ledger.place(number) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [record["step"] for record in map(parse, lines) if record]


def test_trials_of_two_workers_and_more_of_them_later(write_recipe: WriteRecipe, home: Path) -> None:
    search = {"train.learning_rate": {"log_uniform": [1.0e-3, 1.0e-2]}}
    train = {"epochs": 2, "batch_size": 16, "workers": 2}
    first = run(write_recipe(train=train, tune={"trials": 1, "search": search}))
    assert [(row["trial"], row["status"], row["epochs"]) for row in first.trials] == [(1, "finished", 2)]
    one_worker = {"epochs": 2, "batch_size": 16, "workers": 1}  # not what is learned: the same sweep
    second = run(write_recipe(train=one_worker, tune={"trials": 2, "search": search}))
    assert second.folder == first.folder
    assert second.trials[0] == first.trials[0]
    assert [row["trial"] for row in second.trials] == [1, 2]


def recipe_of(**train: Any) -> Recipe:
    tree = {
        "name": "x",
        "data": {"sources": {"t": {"read": "t.csv"}}},
        "model": {"task": "text-classification", "base": "b", "inputs": {"text": "text"}, "target": "y"},
        "train": Train(**train),
    }
    return Recipe.model_validate(tree)


@pytest.mark.parametrize(
    ("workers", "available", "remaining", "at_once", "bundle", "share"),
    [
        ("auto", Resources(8, 0, 1), 20, 8, {"CPU": 1}, Resources(1, 0, 1)),
        ("auto", Resources(8, 0, 1), 2, 2, {"CPU": 4}, Resources(4, 0, 1)),
        ("auto", Resources(16, 4, 1), 20, 4, {"CPU": 4, "GPU": 1}, Resources(4, 1, 1)),
        ("auto", Resources(32, 0, 4), 2, 2, {"CPU": 1}, Resources(1, 0, 1)),
        (2, Resources(16, 4, 2), 20, 2, {"memory": 1}, Resources(8, 2, 2)),
        (2, Resources(2, 0, 1), 20, 1, {"memory": 1}, Resources(2, 0, 1)),
    ],
)
def test_trials_share_what_there_is(
    workers: Any, available: Resources, remaining: int, at_once: int, bundle: dict[str, int], share: Resources
) -> None:
    plan = plan_for(recipe_of(workers=workers), available, remaining)
    assert (plan.at_once, plan.bundle, plan.share) == (at_once, bundle, share)


def test_more_workers_than_there_are() -> None:
    with pytest.raises(
        UserError, match=r"^train\.workers: 4 workers need as many cores, and there are 2; use auto or 2$"
    ):
        plan_for(recipe_of(workers=4), Resources(2, 0, 1), 8)


def test_the_metric_is_the_tasks_headline_or_one_that_it_has(tiny_base: Path) -> None:
    task = TextClassification(Reader.learn(["text"], tiny_base), OneLabel("topic", ["a", "b"]))
    search = {"train.warmup": {"uniform": [0, 0.1]}}
    with pytest.raises(UserError, match=r"^tune\.metric: text-classification has no 'f1'; it has .*macro_f1"):
        judged(Tune.model_validate({"metric": "f1", "search": search}), task)
    assert judged(Tune.model_validate({"metric": "loss", "search": search}), task).judge == "loss"
    assert judged(Tune.model_validate({"search": search}), task).judge == "accuracy"
