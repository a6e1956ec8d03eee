"""Bundles of a tiny real BERT, and an edge on a real socket."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
import pyarrow as pa
import pytest
import torch
import uvicorn

from cluster.storage import write_json
from serving.edge import Edge
from serving.keys import Keys
from serving.lineup import Lineup
from serving.metrics import Metrics
from serving.recipe import Serve
from serving.traces import Traces
from training.bundle import Bundle, open_bundle, write_bundle
from training.recipe import Model
from training.tasks.text_classification import TextClassification

LABELS = ["card", "delivery", "invoice", "other", "password", "refund", "technical"]
TEXTS = [
    "where is my card",
    "",
    "please refund the money you charged twice for my order today " * 4,
    "我的包裹还没有到",
    "the app page is slow",
    "cancel the plan and change my address, the delivery was late and the parcel broken",
    "ok",
]

MakeBundle = Callable[..., Bundle]


@pytest.fixture(scope="session")
def make_bundle(tiny_base: Path) -> MakeBundle:
    """``make_bundle(folder, seed=1, name="intent", columns=("text",), tokens=None)``: a bundle with untrained weights.

    With ``tokens`` its model knows only so many of its tokenizer's: it opens, warms, and breaks on most texts.
    """

    def make(
        folder: Path,
        seed: int = 1,
        name: str = "intent",
        columns: tuple[str, ...] = ("text",),
        tokens: int | None = None,
    ) -> Bundle:
        model = Model(
            task="text-classification",
            base=str(tiny_base),
            inputs={"text": list(columns)},
            target="label",
            adapt="full",
        )
        rows = pa.table({**{column: ["a"] * len(LABELS) for column in columns}, "label": LABELS})
        task = TextClassification.learn(model, tiny_base, {"train": rows})
        folder.mkdir(parents=True)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            weights = task.build(tiny_base)
            torch.nn.init.normal_(weights.classifier.weight, std=1.0)  # scores that differ from text to text
            if tokens:
                weights.resize_token_embeddings(tokens)
        write_bundle(
            folder,
            model=weights,
            task=task,
            name=name,
            recipe={"name": name, "description": "Which team should handle this?"},
            metrics={"test/accuracy": 0.9},
            baselines={"majority": {"test/accuracy": 0.2}},
            data={"rows": 7, "splits": {}, "fingerprint": "0"},
        )
        return open_bundle(folder)

    return make


@pytest.fixture(scope="session")
def bundle(make_bundle: MakeBundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """One bundle that reads one text column."""
    return make_bundle(tmp_path_factory.mktemp("bundles") / "intent")


@pytest.fixture(scope="session")
def pair_bundle(make_bundle: MakeBundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """One bundle that reads two columns."""
    return make_bundle(tmp_path_factory.mktemp("bundles") / "pair", name="pair", columns=("subject", "body"))


@pytest.fixture
def clients_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """With HF_HUB_OFFLINE=1, which the tests set, huggingface_hub speaks to no server at all, not even to ours."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)


@dataclass
class Running:
    """An edge that listens."""

    address: str
    lineup: Lineup
    metrics: Metrics
    wanted: Path


@pytest.fixture(scope="session")
def edge_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """``with edge_of({name: entry}, options, keys, traces) as running``: an edge under uvicorn on a free port.

    ``more`` is what the edge is given besides.
    """

    @contextmanager
    def running(
        entries: dict[str, Any],
        options: Serve | None = None,
        keys: Keys | None = None,
        traces: Traces | None = None,
        **more: Any,
    ) -> Iterator[Running]:
        wanted = tmp_path_factory.mktemp("wanted") / "app.json"
        write_json(wanted, entries)
        options, metrics = options or Serve(), Metrics()
        lineup = Lineup(wanted, options, metrics)
        edge = Edge(lineup, options, metrics, keys, traces=traces, **more)
        server = uvicorn.Server(uvicorn.Config(edge, port=0, log_level="error"))
        started = threading.Event()

        async def serve() -> None:
            task = asyncio.create_task(server.serve())
            while not server.started and not task.done():
                await asyncio.sleep(0.01)
            started.set()
            await task

        thread = threading.Thread(target=asyncio.run, args=(serve(),))
        thread.start()
        try:
            assert started.wait(30)
            assert server.started
            port = server.servers[0].sockets[0].getsockname()[1]
            yield Running(f"http://127.0.0.1:{port}", lineup, metrics, wanted)
        finally:
            server.should_exit = True
            thread.join(30)
            lineup.close()

    return running


def entry(
    bundle: Bundle, version: int = 1, *others: dict[str, Any], shadow: dict[str, Any] | None = None, **told: Any
) -> dict[str, Any]:
    """An entry of the file of wanted models: one version that answers all, or what of it ``others`` leave."""
    share = 100 - sum(other["share"] for other in others)
    return {"routes": [route(bundle, version, share, **told), *others], "shadow": shadow, "taken_back": []}


def route(bundle: Bundle, version: int, share: int, before: int | None = None) -> dict[str, Any]:
    """One version of an entry."""
    return {"version": version, "bundle": str(bundle.folder), "share": share, "before": before}
