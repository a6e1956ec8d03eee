"""A thousand rows in every form, many requests at once: each form answers what ``predict`` answers, to 1e-5."""

import base64
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
import tritonclient.http as triton

import headrace
from serving.predictor import Predictor
from serving.recipe import Serve
from tests.conftest import WORDS
from tests.serving.conftest import LABELS, Running, entry
from tests.serving.test_search import written
from training.bundle import Bundle
from training.tasks.sentence_similarity import SentenceSimilarity
from training.tasks.text_ranking import TextRanking

ROWS = 1000
AT_ONCE = 8
PASSAGES = 20  # that a query is ranked with, each of which counts
SIZES = (1, 3, 40, 125)  # rows in a request, in turn: batches then hold rows of several requests
WITHIN = 1e-5
Scores = dict[str, float]


def made_up(count: int) -> list[str]:
    """Texts of no word to more than the model reads, some with words of other scripts."""
    draw = random.Random(5)
    words = [*WORDS.split(), "我的包裹还没有到", "Émile", "🙂", "İ", "1,000.50"]
    return [
        " ".join(draw.choices(words, k=draw.randrange(90) if draw.random() < 0.1 else draw.randrange(20)))
        for _ in range(count)
    ]


TEXTS = made_up(ROWS)


@pytest.fixture(scope="module")
def bundles(
    bundle: Bundle, pair_bundle: Bundle, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Bundle]:
    folder = tmp_path_factory.mktemp("same")
    find = written(folder / "find", SentenceSimilarity, tiny_base, "find")
    rank = written(folder / "rank", TextRanking, tiny_base, "rank")
    return {"intent": bundle, "pair": pair_bundle, "find": find, "rank": rank}


@pytest.fixture(scope="module")
def edge(bundles: dict[str, Bundle], edge_of: Callable[..., Any]) -> Iterator[Running]:
    options = Serve(max_items=PASSAGES * max(SIZES), timeout_seconds=600)  # so that no machine is too slow to be asked
    with edge_of({name: entry(one) for name, one in bundles.items()}, options) as running:
        yield running


def in_requests(rows: Sequence[Any], ask: Callable[[Sequence[Any]], Sequence[Any]]) -> list[Any]:
    """The answers to all rows, asked in requests of several sizes, some of them at one time."""
    parts: list[Sequence[Any]] = []
    start = 0
    while start < len(rows):
        size = SIZES[len(parts) % len(SIZES)]
        parts.append(rows[start : start + size])
        start += size
    with ThreadPoolExecutor(AT_ONCE) as pool:
        answers = [answer for part in pool.map(ask, parts) for answer in part]
    assert len(answers) == len(rows)
    return answers


def asked(edge: Running, path: str, body: Any) -> Any:
    answer = requests.post(edge.address + path, json=body, timeout=600)
    assert answer.status_code == 200, answer.text
    return answer.json()


def by_triton(edge: Running, model: str, columns: Mapping[str, Sequence[str]], *, binary: bool) -> triton.InferResult:
    client = triton.InferenceServerClient(edge.address.removeprefix("http://"), network_timeout=600)
    tensors = []
    for name, texts in columns.items():
        tensors.append(triton.InferInput(name, [len(texts)], "BYTES"))
        values = np.array([text.encode() for text in texts], dtype=np.object_)
        tensors[-1].set_data_from_numpy(values, binary_data=binary)
    try:
        return client.infer(model, tensors, parameters={"top_k": len(LABELS)} if model != "find" else None)
    finally:
        client.close()


def scores(answer: Any) -> Scores:
    """A score for each label, whatever their order: of two that are alike to 1e-5 either may stand first."""
    return {one["label"]: one["score"] for one in answer}


def are_the_same(got: Sequence[Any], expected: Sequence[Any]) -> None:
    for ours, theirs in zip(map(scores, got), map(scores, expected), strict=True):
        assert ours.keys() == theirs.keys() == set(LABELS)
        np.testing.assert_allclose([ours[name] for name in LABELS], [theirs[name] for name in LABELS], atol=WITHIN)


