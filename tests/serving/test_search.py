"""Models that search behind the edge: huggingface_hub's own client gets vectors, similarities and ranks."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import requests
import torch
from huggingface_hub import InferenceClient

from serving.apart import MOST_TEXTS
from serving.predictor import Predictor
from serving.recipe import Serve
from tests.serving.conftest import Running, entry
from training.bundle import Bundle, open_bundle, write_bundle
from training.recipe import Model
from training.tasks.sentence_similarity import SentenceSimilarity
from training.tasks.task import Task
from training.tasks.text_ranking import TextRanking

ROWS = pa.table({"question": ["where is my card", "the app is slow"], "article": ["card lost", "app slow"]})
ARTICLES = ["card lost", "the parcel is late and the courier lost it", "slow app"]


@pytest.fixture(scope="module")
def bundles(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    folder = tmp_path_factory.mktemp("search")
    tasks: dict[str, type[Task]] = {"find": SentenceSimilarity, "rank": TextRanking}
    return {name: written(folder / name, kind, tiny_base, name) for name, kind in tasks.items()}


def written(folder: Path, kind: type[Task], base: Path, name: str) -> Bundle:
    model = Model(task=kind.name, base=str(base), inputs={"query": ["question"], "passage": ["article"]})
    task = kind.learn(model, base, {"train": ROWS})
    folder.mkdir()
    with torch.random.fork_rng():
        torch.manual_seed(1)
        weights = task.build(base)
    write_bundle(folder, model=weights, task=task, name=name, recipe={}, metrics={}, baselines={}, data={})
    return open_bundle(folder)


@pytest.fixture(scope="module")
def edge(bundles: dict[str, Bundle], edge_of: Callable[..., Any]) -> Iterator[Running]:
    with edge_of({name: entry(bundle) for name, bundle in bundles.items()}) as running:
        yield running


@pytest.mark.usefixtures("clients_allowed")
def test_the_client_gets_similarities_and_vectors(edge: Running, bundles: dict[str, Bundle]) -> None:
    client = InferenceClient(model=f"{edge.address}/models/find")
    scores = client.sentence_similarity("my card is lost", other_sentences=ARTICLES)
    vectors = client.feature_extraction(["my card is lost", *ARTICLES])
    assert vectors.shape == (4, 32)
    assert scores == pytest.approx((vectors[1:] @ vectors[0]).tolist(), abs=1e-5)
    alone = client.feature_extraction("my card is lost", normalize=True, truncate=True)
    np.testing.assert_allclose(alone, vectors[0], atol=1e-5)
    asked = {"source_sentence": "my card is lost", "sentences": ARTICLES}
    (direct,) = Predictor(bundles["find"], device="cpu").predict([asked])
    assert direct == pytest.approx(scores, abs=1e-5)


def test_passages_are_ranked(edge: Running) -> None:
    body = {"inputs": {"query": "my card is lost", "texts": ARTICLES}}
    ranked = requests.post(f"{edge.address}/models/rank", json=body).json()
    assert sorted(one["index"] for one in ranked) == [0, 1, 2]
    assert [one["score"] for one in ranked] == sorted((one["score"] for one in ranked), reverse=True)
    best = requests.post(f"{edge.address}/models/rank", json={**body, "parameters": {"top_k": 1}}).json()
    assert [one["index"] for one in best] == [ranked[0]["index"]]
    rows = [{"question": "my card is lost", "article": text} for text in ARTICLES]
    many = requests.post(f"{edge.address}/models/rank", json={"inputs": rows}).json()
    by_index = {one["index"]: one["score"] for one in ranked}
    assert [one[0]["score"] for one in many] == pytest.approx([by_index[place] for place in range(3)], abs=1e-5)


def test_what_cannot_be_answered_is_refused(edge: Running) -> None:
    for model, inputs, message in [
        (
            "find",
            {"source_sentence": "a", "sentences": "b"},
            "inputs[0].sentences: a list of strings is needed, at least one",
        ),
        (
            "find",
            {"source_sentence": "a", "sentences": []},
            "inputs[0].sentences: a list of strings is needed, at least one",
        ),
        ("find", {"source_sentence": "a", "sentences": ["\ud800"]}, "inputs[0]: not valid Unicode text"),
        ("rank", "a", "inputs[0]: an object with query and texts is needed, not str"),
        ("rank", {"query": "a", "texts": []}, "inputs[0].texts: a list of strings is needed"),
    ]:
        response = requests.post(
            f"{edge.address}/models/{model}", data=json_of(inputs), headers={"content-type": "application/json"}
        )
        assert response.status_code == 422
        assert response.json()["error"]["message"] == message


def json_of(inputs: Any) -> bytes:
    """JSON in ASCII, so that half a character can be written."""
    return json.dumps({"inputs": inputs}).encode()


def test_the_document_says_what_stands_alone(edge: Running) -> None:
    paths = requests.get(f"{edge.address}/openapi.json").json()["paths"]
    answer = paths["/models/find"]["post"]["responses"]["200"]["content"]["application/json"]["schema"]
    assert answer == {
        "anyOf": [
            {"type": "array", "items": {"type": "number"}},
            {"type": "array", "items": {"type": "array", "items": {"type": "number"}}},
        ]
    }


MANY = [f"{first} {second} late" for first in ("card", "parcel", "app", "slow", "lost") for second in "abcdefgh"]
"""More texts than one item of the scheduler holds."""


def test_many_texts_of_one_input_are_answered_as_few_are(bundles: dict[str, Bundle], edge: Running) -> None:
    assert len(MANY) > 2 * MOST_TEXTS
    inputs = {
        "find": {"source_sentence": "my card is lost", "sentences": MANY},
        "rank": {"query": "my card is lost", "texts": MANY},
    }
    for name, asked in inputs.items():
        (direct,) = Predictor(bundles[name], device="cpu").predict([asked])
        said = requests.post(f"{edge.address}/models/{name}", json={"inputs": [asked, asked]}).json()
        for one in said:
            assert flat(one) == pytest.approx(flat(direct), abs=1e-5)
    best = requests.post(f"{edge.address}/models/rank", json={"inputs": inputs["rank"], "parameters": {"top_k": 3}})
    assert flat(best.json()) == pytest.approx(flat(direct[:3]), abs=1e-5)


def flat(answer: list[Any]) -> list[float]:
    """The numbers of a similarity or a ranking, in order."""
    return [number for one in answer for number in (one.values() if isinstance(one, dict) else [one])]


def test_texts_count_as_inputs_do(bundles: dict[str, Bundle], edge_of: Callable[..., Any]) -> None:
    with edge_of({name: entry(bundle) for name, bundle in bundles.items()}, Serve(max_items=8)) as running:
        for name, asked in [
            ("find", {"source_sentence": "a", "sentences": [""] * 9}),
            ("rank", {"query": "a", "texts": ["b"] * 9}),
        ]:
            refused = requests.post(f"{running.address}/models/{name}", json={"inputs": asked})
            assert refused.status_code == 413
            assert refused.json()["error"]["message"] == "inputs: 9 were sent; 8 are allowed"
