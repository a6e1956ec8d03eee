"""What became of each question to a model, told to the metrics and, where wanted, to the log and a trace."""

import asyncio
import logging
import time
from collections.abc import Mapping
from types import TracebackType

from serving.exchange import OVERLOADED, LeftError, RefusalError, Request
from serving.lineup import Served
from serving.metrics import Metrics
from serving.traces import Traces

UNKNOWN = "-"  # the labels of a question that names no model we have: the client's word is not a label
DEFECT = "internal"
"""The outcome of a question on which something of ours broke."""

logger = logging.getLogger(__name__)


class Watch:
    """Those who watch the questions to one process.

    Args:
        access_log: whether each question leaves a line in the log.
        traces: sends a span for each.
    """

    def __init__(self, metrics: Metrics, *, access_log: bool = False, traces: Traces | None = None) -> None:
        self.metrics, self.access_log, self.traces = metrics, access_log, traces

    def question(self, request: Request) -> "Question":
        """A question that begins this moment."""
        return Question(self, request)

    def shed(self, questions: int) -> None:
        """So many were refused before they came here, for models that were full."""
        if questions:
            self.metrics.request(UNKNOWN, UNKNOWN, OVERLOADED, times=questions)


class Question:
    """What is known of one question while it is answered; told when its block ends, however it ends.

    Of a stream this is its end. One that broke off is told as if its head had not been sent before.

    Attributes:
        started: on the monotonic clock.
        tokens: that were computed for it.
        runs: the start and the end of each batch that computed some of it.
    """

    def __init__(self, watch: Watch, request: Request) -> None:
        self.started = time.monotonic()
        self.request = request
        self.request_id: str = request.request_id
        self.headers: Mapping[str, str] = request.headers
        self.model = self.version = UNKNOWN
        self.tokens = 0
        self.runs: list[tuple[float, float]] = []
        self.outcome, self.status, self.seconds = "ok", 200, 0.0
        self._watch = watch
        self._served: Served | None = None

    def answers(self, served: Served) -> Served:
        """Says who it is for."""
        self._served = served
        self.model, self.version = served.name, served.version
        return served

    def __enter__(self) -> "Question":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.outcome, self.status = _ending(error)
        self.seconds = time.monotonic() - self.started
        self._watch.metrics.request(self.model, self.version, self.outcome, None if error else self.seconds)
        if self._served and self.outcome == DEFECT:
            self._served.record.failed()
        if self._watch.access_log:
            self._log()
        if self._watch.traces:
            self._watch.traces.question(self)

    def _log(self) -> None:
        known = {
            "request_id": self.request_id,
            "model": self.model,
            "version": self.version,
            "status": self.status,
            "outcome": self.outcome,
            "seconds": round(self.seconds, 6),
            "tokens": self.tokens,
        }
        told = (
            "%(request_id)s: %(status)d %(outcome)s, %(model)s version %(version)s, %(seconds).4f s, %(tokens)d tokens"
        )
        logger.info(told, known, extra=known)


def _ending(error: BaseException | None) -> tuple[str, int]:
    """The outcome as metrics name it, and the HTTP status; 499 where nobody waited for one, as nginx has it."""
    if error is None:
        return "ok", 200
    if isinstance(error, RefusalError):
        return error.code, error.status
    return ("client_gone", 499) if isinstance(error, LeftError | asyncio.CancelledError) else (DEFECT, 500)
