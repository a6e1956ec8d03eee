"""Attributions add up to what the model says, are those of a closed form where there is one, and reach who asks."""

import hashlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
import requests
import torch
from captum.attr import LayerIntegratedGradients
from huggingface_hub import TextClassificationOutputElement

from cluster.errors import UserError
from serving.explain import COST, Explainer
from serving.keys import Keys
from serving.predictor import Predictor
from serving.recipe import Serve
from tests.serving.conftest import LABELS, TEXTS, Running, entry
from tests.serving.test_search import written
from training.bundle import Bundle, open_bundle, write_bundle
from training.recipe import Model
from training.tasks.task import Task
from training.tasks.text_classification import TextClassification
from training.tasks.text_ranking import TextRanking

EXPLAIN = {"explain": True}
CPU = torch.device("cpu")
ASKED = "please refund my card, the parcel is late 我的包裹"


@pytest.fixture(scope="module")
def predictor(bundle: Bundle) -> Predictor:
    return Predictor(bundle, device="cpu")


@pytest.fixture(scope="module")
def lively(bundle: Bundle) -> Predictor:
    """One whose outputs hang on every word, as those of a trained model do."""
    predictor = Predictor(bundle, device="cpu")
    with torch.random.fork_rng():
        torch.manual_seed(5)
        torch.nn.init.normal_(predictor.model.get_input_embeddings().weight, std=0.2)
        torch.nn.init.normal_(predictor.model.base_model.pooler.dense.weight, std=0.5)
    return predictor


def logits(predictor: Predictor, tokens: list[int]) -> torch.Tensor:
    """What the model says of tokens, asked in the usual way."""
    batch = predictor.task.collate([{"input_ids": tokens}])
    with torch.inference_mode():
        return predictor.task.forward(predictor.model, batch)[0]


# --- the numbers --------------------------------------------------------------------------------------------------


def silenced(tokens: list[int]) -> list[int]:
    """``[CLS]`` and ``[SEP]`` at the ends, which stay, around ``[PAD]``, which is 0."""
    return [tokens[0], *([0] * (len(tokens) - 2)), tokens[-1]]


@pytest.mark.parametrize("text", [ASKED, *TEXTS])
def test_the_scores_of_words_add_up_to_the_logit_less_that_of_padding(lively: Predictor, text: str) -> None:
    [answer] = lively.predict([text], EXPLAIN)
    [example] = lively.task.encode([{"text": text}])
    tokens, best = example["input_ids"], LABELS.index(answer[0]["label"])
    expected = float(logits(lively, tokens)[best] - logits(lively, silenced(tokens))[best])
    told = answer[0]["attributions"]
    assert sum(word["score"] for word in told) == pytest.approx(expected, abs=1e-5 + 0.01 * abs(expected))
    assert all(text[word["start"] : word["end"]] == word["word"] for word in told)
    assert abs(expected) > 0.1 if text else not told


def test_the_same_as_captum_at_the_embedding_layer(lively: Predictor) -> None:
    """Which hooks into the layer; ours is asked with its outputs."""
    [answer] = lively.predict([ASKED], EXPLAIN)
    [example] = lively.task.encode([{"text": ASKED}])
    tokens, best = example["input_ids"], LABELS.index(answer[0]["label"])
    reference = LayerIntegratedGradients(
        lambda ids: lively.model(input_ids=ids).logits, lively.model.get_input_embeddings()
    )
    per_token, delta = reference.attribute(
        torch.tensor([tokens]),
        torch.tensor([silenced(tokens)]),
        target=best,
        n_steps=200,
        return_convergence_delta=True,
    )
    assert abs(float(delta)) < 1e-3
    scores = per_token.sum(-1)[0].tolist()
    words = lively.task.words({"text": ASKED})  # type: ignore[attr-defined]
    expected = [sum(scores[token] for token in word.tokens) for word in words]
    assert max(map(abs, expected)) > 0.01
    assert [word["score"] for word in answer[0]["attributions"]] == pytest.approx(expected, abs=2e-4)


