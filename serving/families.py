"""Models that learned beside one base: they share it in memory, one queue, and the batches.

A family is what a single model is elsewhere: it has a scheduler, and its weights sleep and wake together. Each of its
models has a seat in it, which takes that model's requests to the common queue and counts what waits for it alone.
"""

import asyncio
import itertools
import logging
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from cluster.storage import fingerprint
from serving.engines.choice import REFERENCE
from serving.engines.engine import checked
from serving.outcomes import Answered, Backlog, Batch, ClosedError, Spend, free
from serving.predictor import Predictor, Question, blank_row
from serving.recipe import Wanted
from serving.scheduler import Scheduler
from serving.shared_base import SharedBase
from training.bundle import HELD_OUT, Bundle
from training.models import adapter
from training.models.adapt import read_adapt
from training.recipe import Lora
from training.tasks.task import Task, task_class

COMPARED = 4
"""Rows at which a model's answers in the family are compared with those that it gives alone."""

Value = tuple["Seat", Question, int]
"""What the scheduler of a family carries: whose question it is, the question, its length once it is known."""

Observe = Callable[[Batch, Batch], None]
"""Told of a model's part of a batch, and of the whole batch."""

logger = logging.getLogger(__name__)


class Families:
    """All families of one process.

    Args:
        schedule: makes the scheduler of a new family.
    """

    def __init__(self, schedule: "Callable[[Family], Scheduler]") -> None:
        self._schedule = schedule
        self._families: dict[str, Family] = {}

    def find(self, bundle: Bundle, engine: Wanted) -> "Family | None":
        """The family that a bundle's model belongs to; None where it can only be alone."""
        key = kinship(bundle) if engine == REFERENCE else None
        if key is None:
            return None
        self._families = {name: family for name, family in self._families.items() if not family.closed}
        if key not in self._families:
            self._families[key] = Family(self._schedule)
        return self._families[key]


def kinship(bundle: Bundle) -> str | None:
    """What the bundles of a family have in common: base, task, and how both read; None for one that fits in none.

    Only a bundle that lacks its base leaves the base as it was. Those with magnitudes of their own (DoRA), and tasks
    that read a text in several rows, cannot be computed in one batch.
    """
    base = bundle.info.get("base")
    if not base or not task_class(bundle.info["task"]).one_row_each:
        return None
    adapt = read_adapt(base["adapt"])
    if adapt != "head" and not (isinstance(adapt, Lora) and adapt.lora.variant == "lora"):
        return None
    own = {adapter.WEIGHTS, HELD_OUT}
    files = {name: digest for name, digest in bundle.info["files"].items() if name not in own}
    settings = {name: value for name, value in bundle.info["settings"].items() if name != "target"}
    return fingerprint(base["digest"], bundle.info["task"], settings, files)


