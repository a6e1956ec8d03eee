"""One server with models of all kinds, as `headrace serve` starts it, asked by others' clients through its proxy."""

import base64
import http.client
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
import tritonclient.http as triton
from huggingface_hub import InferenceClient

from serving.predictor import Predictor
from tests.serving import test_media, test_tables
from tests.serving.conftest import TEXTS
from tests.serving.test_completions import writers
from tests.serving.test_entities import finder
from tests.serving.test_search import ARTICLES, written
from training.bundle import Bundle
from training.tasks.sentence_similarity import SentenceSimilarity
from training.tasks.text_ranking import TextRanking

ROOT = Path(__file__).parents[2]
MAX_ITEMS = 16
ASKED = {"acidity": 7.4, "region": "north"}
HISTORY = {"t": ["2026-03-02T00:00:00", "2026-03-02T01:00:00"], "y": [1, 2.5]}


@dataclass
class Server:
    """A running server and what it serves."""

    port: int
    bundles: dict[str, Bundle]

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def predicted(self, name: str, inputs: list[Any]) -> list[Any]:
        """What a model says, asked without a server."""
        return Predictor(self.bundles[name], device="cpu").predict(inputs)


@pytest.fixture(scope="module")
def server(
    bundle: Bundle, pair_bundle: Bundle, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("one")
    bundles = {
        "intent": bundle,
        "pair": pair_bundle,
        "find": written(folder / "find", SentenceSimilarity, tiny_base, "find"),
        "rank": written(folder / "rank", TextRanking, tiny_base, "rank"),
        **writers(folder, {"prompt": "prompt", "chat": "chat"}),
        **test_tables.made(folder),
        "pictures": test_media.seer(folder),
        "named": finder(folder / "named", tiny_base),
    }
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    words = [str(one.folder) for one in bundles.values()] + ["--port", str(port), f"serve.max_items={MAX_ITEMS}"]
    kept = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "HEADRACE_API_KEYS")}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "headrace", "serve", *words],
            cwd=ROOT,
            env={**kept, "HEADRACE_HOME": str(folder / "home")},
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        try:
            assert process.stdout is not None
            told = [process.stdout.readline().partition(" ")[0] for _ in bundles]
            assert told == list(bundles), (folder / "log").read_text()
            yield Server(port, bundles)
        finally:
            process.terminate()
            try:
                process.wait(90)
            except subprocess.TimeoutExpired:
                process.kill()


# --- Hugging Face: every kind -----------------------------------------------------------------------------------------


def hub(server: Server, name: str) -> InferenceClient:
    return InferenceClient(model=f"{server.address}/models/{name}", timeout=60)


@pytest.mark.usefixtures("clients_allowed")
def test_the_hugging_face_client_asks_every_kind(server: Server) -> None:
    labels = hub(server, "intent").text_classification(TEXTS[0])
    (expected,) = server.predicted("intent", [TEXTS[0]])
    assert [one.label for one in labels] == [one["label"] for one in expected]
    assert [one.score for one in labels] == pytest.approx([one["score"] for one in expected], abs=1e-5)
    vector = hub(server, "find").feature_extraction(TEXTS[0])
    np.testing.assert_allclose(vector, server.predicted("find", [TEXTS[0]])[0], atol=1e-5)
    assert len(hub(server, "find").sentence_similarity(TEXTS[0], other_sentences=ARTICLES)) == len(ARTICLES)
    (named,) = server.predicted("named", [TEXTS[0]])
    found = hub(server, "named").token_classification(TEXTS[0], aggregation_strategy="first")
    assert [(one.entity_group, one.start, one.end) for one in found] == [
        (one["entity_group"], one["start"], one["end"]) for one in named
    ]
    seen = hub(server, "pictures").image_classification(test_media.sent())
    (expected,) = server.predicted("pictures", [base64.b64encode(test_media.sent()).decode()])
    assert [one.label for one in seen] == [one["label"] for one in expected]
    table: dict[str, Any] = {name: [value] for name, value in ASKED.items()}
    assert hub(server, "quality").tabular_classification(table) == [server.predicted("quality", [ASKED])[0][0]["label"]]
    assert hub(server, "prompt").text_generation(TEXTS[0], max_new_tokens=4) is not None


def posted(server: Server, path: str, body: Any) -> Any:
    with closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)) as connection:
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        text = answer.read()
        assert answer.status == 200, text
        return json.loads(text)


