"""What a question costs: the tokens that were read and those that were written, by whichever form it is asked."""

import asyncio
import hashlib
import json
import logging
import socket
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
import pytest
import torch
from transformers import AutoModelForSeq2SeqLM

from serving.keys import Keys
from serving.predictor import Predictor
from serving.recipe import Serve
from serving.writer import Piece, Writer
from tests.conftest import WORDS
from tests.serving.conftest import entry
from tests.serving.test_completions import PROMPTS, writers
from tests.serving.test_edge import ask, code_of
from tests.serving.test_watch import records
from tests.training.tasks.desk import T5
from training.bundle import Bundle, open_bundle, write_bundle
from training.models.new_base import new_config, train_tokenizer
from training.recipe import Model, NewBase
from training.tasks.summarization import Summarization

HEADERS = {"Content-Type": "application/json", "Authorization": "Bearer desk"}


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return writers(tmp_path_factory.mktemp("spending"), {"prompt": "prompt"})["prompt"]


@pytest.fixture(scope="module")
def summary(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """An encoder and a decoder, untrained, which write in batches and not side by side."""
    folder = tmp_path_factory.mktemp("summary")
    made = NewBase.model_validate({"new": T5, "tokenizer": "train", "vocabulary": 400})
    tokenizer = train_tokenizer([WORDS, *PROMPTS], made)
    tokenizer.save_pretrained(folder / "base")
    ids = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    with torch.random.fork_rng():
        torch.manual_seed(3)
        base = AutoModelForSeq2SeqLM.from_config(new_config(made, vocab_size=len(tokenizer), **ids))
        torch.nn.init.normal_(base.lm_head.weight, std=1.0)  # so that it says something
    base.save_pretrained(folder / "base")
    rows = pa.table({"asked": ["card"] * 3, "said": ["the parcel is late " * 6] * 3})
    model = Model(task="summarization", base=str(folder / "base"), inputs={"text": ["asked"]}, target="said")
    task = Summarization.learn(model, folder / "base", {"train": rows})
    (folder / "summary").mkdir()
    weights = task.build(folder / "base")
    write_bundle(
        folder / "summary", model=weights, task=task, name="summary", recipe={}, metrics={}, baselines={}, data={}
    )
    return open_bundle(folder / "summary")


def test_texts_cost_the_same_in_every_form(
    edge_of: Callable[..., Any], writer: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "serving"), edge_of({"prompt": entry(writer)}, Serve(access_log=True)) as edge:
        status, told, _ = ask(edge, {"model": "prompt", "prompt": PROMPTS}, "/v1/completions")
        assert status == 200
        assert ask(edge, {"inputs": PROMPTS}, "/models/prompt")[0] == 200
        tensors = {"inputs": [{"name": "any", "datatype": "BYTES", "shape": [len(PROMPTS)], "data": PROMPTS}]}
        assert ask(edge, tensors, "/v2/models/prompt/infer")[0] == 200
    usage = told["usage"]
    assert usage["completion_tokens"] > len(PROMPTS)
    assert [one["tokens"] for one in records(caplog)] == [usage["total_tokens"]] * 3


def test_what_a_batch_writes_is_counted_too(
    edge_of: Callable[..., Any], summary: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    predictor, texts = Predictor(summary, device="cpu"), ["where is my card", "the parcel is late"]
    prepared = predictor.prepare([(row, {}) for row in predictor.rows(texts)])
    outputs = predictor.forward([example for (example, _), _ in prepared])
    written = [len(output) - 2 for output in outputs]
    assert min(written) > 5
    with caplog.at_level(logging.INFO, "serving"), edge_of({"summary": entry(summary)}, Serve(access_log=True)) as edge:
        status, told, _ = ask(edge, {"inputs": texts}, "/models/summary")
    assert (status, told) == (200, predictor.predict(texts))
    assert [one["tokens"] for one in records(caplog)] == [sum(length for _, length in prepared) + sum(written)]


@pytest.mark.parametrize("name", ["prompt", "summary"])
def test_a_key_pays_for_what_was_written(
    edge_of: Callable[..., Any], writer: Bundle, summary: Bundle, name: str, tmp_path: Path
) -> None:
    """The prompt alone would leave it some; with the text, it is overdrawn."""
    bundle, asked = {"prompt": writer, "summary": summary}[name], PROMPTS[0]
    predictor = Predictor(bundle, device="cpu")
    ((_, read),) = predictor.prepare([(row, {}) for row in predictor.rows([asked])])
    path = tmp_path / "keys"
    path.write_text(f"desk:{hashlib.sha256(b'desk').hexdigest()} tokens_per_minute={read + 1}\n")
    with edge_of({name: entry(bundle)}, Serve(), Keys(path)) as edge:
        assert ask(edge, {"inputs": asked}, f"/models/{name}", headers=HEADERS)[0] == 200
        status, told, _ = ask(edge, {"inputs": asked}, f"/models/{name}", headers=HEADERS)
        assert status == 429
        assert code_of(told) == "rate_limited"


def test_who_does_not_wait_pays_for_what_was_written(
    edge_of: Callable[..., Any],
    writer: Bundle,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    wait_until: Callable[..., None],
) -> None:
    begun, write = threading.Event(), Writer.write
    written: list[int] = []

    async def stops_soon(self: Writer, *asked: Any) -> AsyncIterator[Piece]:
        async for piece in write(self, *asked):
            yield piece
            written.append(len(piece.tokens))
            if written[-1] >= 3:
                begun.set()
                await asyncio.Event().wait()  # which nobody sets: the client is the one that ends it

    monkeypatch.setattr(Writer, "write", stops_soon)
    body = json.dumps({"model": "prompt", "prompt": "", "max_tokens": 20}).encode()
    with caplog.at_level(logging.INFO, "serving"), edge_of({"prompt": entry(writer)}, Serve(access_log=True)) as edge:
        with socket.create_connection(("127.0.0.1", urlsplit(edge.address).port or 0)) as client:
            head = "POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
            client.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            assert begun.wait(30)
        wait_until(lambda: records(caplog))
    (told,) = records(caplog)
    assert told["outcome"] == "client_gone"
    predictor = Predictor(writer, device="cpu")
    ((_, read),) = predictor.prepare([(row, {}) for row in predictor.rows([""])])
    assert told["tokens"] == read + written[-1]
