"""The models that one process answers for, and how a new version takes the place of an old one without a gap.

What should be served stands in a small JSON file: for each name ``routes``, each with a ``version``, its ``bundle``,
its ``share`` and the version ``before`` it; a ``shadow``, with ``version`` and ``bundle``, or null; and what was
``taken_back``. Whoever decides writes it; every replica reads it when it starts and follows it while it runs: a version
that it lacks is loaded beside the others, checked, warmed, and then gets requests. Those in flight finish on the old.
One that cannot be loaded leaves in place what is there, or what was there before (``proven.py``); it is tried again
unless its bundle is at fault.
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from cluster.errors import HeadraceError, UserError
from cluster.storage import read_json
from serving.batching import Limits
from serving.families import Families, Family, Seat
from serving.memory import Memory
from serving.metrics import Metrics
from serving.model import Model, Route
from serving.outcomes import Batch
from serving.patience import Patience
from serving.predictor import Predictor
from serving.proven import Proven
from serving.recipe import Rollback, Serve
from serving.rollout import Finding, Record, judge, tell
from serving.scheduler import Scheduler
from serving.shadow import Shadow
from serving.shared_base import MisfitError
from serving.writer import Writer, WritingTask
from training.bundle import Bundle, open_bundle

POLL_SECONDS = 0.5
LINGER_SECONDS = 5.0  # how long a replaced model still takes requests that were on their way to it
TRIAL_SECONDS = 60.0  # how long it stays loaded, to be back at once, where the one that took over is on trial

Key = tuple[str, str, str]
"""A version that is loaded: the model's name, the version, the bundle's folder."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Served:
    """One version of one model, warm.

    Attributes:
        release: says that its weights are needed no more.
    """

    name: str
    version: str
    predictor: Predictor
    scheduler: Scheduler | Writer | Seat
    record: Record
    release: Callable[[], None]

    def about(self) -> dict[str, Any]:
        """What ``GET /models/{name}`` tells."""
        info = self.predictor.bundle.info
        return {
            "name": self.name,
            "version": self.version,
            "task": info["task"],
            "description": info["recipe"].get("description", ""),
            "signature": self.predictor.signature,
            "metrics": info["metrics"],
            "baselines": info["baselines"],
            "created": info["created"],
            "loaded": self.predictor.loaded,
            "shares_base_with": self.scheduler.neighbours() if isinstance(self.scheduler, Seat) else [],
            "engine": {"name": self.predictor.engine.name, "measured": self.predictor.engine.table},
        }


