"""Numbers, names, headers and files that are meant to break something: no defect, no answer that is no JSON."""

import json
import logging
import random
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import requests

from serving.recipe import Serve
from tests.serving import test_media, test_tables
from tests.serving.conftest import MakeBundle, Running, entry
from tests.serving.test_hostile import SECRET, mutant
from training.bundle import Bundle

MUTANTS = 40
HISTORY = {"t": ["2026-03-02T00:00:00", "2026-03-02T01:00:00"], "y": [1, 2.5]}
VALID: dict[str, Any] = {
    "/models/quality": {"inputs": [{"acidity": 7.4, "region": SECRET}], "parameters": {"top_k": 1}},
    "/models/price": {"table": {"acidity": [7.4, 1], "region": [SECRET, "north"]}},
    "/models/hourly": {"inputs": [{"history": HISTORY}], "parameters": {"horizon": 2}},
    "/v2/models/price/infer": {
        "inputs": [
            {"name": "acidity", "datatype": "FP64", "shape": [1], "data": [7.4]},
            {"name": "region", "datatype": "BYTES", "shape": [1], "data": [SECRET]},
        ]
    },
}
NUMBERS = [b"1e999", b"-1e999", b"1e308", b"-1e308", b"5e-324", b"1" + b"0" * 400, b"-0", b"1" * 4000]


@pytest.fixture(scope="module")
def edge(edge_of: Callable[..., Any], bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("values")
    bundles = {"intent": bundle, **test_tables.made(folder), "pictures": test_media.seer(folder)}
    with edge_of({name: entry(one) for name, one in bundles.items()}, Serve(max_items=8)) as running:
        yield running


def strictly(body: bytes) -> Any:
    """The JSON value of a body, in which no NaN and no Infinity may stand."""

    def none(name: str) -> Any:
        raise AssertionError(f"{name} is no JSON")

    return json.loads(body, parse_constant=none)


def posted(edge: Running, path: str, body: bytes) -> requests.Response:
    kind = {"Content-Type": "application/json"}
    answer = requests.post(edge.address + path, data=body, headers=kind, timeout=60)
    assert answer.status_code < 500, (answer.text, body[:200])
    return answer


@pytest.mark.parametrize("path", VALID)
def test_no_body_breaks_what_reads_tables(edge: Running, path: str, caplog: pytest.LogCaptureFixture) -> None:
    draw = random.Random(12)
    assert posted(edge, path, json.dumps(VALID[path]).encode()).status_code == 200
    with caplog.at_level(logging.DEBUG):
        for _ in range(MUTANTS):
            answer = posted(edge, path, mutant(VALID[path], draw))
            strictly(answer.content)
            assert answer.status_code == 200 or SECRET not in answer.text
    ours = [record.getMessage() for record in caplog.records if not record.name.startswith(("urllib3", "asyncio"))]
    assert SECRET not in "\n".join(ours)


@pytest.mark.parametrize("number", NUMBERS, ids=[number[:8].decode() for number in NUMBERS])
def test_no_number_breaks_anything(edge: Running, number: bytes) -> None:
    cell = b'{"acidity": %b, "region": "north"}' % number
    series = b'{"history": {"t": ["2026-03-02T00:00:00", "2026-03-02T01:00:00"], "y": [1, %b]}}' % number
    for path, body in (
        ("/models/quality", b'{"inputs": [%b]}' % cell),
        ("/models/price", b'{"inputs": [%b, {"acidity": 1, "region": "north"}]}' % cell),
        ("/models/hourly", b'{"inputs": [%b]}' % series),
        ("/models/hourly", b'{"inputs": [], "parameters": {"horizon": %b}}' % number),
        ("/models/intent", b'{"inputs": "a", "parameters": {"top_k": %b}}' % number),
        ("/models/intent", b'{"inputs": "a", "parameters": {"abstain_below": %b}}' % number),
        (
            "/v2/models/price/infer",
            b'{"inputs": [{"name": "acidity", "shape": [%b], "data": [%b]}]}' % (number, number),
        ),
    ):
        strictly(posted(edge, path, body).content)


def test_of_a_key_that_stands_twice_the_last_one_holds(edge: Running) -> None:
    twice = posted(edge, "/models/intent", b'{"inputs": ["no", "no"], "inputs": "where is my card", "inputs": "card"}')
    assert twice.json() == posted(edge, "/models/intent", b'{"inputs": "card"}').json()


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "ｉｎｔｅｎｔ",
        "іntent",  # a Cyrillic i
        "İNTENT",
        "intent\u200b",
        "\u202etnetni",
        "inte\u0301nt",
        "intent\u0000",
        "\ufeffintent",
        "intent ",
        "\ud800",
    ],
)
def test_what_only_looks_like_a_name_is_none(edge: Running, name: str) -> None:
    spelled = quote(name.encode("utf-8", "surrogatepass"))
    for path in (f"/models/{spelled}", f"/models/{spelled}/predict", f"/v2/models/{spelled}/infer"):
        assert posted(edge, path, b'{"inputs": "a"}').status_code == 404
    for path in ("/v1/embeddings", "/v1/completions", "/v1/chat/completions"):
        asked = {"model": name, "input": "a", "prompt": "a", "messages": []}
        assert posted(edge, path, json.dumps(asked).encode()).status_code in (404, 422)


