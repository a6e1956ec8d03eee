"""OpenTelemetry spans of questions, sent where the standard variables say: `pip install 'headrace[traces]'`.

A question is a span ``ask``, which continues the client's trace where a ``traceparent`` came; below it, ``queue`` is
the wait for the model and ``compute`` the batches that answered it. Spans are made when the question has ended, from
times that were taken anyway, and sent by a thread of the exporter. Nothing is imported where no variable asks for them.
"""

import importlib.util
import os
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

from cluster.errors import UserError

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace.export import SpanExporter

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
PROTOCOLS = ("OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL")
PROTOCOL = "http/protobuf"
EXPORTER = "opentelemetry.exporter.otlp.proto.http"
PROPAGATED = ("traceparent", "tracestate")


class Ended(Protocol):
    """What a trace tells of a question; times are on the monotonic clock."""

    request_id: str
    headers: Mapping[str, str]
    model: str
    version: str
    status: int
    outcome: str
    tokens: int
    started: float
    seconds: float
    runs: list[tuple[float, float]]


def wanted() -> bool:
    """Whether the environment asks for traces, as the specification of OpenTelemetry's variables has it.

    Raises:
        UserError: it asks for what there is not, or the packages are missing.
    """
    exporter = os.environ.get("OTEL_TRACES_EXPORTER", "").strip().lower()
    off = exporter == "none" or os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    if off or not (exporter or any(os.environ.get(name) for name in ENDPOINTS)):
        return False
    if exporter not in ("", "otlp"):
        raise UserError(f"OTEL_TRACES_EXPORTER={exporter}: headrace sends traces by otlp; or say none")
    for name in PROTOCOLS:
        if os.environ.get(name, PROTOCOL) != PROTOCOL:
            raise UserError(f"{name}={os.environ[name]}: headrace sends traces by {PROTOCOL}")
    if not _installed():
        raise UserError(
            "traces are asked for (OTEL_…), and what sends them is not installed: pip install 'headrace[traces]'; "
            "OTEL_TRACES_EXPORTER=none does without"
        )
    return True


class Traces:
    """Sends spans in the background.

    Args:
        exporter: where they go; by default, where the environment says.
    """

    def __init__(self, exporter: "SpanExporter | None" = None) -> None:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        # A provider of our own: the global one is Ray's or the user's.
        self._provider = TracerProvider(resource=Resource.create(_name()))
        self._provider.add_span_processor(BatchSpanProcessor(exporter or OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("headrace")

    def question(self, ended: Ended) -> None:
        """One question has ended this moment."""
        from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context

        now = time.monotonic()
        wall = time.time_ns() - round(now * 1e9)  # what to add to the monotonic clock
        span = self._tracer.start_span(
            "ask", _parent(ended.headers), SpanKind.SERVER, _attributes(ended), start_time=wall + _ns(ended.started)
        )
        if span.is_recording() and ended.runs:
            first, last = min(start for start, _ in ended.runs), max(end for _, end in ended.runs)
            within = set_span_in_context(span)
            for name, since, until in (("queue", ended.started, first), ("compute", first, last)):
                part = self._tracer.start_span(name, within, start_time=wall + _ns(since))
                part.end(wall + _ns(until))
        if ended.status >= 500:
            span.set_status(Status(StatusCode.ERROR, ended.outcome))
        span.end(wall + _ns(ended.started + ended.seconds))

    def close(self) -> None:
        """Sends what is left."""
        self._provider.shutdown()


def _installed() -> bool:
    try:
        return importlib.util.find_spec(EXPORTER) is not None
    except ModuleNotFoundError:  # of a package above it
        return False


def _name() -> dict[str, str]:
    """What the service is called, where the environment gives it no name."""
    named = "OTEL_SERVICE_NAME" in os.environ or "service.name=" in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    return {} if named else {"service.name": "headrace"}


def _parent(headers: Mapping[str, str]) -> "Context":
    """The client's span. Only the two headers of W3C's Trace Context are read: baggage could hold anything."""
    from opentelemetry.context import Context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carried = {name: headers[name] for name in PROPAGATED if name in headers}
    return TraceContextTextMapPropagator().extract(carried, Context())


def _attributes(ended: Ended) -> dict[str, str | int]:
    return {
        "http.request.method": "POST",
        "http.response.status_code": ended.status,
        "headrace.request_id": ended.request_id,
        "headrace.model": ended.model,
        "headrace.version": ended.version,
        "headrace.outcome": ended.outcome,
        "headrace.tokens": ended.tokens,
    }


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)
