"""What HAProxy refuses by itself, and for how long: HAProxy itself before servers that say that they are full."""

import asyncio
import contextlib
import http.client
import json
import re
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from serving import shedding
from serving.edge import QUICK, Edge
from serving.exchange import refusal
from serving.outcomes import OverloadedError
from serving.recipe import Serve
from serving.refusals import FORMS, body_of
from serving.scheduler import Scheduler
from tests.serving.conftest import entry, route
from tests.serving.proxied import proxied
from training.bundle import Bundle

LONG = 60_000  # milliseconds, which no test lasts


class Full(ThreadingHTTPServer):
    """Says of everything that is asked with POST that it is full, for so many milliseconds; keeps what came."""

    def __init__(self, milliseconds: int) -> None:
        super().__init__(("127.0.0.1", 0), Refuses)
        self.milliseconds = milliseconds
        self.came: list[dict[str, str]] = []

    @property
    def port(self) -> int:
        return int(self.server_address[1])


class Refuses(BaseHTTPRequestHandler):
    server: Full

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.server.came.append({name.lower(): value for name, value in self.headers.items()})
        self._answer(429, (("retry-after", "7"), (shedding.FULL, str(self.server.milliseconds))))

    def do_GET(self) -> None:
        self._answer(200, ())

    def _answer(self, status: int, headers: tuple[tuple[str, str], ...]) -> None:
        self.send_response(status)
        for name, value in (*headers, ("content-length", "2"), ("content-type", "application/json")):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, format: str, *words: object) -> None:
        """Nothing."""


@contextlib.contextmanager
def full(milliseconds: int = LONG) -> Iterator[Full]:
    with Full(milliseconds) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def asked(port: int, path: str = "/models/a", method: str = "POST", **headers: str) -> tuple[int, str, Any]:
    """Status, body and headers."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    body = b'{"inputs": "a"}' if method == "POST" else None
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data=body, method=method, headers=named)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read().decode(), answer.headers
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(), error.headers


def test_what_is_like_a_refused_request_is_refused_without_asking(
    tmp_path: Path, wait_until: Callable[..., None]
) -> None:
    with full() as server, proxied(tmp_path, wait_until, server.port) as port:
        status, _, headers = asked(port, x_request_id="first")
        assert (status, len(server.came)) == (429, 1)
        assert shedding.FULL not in headers
        status, body, headers = asked(port, x_request_id="second")
        assert (status, len(server.came)) == (429, 1), "the replica is not asked"
        told = json.loads(body)["error"]
        assert told == {
            "code": "overloaded",
            "message": "too many requests are waiting; try again in 7 s",
            "request_id": "second",
        }
        assert headers["retry-after"] == "7"
        assert headers["x-request-id"] == "second"
        assert headers["x-error-message"] == told["message"]
        assert len(json.loads(asked(port)[1])["error"]["request_id"]) >= 32, "one that has no id is given one"


def test_a_refused_client_may_use_its_connection_again(tmp_path: Path, wait_until: Callable[..., None]) -> None:
    with full() as server, proxied(tmp_path, wait_until, server.port) as port:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        sockets = []
        for _ in range(3):
            connection.request("POST", "/models/a", b"{}")
            assert connection.getresponse().read()
            sockets.append(connection.sock)
        assert sockets[0] is not None
        assert sockets == sockets[:1] * 3
        assert len(server.came) == 1
        connection.close()


def test_what_is_not_like_it_is_let_through(tmp_path: Path, wait_until: Callable[..., None]) -> None:
    with full() as server, proxied(tmp_path, wait_until, server.port) as port:
        for number, (path, key) in enumerate(
            [("/models/a", "one"), ("/models/a", "other"), ("/models/b", "one"), ("/models/a/embed", "one")]
        ):
            asked(port, path, authorization=f"Bearer {key}")
            assert len(server.came) == number + 1, (path, key)
        asked(port)
        assert len(server.came) == 5, "no key is not like any key"
        assert asked(port, method="GET")[0] == 200


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ("/models/a", ("error", "code")),
        ("/models/a/embed", ("code",)),
        ("/rerank", ("code",)),
        ("/v1/embeddings", ("error", "code")),
        ("/v2/models/a/infer", ("code",)),
    ],
)
def test_it_is_worded_as_the_edge_words_it(
    tmp_path: Path, wait_until: Callable[..., None], path: str, place: tuple[str, ...]
) -> None:
    with full() as server, proxied(tmp_path, wait_until, server.port) as port:
        asked(port, path)
        told = json.loads(asked(port, path, x_request_id="r")[1])
    assert told == body_of(path, refusal(OverloadedError(7)), "r")
    for name in place:
        told = told[name]
    assert told == "overloaded"


def test_it_ends_when_the_replica_said_that_it_would(tmp_path: Path, wait_until: Callable[..., None]) -> None:
    with full(milliseconds=300) as server, proxied(tmp_path, wait_until, server.port) as port:
        asked(port)
        asked(port)
        before = len(server.came)

        def let_through() -> bool:
            return asked(port)[0] == 429 and len(server.came) > before

        wait_until(let_through)


def test_the_replica_hears_how_many_were_refused_once(tmp_path: Path, wait_until: Callable[..., None]) -> None:
    with full() as server, proxied(tmp_path, wait_until, server.port) as port:
        for _ in range(4):
            asked(port)
        asked(port, "/models/b", x_headrace_refused="1000")
        asked(port, "/models/c", x_headrace_refused="1000")
    assert [came.get(shedding.REFUSED) for came in server.came] == [None, "3", None]


def test_with_a_second_replica_nobody_is_refused_for_the_first(tmp_path: Path, wait_until: Callable[..., None]) -> None:
    with full() as one, full() as other, proxied(tmp_path, wait_until, one.port, other.port) as port:
        for _ in range(4):
            asked(port)
        assert len(one.came) + len(other.came) == 4


def test_no_form_of_a_refusal_holds_the_sentinel_otherwise() -> None:
    for form in FORMS:
        assert (
            json.dumps(form.write(refusal(OverloadedError(shedding.SENTINEL)), "")).count(str(shedding.SENTINEL)) == 1
        )


@pytest.fixture
def crowded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every model is full for a quarter of a second."""

    def refuse(*asked: Any) -> Any:
        raise OverloadedError(7, full_for=0.25)

    monkeypatch.setattr(Scheduler, "submit", refuse)


