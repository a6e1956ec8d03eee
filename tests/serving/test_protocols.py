"""Other people's clients, unchanged, against one edge; what they get equals what ``predict`` gives."""

import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
import requests
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from serving.exchange import RefusalError
from serving.predictor import Predictor
from serving.protocols import oip
from serving.recipe import Serve
from tests.serving.conftest import LABELS, TEXTS, Running, entry
from tests.serving.test_search import ARTICLES, written
from training.bundle import Bundle
from training.tasks.sentence_similarity import SentenceSimilarity
from training.tasks.text_ranking import TextRanking

SECRET = "my-very-private-text"


@pytest.fixture(scope="module")
def bundles(
    bundle: Bundle, pair_bundle: Bundle, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Bundle]:
    folder = tmp_path_factory.mktemp("protocols")
    find = written(folder / "find", SentenceSimilarity, tiny_base, "find")
    rank = written(folder / "rank", TextRanking, tiny_base, "rank")
    return {"intent": bundle, "pair": pair_bundle, "find": find, "rank": rank}


@pytest.fixture(scope="module")
def edge(bundles: dict[str, Bundle], edge_of: Callable[..., Any]) -> Iterator[Running]:
    with edge_of({name: entry(one, 3) for name, one in bundles.items()}, Serve(max_items=16)) as running:
        yield running


@pytest.fixture(scope="module")
def predicted(bundles: dict[str, Bundle]) -> dict[str, list[Any]]:
    """What each model says of the texts, asked without a server."""
    return {name: Predictor(bundles[name], device="cpu").predict(TEXTS) for name in ("intent", "find")}


# --- OpenAI -------------------------------------------------------------------------------------------------------