class Lineup:
    """Follows one file of wanted models."""

    def __init__(self, wanted: Path, options: Serve, metrics: Metrics) -> None:
        """Loads every model of the file, or what was served before of one that cannot be loaded.

        Raises:
            Exception: nothing of a model can be loaded.
        """
        self._path, self._options, self._metrics = wanted, options, metrics
        self._memory = Memory(options.memory)
        self._families = Families(self._together)
        self._stop = threading.Event()
        self._patience, self._proven = Patience(), Proven(wanted)
        self._loaded: dict[Key, Served] = {}
        self._unneeded: dict[Key, float] = {}
        self._started = False
        self.models = self._first(read_json(wanted))
        self._started = True
        self._thread = threading.Thread(target=self._follow, name="lineup", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stops following; models finish what they have taken."""
        self._stop.set()
        self._thread.join()
        for served in self._loaded.values():
            served.scheduler.close()

    def _follow(self) -> None:
        while not self._stop.wait(POLL_SECONDS):
            try:
                self.refresh()
            except (OSError, ValueError) as error:
                logger.error("the list of wanted models cannot be read (%s); serving goes on", type(error).__name__)
            try:
                self.judge()
            except (HeadraceError, OSError) as error:  # and the list is followed all the same
                logger.error("what was found of a version cannot be told: %s", _reason(error))

    def served(self) -> list[Served]:
        """Every version that answers or is compared."""
        return [served for model in self.models.values() for served in model.all()]

    def refresh(self) -> None:
        """Takes over what the file says now. A version that cannot be loaded leaves the present ones in place."""
        wanted = read_json(self._path)
        for name, entry in wanted.items():
            model = self.models.get(name)
            if model and model.wanted == entry and not self._patience.waits(name, entry):
                self._patience.forget(name)  # what else was wanted meanwhile is another matter when it is wanted again
                model.refused = None
            elif self._patience.due(name, entry):
                self._take_over(name, entry, model)
        self.models = {name: model for name, model in self.models.items() if name in wanted}
        self._close_unneeded()

    def _take_over(self, name: str, entry: dict[str, Any], model: Model | None) -> None:
        before = model.all() if model else []
        try:
            made = self._made(name, entry, model)
        except Exception as error:  # noqa: BLE001  whatever is wrong with the new version, the old one goes on
            refused = self._refuse(name, entry, error, "routes", "stays as it is")
            if model:
                model.refused = refused
            return
        self.models = {**self.models, name: made}  # one assignment: a request sees the old model or the new one
        if made.all() != before:
            self._metrics.swap(name, "done")
        if made is not model:
            logger.info("%s is served in %s", name, made, extra={"model": name, "version": made.leading.version})

    def judge(self) -> None:
        """Tells the driver of every version that does worse than it may.

        Raises:
            RunError: that cannot be written.
        """
        bounds = self._options.rollback
        if bounds is None:
            return
        for model in self.models.values():
            for served, reference in model.on_trial(bounds.least):
                over = judge(served.record.figures(), reference.figures() if reference else None, bounds)
                if over:
                    answers = min(served.record.seen, bounds.least)
                    if tell(self._path, Finding(served.name, served.version, *over, answers)):
                        self._metrics.rollback(served.name, served.version, over[0])

    # --- what is loaded -------------------------------------------------------------------------------------------

    def _first(self, wanted: dict[str, Any]) -> dict[str, Model]:
        """All models. What was never served comes last, so that memory which does not suffice is its fault."""
        proven = {name: self._proven.find(name) for name in wanted}
        made: dict[str, Model] = {}
        for name in sorted(wanted, key=lambda name: wanted[name] != proven[name]):
            entry, before = wanted[name], proven[name]
            try:
                made[name] = self._made(name, entry, None)
            except Exception as error:
                if before is None or before == entry:
                    raise
                made[name] = self._made(name, before, None)
                made[name].refused = self._refuse(name, entry, error, "routes", f"starts with {made[name]}")
        return {name: made[name] for name in wanted}

    def _made(self, name: str, entry: dict[str, Any], present: Model | None) -> Model:
        """A model as the file wants it; what is loaded, and what is known of it, is kept.

        Raises:
            Exception: a version cannot be served.
        """
        model = present
        if model is None or model.wanted != entry:
            model = Model(entry, [self._route(name, place, present) for place in entry["routes"]])
            self._proven.keep(name, entry)
        try:
            shadow = self._take(name, entry["shadow"]) if entry["shadow"] else None
        except Exception as error:  # noqa: BLE001  what is only compared keeps nobody from being served
            model.refused = self._refuse(name, entry, error, "shadow", "is not compared")
            return model
        if shadow:
            was = present.shadow if present and present.leading is model.leading else None
            model.shadow = was if was and was.served is shadow else Shadow(shadow, self._metrics)
        self._patience.forget(name)
        model.refused = None
        return model

    def _refuse(self, name: str, entry: dict[str, Any], error: Exception, what: str, so: str) -> dict[str, Any]:
        """Says, once, that what is wanted of a model cannot be had, and what becomes of it.

        A bundle that is at fault will be so tomorrow; a file system or memory that fails may do better in a while.

        Args:
            what: of the entry, what cannot be loaded.
        """
        for_good = isinstance(error, UserError)
        if self._patience.failed(name, entry, for_good=for_good):
            self._metrics.swap(name, "failed")
            then = "" if for_good else "; it is tried again until it succeeds"
            logger.error("%s %s: %s%s", name, so, _reason(error), then, extra={"model": name})
        places = entry["routes"] if what == "routes" else [entry["shadow"]]
        lacking = [_key(name, place) for place in places if _key(name, place) not in self._loaded]
        return {"versions": [version for _, version, _ in lacking], "again": not for_good}

    def _route(self, name: str, place: dict[str, Any], present: Model | None) -> Route:
        served, before = self._take(name, place), place["before"] and str(place["before"])
        for route in present.routes if present else ():
            if route.served is served and route.before == before:
                return Route(served, place["share"], before, route.reference)
        was = present.of_version(before) if present and before else None
        return Route(served, place["share"], before, was.record if was else None)

    def _take(self, name: str, place: dict[str, Any]) -> Served:
        """The version that is loaded, or loads it."""
        key = _key(name, place)
        if key not in self._loaded:
            self._loaded[key] = self._load(*key)
        elif self._unneeded.pop(key, None):
            self._loaded[key].record.reset()  # it was away, and is judged by what it does from here on
        return self._loaded[key]

    def _close_unneeded(self) -> None:
        now = time.monotonic()
        needed = set(self.served())
        trials = {(name, route.before) for name, model in self.models.items() for route in model.routes if route.before}
        for key, served in list(self._loaded.items()):
            if served in needed:
                continue
            since = self._unneeded.setdefault(key, now)
            if now - since > (TRIAL_SECONDS if key[:2] in trials else LINGER_SECONDS):
                served.scheduler.close()
                served.release()
                del self._loaded[key], self._unneeded[key]

    def _load(self, name: str, version: str, bundle: str) -> Served:
        """A version, warm; where there is no room for it, it sleeps at the start, and later others do instead."""
        opened, record = open_bundle(Path(bundle)), Record((self._options.rollback or Rollback()).least)
        seat = self._seat(name, version, opened, record)
        predictor = seat.predictor if seat else Predictor(opened, engine=self._options.engine)
        self._metrics.engine(name, version, predictor.engine.name)
        try:
            release = self._admit(name, version, seat.family if seat else predictor, predictor)
        except UserError:
            if seat:
                seat.close()
            raise
        try:
            scheduler = seat or self._alone(name, version, predictor, record)
        except BaseException:
            release()
            raise
        return Served(name, version, predictor, scheduler, record, release)

    def _seat(self, name: str, version: str, bundle: Bundle, record: Record) -> Seat | None:
        """The version among others on the same base; None where it is alone."""
        family = self._families.find(bundle, self._options.engine)
        if family is None:
            return None

        def observe(part: Batch, whole: Batch) -> None:
            self._metrics.batch(name, version, part)
            record.batch(whole)

        try:
            with self._memory.awake(family):
                return family.take(bundle, observe)
        except MisfitError as error:
            logger.warning("%s shares its base with no other model: %s", name, error, extra={"model": name})
            return None

    def _admit(self, name: str, version: str, sleeper: Predictor | Family, predictor: Predictor) -> Callable[[], None]:
        """Counts what the version takes of memory; returns what is to be called when it takes nothing any more."""
        size = predictor.bytes + (sleeper.base.bytes if isinstance(sleeper, Family) else 0)

        def observe(*, loaded: bool, again: bool) -> None:
            self._metrics.memory(name, version, size if loaded else -size)
            if again:
                self._metrics.wake(name, version)

        self._memory.admit(sleeper, observe, stays=predictor.task.writes_on, first=self._started)
        return lambda: self._memory.forget(sleeper, observe)

    def _alone(self, name: str, version: str, predictor: Predictor, record: Record) -> Scheduler | Writer:
        def observe(batch: Batch) -> None:
            self._metrics.batch(name, version, batch)
            record.batch(batch)

        if predictor.task.writes_on:
            task = cast(WritingTask, predictor.task)
            return Writer(task, predictor.model, predictor.prepare, self._limits(predictor), observe)
        return self._queue(predictor, predictor, observe)

    def _together(self, family: Family) -> Scheduler:
        return self._queue(family, family.seats[0].predictor, family.observe)

    def _queue(self, model: Predictor | Family, like: Predictor, observe: Callable[[Batch], None]) -> Scheduler:
        return Scheduler(
            model.prepare,
            model.answer,
            self._limits(like),
            observe,
            awake=lambda: self._memory.awake(model),
            lanes=like.lanes,
            share=like.share,
        )

    def _limits(self, like: Predictor) -> Limits:
        return Limits(budget=like.budget, waiting=self._options.max_queue, tokens=self._options.max_tokens)


def _key(name: str, place: dict[str, Any]) -> Key:
    return name, str(place["version"] or "unregistered"), place["bundle"]


def _reason(error: Exception) -> str:
    """Only our own errors are known to repeat no text."""
    return str(error) if isinstance(error, HeadraceError) else type(error).__name__