class Linear(torch.nn.Module):
    """Says of a text the weighted sum of its tokens' vectors, so that what each adds is known."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.vectors, self.weights = torch.nn.Embedding(400, 8), torch.nn.Linear(8, len(LABELS))

    def get_input_embeddings(self) -> torch.nn.Embedding:
        return self.vectors

    def forward(self, inputs_embeds: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.weights(inputs_embeds.sum(1)))


@pytest.mark.parametrize("budget", [1, 1024])
def test_of_a_linear_model_the_closed_form(predictor: Predictor, budget: int) -> None:
    model, row = Linear(), {"text": ASKED}
    explainer = Explainer(predictor.task, model, CPU, budget)
    [example] = predictor.task.encode([row])
    tokens = example["input_ids"]
    with torch.no_grad():
        said = model(model.vectors(torch.tensor([tokens]))).logits[0]
        best = int(said.argmax())
        each = (model.vectors.weight[tokens] - model.vectors.weight[0]) @ model.weights.weight[best]
    answer = explainer.explain([{"label": "x", "score": 1.0}], explainer.prepare(row, example), said.numpy())
    words = predictor.task.words(row)  # type: ignore[attr-defined]
    expected = [float(each[list(word.tokens)].sum()) for word in words]
    assert [word["score"] for word in answer[0]["attributions"]] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("problem", "cells"), [("multi-label", ["card,late", "card"]), ("ordinal", [1, 2]), ("regression", [1.5, 7.0])]
)
def test_every_target_of_a_text_is_explained(tiny_base: Path, tmp_path: Path, problem: str, cells: list[Any]) -> None:
    options = {"problem": problem}
    named: Any = {"task": "text-classification", "base": str(tiny_base), "inputs": {"text": ["text"]}}
    model = Model(**named, target="label", adapt="full", options=options)
    task = TextClassification.learn(model, tiny_base, {"train": pa.table({"text": ["a", "b"], "label": cells})})
    weights = task.build(tiny_base)
    settled: Task = task.settle(weights)
    told: Any = {"recipe": {}, "metrics": {}, "baselines": {}, "data": {}}
    write_bundle(tmp_path, model=weights, task=settled, name="any", **told)
    [answer] = Predictor(open_bundle(tmp_path), device="cpu").predict(["my card is late"], EXPLAIN)
    assert [word["word"] for word in answer[0]["attributions"]] == ["my", "card", "is", "late"]
    assert all("attributions" not in other for other in answer[1:])


def test_an_engine_answers_and_pytorch_explains(predictor: Predictor, bundle: Bundle) -> None:
    [expected] = predictor.predict([ASKED], EXPLAIN)
    [answer] = Predictor(bundle, device="cpu", engine="torch-int8").predict([ASKED], EXPLAIN)
    assert answer[0]["label"] == expected[0]["label"]
    scores = [word["score"] for word in answer[0]["attributions"]]
    assert scores == pytest.approx([word["score"] for word in expected[0]["attributions"]], abs=1e-5)


def test_the_gradients_leave_nothing_behind(predictor: Predictor) -> None:
    before = predictor.predict([ASKED])
    predictor.predict([ASKED], EXPLAIN)
    assert predictor.predict([ASKED]) == before
    assert all(weight.grad is None for weight in predictor.model.parameters())
    assert not predictor.model.get_input_embeddings()._forward_hooks


# --- through a socket ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def edge(
    edge_of: Callable[..., Any],
    bundle: Bundle,
    pair_bundle: Bundle,
    tiny_base: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Running]:
    rank = written(tmp_path_factory.mktemp("explained") / "rank", TextRanking, tiny_base, "rank")
    with edge_of({"intent": entry(bundle), "pair": entry(pair_bundle), "rank": entry(rank)}, Serve()) as running:
        yield running


def ask(edge: Running, name: str, inputs: Any, key: str = "", **parameters: Any) -> requests.Response:
    body = {"inputs": inputs, "parameters": parameters}
    headers = {"Authorization": f"Bearer {key}"}
    return requests.post(f"{edge.address}/models/{name}", json=body, headers=headers, timeout=60)


def test_an_explained_answer_is_what_the_client_reads(edge: Running, predictor: Predictor) -> None:
    answered = ask(edge, "intent", [ASKED, TEXTS[0]], explain=True, top_k=2).json()
    expected = predictor.predict([ASKED, TEXTS[0]], {"explain": True, "top_k": 2})
    for got, wanted in zip(answered, expected, strict=True):
        told = [word | {"score": pytest.approx(word["score"], abs=1e-5)} for word in wanted[0]["attributions"]]
        assert told and got[0]["attributions"] == told
    labels = TextClassificationOutputElement.parse_obj_as_list(answered)[0]
    assert [one.label for one in labels] == [one["label"] for one in expected[0]]
    plain = ask(edge, "intent", ASKED, explain=False, top_k=2).json()
    assert "attributions" not in plain[0][0] and plain[0][1] == pytest.approx(answered[0][1])


def test_words_of_several_columns_say_which(edge: Running) -> None:
    [answer] = ask(edge, "pair", {"subject": "card", "body": "it is late"}, explain=True).json()
    places = [(word["column"], word["start"], word["end"], word["word"]) for word in answer[0]["attributions"]]
    assert places == [("subject", 0, 4, "card"), ("body", 0, 2, "it"), ("body", 3, 5, "is"), ("body", 6, 10, "late")]


def test_who_abstains_explains_nothing(edge: Running) -> None:
    assert ask(edge, "intent", ASKED, explain=True, abstain_below=1).json() == [[]]


def test_tensors_carry_explanations_as_json(edge: Running) -> None:
    tensor = {"name": "text", "shape": [1], "datatype": "BYTES", "data": [ASKED]}
    body: Any = {"inputs": [tensor], "parameters": {"explain": True}}
    outputs = requests.post(f"{edge.address}/v2/models/intent/infer", json=body, timeout=60).json()["outputs"]
    assert {one["name"] for one in outputs} == {"answer", "label", "score"}
    assert '"attributions"' in outputs[0]["data"][0]


def test_the_signature_tells_who_can_be_asked(edge: Running) -> None:
    def told(name: str) -> bool:
        signature = requests.get(f"{edge.address}/models/{name}", timeout=60).json()["signature"]
        return "explain" in signature["parameters"]["properties"]

    assert [told(name) for name in ("intent", "pair", "rank")] == [True, True, False]
    paths = requests.get(f"{edge.address}/openapi.json", timeout=60).json()["paths"]
    assert "attributions" in str(paths["/models/intent"]) and "attributions" not in str(paths["/models/rank"])


@pytest.mark.parametrize(
    ("name", "inputs", "explain", "message"),
    [
        ("intent", ASKED, 1, "parameters.explain: true or false is needed"),
        ("intent", ASKED, "yes", "parameters.explain: true or false is needed"),
        ("rank", {"query": "card", "texts": [ASKED]}, True, "text-ranking cannot be explained"),
    ],
)
def test_who_cannot_be_asked_says_so(edge: Running, name: str, inputs: Any, explain: Any, message: str) -> None:
    refused = ask(edge, name, inputs, explain=explain)
    assert (refused.status_code, refused.json()["error"]["code"]) == (422, "invalid_parameters")
    assert message in refused.json()["error"]["message"] and "parcel" not in refused.text


def test_without_captum_it_says_what_to_install(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "captum", None)  # which is how Python itself is told that there is none
    bare = Predictor(bundle, device="cpu")
    assert "explain" not in bare.signature["parameters"]["properties"]
    with pytest.raises(UserError, match=r"parameters\.explain: .*pip install 'headrace\[explain\]'"):
        bare.predict([ASKED], EXPLAIN)
    assert bare.predict([ASKED], {"top_k": 1})


def test_what_is_explained_is_paid_for(edge_of: Callable[..., Any], bundle: Bundle, tmp_path: Path) -> None:
    """A minute's tokens are enough for many plain questions of three tokens, and for one that is explained."""
    path = tmp_path / "keys"
    path.write_text(f"desk:{hashlib.sha256(b'key').hexdigest()} tokens_per_minute={3 * COST}\n")
    with edge_of({"intent": entry(bundle)}, Serve(), Keys(path)) as running:
        assert [ask(running, "intent", "card", key="key").status_code for _ in range(5)] == [200] * 5
        assert ask(running, "intent", "card", key="key", explain=True).status_code == 200
        assert ask(running, "intent", "card", key="key").json()["error"]["code"] == "rate_limited"