@pytest.fixture
def client(edge: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{edge.address}/v1", api_key="none", max_retries=0)


def test_openai_lists_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["intent", "pair", "find", "rank"]
    assert client.models.retrieve("find").owned_by == "headrace"
    with pytest.raises(openai.NotFoundError, match="no model of this name"):
        client.models.retrieve("nobody")


@pytest.mark.parametrize("form", ["float", "base64", openai.NOT_GIVEN])
def test_openai_gets_vectors(client: openai.OpenAI, predicted: dict[str, list[Any]], form: Any) -> None:
    answer = client.embeddings.create(model="find", input=TEXTS, encoding_format=form)
    vectors = [one.embedding for one in answer.data]
    if form == "base64":
        import base64

        vectors = [np.frombuffer(base64.b64decode(str(one)), dtype="<f4").tolist() for one in vectors]
    np.testing.assert_allclose(vectors, predicted["find"], atol=1e-5)
    assert [one.index for one in answer.data] == list(range(len(TEXTS)))
    assert answer.usage.total_tokens == answer.usage.prompt_tokens > len(TEXTS)


def test_openai_gets_fewer_dimensions(client: openai.OpenAI, predicted: dict[str, list[Any]]) -> None:
    whole: Any = 8.0  # which JSON does not tell from 8
    assert len(client.embeddings.create(model="find", input=TEXTS[0], dimensions=whole).data[0].embedding) == 8
    (one,) = client.embeddings.create(model="find", input=TEXTS[0], dimensions=8).data
    first = np.array(predicted["find"][0][:8])
    np.testing.assert_allclose(one.embedding, first / np.linalg.norm(first), atol=1e-5)
    with pytest.raises(openai.UnprocessableEntityError, match="the vectors of this model have 32"):
        client.embeddings.create(model="find", input="a", dimensions=33)


def test_openai_may_ask_behind_the_address_of_a_model(edge: Running, predicted: dict[str, list[Any]]) -> None:
    """As text-embeddings-inference has it, which knows one model and reads no name."""
    behind = openai.OpenAI(base_url=f"{edge.address}/models/find/v1", api_key="none", max_retries=0)
    told = behind.embeddings.create(model="text-embeddings-inference", input=TEXTS, encoding_format="float")
    np.testing.assert_allclose([one.embedding for one in told.data], predicted["find"], atol=1e-5)
    assert told.model == "find"
    assert len(post(edge, "/models/find/v1/embeddings", {"input": "a"})["data"]) == 1
    with pytest.raises(openai.UnprocessableEntityError, match="ask it at /models/intent") as refused:
        behind.with_options(base_url=f"{edge.address}/models/intent/v1").embeddings.create(model="any", input=SECRET)
    assert refused.value.type == "invalid_request_error"
    nonsense: list[Any] = [[], "a"]
    for body in nonsense:
        assert requests.post(f"{edge.address}/models/find/v1/embeddings", json=body, timeout=60).status_code == 422
    paths = requests.get(f"{edge.address}/openapi.json", timeout=60).json()["paths"]
    asked = paths["/models/find/v1/embeddings"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert asked["required"] == ["input"] and "model" in asked["properties"]
    assert "/models/intent/v1/embeddings" not in paths


@pytest.mark.parametrize(
    ("body", "error", "message"),
    [
        ({"model": "nobody", "input": SECRET}, openai.NotFoundError, "no model of this name"),
        ({"model": "intent", "input": SECRET}, openai.UnprocessableEntityError, "ask it at /models/intent"),
        ({"model": "find", "input": [SECRET, 7]}, openai.UnprocessableEntityError, "input: a string or a list"),
        ({"model": "find", "input": []}, openai.UnprocessableEntityError, "input: a string .*, at least one"),
        ({"model": "find", "input": [SECRET] * 17}, openai.APIStatusError, "17 were sent; 16 are allowed"),
        ({"model": "find", "input": SECRET, "dimensions": 0}, openai.UnprocessableEntityError, "dimensions"),
        ({"model": "find", "input": SECRET, "encoding_format": "int8"}, openai.UnprocessableEntityError, "encoding"),
    ],
)
def test_openai_is_refused_in_its_own_words(client: openai.OpenAI, body: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message) as refused:
        client.embeddings.create(**body)
    assert refused.value.body["request_id"] and refused.value.type == "invalid_request_error"
    assert SECRET not in str(refused.value)


# --- text-embeddings-inference ------------------------------------------------------------------------------------


def post(edge: Running, path: str, body: Any) -> Any:
    answer = requests.post(edge.address + path, json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_tei_predicts(edge: Running, predicted: dict[str, list[Any]]) -> None:
    one = post(edge, "/models/intent/predict", {"inputs": TEXTS[0], "raw_scores": False, "truncate": False})
    first = predicted["intent"][0]
    assert [label["label"] for label in one][: len(first)] == [label["label"] for label in first]
    assert [label["score"] for label in one][: len(first)] == pytest.approx([label["score"] for label in first])
    assert {label["label"] for label in one} == set(LABELS)
    several = post(edge, "/models/intent/predict", {"inputs": [[text] for text in TEXTS]})
    assert [answer[0]["label"] for answer in several] == [answer[0]["label"] for answer in predicted["intent"]]
    pair = post(edge, "/models/pair/predict", {"inputs": ["card", "late"]})
    asked = {"inputs": {"subject": "card", "body": "late"}, "parameters": {"top_k": len(LABELS)}}
    assert pair == post(edge, "/models/pair", asked)[0]


def test_tei_embeds_compares_and_ranks(edge: Running, predicted: dict[str, list[Any]]) -> None:
    np.testing.assert_allclose(post(edge, "/models/find/embed", {"inputs": TEXTS}), predicted["find"], atol=1e-5)
    for where in ({}, {"truncation_direction": "Right"}, {"truncation_direction": "right"}):
        assert len(post(edge, "/models/find/embed", {"inputs": TEXTS[0], "normalize": True, **where})) == 1
    asked = {"source_sentence": "my card is lost", "sentences": ARTICLES}
    near = post(edge, "/models/find/similarity", {"inputs": asked})
    assert near == pytest.approx(post(edge, "/models/find", {"inputs": asked}), abs=1e-5)
    ranked = post(edge, "/models/rank/rerank", {"query": "my card", "texts": ARTICLES, "return_text": True})
    assert [one["text"] for one in ranked] == [ARTICLES[one["index"]] for one in ranked]
    assert [one["score"] for one in ranked] == sorted((one["score"] for one in ranked), reverse=True)


def test_tei_tells_what_it_is(edge: Running) -> None:
    told = requests.get(f"{edge.address}/models/intent/info", timeout=60).json()
    assert set(told["model_type"]["classifier"]["label2id"]) == set(LABELS)
    assert (told["model_id"], told["model_sha"], told["max_client_batch_size"]) == ("intent", "3", 16)
    assert requests.get(f"{edge.address}/models/find/info", timeout=60).json()["model_type"].keys() == {"embedding"}
    for path in ("/health", "/models/intent/health", "/models/find/health"):
        assert requests.get(f"{edge.address}{path}", timeout=60).status_code == 200
    assert requests.get(f"{edge.address}/models/nobody/health", timeout=60).status_code == 404


def test_tei_asks_the_only_model_at_the_root(edge_of: Callable[..., Any], bundles: dict[str, Bundle]) -> None:
    with edge_of({"find": entry(bundles["find"])}) as alone:
        assert len(post(alone, "/embed", {"inputs": ["a", "b"]})) == 2
        assert requests.get(f"{alone.address}/info", timeout=60).json()["model_id"] == "find"


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("/models/intent/embed", {"inputs": SECRET}, "does text-classification"),
        ("/models/find/embed", {"inputs": SECRET, "normalize": False}, "normalize: this model does not do that"),
        ("/models/find/embed", {"inputs": {SECRET: 1}}, "inputs: a string or a list"),
        ("/models/find/embed", {"inputs": SECRET, "truncation_direction": "Left"}, "truncation_direction: this"),
        ("/models/find/similarity", {"inputs": {"source_sentence": SECRET, "sentences": []}}, "source_sentence and"),
        ("/models/intent/predict", {"inputs": SECRET, "raw_scores": True}, "raw_scores"),
        ("/models/intent/predict", {"inputs": [[SECRET, "b", "c"]]}, r"inputs\[0\]: this model reads 1 texts, not 3"),
        ("/models/rank/rerank", {"query": SECRET, "texts": []}, "texts: a list of strings"),
        ("/models/rank/rerank", {"query": SECRET, "texts": ["a"], SECRET: 1}, "may stand beside the texts"),
    ],
)
def test_tei_is_refused_in_its_own_words(edge: Running, path: str, body: Any, message: str) -> None:
    answer = requests.post(edge.address + path, json=body, timeout=60)
    assert answer.status_code == 422
    with pytest.raises(ValueError, match=message):
        raise ValueError(answer.json()["error"])
    assert answer.json()["error_type"] == "Validation"
    assert SECRET not in answer.text


# --- Open Inference Protocol --------------------------------------------------------------------------------------


@pytest.fixture
def tensors(edge: Running) -> Iterator[triton.InferenceServerClient]:
    client = triton.InferenceServerClient(edge.address.removeprefix("http://"))
    try:
        yield client
    finally:
        client.close()


def tensor(name: str, texts: list[str], *, binary: bool) -> triton.InferInput:
    made = triton.InferInput(name, [len(texts)], "BYTES")
    made.set_data_from_numpy(np.array([text.encode() for text in texts], dtype=np.object_), binary_data=binary)
    return made


@pytest.mark.parametrize("binary", [True, False])
def test_triton_asks(tensors: triton.InferenceServerClient, predicted: dict[str, list[Any]], binary: bool) -> None:
    assert tensors.is_server_live() and tensors.is_server_ready() and tensors.is_model_ready("intent", "3")
    told = tensors.infer("intent", [tensor("text", TEXTS, binary=binary)], model_version="3", request_id="seven")
    assert told.get_response()["id"] == "seven"
    assert (told.get_response()["model_name"], told.get_response()["model_version"]) == ("intent", "3")
    labels = [one.decode() if isinstance(one, bytes) else one for one in told.as_numpy("label").tolist()]
    assert labels == [answer[0]["label"] for answer in predicted["intent"]]
    scores = [answer[0]["score"] for answer in predicted["intent"]]
    np.testing.assert_allclose(told.as_numpy("score"), scores, atol=1e-5)
    whole = [json.loads(one) for one in told.as_numpy("answer").tolist()]
    assert [answer[0]["label"] for answer in whole] == labels
    vectors = tensors.infer("find", [tensor("any", TEXTS, binary=binary)]).as_numpy("embedding")
    np.testing.assert_allclose(vectors, predicted["find"], atol=1e-5)


def test_triton_is_told_of_every_tensor_and_gets_those_it_asks_for(
    tensors: triton.InferenceServerClient, edge: Running
) -> None:
    for model, expected in {
        "intent": [("answer", "BYTES", [-1]), ("label", "BYTES", [-1]), ("score", "FP32", [-1])],
        "find": [("answer", "BYTES", [-1]), ("embedding", "FP32", [-1, -1])],
        "rank": [("answer", "BYTES", [-1])],
    }.items():
        told = tensors.get_model_metadata(model)["outputs"]
        assert [(one["name"], one["datatype"], one["shape"]) for one in told] == expected
    asked = [tensor("text", TEXTS, binary=True)]
    for names in (["score"], ["score", "answer"]):
        got = tensors.infer("intent", asked, outputs=[triton.InferRequestedOutput(name) for name in names])
        assert {one["name"] for one in got.get_response()["outputs"]} == set(names)
        assert got.as_numpy("score").shape == (len(TEXTS),)
    every = tensors.infer("intent", asked).get_response()["outputs"]
    assert [one["name"] for one in every] == ["answer", "label", "score"]
    with pytest.raises(InferenceServerException, match="the tensors of this model are answer, label, score"):
        tensors.infer("intent", asked, outputs=[triton.InferRequestedOutput(SECRET)])
    wrong: list[Any] = [{}, None, ["label"], "label"]
    for outputs in wrong:
        told = {"inputs": [{"name": "text", "data": ["a"]}], "outputs": outputs}
        answer = requests.post(f"{edge.address}/v2/models/intent/infer", json=told, timeout=60)
        assert (answer.status_code, answer.json()["error"]) == (422, "outputs: a list of objects is needed")


def test_triton_gets_an_empty_label_for_what_a_model_abstains_from(
    tensors: triton.InferenceServerClient, predicted: dict[str, list[Any]]
) -> None:
    best = np.array([answer[0]["score"] for answer in predicted["intent"]])
    bound = float(np.median(best))
    told = tensors.infer("intent", [tensor("text", TEXTS, binary=True)], parameters={"abstain_below": bound + 1e-4})
    labels = [str(one) for one in told.as_numpy("label")]
    assert 0 < labels.count("") < len(TEXTS)
    assert labels == [answer[0]["label"] if answer[0]["score"] > bound + 1e-4 else "" for answer in predicted["intent"]]
    scores = [score if score > bound + 1e-4 else 0 for score in best]
    np.testing.assert_allclose(told.as_numpy("score"), scores, atol=1e-5)
    assert [json.loads(one) for one in told.as_numpy("answer")].count([]) == labels.count("")


@pytest.mark.parametrize(
    ("told", "status"),
    [
        ({"shape": [2], "data": ["a", "b"]}, 200),
        ({"shape": [2, 1], "data": ["a", "b"]}, 200),
        ({"shape": [2, 1], "data": [["a"], ["b"]]}, 200),
        ({"shape": [2.0], "data": ["a", "b"]}, 200),
        ({"data": ["a", "b"]}, 200),
        ({"shape": [1, 2], "data": ["a", "b"]}, 422),
        ({"shape": [7], "data": ["a"]}, 422),
        ({"shape": [-1], "data": ["a"]}, 422),
        ({"shape": [], "data": ["a"]}, 422),
        ({"shape": [2, 2], "data": ["a", "b"]}, 422),
        ({"datatype": "FP32", "shape": [1], "data": ["a"]}, 422),
        ({"datatype": "INT64", "shape": [1], "data": [3]}, 200),
    ],
)
def test_a_tensor_is_what_it_says(edge: Running, told: dict[str, Any], status: int) -> None:
    asked = {"inputs": [{"name": "text", "datatype": "BYTES", **told}]}
    answer = requests.post(f"{edge.address}/v2/models/intent/infer", json=asked, timeout=60)
    assert answer.status_code == status, answer.text
    if status == 200:
        assert [one["shape"] for one in answer.json()["outputs"]] == [[len(told["data"])]] * 3
    else:
        assert "shape of a tensor" in answer.text or "what is no number" in answer.text


def test_triton_names_columns(tensors: triton.InferenceServerClient, edge: Running) -> None:
    columns = [tensor("subject", ["card", "app"], binary=True), tensor("body", ["late", "slow"], binary=False)]
    labels = tensors.infer("pair", columns).as_numpy("label").tolist()
    rows = [{"subject": "card", "body": "late"}, {"subject": "app", "body": "slow"}]
    assert labels == [answer[0]["label"] for answer in post(edge, "/models/pair", {"inputs": rows})]
    assert [one["name"] for one in tensors.get_model_metadata("pair")["inputs"]] == ["subject", "body"]
    assert tensors.get_server_metadata()["name"] == "headrace"


def test_triton_is_refused_in_its_own_words(tensors: triton.InferenceServerClient, edge: Running) -> None:
    with pytest.raises(InferenceServerException, match="no model of this name"):
        tensors.infer("nobody", [tensor("text", [SECRET], binary=True)])
    with pytest.raises(InferenceServerException, match="the version that is served is 3"):
        tensors.infer("intent", [tensor("text", [SECRET], binary=True)], model_version="9")
    with pytest.raises(InferenceServerException, match="as many values as the others"):
        tensors.infer("pair", [tensor("subject", ["a"], binary=True), tensor("body", ["b", "c"], binary=True)])
    head = json.dumps({"inputs": [{"name": "text", "datatype": "BYTES", "parameters": {"binary_data_size": 6}}]})
    for told, tail, message in [
        (str(len(head)), b"\xff\xff\0\0ab", "cut short"),
        (str(len(head)), b"ab", "not that of the bytes"),
        ("999999", b"", "the length of the JSON"),
        (str(len(head)), b"\x02\0\0\0\xff\xff", "no UTF-8 text"),
    ]:
        headers = {"Inference-Header-Content-Length": told, "Content-Type": "application/octet-stream"}
        path = f"{edge.address}/v2/models/intent/infer"
        answer = requests.post(path, data=head.encode() + tail, headers=headers, timeout=60)
        assert answer.status_code == 422 and message in answer.json()["error"]


def binary(datatype: str, data: bytes) -> tuple[bytes, dict[str, str]]:
    """A body with one tensor in bytes, and its headers."""
    one = {"name": "text", "datatype": datatype, "parameters": {"binary_data_size": len(data)}}
    head = json.dumps({"inputs": [one]}).encode()
    return head + data, {oip.JSON_LENGTH: str(len(head))}


def spelled(texts: list[bytes]) -> bytes:
    return b"".join(struct.pack("<I", len(text)) + text for text in texts)


@pytest.mark.parametrize(
    ("datatype", "fitting", "more"),
    [("BYTES", spelled([b"a", b"", b"bc"]), spelled([b"\xff"]) + b"\xff\xff\xff\xff"), ("INT32", bytes(12), bytes(4))],
)
def test_more_inputs_than_allowed_are_not_even_read(datatype: str, fitting: bytes, more: bytes) -> None:
    """Behind the last that is allowed stands what could not be read: nobody looks at it."""
    assert len(oip.read(*binary(datatype, fitting), 3)["inputs"][0]["data"]) == 3
    with pytest.raises(RefusalError, match="3 are allowed") as refused:
        oip.read(*binary(datatype, fitting + more), 3)
    assert (refused.value.status, refused.value.code) == (413, "too_many_inputs")


def test_the_edge_says_how_many_inputs_it_takes(edge: Running) -> None:
    body, headers = binary("BYTES", spelled([b""] * 17))
    headers["Content-Type"] = "application/octet-stream"
    answer = requests.post(f"{edge.address}/v2/models/intent/infer", data=body, headers=headers, timeout=60)
    assert (answer.status_code, answer.json()["code"]) == (413, "too_many_inputs")


class Counted:
    """Bytes that count how many of them were handed out."""

    def __init__(self, data: bytes) -> None:
        self.data, self.handed_out = data, 0

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, part: slice) -> bytes:
        self.handed_out += len(self.data[part])
        return self.data[part]


def test_each_byte_of_a_tensor_is_read_once() -> None:
    """Whoever cut off what was read would copy all the rest for each text, while everybody waits."""
    texts = [b"a", "我".encode(), b""] * 100
    data: Any = Counted(spelled(texts))
    assert oip.texts_in(data, len(texts)) == [text.decode() for text in texts]
    assert data.handed_out == len(data)
