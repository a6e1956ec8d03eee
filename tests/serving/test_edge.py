"""The edge on a real socket, asked by real clients."""

import hashlib
import http.client
import json
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError

from cluster.storage import write_json
from serving.keys import Keys
from serving.predictor import Predictor, Question
from serving.protocols import form
from serving.recipe import Serve
from tests.serving.conftest import LABELS, TEXTS, MakeBundle, Running, entry
from training.bundle import Bundle

OPTIONS = Serve(max_items=8, max_body_bytes=4096, timeout_seconds=20)
SECRET = "my-very-private-text"


@pytest.fixture(scope="module")
def edge(edge_of: Callable[..., Any], bundle: Bundle, pair_bundle: Bundle) -> Iterator[Running]:
    with edge_of({"intent": entry(bundle, 3), "pair": entry(pair_bundle)}, OPTIONS) as running:
        yield running


def ask(
    running: Running,
    body: Any,
    path: str = "/models/intent",
    method: str = "POST",
    headers: dict[str, str] | None = None,
) -> tuple[int, Any, http.client.HTTPMessage]:
    """Status, JSON value (or text) and headers of one exchange."""
    connection = http.client.HTTPConnection(running.address.removeprefix("http://"), timeout=60)
    raw = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    try:
        connection.request(method, path, raw, {"Content-Type": "application/json"} if headers is None else headers)
        answer = connection.getresponse()
        text = answer.read().decode()
    finally:
        connection.close()
    value = json.loads(text) if answer.headers["content-type"] == "application/json" else text
    return answer.status, value, answer.headers


@pytest.mark.usefixtures("clients_allowed")
def test_the_hugging_face_client_works_unchanged(edge: Running, bundle: Bundle) -> None:
    client = InferenceClient(model=f"{edge.address}/models/intent")
    predictor = Predictor(bundle, device="cpu")
    for text, expected in zip(TEXTS, predictor.predict(TEXTS), strict=True):
        got = client.text_classification(text)
        assert [element.label for element in got] == [one["label"] for one in expected]
        assert [element.score for element in got] == pytest.approx([one["score"] for one in expected], abs=1e-5)
    assert len(client.text_classification("a", top_k=2)) == 2
    with pytest.raises(HfHubHTTPError, match="parameters: this model takes top_k"):
        client.text_classification("a", function_to_apply="sigmoid")


def test_a_list_is_answered_in_order(edge: Running, bundle: Bundle) -> None:
    status, value, headers = ask(edge, {"inputs": TEXTS, "parameters": {"top_k": 1}})
    assert (status, headers["x-headrace-version"]) == (200, "3")
    expected = Predictor(bundle, device="cpu").predict(TEXTS, {"top_k": 1})
    assert [one[0]["label"] for one in value] == [one[0]["label"] for one in expected]
    assert ask(edge, {"inputs": []})[1] == []


def test_objects_with_columns(edge: Running) -> None:
    both = {"subject": "card", "body": "late"}
    assert ask(edge, {"inputs": both}, "/models/pair")[0] == 200
    assert len(ask(edge, {"inputs": [both, both]}, "/models/pair")[1]) == 2
    assert ask(edge, {"inputs": {"text": "card"}})[0] == 200
    status, value, _ = ask(edge, {"inputs": [both, {"subject": SECRET}]}, "/models/pair")
    assert (status, value["error"]["message"]) == (422, "inputs[1].body: missing")