# --- headers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("column", "stands"), [("subject", True), ("two\nlines", False), ("two\tparts", False)])
def test_no_column_breaks_a_header(
    edge_of: Callable[..., Any], make_bundle: MakeBundle, tmp_path: Path, column: str, stands: bool
) -> None:
    bundle = make_bundle(tmp_path / "odd", name="odd", columns=(column, "body"))
    with edge_of({"odd": entry(bundle)}) as running:
        told = requests.post(f"{running.address}/models/odd", json={"inputs": {"body": "a"}}, timeout=60)
    message = told.json()["error"]["message"]
    assert (told.status_code, message) == (422, f"inputs[0].{column}: missing")
    assert told.headers.get("x-error-message") == (message if stands else None)


@pytest.mark.parametrize(
    "headers",
    [
        {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "tracestate": "a=" + "b" * 500},
        {"traceparent": "00-" + "0" * 32 + "-" + "0" * 16 + "-ff"},
        {"traceparent": f"{SECRET}-" + "f" * 3_000, "baggage": f"{SECRET}=1"},
        {"X-Forwarded-Host": "evil.example", "X-Forwarded-Proto": "gopher", "X-Forwarded-Prefix": "/admin"},
        {"X-Forwarded-For": f"{SECRET}, ::1, 127.0.0.1", "X-Forwarded-Port": "99999"},
        {"Cookie": "a=" + "b" * 6_000, "Range": "bytes=0-0", "Expect": "a-miracle", "TE": "trailers"},
    ],
)
def test_headers_change_nothing(edge: Running, headers: dict[str, str], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        told = requests.post(f"{edge.address}/models/intent", json={"inputs": "a"}, headers=headers, timeout=60)
    plain = requests.post(f"{edge.address}/models/intent", json={"inputs": "a"}, timeout=60)
    assert (told.status_code, told.json()) == (200, plain.json())
    assert SECRET not in json.dumps(dict(told.headers)) + caplog.text
    assert "evil" not in json.dumps(dict(told.headers))


# --- files ------------------------------------------------------------------------------------------------------------


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb(side: int) -> bytes:
    """A small PNG file of very many black pixels."""
    row = bytes(1 + side // 8)
    packer = zlib.compressobj(9)
    data = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    shape = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", shape) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [8_000, 20_000])  # 0.2 and 1.2 GB in three colours
def test_a_picture_that_unpacks_to_too_much_is_not_unpacked(edge: Running, side: int) -> None:
    packed = bomb(side)
    assert len(packed) < 100_000
    headers = {"Content-Type": "image/png"}
    answer = requests.post(f"{edge.address}/models/pictures", data=packed, headers=headers, timeout=60)
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "invalid_input")


@pytest.mark.parametrize("cut", [0.1, 0.5, 0.9])
def test_a_damaged_picture_is_refused(edge: Running, cut: float) -> None:
    whole = test_media.sent()
    damaged = whole[: int(len(whole) * cut)]
    headers = {"Content-Type": "image/png"}
    answer = requests.post(f"{edge.address}/models/pictures", data=damaged, headers=headers, timeout=60)
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "invalid_input")