def test_what_their_client_has_no_words_for_is_asked_all_the_same(server: Server) -> None:
    (price,) = posted(server, "/models/price", {"inputs": [ASKED]})
    assert price[0]["score"] == pytest.approx(server.predicted("price", [ASKED])[0][0]["score"], abs=1e-5)
    asked = {"history": HISTORY}
    (forecast,) = posted(server, "/models/hourly", {"inputs": [asked]})
    assert forecast["median"] == pytest.approx(server.predicted("hourly", [asked])[0]["median"], abs=1e-5)
    ranked = posted(server, "/models/rank/rerank", {"query": TEXTS[0], "texts": ARTICLES})
    (expected,) = server.predicted("rank", [{"query": TEXTS[0], "texts": ARTICLES}])
    assert [one["index"] for one in ranked] == [one["index"] for one in expected]
    (pair,) = posted(server, "/models/pair", {"inputs": [{"subject": "card", "body": "late"}]})
    assert pair[0]["label"] == server.predicted("pair", [{"subject": "card", "body": "late"}])[0][0]["label"]


# --- OpenAI -----------------------------------------------------------------------------------------------------------


def test_openai_asks_what_embeds_and_what_writes(server: Server) -> None:
    client = openai.OpenAI(base_url=f"{server.address}/v1", api_key="none", max_retries=0)
    assert [one.id for one in client.models.list()] == list(server.bundles)
    vectors = [one.embedding for one in client.embeddings.create(model="find", input=TEXTS).data]
    np.testing.assert_allclose(vectors, server.predicted("find", TEXTS), atol=1e-5)
    said = client.completions.create(model="prompt", prompt=TEXTS[0], max_tokens=6).choices[0].text
    pieces = client.completions.create(model="prompt", prompt=TEXTS[0], max_tokens=6, stream=True)
    assert "".join(piece.choices[0].text for piece in pieces) == said
    talked = client.chat.completions.create(model="chat", messages=[{"role": "user", "content": TEXTS[0]}])
    assert talked.choices[0].finish_reason in ("stop", "length")
    with pytest.raises(openai.NotFoundError, match="no model of this name"):
        client.models.retrieve("nobody")


# --- Triton -----------------------------------------------------------------------------------------------------------


def test_triton_asks_what_labels_and_what_embeds(server: Server) -> None:
    client = triton.InferenceServerClient(f"127.0.0.1:{server.port}")
    try:
        assert client.is_server_ready() and all(client.is_model_ready(name) for name in server.bundles)
        texts = triton.InferInput("text", [len(TEXTS)], "BYTES")
        texts.set_data_from_numpy(np.array([text.encode() for text in TEXTS], dtype=np.object_))
        labels = client.infer("intent", [texts]).as_numpy("label").tolist()
        assert labels == [answer[0]["label"] for answer in server.predicted("intent", TEXTS)]
        vectors = client.infer("find", [texts]).as_numpy("embedding")
        np.testing.assert_allclose(vectors, server.predicted("find", TEXTS), atol=1e-5)
    finally:
        client.close()


# --- whoever reads the document ---------------------------------------------------------------------------------------

UNSAID = "^(/v2/models/[^/]+/infer|/models/(chat|find|hourly|pictures|price|prompt|quality|rank)|.*/completions)$"
"""Where a schema cannot say all: that tensors have other names and equally many values, as their shapes say,
that a string is a number or a moment, that bytes are a picture, how many tokens a prompt has, how many texts are wanted
in all and how many the inputs hold together. What the document allows there may still be refused."""
CONFIGURATION = f"""
[checks.negative_data_rejection]
expected-statuses = [400, 401, 403, 404, 405, 406, 408, 409, 413, 415, 422, 428, 429]

[[operations]]
include-path-regex = "{UNSAID}"
checks.positive_data_acceptance.enabled = false
"""


def test_schemathesis_finds_nothing(server: Server, tmp_path: Path) -> None:
    """It sends what the document allows and what it forbids, and nothing may break or be answered otherwise."""
    (tmp_path / "schemathesis.toml").write_text(CONFIGURATION)
    words = [f"{server.address}/openapi.json", "--max-examples", "10", "--seed", "3", "--no-color"]
    command = [str(Path(sys.executable).parent / "schemathesis"), "run", *words, "--phases", "coverage,fuzzing"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stdout[-8000:]


# --- whoever sends no end of headers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("many", [b"X: a\r\n" * 50_000, b"X: " + b"a" * 1_000_000 + b"\r\n"])
def test_the_proxy_takes_no_flood_of_headers(server: Server, many: bytes) -> None:
    """The replicas' own HTTP server would take them without end; they never get so far."""
    with closing(socket.create_connection(("127.0.0.1", server.port), timeout=60)) as connection:
        try:
            connection.sendall(b"POST /models/intent HTTP/1.1\r\nHost: x\r\n" + many)
            came = connection.recv(65_536)
        except (BrokenPipeError, ConnectionResetError):
            came = b""
    assert not came or came.startswith(b"HTTP/1.1 4")
    assert posted(server, "/models/intent", {"inputs": "a"})
