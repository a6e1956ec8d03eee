"""Whoever means harm, on a real socket: no defect, no hang, no text in what we say or log, no foreign file."""

import asyncio
import gzip
import json
import logging
import random
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests

from serving.recipe import Serve
from tests.serving.conftest import LABELS, Running, entry
from tests.serving.test_completions import writers
from tests.serving.test_entities import finder
from tests.serving.test_search import written
from training.bundle import Bundle
from training.tasks.sentence_similarity import SentenceSimilarity
from training.tasks.text_ranking import TextRanking

SECRET = "my-very-private-text"
SECONDS = 3.0
MUTANTS = 60

VALID: dict[str, Any] = {
    "/models/intent": {"inputs": [SECRET, {"text": SECRET}], "parameters": {"top_k": 2, "abstain_below": 0.1}},
    "/models/pair": {"inputs": {"subject": SECRET, "body": SECRET}},
    "/models/find": {"inputs": {"source_sentence": SECRET, "sentences": [SECRET]}, "parameters": {"normalize": True}},
    "/models/rank": {"inputs": {"query": SECRET, "texts": [SECRET, "b"]}, "parameters": {"raw_scores": True}},
    "/models/write": {"inputs": SECRET, "parameters": {"max_new_tokens": 2, "stop": ["a"]}},
    "/v1/embeddings": {"model": "find", "input": [SECRET], "encoding_format": "base64", "dimensions": 4},
    "/v1/completions": {"model": "write", "prompt": [SECRET], "max_tokens": 2, "temperature": 0.5, "stop": "a"},
    "/v1/chat/completions": {"model": "chat", "messages": [{"role": "user", "content": SECRET}], "max_tokens": 2},
    "/models/named": {"inputs": [SECRET, {"text": [SECRET, "b"]}], "parameters": {"ignore_labels": ["b"]}},
    "/models/intent/predict": {"inputs": [[SECRET]], "raw_scores": False, "truncate": True},
    "/models/find/embed": {"inputs": [SECRET], "normalize": True},
    "/models/find/similarity": {"inputs": {"source_sentence": SECRET, "sentences": [SECRET]}},
    "/models/rank/rerank": {"query": SECRET, "texts": [SECRET], "return_text": True},
    "/v2/models/pair/infer": {
        "id": "7",
        "inputs": [{"name": name, "datatype": "BYTES", "shape": [1], "data": [SECRET]} for name in ("subject", "body")],
    },
}
STRANGE: list[Any] = [
    None,
    True,
    -1,
    10**400,
    1e308,
    "",
    "\ud800",
    "\x00",
    SECRET,
    "../../etc/passwd",
    [],
    {},
    [[[[[]]]]],
    {SECRET: SECRET},
    ["a", 1, None],
    "a" * 5_000,
]