@pytest.mark.usefixtures("crowded")
def test_only_a_proxy_of_ours_hears_how_long_and_only_of_one_queue(edge_of: Callable[..., Any], bundle: Bundle) -> None:
    one, parted = {"intent": entry(bundle)}, {"intent": entry(bundle, 1, route(bundle, 2, 10))}
    for entries, path, sheds, heard in (
        (one, "/models/intent", True, "250"),
        (one, "/predict", True, "250"),
        ({**one, "other": entry(bundle)}, "/models/intent", True, "250"),
        (one, "/models/intent", False, None),
        (parted, "/models/intent", True, None),  # the other version may have room
    ):
        with edge_of(entries, sheds=sheds) as running:
            port = urlsplit(running.address).port
            status, _, headers = asked(port, path, content_type="application/json")
        assert (status, headers["retry-after"], headers[shedding.FULL]) == (429, "7", heard), (path, sheds)


@pytest.mark.usefixtures("crowded")
def test_of_a_slow_sender_nobody_else_hears(edge_of: Callable[..., Any], bundle: Bundle) -> None:
    """It has little time left when its question is whole, which others have not lost."""
    options = Serve(timeout_seconds=2)
    with edge_of({"intent": entry(bundle)}, options) as running:
        edge = Edge(running.lineup, options, running.metrics, sheds=True)

        async def sent_in(seconds: float) -> list[bytes]:
            async def receive() -> dict[str, Any]:
                await asyncio.sleep(seconds)
                return {"type": "http.request", "body": b'{"inputs": "a"}'}

            async def send(message: Any) -> None:
                heads.append(message)

            heads: list[Any] = []
            scope = {"type": "http", "method": "POST", "path": "/models/intent"}
            await edge(scope | {"headers": [(b"content-type", b"application/json")]}, receive, send)
            assert heads[0]["status"] == 429
            return [value for name, value in heads[0]["headers"] if name == shedding.FULL.encode()]

        assert asyncio.run(sent_in(0)) == [b"250"]
        assert asyncio.run(sent_in(1.01 * (1 - QUICK) * options.timeout_seconds)) == []


@pytest.mark.parametrize(("sheds", "counted"), [(True, 3.0), (False, 0.0)])
def test_what_the_proxy_refused_is_counted_where_the_proxy_is_ours(
    edge_of: Callable[..., Any], bundle: Bundle, sheds: bool, counted: float
) -> None:
    with edge_of({"intent": entry(bundle)}, sheds=sheds) as running:
        port = urlsplit(running.address).port
        for said in ("3", "-1", "x"):
            assert asked(port, content_type="application/json", x_headrace_refused=said)[0] == 404
        page = asked(port, "/metrics", "GET")[1]
    refused = re.findall(r'headrace_requests_total{.*outcome="overloaded".*} (\S+)', page)
    assert sum(map(float, refused)) == counted
