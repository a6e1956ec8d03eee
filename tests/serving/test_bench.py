"""`headrace ask` and `headrace bench` against an edge on a real socket, and against one that keeps all waiting."""

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aiohttp import web

import headrace
from cluster.errors import RunError, UserError
from serving import client
from serving.bench import Ended, _lateness, _moments, bench
from serving.keys import Keys, make
from serving.predictor import Predictor
from serving.recipe import Serve
from tests.serving.conftest import TEXTS, Running, entry
from training.bundle import Bundle


@pytest.fixture(scope="module")
def edge(edge_of: Callable[..., Any], bundle: Bundle, pair_bundle: Bundle) -> Iterator[Running]:
    with edge_of({"intent": entry(bundle), "pair": entry(pair_bundle)}) as running:
        yield running


def test_what_is_asked_at_a_terminal_is_answered_as_by_predict(
    edge: Running, bundle: Bundle, pair_bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = client.ask(edge.address, "intent", TEXTS[:3])
    for said, expected in zip(answers, Predictor(bundle).predict(TEXTS[:3]), strict=True):
        assert [one["label"] for one in said] == [one["label"] for one in expected]
    row = {"subject": "late", "body": "where is it"}
    (answer,) = client.ask(edge.address, "pair", [json.dumps(row)])
    (expected,) = Predictor(pair_bundle).predict([row])
    assert [one["label"] for one in answer] == [one["label"] for one in expected]
    headrace.ask("intent", ["a"], edge.address, as_json=True)
    assert len(json.loads(capsys.readouterr().out)["answers"]) == 1


@pytest.mark.parametrize("word", ["[Ticket 123] my card is lost", "{a", "[", " [see above]"])
def test_a_text_may_begin_with_a_bracket(edge: Running, bundle: Bundle, word: str) -> None:
    (said,) = client.ask(edge.address, "intent", [word])
    (expected,) = Predictor(bundle).predict([word])
    assert [one["label"] for one in said] == [one["label"] for one in expected]


def test_a_bench_that_measures_nothing_says_why(edge: Running) -> None:
    with pytest.raises(UserError, match=r"no request was answered \(422: \d+\): 422 inputs\[0\]\.body: missing"):
        bench(edge.address, "pair", 20, 0.5, [{"subject": "late", "words": "a"}])
    with pytest.raises(UserError, match="the file of --data has no rows"):
        bench(edge.address, "intent", 20, 0.5, [])
    about, told = {"signature": {"input": {"type": "string"}}}, r"no request was answered \(503: \d+\): 503 busy"
    with another(503, '{"error": "busy"}', about) as address, pytest.raises(RunError, match=told):
        bench(address, "intent", 20, 0.5)


def test_of_those_that_are_refused_the_first_says_why(edge: Running) -> None:
    found = bench(edge.address, "pair", 40, 0.5, [{"subject": "late", "body": "a"}, {"subject": "late"}])
    assert set(found["outcomes"]) == {"200", "422"}
    assert found["refused"] == "422 inputs[0].body: missing"


def test_what_goes_wrong_is_said(edge: Running) -> None:
    with pytest.raises(UserError, match="404 there is no model of this name"):
        client.ask(edge.address, "nobody", ["a"])
    with pytest.raises(RunError, match=r"nobody answers at http://127\.0\.0\.1:9; `headrace serve intent` starts"):
        client.ask("http://127.0.0.1:9", "intent", ["a"])
    with pytest.raises(UserError, match="this model reads rows; name a file of them with --data"):
        bench(edge.address, "pair", rate=10, seconds=1)


@contextmanager
def another(status: int, body: str, about: Any = None) -> Iterator[str]:
    """The address of a server that is none of ours, and answers everything so; or says ``about`` what it serves."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self._say(status, body)

        def do_GET(self) -> None:
            self._say(200, json.dumps(about)) if about else self.do_POST()

        def _say(self, status: int, body: str) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (404, '{"error": "not found"}', "404 not found"),
        (404, '{"error": null}', "404 Not Found"),
        (404, '{"error": {"message": 7}}', "404 Not Found"),
        (404, '["not found"]', "404 Not Found"),
        (422, '{"error": {"message": "inputs: missing"}}', "422 inputs: missing"),
    ],
)
def test_a_server_that_is_none_of_ours_refuses_in_its_own_words(status: int, body: str, message: str) -> None:
    with another(status, body) as address, pytest.raises(UserError) as refused:
        client.ask(address, "intent", ["a"])
    assert (str(refused.value), refused.value.exit_code) == (message, 2)
    with another(503, body) as address, pytest.raises(RunError):
        client.ask(address, "intent", ["a"])


@pytest.mark.parametrize("body", ["[]", '{"name": "intent"}', "7"])
def test_what_describes_no_model_is_no_headrace_server(body: str) -> None:
    with another(200, body) as address, pytest.raises(RunError, match="no headrace server answers there"):
        client.about(address, "intent")


@pytest.mark.parametrize(("late", "warned"), [(0.006, False), (0.02, True)])
def test_a_late_request_is_told_of_where_it_weighs(late: float, warned: bool) -> None:
    """Against waits of 100 ms six are nothing, and twenty are something."""
    said = _lateness([Ended("200", 0.1, late)] * 99 + [Ended("422", 0.001, 0.0, "missing")])
    assert (said is not None) == warned
    assert said is None or "left 20.0 ms late or more, where half of the waits are 100.0 ms" in said


@pytest.mark.parametrize("word", ['{"x": NaN}', '["a", Infinity]', '{"x": -Infinity}', '{"x": 1e999}', "[" * 100_000])
def test_what_is_no_json_is_told_before_anything_is_sent(word: str) -> None:
    with pytest.raises(UserError, match=r"TEXT 2: no JSON: ") as refused:
        client.ask("http://127.0.0.1:9", "intent", ["a", word])
    assert refused.value.exit_code == 2
    assert word not in str(refused.value)


@pytest.mark.parametrize("url", ["127.0.0.1:9", "nowhere", "ftp://127.0.0.1", "http://"])
def test_what_is_no_address_is_told_as_such(url: str) -> None:
    with pytest.raises(UserError, match="no address of a server; one looks like http://127"):
        client.ask(url, "intent", ["a"])


@pytest.mark.parametrize("key", ["two\nlines", "schlüssel-密"])
def test_a_key_that_cannot_be_sent_is_named_and_not_shown(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(client.KEY, key)
    with pytest.raises(UserError, match="HEADRACE_API_KEY: holds what no key has") as refused:
        client.ask("http://127.0.0.1:9", "intent", ["a"])
    assert key not in str(refused.value)


def test_the_key_of_the_environment_is_sent(
    edge_of: Callable[..., Any], bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token, line = make("desk")
    (tmp_path / "keys").write_text(line)
    with edge_of({"intent": entry(bundle)}, Serve(), Keys(tmp_path / "keys")) as running:
        with pytest.raises(UserError, match=r"401 a valid key is needed.*; HEADRACE_API_KEY holds the key"):
            client.ask(running.address, "intent", ["a"])
        monkeypatch.setenv(client.KEY, token)
        assert len(client.ask(running.address, "intent", ["a"])) == 1
        assert bench(running.address, "intent", rate=20, seconds=0.5)["outcomes"].keys() == {"200"}


def test_a_server_is_measured(edge: Running, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "rows.csv").write_text("id,subject,body\n1,late,where is it\n2,card,it is lost\n", encoding="utf-8")
    headrace.bench("pair", 60, 1, tmp_path / "rows.csv", edge.address, as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert found["outcomes"] == {"200": found["requests"]}
    shares = list(found["milliseconds"].values())
    assert shares == sorted(shares) and shares[0] > 0


def test_moments_are_those_of_a_poisson_process() -> None:
    moments = np.array(_moments(rate=200, seconds=100))
    gaps = np.diff(moments)
    assert len(moments) == pytest.approx(20_000, rel=0.05)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05), "as many short waits as long ones make up for"
    assert _moments(rate=200, seconds=100) == moments.tolist(), "two runs ask at the same moments"


@contextmanager
def hesitant(expected: int) -> Iterator[str]:
    """A server that answers nobody before so many have asked."""
    came, ready, loop = 0, threading.Event(), asyncio.new_event_loop()
    place: list[str] = []

    async def about(request: web.Request) -> web.Response:
        return web.json_response({"signature": {"input": {"type": "string"}}})

    async def run() -> None:
        enough, over = asyncio.Event(), asyncio.Event()

        async def answer(request: web.Request) -> web.Response:
            nonlocal came
            await request.read()
            came += 1
            if came == expected:
                enough.set()
            await enough.wait()
            return web.json_response([])

        app = web.Application()
        app.add_routes([web.get("/models/slow", about), web.post("/models/slow", answer)])
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        place.append(f"http://127.0.0.1:{runner.addresses[0][1]}")
        stops.append(lambda: loop.call_soon_threadsafe(over.set))
        ready.set()
        await over.wait()
        await runner.cleanup()

    stops: list[Callable[[], Any]] = []
    thread = threading.Thread(target=loop.run_until_complete, args=(run(),))
    thread.start()
    assert ready.wait(30)
    try:
        yield place[0]
    finally:
        stops[0]()
        thread.join(30)
        loop.close()


def test_nobody_waits_for_an_answer_before_asking_again() -> None:
    expected = len(_moments(rate=100, seconds=0.5))
    with hesitant(expected) as address:
        assert bench(address, "slow", rate=100, seconds=0.5)["outcomes"] == {"200": expected}