class Family:
    """Models on one base; for ``serving/memory.py`` one model that may sleep."""

    def __init__(self, schedule: "Callable[[Family], Scheduler]") -> None:
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.base = SharedBase(self._device)
        self.seats: list[Seat] = []
        self.closed = False
        self._sleeps = False  # which seats do not tell when all have left
        self._schedule = schedule
        self._scheduler: Scheduler | None = None
        self._names = (f"model{number}" for number in itertools.count())
        self._lock = threading.Lock()
        self._ran = threading.local()

    @property
    def scheduler(self) -> Scheduler:
        """The queue of all; made when the first model is there."""
        assert self._scheduler is not None, "a family without a model has no queue"
        return self._scheduler

    def take(self, bundle: Bundle, observe: Observe) -> "Seat":
        """A bundle's model as one of the family, warm.

        Raises:
            UserError: as :class:`serving.predictor.Predictor`.
            MisfitError: it says something else here than alone.
        """
        key = next(self._names)

        def weights(task: Task) -> torch.nn.Module:
            examples = bundle.held_out()[:COMPARED] or task.encode([blank_row(task)])
            return self.base.take(key, bundle, task, examples)

        try:
            predictor = Predictor(bundle, str(self._device), weights=weights)
        except Exception:
            self.base.drop(key)  # whoever tries again comes under another name
            raise
        seat = Seat(self, key, predictor, observe)
        with self._lock:
            self.seats = [*self.seats, seat]
        self._scheduler = self._scheduler or self._schedule(self)
        return seat

    def leave(self, seat: "Seat") -> None:
        """One model will be asked no more, and has answered all that it was."""
        with self._lock:
            self.seats = [one for one in self.seats if one is not seat]
        self.base.drop(seat.key)

    def close_unless_open(self) -> None:
        """Takes no more requests where none of the models does."""
        if all(seat.closed for seat in self.seats):
            self.closed = True
            self.scheduler.close()

    # --- as one model that may sleep ------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """The names of all."""
        return ", ".join(seat.predictor.name for seat in self.seats)

    @property
    def loaded(self) -> bool:
        """Whether all weights are there."""
        return not self._sleeps and all(seat.predictor.loaded for seat in self.seats)

    @property
    def bytes(self) -> int:
        """What the base takes, once, and what each model has of its own."""
        return self.base.bytes + sum(seat.predictor.bytes for seat in self.seats)

    @property
    def used(self) -> float:
        """When one of them last answered what somebody asked."""
        return max((seat.predictor.used for seat in self.seats), default=0.0)

    def load(self) -> None:
        """Takes all weights again.

        Raises:
            RunError: a bundle has changed.
        """
        for seat in self.seats:
            seat.predictor.load()
        self._sleeps = False

    def sleep(self) -> None:
        """Lets all weights go. Whoever calls it knows that nobody computes."""
        self._sleeps = True
        for seat in self.seats:
            seat.predictor.sleep()
        self.base.clear()

    # --- the two stages of the scheduler --------------------------------------------------------------------------

    def prepare(self, values: Sequence[Value]) -> list[tuple[Value, int]]:
        """As :meth:`serving.predictor.Predictor.prepare`, each value by its own model."""
        prepared: list[Any] = [None] * len(values)
        for seat, places in _by_seat(values).items():
            questions = seat.predictor.prepare([values[place][1] for place in places])
            for place, (question, length) in zip(places, questions, strict=True):
                prepared[place] = ((seat, question, length), length)
        return prepared

    def answer(self, values: Sequence[Value]) -> list[Any]:
        """The answers of each value's own model, in one forward pass."""
        seats = _by_seat(values)
        if len(seats) == 1:
            (seat,) = seats
            answers = seat.predictor.answer([question for _, question, _ in values])
        else:
            answers = self._mixed(values, seats)
        self._remember(values)
        return answers

    def _mixed(self, values: Sequence[Value], seats: "Mapping[Seat, list[int]]") -> list[Any]:
        whose, examples = [seat.key for seat, _, _ in values], [question[0] for _, question, _ in values]
        any_task = values[0][0].predictor.task  # all of them read alike
        compute = checked(lambda batch: self.base.compute(any_task, batch, whose))
        said, answers = compute(any_task.collate(examples)), [None] * len(values)
        for seat, places in seats.items():
            task, questions = seat.predictor.task, [values[place][1] for place in places]
            rows = said[places][..., : self.base.width(seat.key)]
            outputs = task.keep(rows, [examples[place] for place in places])
            for place, one in zip(places, seat.predictor.decode(questions, outputs), strict=True):
                answers[place] = one
        return answers

    def _remember(self, values: Sequence[Value]) -> None:
        """Whose items and tokens this thread has computed for a batch, which after a failure is computed in parts."""
        ran = self._ran.__dict__
        ran.setdefault("items", Counter()).update(seat for seat, _, _ in values)
        tokens = ran.setdefault("tokens", Counter())
        for seat, _, length in values:
            tokens[seat] += length

    def observe(self, batch: Batch) -> None:
        """Tells each model of its part of the batch that this thread has run.

        A part took the time of the whole, in which it had the part of the device that its items are of all.
        """
        items, tokens = self._ran.__dict__.pop("items", Counter()), self._ran.__dict__.pop("tokens", Counter())
        all_of_them = max(1, sum(items.values()))
        for seat, count in items.items():
            padded = round(batch.padded_tokens * count / all_of_them)
            share = batch.share * all_of_them / count
            part = replace(batch, items=count, tokens=tokens[seat], padded_tokens=padded, share=share)
            seat.observe(part, batch)


class Seat:
    """One model of a family, to be used as a scheduler of its own; see :class:`serving.scheduler.Scheduler`.

    Attributes:
        predictor: the model.
        observe: told of its batches.
        closed: whether it takes no more requests.
    """

    def __init__(self, family: Family, key: str, predictor: Predictor, observe: Observe) -> None:
        self.family, self.key = family, key
        self.predictor, self.observe = predictor, observe
        self.closed = False
        self._asked = 0
        self._lock = threading.Lock()

    def submit(
        self, values: Sequence[Any], deadline: float, owner: str | None = None, spend: Spend = free
    ) -> "asyncio.Future[Answered]":
        """Queues the values of one request for this model.

        Raises:
            OverloadedError: the family's queue is full, or too long.
            ClosedError: after :meth:`close`.
        """
        with self._lock:
            if self.closed:
                raise ClosedError
            mine = [(self, value, 0) for value in values]
            future = self.family.scheduler.submit(mine, deadline, owner, spend)
            self._asked += len(mine)
        future.add_done_callback(lambda done: self._done(len(mine)))
        return future

    def _done(self, count: int) -> None:
        with self._lock:
            self._asked -= count
            left = self.closed and not self._asked
        if left:
            self.family.leave(self)

    def neighbours(self) -> list[str]:
        """The names of the other models on the base."""
        return sorted({seat.predictor.name for seat in self.family.seats if seat is not self})

    def busy(self) -> bool:
        """Whether anything waits or runs, for whichever model: they share the cores."""
        return self.family.scheduler.busy()

    def backlog(self) -> Backlog:
        """What this model has been asked and not answered."""
        with self._lock:
            return Backlog(0, self._asked)

    def running_for(self) -> float:
        """Seconds that the oldest of the present batches has been running."""
        return self.family.scheduler.running_for()

    def alive(self) -> bool:
        """Whether all threads run."""
        return self.family.scheduler.alive()

    def close(self) -> None:
        """Takes no more requests; what was taken is answered. The last to close closes the queue."""
        with self._lock:
            left = not self.closed and not self._asked
            self.closed = True
        self.family.close_unless_open()
        if left:
            self.family.leave(self)


def _by_seat(values: Sequence[Value]) -> "dict[Seat, list[int]]":
    """The places of each model's values."""
    places: dict[Seat, list[int]] = {}
    for place, (seat, _, _) in enumerate(values):
        places.setdefault(seat, []).append(place)
    return places
