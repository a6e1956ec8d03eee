"""What the observer makes of the events of trials where the ledger cannot be written, or Ray tells of a full disk."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.error import TuneError

from cluster.errors import DiskError
from cluster.progress import progress
from tuning.ledger import UNFINISHED, Ledger
from tuning.observer import Observer

TRIAL: Any = SimpleNamespace(
    config={"trial": 1}, get_error=lambda: RuntimeError("OSError: [Errno 28] No space left on device")
)
EPOCH = {
    "epoch": 1,
    "value": 0.5,
    "metrics": {"accuracy": 0.5},
    "loss": 1.0,
    "best": True,
    "last": True,
    "seconds": 1.0,
}
FAILED = {"error": "step 2: the loss is nan", "traceback": "step 2: the loss is nan"}


@pytest.mark.parametrize(
    "happens",
    [
        lambda observer: observer.on_trial_result(0, [], TRIAL, EPOCH),
        lambda observer: observer.on_trial_result(0, [], TRIAL, FAILED),
        lambda observer: observer.on_trial_complete(0, [], TRIAL),
    ],
    ids=["an epoch", "a failure", "an end"],
)
def test_a_ledger_that_cannot_be_written_ends_the_sweep_and_no_trial(
    tmp_path: Path, happens: Callable[[Observer], None]
) -> None:
    ledger = Ledger(tmp_path)
    trial = ledger.begin({})
    written = (ledger.place(1) / "trial.json").read_text(encoding="utf-8")
    ledger.place(1).rename(tmp_path / "aside")
    ledger.place(1).write_text("in the way", encoding="utf-8")
    with progress("trials", total=1) as bar:
        observer = Observer(ledger, "accuracy", "max", bar)
        assert not observer.trouble.stop_all()
        happens(observer)
        assert observer.trouble.stop_all()
        ledger.place(1).unlink()
        (tmp_path / "aside").rename(ledger.place(1))  # there is room again, while Ray ends what runs
        observer.on_trial_complete(0, [trial], TRIAL)
        observer.on_trial_error(0, [trial], TRIAL)
    assert (ledger.place(1) / "trial.json").read_text(encoding="utf-8") == written
    with pytest.raises(DiskError, match=r"^could not write below .*trials/001: "), observer.trouble.raised():
        raise TuneError("what Ray makes of it")


def test_a_worker_that_is_lost_to_a_full_disk_ends_the_sweep_and_no_trial(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.begin({})
    with progress("trials", total=1) as bar:
        observer = Observer(ledger, "accuracy", "max", bar)
        observer.on_trial_error(0, [], TRIAL)
    assert Ledger(tmp_path).trials[1].status == UNFINISHED
    with pytest.raises(DiskError, match=f"the sweep stopped because {tmp_path} is full"), observer.trouble.raised():
        pass


def test_what_is_not_the_sweeps_own_trouble_is_raised_as_it_is(tmp_path: Path) -> None:
    with progress("trials", total=1) as bar:
        observer = Observer(Ledger(tmp_path), "accuracy", "max", bar)
    with pytest.raises(TuneError, match="a defect"), observer.trouble.raised():
        raise TuneError("a defect")
