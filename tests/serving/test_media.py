"""Pictures and sounds through the edge: as raw bodies and in base64, asked by the Hugging Face client."""

import base64
import http.client
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError
from scipy.io import wavfile
from transformers import Wav2Vec2Config, Wav2Vec2Model

from serving.recipe import Serve
from tests.serving.conftest import Running, entry
from tests.training.tasks.shapes import picture, tiny_vit
from training.bundle import Bundle, open_bundle, write_bundle
from training.recipe import Model
from training.tasks.audio_classification import AudioClassification
from training.tasks.image_classification import ImageClassification

LABELS = ["bar", "box", "ring"]
ROWS = pa.table({"file": ["x"] * 3, "label": LABELS})


def written(folder: Path, task: Any, base: Path, name: str) -> Bundle:
    folder.mkdir()
    with torch.random.fork_rng():
        torch.manual_seed(1)
        weights = task.build(base)
    write_bundle(folder, model=weights, task=task, name=name, recipe={}, metrics={}, baselines={}, data={})
    return open_bundle(folder)


def sent(chance: int = 1) -> bytes:
    file = io.BytesIO()
    picture("ring", np.random.default_rng(chance)).save(file, "PNG")
    return file.getvalue()


def sung() -> bytes:
    file = io.BytesIO()
    tone = np.sin(np.arange(4000) / 5) * 9000
    wavfile.write(file, 16_000, tone.astype(np.int16))
    return file.getvalue()


def seer(folder: Path) -> Bundle:
    """A model of pictures."""
    vit = tiny_vit(folder / "vit")
    model = Model(task="image-classification", base=str(vit), inputs={"image": ["file"]}, target="label")
    return written(folder / "pictures", ImageClassification.learn(model, vit, {"train": ROWS}), vit, "pictures")


@pytest.fixture(scope="module")
def edge(edge_of: Callable[..., Any], bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("media")
    pictures = seer(folder)
    wav2vec = folder / "wav2vec"
    sizes = {"conv_dim": (16, 16), "conv_stride": (10, 8), "conv_kernel": (20, 8), "num_feat_extract_layers": 2}
    config = Wav2Vec2Config(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=2,
        feat_extract_norm="layer",
        **sizes,
    )
    Wav2Vec2Model(config).save_pretrained(wav2vec)
    model = Model(task="audio-classification", base=str(wav2vec), inputs={"audio": ["file"]}, target="label")
    sounds = written(folder / "sounds", AudioClassification.learn(model, wav2vec, {"train": ROWS}), wav2vec, "sounds")
    models = {"pictures": entry(pictures), "sounds": entry(sounds), "intent": entry(bundle)}
    with edge_of(models, Serve(max_body_bytes=20_000)) as running:
        yield running


def post(
    running: Running, path: str, body: bytes, kind: str | None, headers: dict[str, str] | None = None
) -> tuple[int, Any]:
    connection = http.client.HTTPConnection(running.address.removeprefix("http://"), timeout=60)
    try:
        connection.request("POST", path, body, ({"Content-Type": kind} if kind else {}) | (headers or {}))
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


@pytest.mark.usefixtures("clients_allowed")
def test_the_hugging_face_client_works_unchanged(edge: Running, tmp_path: Path) -> None:
    client = InferenceClient(model=f"{edge.address}/models/pictures")
    file = tmp_path / "ring.png"
    file.write_bytes(sent())
    of_bytes, of_file = client.image_classification(sent()), client.image_classification(str(file))
    assert of_bytes == of_file
    assert sorted(one.label for one in of_bytes) == LABELS
    assert sum(one.score for one in of_bytes) == pytest.approx(1, abs=1e-5)
    assert [one.label for one in client.image_classification(file, top_k=1)] == [of_bytes[0].label]
    heard = InferenceClient(model=f"{edge.address}/models/sounds").audio_classification(sung())
    assert sorted(one.label for one in heard) == LABELS
    with pytest.raises(HfHubHTTPError, match="it is no picture that can be read"):
        client.image_classification(b"no picture")


def test_raw_bodies_and_base64_are_answered_alike(edge: Running) -> None:
    text = base64.b64encode(sent()).decode()
    status, raw = post(edge, "/models/pictures", sent(), "image/png")
    assert status == 200
    assert raw == post(edge, "/models/pictures", sent(), "application/octet-stream")[1]
    assert raw == post(edge, "/models/pictures", json.dumps({"inputs": text}).encode(), "application/json")[1]
    many = json.dumps({"inputs": [text, {"file": text}]}).encode()
    answers = post(edge, "/models/pictures", many, "application/json")[1]
    for one in answers:
        assert [entry["label"] for entry in one] == [entry["label"] for entry in raw]
        assert [entry["score"] for entry in one] == pytest.approx([entry["score"] for entry in raw], abs=1e-6)


def test_bytes_without_a_type_are_taken_from_programs_and_not_from_foreign_pages(edge: Running) -> None:
    assert post(edge, "/models/pictures", sent(), None)[0] == 200
    status, value = post(edge, "/models/pictures", sent(), None, {"Origin": "https://elsewhere.example"})
    assert (status, value["error"]["code"]) == (415, "unsupported_media_type")


@pytest.mark.parametrize(
    ("path", "kind", "status", "code"),
    [
        ("/models/pictures", "audio/wav", 415, "unsupported_media_type"),
        ("/models/pictures", "text/plain", 415, "unsupported_media_type"),
        ("/models/sounds", "image/png", 415, "unsupported_media_type"),
        ("/models/sounds", "audio/wav", 422, "invalid_input"),
        ("/models/intent", None, 415, "unsupported_media_type"),
        ("/models/intent", "image/png", 415, "unsupported_media_type"),
        ("/models/intent", "application/octet-stream", 415, "unsupported_media_type"),
        ("/models/intent", "application/json", 400, "malformed_json"),
    ],
)
def test_only_what_a_model_reads_is_taken(edge: Running, path: str, kind: str | None, status: int, code: str) -> None:
    got, value = post(edge, path, sent(), kind)
    assert (got, value["error"]["code"]) == (status, code)


def test_limits_hold_for_raw_bodies(edge: Running) -> None:
    status, value = post(edge, "/models/pictures", b"\x89PNG" + bytes(30_000), "image/png")
    assert (status, value["error"]["code"]) == (413, "body_too_large")
    status, value = post(edge, "/models/pictures", b"", "image/png")
    assert (status, value["error"]["code"]) == (422, "invalid_input")


@pytest.mark.parametrize("value", ["/etc/passwd", {"file": "/etc/passwd"}, {"file": {"path": "/etc/passwd"}}])
def test_a_request_cannot_have_a_file_read(edge: Running, value: Any) -> None:
    status, answer = post(edge, "/models/pictures", json.dumps({"inputs": value}).encode(), "application/json")
    assert (status, answer["error"]["code"]) == (422, "invalid_input")
    assert "passwd" not in json.dumps(answer)


def test_the_document_names_the_types(edge: Running) -> None:
    connection = http.client.HTTPConnection(edge.address.removeprefix("http://"), timeout=60)
    connection.request("GET", "/openapi.json")
    paths = json.loads(connection.getresponse().read())["paths"]
    connection.close()
    taken = {name: set(paths[f"/models/{name}"]["post"]["requestBody"]["content"]) for name in ("pictures", "intent")}
    assert taken["pictures"] == {"application/json", "image/*", "application/octet-stream"}
    assert taken["intent"] == {"application/json"}
