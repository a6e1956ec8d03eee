"""The models that one process answers for, and how a new version takes the place of an old one without a gap.

What should be served stands in a small JSON file, ``{name: {"version": 3, "bundle": "/…"}}``. Whoever decides writes
it; every replica reads it when it starts and follows it while it runs: a changed model is loaded beside the old one,
checked, warmed, and then becomes the one that new requests get. Requests in flight finish on the old one.
"""

import logging
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from cluster.errors import HeadraceError
from cluster.storage import read_json
from serving.metrics import Metrics
from serving.predictor import Predictor
from serving.recipe import Serve
from serving.scheduler import Batch, Limits, Scheduler
from serving.writer import Writer, WritingTask
from training.bundle import open_bundle

POLL_SECONDS = 0.5
LINGER_SECONDS = 5.0  # how long a replaced model still takes requests that were on their way to it

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Served:
    """One version of one model, warm."""

    name: str
    version: str
    wanted: dict[str, Any]
    predictor: Predictor
    scheduler: Scheduler | Writer

    def about(self) -> dict[str, Any]:
        """What ``GET /models/{name}`` tells."""
        info = self.predictor.bundle.info
        return {
            "name": self.name,
            "version": self.version,
            "task": info["task"],
            "description": info["recipe"].get("description", ""),
            "signature": info["signature"],
            "metrics": info["metrics"],
            "baselines": info["baselines"],
            "created": info["created"],
            "engine": {"name": self.predictor.engine.name, "measured": self.predictor.engine.table},
        }


class Lineup:
    """Follows one file of wanted models."""

    def __init__(self, wanted: Path, options: Serve, metrics: Metrics) -> None:
        """Loads every model of the file.

        Raises:
            HeadraceError: a bundle cannot be opened.
        """
        self._path, self._options, self._metrics = wanted, options, metrics
        self._stop = threading.Event()
        self._refused: dict[str, Any] = {}
        self._retired: list[tuple[float, Served]] = []
        self.models = {name: self._load(name, entry) for name, entry in read_json(wanted).items()}
        self._thread = threading.Thread(target=self._follow, name="lineup", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stops following; models finish what they have taken."""
        self._stop.set()
        self._thread.join()
        for served in [*self.models.values(), *(served for _, served in self._retired)]:
            served.scheduler.close()

    def _follow(self) -> None:
        while not self._stop.wait(POLL_SECONDS):
            try:
                self.refresh()
            except (OSError, ValueError) as error:
                logger.error("the list of wanted models cannot be read (%s); serving goes on", type(error).__name__)

    def refresh(self) -> None:
        """Takes over what the file says now. A version that cannot be opened leaves the present one in place."""
        wanted = read_json(self._path)
        for name, entry in wanted.items():
            served = self.models.get(name)
            if (served and served.wanted == entry) or self._refused.get(name) == entry:
                continue
            try:
                new = self._load(name, entry)
            except Exception as error:  # noqa: BLE001  whatever is wrong with the new version, the old one goes on
                self._refused[name] = entry
                self._metrics.swap(name, "failed")
                reason = str(error) if isinstance(error, HeadraceError) else type(error).__name__
                logger.error("%s stays as it is, version %s cannot be served: %s", name, entry["version"], reason)
                continue
            self._replace({**self.models, name: new}, served)
            self._metrics.swap(name, "done")
            logger.info("%s is served in version %s", name, new.version)
        for name in self.models.keys() - wanted.keys():
            self._replace({other: one for other, one in self.models.items() if other != name}, self.models[name])
        self._close_retired()

    def _replace(self, models: dict[str, Served], old: Served | None) -> None:
        self.models = models  # one assignment: a request sees the old line-up or the new one
        if old:
            self._retired.append((time.monotonic(), old))

    def _close_retired(self) -> None:
        for since, served in list(self._retired):
            if time.monotonic() - since > LINGER_SECONDS:
                served.scheduler.close()
                self._retired.remove((since, served))

    def _load(self, name: str, entry: dict[str, Any]) -> Served:
        predictor = Predictor(open_bundle(Path(entry["bundle"])), engine=self._options.engine)
        version = str(entry["version"] or "unregistered")
        self._metrics.engine(name, version, predictor.engine.name)
        return Served(name, version, entry, predictor, self._scheduler(name, version, predictor))

    def _scheduler(self, name: str, version: str, predictor: Predictor) -> Scheduler | Writer:
        waiting = self._options.max_queue

        def observe(batch: Batch) -> None:
            self._metrics.batch(name, version, batch)

        if predictor.task.writes_on:
            return Writer(cast(WritingTask, predictor.task), predictor.model, predictor.prepare, waiting, observe)
        limits = Limits(budget=predictor.budget, waiting=waiting)
        lanes, share = predictor.lanes, predictor.share
        return Scheduler(predictor.prepare, predictor.answer, limits, observe, lanes=lanes, share=share)