@pytest.fixture(scope="module")
def edge(
    edge_of: Callable[..., Any],
    bundle: Bundle,
    pair_bundle: Bundle,
    tiny_base: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("hostile")
    bundles = {
        "intent": bundle,
        "pair": pair_bundle,
        "find": written(folder / "find", SentenceSimilarity, tiny_base, "find"),
        "rank": written(folder / "rank", TextRanking, tiny_base, "rank"),
        "named": finder(folder / "named", tiny_base),
        **writers(folder, {"write": "prompt", "chat": "chat"}),
    }
    options = Serve(max_items=8, max_body_bytes=16_384, timeout_seconds=SECONDS)
    with edge_of({name: entry(one) for name, one in bundles.items()}, options) as running:
        yield running


def is_well(edge: Running) -> bool:
    answer = requests.post(f"{edge.address}/models/intent", json={"inputs": "a"}, timeout=30)
    return answer.status_code == 200


def raw(edge: Running, data: bytes) -> bytes:
    """What comes back for bytes that no client would send."""
    place = urlsplit(edge.address)
    with closing(socket.create_connection((place.hostname or "", place.port or 0), timeout=30)) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        came = b""
        while more := connection.recv(65_536):
            came += more
        return came


# --- bodies -----------------------------------------------------------------------------------------------------------


def mutant(body: Any, draw: random.Random) -> bytes:
    """A body with something strange in it, or damaged."""
    if draw.random() < 0.3:
        data = bytearray(json.dumps(body).encode())
        for _ in range(draw.randrange(1, 4)):
            data[draw.randrange(len(data))] = draw.randrange(256)
        return bytes(data[: draw.randrange(1, len(data) + 1)])
    tree = json.loads(json.dumps(body))
    places = list(nodes(tree))
    holder, key = draw.choice(places)
    if isinstance(holder, dict) and draw.random() < 0.3:
        holder[draw.choice(["inputs", "parameters", SECRET, "", "model"])] = draw.choice(STRANGE)
    else:
        holder[key] = draw.choice(STRANGE)
    return json.dumps(tree).encode()


def nodes(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Every place in a tree, as its holder and its key there."""
    for key, value in list(tree.items() if isinstance(tree, dict) else enumerate(tree)):
        yield tree, key
        if isinstance(value, dict | list):
            yield from nodes(value)


@pytest.mark.parametrize("path", VALID)
def test_no_body_breaks_anything(edge: Running, path: str, caplog: pytest.LogCaptureFixture) -> None:
    draw = random.Random(11)
    kind = {"Content-Type": "application/json"}
    seen = set()
    with caplog.at_level(logging.DEBUG), requests.Session() as session:
        for _ in range(MUTANTS):
            body = mutant(VALID[path], draw)
            answer = session.post(edge.address + path, data=body, headers=kind, timeout=30)
            seen.add(answer.status_code)
            assert answer.status_code < 500, (answer.text, body)
            if answer.status_code != 200:
                told = answer.json()
                assert "request_id" in (told if "request_id" in told else told["error"])
                assert SECRET not in answer.text
                assert SECRET not in json.dumps(dict(answer.headers))
    ours = [record.getMessage() for record in caplog.records if not record.name.startswith(("urllib3", "asyncio"))]
    assert SECRET not in "\n".join(ours)
    assert {400, 422} <= seen
    assert session.post(edge.address + path, json=VALID[path], timeout=30).status_code == 200


HALF = "\ud800"
MARK = "zebra"  # stands nowhere unless it came with the question
ECHOED: dict[str, set[tuple[Any, ...]]] = {
    "/models/named": {("inputs", 0), ("inputs", 1, "text", 0), ("inputs", 1, "text", 1)},
    "/models/rank/rerank": {("texts", 0)},
    "/v2/models/pair/infer": {("id",)},
}
"""The fields that come back in an answer. The test finds them by itself, and fails where one more does."""


def places(tree: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every string in a tree."""
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        if isinstance(value, str):
            yield (*above, key)
        elif isinstance(value, dict | list):
            yield from places(value, (*above, key))


def having(tree: Any, place: tuple[Any, ...], value: Any) -> Any:
    """A copy of a tree with another value at one place."""
    copied = json.loads(json.dumps(tree))
    holder = copied
    for key in place[:-1]:
        holder = holder[key]
    holder[place[-1]] = value
    return copied


@pytest.mark.parametrize("path", VALID)
def test_nothing_that_is_echoed_may_hold_half_a_character(edge: Running, path: str) -> None:
    """JSON can spell a lone surrogate, and UTF-8 cannot: an answer that repeats it could not be sent."""
    echoed = set()
    for place in places(VALID[path]):
        marked = requests.post(edge.address + path, json=having(VALID[path], place, MARK), timeout=30)
        if marked.status_code == 200 and MARK in marked.text:
            echoed.add(place)
        half = requests.post(edge.address + path, json=having(VALID[path], place, HALF), timeout=30)
        assert half.status_code == 422 if place in echoed else half.status_code < 500, (place, half.text)
        if place in echoed:
            assert "not valid Unicode text" in half.text
    assert echoed == ECHOED.get(path, set())
    assert [served.record.figures().failed for served in edge.lineup.served()] == [0] * len(edge.lineup.served())


def test_what_could_not_be_written_is_not_held_against_the_version(
    edge_of: Callable[..., Any], bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever way half a character found into an answer: who can send one could have versions taken back."""
    with edge_of({"intent": entry(bundle)}) as running:
        served = running.lineup.models["intent"].leading
        task: Any = served.predictor.task
        monkeypatch.setattr(task.target, "labels", [HALF] * len(LABELS))
        for path in ("/models/intent", "/v2/models/intent/infer"):
            body = {"inputs": "a"} if path == "/models/intent" else {"inputs": [{"name": "text", "data": ["a"]}]}
            answer = requests.post(running.address + path, json=body, timeout=30)
            assert answer.status_code == 422, answer.text
            assert "half a character" in answer.text
        assert (served.record.figures().failed, served.record.figures().answers) == (0, 0)


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "gzip, gzip", "identity, gzip"])
def test_what_is_packed_is_not_unpacked(edge: Running, encoding: str) -> None:
    bomb = gzip.compress(b'{"inputs": "' + b"a" * 10_000_000 + b'"}')
    headers = {"Content-Type": "application/json", "Content-Encoding": encoding}
    answer = requests.post(f"{edge.address}/models/intent", data=bomb, headers=headers, timeout=30)
    assert (answer.status_code, answer.json()["error"]["code"]) == (415, "unsupported_encoding")
    assert is_well(edge)


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "..%2f..%2fetc%2fpasswd",
        "%2e%2e/%2e%2e/etc/passwd",
        "../../../etc/passwd",
        "..%5c..%5cetc%5cpasswd",
        "intent%00",
        "intent%2f..%2fpair",
        "intent;a=b",
        "INTENT",
        "a" * 4_000,
        "%ff%fe",
        "{{7*7}}",
        "intent@production",
    ],
)
@pytest.mark.parametrize(
    "form", ["/models/{}", "/models/{}/info", "/v1/models/{}", "/v2/models/{}", "/v2/models/{}/ready"]
)
def test_a_name_is_no_path(edge: Running, name: str, form: str) -> None:
    request = f"GET {form.format(name)} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    came = raw(edge, request.encode())
    status = int(came.split(b" ", 2)[1])
    assert status in (400, 404)
    assert b"root:" not in came


# --- requests that no client would send -------------------------------------------------------------------------------

ASKED = b'{"inputs": "a"}'
HEAD = b"POST /models/intent HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


@pytest.mark.parametrize(
    "data",
    [
        HEAD + b"Content-Length: 5\r\nContent-Length: 500\r\n\r\n" + ASKED,
        HEAD + b"Content-Length: -1\r\n\r\n" + ASKED,
        HEAD + b"Content-Length: 99999999999999999999999\r\n\r\n" + ASKED,
        HEAD + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\nZZ\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFFF\r\na\r\n0\r\n\r\n",
        HEAD + b"Content-Length: 400\r\n\r\n" + ASKED,
        HEAD + b"X-Request-Id: a\r\nX-Request-Id: \x01\x02\r\nContent-Length: 15\r\n\r\n" + ASKED,
        b"GET / HTTP/9.9\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),
        b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        HEAD + b"".join(b"X-%d: a\r\n" % number for number in range(5_000)) + b"\r\n",
        bytes(range(256)) * 8,
    ],
)
def test_no_bytes_break_anything(edge: Running, data: bytes) -> None:
    came = raw(edge, data)
    assert not came.startswith(b"HTTP/1.1 5")
    assert is_well(edge)


@pytest.mark.parametrize(
    "headers",
    [
        {"X-Forwarded-For": "127.0.0.1", "X-Real-IP": "127.0.0.1", "Forwarded": "for=127.0.0.1"},
        {"Host": "evil.example", "Origin": "https://evil.example"},
        {"X-HTTP-Method-Override": "DELETE", "X-Original-URL": "/metrics"},
        {"Authorization": "Bearer " + "a" * 8_000},
        {"X-Request-Timeout-Seconds": "-1", "X-Serve-Disable-Timeout": "1"},
        {"Accept": "text/html, application/xml;q=9", "Accept-Encoding": "*;q=0"},
    ],
)
def test_headers_change_nothing(edge: Running, headers: dict[str, str]) -> None:
    told = requests.post(f"{edge.address}/models/intent", json={"inputs": "a"}, headers=headers, timeout=30)
    plain = requests.post(f"{edge.address}/models/intent", json={"inputs": "a"}, timeout=30)
    assert (told.status_code, told.json()) == (200, plain.json())
    assert "access-control-allow-origin" not in told.headers


def test_those_who_send_slowly_hold_nobody_up(edge: Running) -> None:
    """Many begin a request and never end it; others are answered meanwhile, and the slow ones are sent away."""
    place = urlsplit(edge.address)
    with ExitStack() as held:
        slow = []
        for _ in range(300):
            connection = socket.create_connection((place.hostname or "", place.port or 0), timeout=60)
            held.enter_context(closing(connection))
            connection.sendall(HEAD + b"Content-Length: 500\r\n\r\n{")
            slow.append(connection)
        assert all(is_well(edge) for _ in range(5))
        ends = [connection.recv(65_536) for connection in slow]
    assert all(end.startswith(b"HTTP/1.1 408") for end in ends)
    assert is_well(edge)


def test_those_who_leave_are_forgotten(edge: Running) -> None:
    place = urlsplit(edge.address)
    body = json.dumps({"inputs": ["a b c " * 300] * 8}).encode()
    for _ in range(50):
        with closing(socket.create_connection((place.hostname or "", place.port or 0), timeout=30)) as connection:
            connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    scheduler = edge.lineup.models["intent"].leading.scheduler

    async def until_idle() -> None:
        async with asyncio.timeout(60):
            while scheduler.busy():
                await asyncio.sleep(0.01)

    asyncio.run(until_idle())  # before that, a machine that computes slowly may rightly refuse what comes
    assert is_well(edge)
