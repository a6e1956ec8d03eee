"""A version that is asked what clients asked, when they have their answers, and only compared with what they got."""

import asyncio
import statistics
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from serving.agreement import says_the_same
from serving.metrics import Metrics

if TYPE_CHECKING:
    from serving.lineup import Served

MOST_WAITING = 128  # inputs that a shadow may have before it
PATIENCE_SECONDS = 30.0
KEPT = 1000  # latencies that the medians are of

Outcome = Literal["same", "other", "dropped", "failed"]


class Shadow:
    """Compares one version with the one that answers.

    It works while no client waits: a request is dropped, and counted as such, where the answering version has work or
    the shadow has too much.
    """

    def __init__(self, served: "Served", metrics: Metrics) -> None:
        self.served, self._metrics = served, metrics
        self._outcomes: Counter[Outcome] = Counter()
        self._latencies: deque[tuple[float, float]] = deque(maxlen=KEPT)
        self._waiting = 0
        self._lock = threading.Lock()  # a replica's two ways in have an event loop each
        self._tasks: set[asyncio.Task[None]] = set()

    def ask(
        self,
        inputs: Sequence[Any],
        parameters: Mapping[str, Any],
        answers: Sequence[Any],
        seconds: float,
        busy: Callable[[], bool],
    ) -> None:
        """Has the shadow answer, too. Returns at once; nothing that goes wrong reaches whoever calls.

        Args:
            answers: what the client got, one for each input.
            seconds: how long that took.
            busy: whether clients wait.
        """
        if not inputs:
            return
        if busy() or not self._admit(len(inputs)):
            self._count("dropped", len(inputs))
            return
        task = asyncio.ensure_future(self._compared(inputs, parameters, answers, seconds))
        self._tasks.add(task)  # the loop itself holds no task, and one that nobody holds may vanish
        task.add_done_callback(self._tasks.discard)

    async def _compared(
        self, inputs: Sequence[Any], parameters: Mapping[str, Any], answers: Sequence[Any], seconds: float
    ) -> None:
        started = time.monotonic()
        try:
            self.served.predictor.check(parameters)
            questions = [(row, parameters) for row in self.served.predictor.rows(inputs)]
            answered = await self.served.scheduler.submit(questions, started + PATIENCE_SECONDS)
        except Exception:  # noqa: BLE001  whatever is wrong with this version is what the count of failures says
            self._count("failed", len(inputs))
            return
        finally:
            self._admit(-len(inputs))
        self._latencies.append((seconds, time.monotonic() - started))
        for ours, others in zip(answers, answered.answers, strict=True):
            self._count("same" if says_the_same(ours, others) else "other", 1)

    def _admit(self, inputs: int) -> bool:
        with self._lock:
            if self._waiting + inputs > MOST_WAITING:
                return False
            self._waiting += inputs
            return True

    def _count(self, outcome: Outcome, inputs: int) -> None:
        with self._lock:
            self._outcomes[outcome] += inputs
        self._metrics.shadow(self.served.name, self.served.version, outcome, inputs)

    def about(self) -> dict[str, Any]:
        """How far it agrees, as this replica saw it: counts of inputs, and the median seconds of both versions."""
        same, other = self._outcomes["same"], self._outcomes["other"]
        pairs = list(self._latencies)
        return {
            "version": self.served.version,
            "agreement": same / (same + other) if same + other else None,
            "same": same,
            "other": other,
            "dropped": self._outcomes["dropped"],
            "failed": self._outcomes["failed"],
            "median_seconds": {
                "answering": statistics.median(one for one, _ in pairs) if pairs else None,
                "shadow": statistics.median(one for _, one in pairs) if pairs else None,
            },
        }
