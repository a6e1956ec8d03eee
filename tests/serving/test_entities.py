"""A model that finds entities behind the edge: huggingface_hub's own client gets them."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import requests
import torch
from huggingface_hub import InferenceClient

from serving.predictor import Predictor
from tests.serving.conftest import Running, entry
from training.bundle import Bundle, open_bundle, write_bundle
from training.recipe import Model
from training.tasks.token_classification import TokenClassification

TEXT = "please refund my order, the parcel is late"


@pytest.fixture(scope="module")
def named(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return finder(tmp_path_factory.mktemp("entities") / "named", tiny_base)


def finder(folder: Path, tiny_base: Path) -> Bundle:
    """A model with untrained weights, which sees something in most texts."""
    folder.mkdir()
    rows = pa.table({"text": ["my card"], "entities": [[{"start": 3, "end": 7, "label": "thing"}]]})
    model = Model(task="token-classification", base="", inputs={"text": "text"}, target="entities")
    task = TokenClassification.learn(model, tiny_base, {"train": rows})
    with torch.random.fork_rng():
        torch.manual_seed(1)
        weights = task.build(tiny_base)
        torch.nn.init.normal_(weights.classifier.weight, std=1.0)
    write_bundle(folder, model=weights, task=task, name="named", recipe={}, metrics={}, baselines={}, data={})
    return open_bundle(folder)


@pytest.fixture(scope="module")
def edge(named: Bundle, edge_of: Callable[..., Any]) -> Iterator[Running]:
    with edge_of({"named": entry(named)}) as running:
        yield running


@pytest.mark.usefixtures("clients_allowed")
def test_the_client_gets_the_entities_of_a_text(edge: Running, named: Bundle) -> None:
    client = InferenceClient(model=f"{edge.address}/models/named")
    found = client.token_classification(TEXT, aggregation_strategy="first")
    (ours,) = Predictor(named, device="cpu").predict([TEXT])
    assert found
    assert [(one.entity_group, one.start, one.end) for one in found] == [
        (one["entity_group"], one["start"], one["end"]) for one in ours
    ]
    assert [one.word for one in found] == [TEXT[one.start : one.end] for one in found]
    assert client.token_classification(TEXT, ignore_labels=["thing"]) == []
    assert client.token_classification("") == []


def test_many_texts_and_lists_of_tokens_are_answered_in_a_list(edge: Running) -> None:
    rows: list[Any] = [TEXT, {"text": TEXT.split()}, ""]
    answers = requests.post(f"{edge.address}/models/named", json={"inputs": rows}).json()
    assert len(answers) == 3
    assert answers[2] == []
    refused = requests.post(f"{edge.address}/models/named", json={"inputs": {"text": ["a", 3]}})
    assert refused.status_code == 422
    assert "inputs[0].text: a string or a list of strings is needed" in refused.text
    broken = requests.post(
        f"{edge.address}/models/named",
        data=b'{"inputs": {"text": ["\\ud800"]}}',
        headers={"content-type": "application/json"},
    )
    assert broken.status_code == 422
