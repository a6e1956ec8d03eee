"""What is known of every trial, in one small file each: all that a sweep remembers.

Ray's own snapshot of a sweep is written now and then, in place, and knows nothing of the scheduler: a driver that is
killed can lose what happened since, or all of it. These files are written at every event and appear whole, so that the
searcher, the scheduler and the table can be made from them again at any moment. Nothing in them can run code.

    trials/003/trial.json       what this module reads and writes
               metrics.jsonl    one line for each step
               ray/checkpoints/ where an unfinished trial continues
               error.txt        of a failed trial, the full text
"""

import math
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cluster.masking import redact
from cluster.storage import read_json, write_json, write_text

UNFINISHED, FINISHED, STOPPED, FAILED = "unfinished", "finished", "stopped", "failed"

Epoch = dict[str, Any]
"""What a trial reports at an epoch's end: ``epoch`` (from 1), ``value`` of the sweep's metric, all ``metrics`` on
validation, ``loss`` of the last step, whether these are the weights to keep so far (``best``), whether the trial ends
here (``last``), and ``seconds`` since the trial began."""


@dataclass
class Trial:
    """One combination and what came of it.

    Attributes:
        number: from 1.
        params: searched field: its value.
        status: ``unfinished``, ``finished``, ``stopped`` (by the scheduler, as too weak) or ``failed``.
        epochs: in order.
        seconds: of work, over all runs of the driver.
        error: of a failed trial, in one line.
    """

    number: int
    params: dict[str, Any]
    status: str = UNFINISHED
    epochs: list[Epoch] = field(default_factory=list)
    seconds: float = 0.0
    error: str | None = None

    @property
    def kept(self) -> Epoch | None:
        """The epoch whose weights training would keep: the best one with early stopping, else the last."""
        return next((epoch for epoch in reversed(self.epochs) if epoch["best"]), None)

    @property
    def value(self) -> float | None:
        """The sweep's metric at the epoch that is kept."""
        return self.kept["value"] if self.kept else None

    def as_row(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "trial": self.number,
            "status": self.status,
            "params": self.params,
            "metrics": self.kept["metrics"] if self.kept else {},
            "epochs": len(self.epochs),
            "seconds": round(self.seconds, 2),
            "error": self.error,
        }


class Ledger:
    """All trials of one sweep, in memory and on disk."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        files = sorted(folder.glob("trials/*/trial.json"))
        self.trials = {trial.number: trial for trial in (Trial(**read_json(file)) for file in files)}

    def place(self, number: int) -> Path:
        """The folder of a trial."""
        return self.folder / "trials" / f"{number:03d}"

    def unfinished(self) -> list[Trial]:
        """Trials that were begun and have no end."""
        return [trial for trial in self.trials.values() if trial.status == UNFINISHED]

    def ended(self) -> list[Trial]:
        """Trials that finished, were stopped or failed."""
        return [trial for trial in self.trials.values() if trial.status != UNFINISHED]

    def begin(self, params: dict[str, Any]) -> Trial:
        """A new trial with the next number."""
        trial = Trial(max(self.trials, default=0) + 1, params)
        self.trials[trial.number] = trial
        self._write(trial)
        return trial

    def report(self, number: int, epoch: Epoch) -> None:
        """Adds an epoch; one that is told again, by a trial that was continued, takes the place of the earlier."""
        trial = self.trials[number]
        others = [one for one in trial.epochs if one["epoch"] != epoch["epoch"]]
        trial.epochs = sorted([*others, epoch], key=lambda one: int(one["epoch"]))
        trial.seconds = max(trial.seconds, epoch["seconds"])
        self._write(trial)

    def end(self, number: int) -> Trial:
        """Closes a trial that did not fail: it ran to its end, or the scheduler stopped it."""
        trial = self.trials[number]
        if trial.status == UNFINISHED:
            trial.status = FINISHED if trial.epochs and trial.epochs[-1]["last"] else STOPPED
            self._write(trial)
            self._clear(trial)
        return trial

    def fail(self, number: int, error: str, text: str) -> Trial:
        """Closes a trial that failed; ``error`` in one line, ``text`` in full."""
        trial = self.trials[number]
        if trial.status == UNFINISHED:
            write_text(self.place(number) / "error.txt", redact(text))
            trial.status, trial.error = FAILED, redact(error)
            self._write(trial)
            self._clear(trial)
        return trial

    def tidy(self) -> None:
        """Removes what a driver that was killed at the wrong moment left of trials that have ended."""
        for trial in self.ended():
            self._clear(trial)

    def _write(self, trial: Trial) -> None:
        write_json(self.place(trial.number) / "trial.json", asdict(trial))

    def _clear(self, trial: Trial) -> None:
        """Checkpoints are for trials that have not ended: three times the weights, for every trial, is too much."""
        for name in ("ray", "model", "outputs"):
            shutil.rmtree(self.place(trial.number) / name, ignore_errors=True)
        (self.place(trial.number) / "best.safetensors").unlink(missing_ok=True)


def better(trials: list[Trial], mode: str) -> list[Trial]:
    """Trials that have a value, the best first; of equals, the earlier. Those that ran to their end come first.

    A value that is not finite is none: it is neither less nor more than another.
    """
    sign = -1 if mode == "max" else 1
    valued = [(trial, trial.value) for trial in trials if trial.value is not None and trial.status != FAILED]
    ranked = [(trial.status != FINISHED, sign * value, trial.number) for trial, value in valued if math.isfinite(value)]
    known = {trial.number: trial for trial in trials}
    return [known[number] for _, _, number in sorted(ranked)]
