"""What Prometheus sees: counts and times by model, version and outcome; never a text, a key or an address.

Several replicas answer behind one address, and a scrape reaches any of them. Where ``PROMETHEUS_MULTIPROC_DIR`` is
set, each counts in a file of that folder and whoever is asked answers with the sum. That variable must be set before
``prometheus_client`` is imported, which this module therefore does only when a :class:`Metrics` is made.
"""

import functools
import os
from pathlib import Path
from typing import TYPE_CHECKING

from serving.outcomes import Batch
from serving.workload import Workload

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
ITEMS = (1, 2, 4, 8, 16, 32, 64, 128)
TOKENS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)


class Metrics:
    """The counters of one process.

    Attributes:
        workload: is told of each forward pass, too.
    """

    def __init__(self) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

        self.workload = Workload()
        self._registry = CollectorRegistry()
        counter = functools.partial(Counter, registry=self._registry)
        histogram = functools.partial(Histogram, registry=self._registry)
        gauge = functools.partial(Gauge, registry=self._registry)
        one = ("model", "version")
        self._requests = counter("headrace_requests", "Requests by what became of them.", (*one, "outcome"))
        self._seconds = histogram(
            "headrace_request_seconds",
            "From the headers of a question to its answer, or to the end of a stream.",
            one,
            buckets=SECONDS,
        )
        self._batch_items = histogram("headrace_batch_items", "Inputs in one forward pass.", one, buckets=ITEMS)
        self._batch_tokens = histogram(
            "headrace_batch_tokens", "Tokens in one forward pass, padding included.", one, buckets=TOKENS
        )
        self._batch_seconds = histogram("headrace_batch_seconds", "One forward pass.", one, buckets=SECONDS)
        self._queue_seconds = histogram(
            "headrace_queue_seconds", "The wait of the oldest input of each batch.", one, buckets=SECONDS
        )
        self._tokens = counter("headrace_tokens", "Tokens computed.", one)
        self._padding = counter("headrace_padding_tokens", "Padding computed.", one)
        self._engines = counter("headrace_loads", "Versions loaded, by what computes them.", (*one, "engine"))
        self._swaps = counter("headrace_swaps", "Versions taken into service.", ("model", "outcome"))
        self._shadows = counter(
            "headrace_shadow",
            "Inputs that a shadow was asked, by how it answered beside the version that answers.",
            (*one, "outcome"),
        )
        self._rollbacks = counter("headrace_rollbacks", "Versions taken back, by why.", (*one, "reason"))
        self._memory = gauge(
            "headrace_memory_bytes",
            "What the weights of a version take in memory, a base that it shares included; 0 while it sleeps.",
            one,
            multiprocess_mode="livesum",
        )
        self._wakes = counter("headrace_wakes", "Versions that were loaded again after they had slept.", one)

    def engine(self, model: str, version: str, engine: str) -> None:
        """A version was loaded, and this computes it."""
        self._engines.labels(model, version, engine).inc()

    def request(self, model: str, version: str, outcome: str, seconds: float | None = None, *, times: int = 1) -> None:
        """One request, or several, was answered or refused; ``seconds`` where it was answered."""
        self._requests.labels(model, version, outcome).inc(times)
        if seconds is not None:
            self._seconds.labels(model, version).observe(seconds)

    def batch(self, model: str, version: str, batch: Batch) -> None:
        """One forward pass was done."""
        self.workload.ran(model, version, batch)
        self._batch_items.labels(model, version).observe(batch.items)
        self._batch_tokens.labels(model, version).observe(batch.padded_tokens)
        self._batch_seconds.labels(model, version).observe(batch.seconds)
        self._queue_seconds.labels(model, version).observe(batch.oldest_waited)
        self._tokens.labels(model, version).inc(batch.tokens)
        self._padding.labels(model, version).inc(batch.padded_tokens - batch.tokens)

    def memory(self, model: str, version: str, more: int) -> None:
        """The weights of a version take so many more bytes from here on, or fewer."""
        self._memory.labels(model, version).inc(more)

    def wake(self, model: str, version: str) -> None:
        """A version that slept was loaded again."""
        self._wakes.labels(model, version).inc()

    def swap(self, model: str, outcome: str) -> None:
        """A version was taken into service (``done``) or could not be (``failed``)."""
        self._swaps.labels(model, outcome).inc()

    def shadow(self, model: str, version: str, outcome: str, inputs: int) -> None:
        """A shadow said the ``same`` or an ``other``, ``failed``, or was ``dropped`` unasked."""
        self._shadows.labels(model, version, outcome).inc(inputs)

    def rollback(self, model: str, version: str, reason: str) -> None:
        """A version was found to do worse than it may."""
        self._rollbacks.labels(model, version, reason).inc()

    def page(self) -> bytes:
        """All of it in Prometheus's text format."""
        from prometheus_client import generate_latest

        return generate_latest(self._gathered())

    def _gathered(self) -> "CollectorRegistry":
        from prometheus_client import CollectorRegistry
        from prometheus_client.multiprocess import MultiProcessCollector

        folder = os.environ.get(FOLDER_VARIABLE)
        if not folder:
            return self._registry
        _forget_the_dead(Path(folder))
        together = CollectorRegistry()
        MultiProcessCollector(together, str(Path(folder)))  # type: ignore[no-untyped-call]
        return together


def _forget_the_dead(folder: Path) -> None:
    """Removes what processes said of themselves that have ended: a killed replica holds no memory."""
    for path in folder.glob("gauge_live*_*.db"):
        try:
            os.kill(int(path.stem.rpartition("_")[2]), 0)
        except ProcessLookupError:
            path.unlink(missing_ok=True)
        except PermissionError:  # it lives, and is another user's
            continue