DEEP = b'{"inputs":' + b"[" * 1500 + b"]" * 1500 + b"}"
REFUSED: list[tuple[str, Any, int, str, str]] = [
    ("no JSON", SECRET.encode(), 400, "malformed_json", "the body is not valid JSON"),
    ("not UTF-8", b'{"inputs": "\xff"}', 400, "malformed_json", ""),
    ("NaN", b'{"inputs": NaN}', 400, "malformed_json", ""),
    ("a number of 4000 digits", b'{"inputs": ' + b"9" * 4000 + b"}", 422, "invalid_input", "inputs[0]"),
    ("nothing", b"", 400, "malformed_json", ""),
    ("nested past all reason", DEEP, 400, "malformed_json", ""),
    ("nested", {"inputs": [[[SECRET]]]}, 422, "invalid_input", "inputs[0]"),
    ("a list", [SECRET], 422, "invalid_request", "inputs"),
    ("no inputs", {"input": SECRET}, 422, "invalid_request", "inputs: missing"),
    ("an unknown key", {"inputs": "a", SECRET: 1}, 422, "invalid_request", "only inputs (or table), parameters"),
    ("null", {"inputs": None}, 422, "invalid_input", "inputs[0]"),
    ("a number", {"inputs": ["a", 7]}, 422, "invalid_input", "inputs[1]"),
    ("half a character", b'{"inputs": "\\ud800"}', 422, "invalid_request", "inputs[0]: not valid Unicode"),
    ("the column missing", {"inputs": {SECRET: "a"}}, 422, "invalid_input", "inputs[0].text: missing"),
    ("a column of lists", {"inputs": {"text": [SECRET]}}, 422, "invalid_input", "inputs[0].text: a string"),
    ("parameters no object", {"inputs": "a", "parameters": [1]}, 422, "invalid_request", "parameters"),
    ("an unknown parameter", {"inputs": "a", "parameters": {SECRET: 1}}, 422, "invalid_parameters", "top_k"),
    ("a wrong parameter", {"inputs": "a", "parameters": {"top_k": SECRET}}, 422, "invalid_parameters", "top_k"),
    ("too many", {"inputs": ["a"] * 9}, 413, "too_many_inputs", "9 were sent; 8 are allowed"),
    ("too large", {"inputs": SECRET * 300}, 413, "body_too_large", "4096 bytes"),
]


@pytest.mark.parametrize(
    ("body", "status", "code", "message"), [case[1:] for case in REFUSED], ids=[c[0] for c in REFUSED]
)
def test_what_is_refused_and_how(edge: Running, body: Any, status: int, code: str, message: str) -> None:
    got, value, headers = ask(edge, body, headers={"Content-Type": "application/json", "X-Request-Id": "abc-1"})
    assert (got, value["error"]["code"]) == (status, code)
    assert message in value["error"]["message"]
    assert value["error"]["request_id"] == headers["x-request-id"] == "abc-1"
    assert SECRET not in json.dumps(value) + str(headers)


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("POST", "/models/nobody", 404, "unknown_model"),
        ("POST", "/models/../../etc/passwd", 404, "not_found"),
        ("POST", "/models/", 404, "unknown_model"),
        ("GET", "/models/nobody", 404, "unknown_model"),
        ("GET", "/v2/models/nobody/ready", 404, "unknown_model"),
        ("GET", "/v2/models/intent/versions/9", 404, "unknown_version"),
        ("GET", "/v1/embeddings", 405, "method_not_allowed"),
        ("POST", "/models/nobody/embed", 404, "unknown_model"),
        ("POST", "/embed", 404, "unknown_model"),
        ("GET", "/secret", 404, "not_found"),
        ("PUT", "/models/intent", 405, "method_not_allowed"),
        ("DELETE", "/metrics", 405, "method_not_allowed"),
    ],
)
def test_paths_and_methods_that_are_not_there(edge: Running, method: str, path: str, status: int, code: str) -> None:
    got, value, _ = ask(edge, {"inputs": "a"}, path, method)
    assert (got, code_of(value)) == (status, code)


def code_of(value: Any) -> str:
    """The stable code of an error, which two of the forms have beside a message that is called ``error``."""
    told = value["error"] if isinstance(value["error"], dict) else value
    return str(told["code"])


def test_only_plain_json_is_read(edge: Running) -> None:
    for headers in ({}, {"Content-Type": "text/plain"}, {"Content-Type": "application/x-www-form-urlencoded"}):
        assert ask(edge, {"inputs": "a"}, headers=headers)[1]["error"]["code"] == "unsupported_media_type"
    packed = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    assert ask(edge, {"inputs": "a"}, headers=packed)[1]["error"]["code"] == "unsupported_encoding"
    assert ask(edge, {"inputs": "a"}, headers={"Content-Type": "application/json; charset=utf-8"})[0] == 200


def test_a_body_without_a_length_is_cut_off_while_it_comes(edge: Running) -> None:
    host, port = edge.address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as client:
        head = "POST /models/intent HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        head += "Transfer-Encoding: chunked\r\n"
        client.sendall(f"{head}\r\n".encode() + b"1000\r\n" + b"a" * 4096 + b"\r\n" + b"10\r\n" + b"b" * 16 + b"\r\n")
        assert client.recv(4096).startswith(b"HTTP/1.1 413 ")