def test_labels_are_the_same_in_every_form(edge: Running, bundle: Bundle, tmp_path: Path) -> None:
    every = {"top_k": len(LABELS)}
    expected = Predictor(bundle).predict(TEXTS, every)
    spread = np.ptp([scores(answer)[LABELS[0]] for answer in expected])
    assert spread > 100 * WITHIN, "answers that are all alike would prove nothing"

    def hugging_face(part: Sequence[str]) -> Any:
        return asked(edge, "/models/intent", {"inputs": part, "parameters": every})

    def tei(part: Sequence[str]) -> Any:
        return asked(edge, "/models/intent/predict", {"inputs": [[text] for text in part]})

    def oip(part: Sequence[str]) -> Any:
        told = by_triton(edge, "intent", {"text": part}, binary=len(part) > 3)
        return [json.loads(answer) for answer in told.as_numpy("answer").tolist()]

    for form in (hugging_face, tei, oip):
        are_the_same(in_requests(TEXTS, form), expected)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS), encoding="utf-8")
    headrace.predict(str(bundle.folder), tmp_path / "rows.jsonl", tmp_path / "answers", top_k=len(LABELS))
    lines = (tmp_path / "answers").read_text(encoding="utf-8").splitlines()
    are_the_same([json.loads(line) for line in lines], expected)


def test_labels_of_two_columns_are_the_same_in_every_form(edge: Running, pair_bundle: Bundle) -> None:
    every = {"top_k": len(LABELS)}
    rows = [{"subject": one, "body": other} for one, other in zip(TEXTS, reversed(TEXTS), strict=True)]

    def hugging_face(part: Sequence[Any]) -> Any:
        return asked(edge, "/models/pair", {"inputs": part, "parameters": every})

    def tei(part: Sequence[Any]) -> Any:
        return asked(edge, "/models/pair/predict", {"inputs": [[row["subject"], row["body"]] for row in part]})

    def oip(part: Sequence[Any]) -> Any:
        columns = {name: [row[name] for row in part] for name in ("subject", "body")}
        told = by_triton(edge, "pair", columns, binary=len(part) > 3)
        return [json.loads(answer) for answer in told.as_numpy("answer").tolist()]

    expected = Predictor(pair_bundle).predict(rows, every)
    for form in (hugging_face, tei, oip):
        are_the_same(in_requests(rows, form), expected)


def test_vectors_are_the_same_in_every_form(edge: Running, bundles: dict[str, Bundle]) -> None:
    expected = Predictor(bundles["find"]).predict(TEXTS)
    assert np.ptp(expected, axis=0).max() > 100 * WITHIN

    def hugging_face(part: Sequence[str]) -> Any:
        return asked(edge, "/models/find", {"inputs": part})

    def openai(part: Sequence[str]) -> Any:
        return [one["embedding"] for one in asked(edge, "/v1/embeddings", {"model": "find", "input": part})["data"]]

    def openai_packed(part: Sequence[str]) -> Any:
        body = {"model": "find", "input": part, "encoding_format": "base64"}
        packed = [one["embedding"] for one in asked(edge, "/v1/embeddings", body)["data"]]
        return [np.frombuffer(base64.b64decode(one), dtype="<f4") for one in packed]

    def tei(part: Sequence[str]) -> Any:
        return asked(edge, "/models/find/embed", {"inputs": part})

    def oip(part: Sequence[str]) -> Any:
        return by_triton(edge, "find", {"text": part}, binary=len(part) > 3).as_numpy("embedding")

    for form in (hugging_face, openai, openai_packed, tei, oip):
        np.testing.assert_allclose(in_requests(TEXTS, form), expected, atol=WITHIN)


def test_ranks_are_the_same_in_every_form(edge: Running, bundles: dict[str, Bundle]) -> None:
    rows = [{"query": TEXTS[start], "texts": TEXTS[start : start + PASSAGES]} for start in range(0, ROWS, PASSAGES)]
    expected = Predictor(bundles["rank"]).predict(rows)

    def hugging_face(part: Sequence[Any]) -> Any:
        return asked(edge, "/models/rank", {"inputs": part})

    def tei(part: Sequence[Any]) -> Any:
        return [asked(edge, "/models/rank/rerank", row) for row in part]

    for form in (hugging_face, tei):
        for got, wanted in zip(in_requests(rows, form), expected, strict=True):
            ours, theirs = ({one["index"]: one["score"] for one in answer} for answer in (got, wanted))
            assert ours.keys() == theirs.keys() == set(range(PASSAGES))
            np.testing.assert_allclose(
                [ours[place] for place in range(PASSAGES)], [theirs[place] for place in range(PASSAGES)], atol=WITHIN
            )
