"""What every room's tests share: a home of their own, a tiny real model, free ports, waiting on conditions."""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cluster import ports

# Models and data in the tests are local: a test that reached for a hub would hang where there is none.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# As in cluster/environment.py, here before torch is imported: with spinning threads, whatever else runs on the machine
# makes a test several times as slow.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

WORDS = (
    "a an the my i you it we is was are be not no yes to of in on for from with and or what when where how who why "
    "please help card order refund money account password login delivery parcel late lost broken charge charged twice "
    "invoice bill plan change cancel upgrade price cost error app page crash slow address country today week good bad "
    "great awful love hate room hotel clean dirty staff one two three four five ##s ##ed ##ing ##er ##ly"
)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty ``HEADRACE_HOME`` that only this test uses."""
    folder = tmp_path / "home"
    monkeypatch.setenv("HEADRACE_HOME", str(folder))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return folder


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real BERT in Hugging Face layout, small enough to fine-tune in a second: 2 layers, 32 wide, ~200 tokens."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path_factory.mktemp("tiny-base")
    letters = "abcdefghijklmnopqrstuvwxyz0123456789.,!?'"
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    tokens += [word for word in WORDS.split() if word not in tokens]
    (folder / "vocab.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")
    BertTokenizerFast(vocab=str(folder / "vocab.txt"), model_max_length=64).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(tokens),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    with torch.random.fork_rng():
        torch.manual_seed(7)
        BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture
def free_port() -> int:
    """A TCP port on this machine that nothing listened on a moment ago."""
    return ports.free_port()


@pytest.fixture
def wait_until() -> Iterator[Callable[..., None]]:
    """``wait_until(condition, seconds=60)``: returns as soon as ``condition()`` holds, fails at the deadline."""

    def wait(condition: Callable[[], object], seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"{condition} did not hold within {seconds} s"
            time.sleep(0.05)

    yield wait