def test_a_request_id_is_taken_only_when_it_is_safe(edge: Running) -> None:
    json_type = {"Content-Type": "application/json"}
    assert ask(edge, {"inputs": "a"}, headers={**json_type, "X-Request-Id": "a.b-C_9"})[2]["x-request-id"] == "a.b-C_9"
    for unsafe in ("a b", "<script>", "x" * 65, ""):
        given = ask(edge, {"inputs": "a"}, headers={**json_type, "X-Request-Id": unsafe})[2]["x-request-id"]
        assert given != unsafe
        assert len(given) == 32


def test_what_can_be_read(edge: Running) -> None:
    _, about, headers = ask(edge, None, "/models/intent", "GET")
    assert about["version"] == headers["x-headrace-version"] == "3"
    assert about["task"] == "text-classification"
    assert about["metrics"] == {"test/accuracy": 0.9}
    assert [one["name"] for one in ask(edge, None, "/models", "GET")[1]] == ["intent", "pair"]
    for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/pair/ready"):
        assert ask(edge, None, path, "GET")[0] == 200
    assert ask(edge, None, "/", "HEAD")[0] == 200


def test_the_pages_bring_everything_along(edge: Running) -> None:
    for path in ("/", "/docs"):
        status, page, headers = ask(edge, None, path, "GET")
        assert status == 200
        assert "connect-src 'self'" in headers["content-security-policy"]
        assert "<script src" not in page
        assert '<link rel="stylesheet' not in page
        assert "http://" not in page.replace("http://www.w3.org/2000/svg", "")
        assert "https://" not in page


def body_for(path: str) -> Any:
    """What the document allows at a path."""
    columns = ["subject", "body"] if "pair" in path else ["text"]
    if path.endswith("/infer"):
        return {"inputs": [{"name": column, "data": ["a"]} for column in columns]}
    if path.endswith("/predict"):
        return {"inputs": ["a"] * len(columns)}
    return {"inputs": dict.fromkeys(columns, "a") if len(columns) > 1 else "a"}


