"""Spans as a collector gets them: the real exporter over a real socket, its bytes decoded."""

import gzip
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import UserError
from serving import traces
from serving.traces import Traces
from tests.serving.conftest import entry
from tests.serving.test_edge import ask
from training.bundle import Bundle

pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="the extra `traces` is not installed")

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

ROOT = Path(traces.__file__).parent.parent
SECRET = "my-very-private-text"
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@dataclass
class Collector:
    """What an OTLP receiver got."""

    address: str
    paths: list[str] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)

    def spans(self) -> list[dict[str, Any]]:
        found = []
        for body in self.bodies:
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                service = {one.key: one.value.string_value for one in resource.resource.attributes}["service.name"]
                for scope in resource.scope_spans:
                    found += [_plain(span) | {"service": service} for span in scope.spans]
        return found


def _plain(span: Any) -> dict[str, Any]:
    return {
        "name": span.name,
        "trace": span.trace_id.hex(),
        "id": span.span_id.hex(),
        "parent": span.parent_span_id.hex(),
        "from": span.start_time_unix_nano,
        "to": span.end_time_unix_nano,
        "failed": span.status.code == 2,
        **{one.key: one.value.string_value or one.value.int_value for one in span.attributes},
    }


@contextmanager
def collector() -> Iterator[Collector]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            got.bodies.append(gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body)
            got.paths.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    got = Collector(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield got
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*traces.ENDPOINTS, *traces.PROTOCOLS, "OTEL_TRACES_EXPORTER", "OTEL_SDK_DISABLED"):
        monkeypatch.delenv(name, raising=False)


def test_a_question_is_a_span_with_its_wait_and_its_computing_below(
    edge_of: Callable[..., Any], bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    with collector() as got:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", got.address)
        assert traces.wanted()
        sender = Traces()
        headers = {
            "Content-Type": "application/json",
            "traceparent": f"00-{TRACE}-{PARENT}-01",
            "baggage": f"text={SECRET}",
            "x-request-id": "r-1",
        }
        with edge_of({"intent": entry(bundle, 3)}, traces=sender) as running:
            assert ask(running, {"inputs": [SECRET, "ok"]}, headers=headers)[0] == 200
            assert ask(running, {"inputs": SECRET}, f"/models/{SECRET}")[0] == 404
        sender.close()
        spans = got.spans()
    assert set(got.paths) == {"/v1/traces"}
    queue, compute, asked, refused = sorted(spans, key=lambda span: (span["name"] == "ask", span["from"], span["to"]))
    assert (asked["name"], asked["trace"], asked["parent"], asked["service"]) == ("ask", TRACE, PARENT, "headrace")
    assert [queue["name"], compute["name"]] == ["queue", "compute"]
    assert {queue["parent"], compute["parent"]} == {asked["id"]}
    assert {queue["trace"], compute["trace"]} == {TRACE}
    assert asked["from"] == queue["from"] < queue["to"] == compute["from"] < compute["to"] < asked["to"]
    known = {name: asked[f"headrace.{name}"] for name in ("request_id", "model", "version", "outcome")}
    assert known == {"request_id": "r-1", "model": "intent", "version": "3", "outcome": "ok"}
    assert asked["headrace.tokens"] > 0 and asked["http.response.status_code"] == 200
    assert (refused["headrace.outcome"], refused["headrace.model"], refused["failed"]) == ("unknown_model", "-", False)
    assert refused["trace"] != TRACE
    assert SECRET.encode() not in b"".join(got.bodies)


def test_a_client_that_samples_nothing_has_nothing_sent(
    edge_of: Callable[..., Any], bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    with collector() as got:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", got.address)
        sender = Traces()
        headers = {"Content-Type": "application/json", "traceparent": f"00-{TRACE}-{PARENT}-00"}
        with edge_of({"intent": entry(bundle)}, traces=sender) as running:
            assert ask(running, {"inputs": "ok"}, headers=headers)[0] == 200
        sender.close()
        assert got.bodies == []


def test_a_collector_that_is_away_costs_no_answer(
    edge_of: Callable[..., Any], bundle: Bundle, free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{free_port}")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    sender = Traces()
    with edge_of({"intent": entry(bundle)}, traces=sender) as running:
        assert ask(running, {"inputs": "ok"})[0] == 200
    sender.close()


@pytest.mark.parametrize(
    ("variables", "asked"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:4318/v1/traces"}, True),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, True),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}, False),
        ({"OTEL_SDK_DISABLED": "true", "OTEL_TRACES_EXPORTER": "otlp"}, False),
    ],
)
def test_the_standard_variables_ask_for_traces(
    variables: dict[str, str], asked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert traces.wanted() is asked


@pytest.mark.parametrize(
    ("name", "value"), [("OTEL_TRACES_EXPORTER", "zipkin"), ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")]
)
def test_what_there_is_not_is_said(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4317")
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=rf"{name}={value}: headrace sends traces by "):
        traces.wanted()


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "otlp")
    monkeypatch.setattr(traces, "EXPORTER", "opentelemetry.exporter.of_nobody.http")
    with pytest.raises(UserError, match=r"pip install 'headrace\[traces\]'"):
        traces.wanted()


def test_without_traces_nothing_of_them_is_imported() -> None:
    code = "import sys, serving.edge, serving.watch; print('opentelemetry.sdk.trace' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