def test_openapi_tells_the_truth_about_every_path(edge: Running) -> None:
    document = ask(edge, None, "/openapi.json", "GET")[1]
    assert {"/models/intent", "/models/pair", "/metrics", "/models"} <= set(document["paths"])
    for path, methods in document["paths"].items():
        for method in methods:
            assert ask(edge, body_for(path), path, method.upper())[0] == 200, (method, path)
    body = document["paths"]["/models/intent"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    answer = document["paths"]["/models/intent"]["post"]["responses"]["200"]["content"]["application/json"]["schema"]
    assert body["properties"]["inputs"]["anyOf"][-1]["maxItems"] == OPTIONS.max_items
    assert answer["items"]["items"]["properties"]["label"]["enum"] == LABELS


def test_metrics_count_outcomes_and_hold_no_text(edge: Running) -> None:
    ask(edge, {"inputs": SECRET})
    ask(edge, {"inputs": SECRET}, f"/models/{SECRET}")
    page = ask(edge, None, "/metrics", "GET")[1]
    assert 'headrace_requests_total{model="intent",outcome="ok",version="3"}' in page
    assert 'headrace_requests_total{model="-",outcome="unknown_model",version="-"}' in page
    assert "headrace_batch_items_bucket" in page
    assert SECRET not in page


@pytest.mark.usefixtures("clients_allowed")
def test_keys_guard_everything_but_health_and_the_bare_pages(
    edge_of: Callable[..., Any], bundle: Bundle, tmp_path: Path
) -> None:
    path = tmp_path / "keys"
    path.write_text(f"desk:{hashlib.sha256(b'right').hexdigest()}\n")
    json_type = {"Content-Type": "application/json"}
    with edge_of({"intent": entry(bundle)}, OPTIONS, Keys(path)) as running:
        for open_path in ("/v2/health/live", "/v2/health/ready", "/", "/docs"):
            assert ask(running, None, open_path, "GET")[0] == 200
        for closed in ("/models", "/models/intent", "/metrics", "/openapi.json", "/v2/models/intent/ready", "/nothing"):
            status, value, headers = ask(running, None, closed, "GET")
            assert (status, code_of(value), headers["www-authenticate"]) == (401, "unauthorized", "Bearer")
        for name in ("intent", "nobody"):  # who has no key learns no names
            assert ask(running, {"inputs": "a"}, f"/models/{name}")[0] == 401
        wrong = {**json_type, "Authorization": "Bearer wrong"}
        assert ask(running, {"inputs": "a"}, headers=wrong)[0] == 401
        client = InferenceClient(model=f"{running.address}/models/intent", token="right")
        assert len(client.text_classification("a")) == 5
        assert ask(running, None, "/openapi.json", "GET", {"Authorization": "Bearer right"})[1]["security"] == [
            {"key": []}
        ]


def test_a_key_sees_its_models_and_does_what_it_is_good_for(
    edge_of: Callable[..., Any], bundle: Bundle, pair_bundle: Bundle, tmp_path: Path
) -> None:
    path = tmp_path / "keys"
    scopes = {"desk": "models=intent actions=predict", "watch": "actions=admin", "poor": "tokens_per_minute=5"}
    lines = [f"{name}:{hashlib.sha256(name.encode()).hexdigest()} {scope}\n" for name, scope in scopes.items()]
    path.write_text("".join(lines))

    def as_(name: str) -> dict[str, str]:
        return {"Content-Type": "application/json", "Authorization": f"Bearer {name}"}

    with edge_of({"intent": entry(bundle), "pair": entry(pair_bundle)}, Serve(), Keys(path)) as running:

        def get(path: str, name: str) -> tuple[int, Any]:
            return ask(running, None, path, "GET", as_(name))[:2]

        assert [model["name"] for model in get("/models", "desk")[1]] == ["intent"]
        assert [model["id"] for model in get("/v1/models", "desk")[1]["data"]] == ["intent"]
        assert not [path for path in get("/openapi.json", "desk")[1]["paths"] if "pair" in path]
        assert get("/info", "desk")[1]["model_id"] == "intent", "the only model that there is for this key"
        for closed in ("/models/pair", "/models/pair/info", "/v1/models/pair", "/v2/models/pair"):
            assert get(closed, "desk")[0] == 404
        assert ask(running, {"inputs": {"subject": "a", "body": "b"}}, "/models/pair", headers=as_("desk"))[0] == 404
        assert ask(running, {"inputs": "a"}, headers=as_("desk"))[0] == 200
        for name, closed in (
            ("desk", "/metrics"),
            ("desk", "/dashboard.json"),
            ("watch", "/models"),
            ("watch", "/models/intent"),
        ):
            status, told = get(closed, name)
            assert (status, code_of(told)) == (403, "forbidden")
        assert ask(running, {"inputs": "a"}, headers=as_("watch"))[0] == 403
        assert ask(running, None, "/metrics", "GET", as_("watch"))[0] == 200

        assert ask(running, {"inputs": ["a b c", "d"]}, headers=as_("poor"))[0] == 200, "who has any tokens may ask"
        status, told, headers = ask(running, {"inputs": "a"}, headers=as_("poor"))
        assert (status, code_of(told)) == (429, "rate_limited")
        assert 1 <= int(headers["retry-after"]) <= 120
        assert ask(running, {"inputs": "a"}, headers=as_("desk"))[0] == 200, "one who has used up theirs stops no other"


def test_a_full_queue_is_429_with_the_time_to_return(edge_of: Callable[..., Any], bundle: Bundle) -> None:
    with edge_of({"intent": entry(bundle)}, Serve(max_queue=2)) as running:
        status, value, headers = ask(running, {"inputs": ["a", "b", "c"]})
        assert (status, value["error"]["code"], headers["retry-after"]) == (429, "overloaded", "1")
        assert ask(running, {"inputs": ["a", "b"]})[0] == 200


def test_a_request_of_too_many_tokens_is_413(edge_of: Callable[..., Any], bundle: Bundle) -> None:
    with edge_of({"intent": entry(bundle)}, Serve(max_tokens=20)) as running:
        status, value, _ = ask(running, {"inputs": ["a b c d e f g h", "a b c d e f g h", "a b c d e f g h"]})
        assert (status, value["error"]["code"]) == (413, "too_many_tokens")
        assert "the 20 tokens" in value["error"]["message"]
        assert ask(running, {"inputs": ["a b c", "d"]})[0] == 200


def test_a_request_without_time_is_504(edge_of: Callable[..., Any], bundle: Bundle) -> None:
    with edge_of({"intent": entry(bundle)}, Serve(timeout_seconds=1e-6)) as running:
        status, value, _ = ask(running, {"inputs": "a"})
        assert (status, value["error"]["code"]) in [
            (504, "deadline_exceeded"),
            (408, "body_too_slow"),
            (429, "overloaded"),
        ]


def test_a_model_that_is_gone_is_waited_for_until_the_deadline_and_no_longer(
    edge_of: Callable[..., Any], bundle: Bundle
) -> None:
    with edge_of({"intent": entry(bundle)}, Serve(timeout_seconds=0.5)) as running:
        running.lineup.models["intent"].leading.scheduler.close()  # and no successor comes
        status, value, _ = ask(running, {"inputs": "a"})
        assert (status, value["error"]["code"]) == (504, "deadline_exceeded")


def test_who_leaves_is_computed_nothing_for(
    edge_of: Callable[..., Any], bundle: Bundle, monkeypatch: pytest.MonkeyPatch, wait_until: Callable[..., None]
) -> None:
    begun, go_on = threading.Semaphore(0), threading.Event()
    computed: list[int] = []

    def slow(predictor: Predictor, questions: Sequence[Question]) -> list[Any]:
        computed.append(len(questions))
        begun.release()
        assert go_on.wait(60)
        return answer(predictor, questions)

    answer = Predictor.answer
    monkeypatch.setattr(Predictor, "answer", slow)
    with edge_of({"intent": entry(bundle)}) as running:
        place = urlsplit(running.address)
        asked = b'{"inputs": "a"}'
        head = b"POST /models/intent HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        whole = head + b"Content-Length: %d\r\n\r\n" % len(asked) + asked
        with ThreadPoolExecutor() as pool:
            first = []
            for _ in range(running.lineup.models["intent"].leading.predictor.lanes):
                first.append(pool.submit(ask, running, {"inputs": "a"}))
                assert begun.acquire(timeout=60)
            for _ in range(5):
                with closing(socket.create_connection((place.hostname or "", place.port or 0))) as connection:
                    connection.sendall(whole)
            gone = 'headrace_requests_total{model="intent",outcome="client_gone",version="1"} 5.0'
            wait_until(lambda: gone in ask(running, None, "/metrics", "GET")[1])
            go_on.set()
            assert [one.result()[0] for one in first] == [200] * len(first)
        assert ask(running, {"inputs": "a"})[0] == 200
    assert computed == [1] * (len(first) + 1)


def test_what_the_scanner_takes_and_python_cannot_walk_is_malformed(
    edge: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep: dict[str, Any] = {}
    for _ in range(5000):
        deep = {"a": deep}
    # From Python 3.12 on, the scanner may nest deeper than Python code does; older ones give up first.
    monkeypatch.setattr(form, "read_json", lambda body: {"inputs": deep})
    status, value, _ = ask(edge, {"inputs": "a"})
    assert (status, value["error"]["code"]) == (400, "malformed_json")


def test_a_defect_is_500_with_the_request_id_and_nothing_else(
    edge_of: Callable[..., Any], bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    with edge_of({"intent": entry(bundle)}) as running:
        running.lineup.models["intent"].leading.predictor.task.reader = None  # a model that breaks inside
        status, value, _ = ask(
            running, {"inputs": SECRET}, headers={"Content-Type": "application/json", "X-Request-Id": "r1"}
        )
        assert (status, value["error"]) == (
            500,
            {"code": "internal", "message": "something failed inside the server", "request_id": "r1"},
        )
    assert "request r1 failed: AttributeError" in caplog.text
    assert SECRET not in caplog.text


def test_a_changed_file_swaps_the_model_and_a_broken_bundle_does_not(
    edge_of: Callable[..., Any],
    bundle: Bundle,
    make_bundle: MakeBundle,
    tmp_path: Path,
    wait_until: Callable[..., None],
) -> None:
    other = make_bundle(tmp_path / "other", seed=2)
    with edge_of({"intent": entry(bundle, 1)}) as running:
        before = ask(running, {"inputs": "card"})
        write_json(running.wanted, {"intent": entry(other, 2)})
        wait_until(lambda: ask(running, {"inputs": "card"})[2]["x-headrace-version"] == "2")
        assert ask(running, {"inputs": "card"})[1] != before[1]
        spoiled = make_bundle(tmp_path / "spoiled", seed=3)
        (spoiled.folder / "config.json").write_text("{}")
        write_json(running.wanted, {"intent": entry(spoiled, 3), "second": entry(bundle, 1)})
        wait_until(lambda: ask(running, {"inputs": "a"}, "/models/second")[0] == 200)
        assert ask(running, {"inputs": "card"})[2]["x-headrace-version"] == "2"
        assert 'headrace_swaps_total{model="intent",outcome="failed"} 1.0' in ask(running, None, "/metrics", "GET")[1]
        write_json(running.wanted, {"intent": entry(other, 2)})
        wait_until(lambda: ask(running, {"inputs": "a"}, "/models/second")[0] == 404)
