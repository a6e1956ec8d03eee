"""The baselines on real rows, with the real task and a tiny real base."""

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pytest
import torch
from transformers import AutoModel

from training.evaluation import baselines, metrics
from training.recipe import Model
from training.tasks.text_classification import TextClassification

TEST_DATA = os.environ.get("HEADRACE_TEST_DATA")


def a_task(base: Path, splits: Mapping[str, pa.Table], target: str = "topic") -> TextClassification:
    model = Model(task="text-classification", base=str(base), inputs={"text": ["text"]}, target=target)
    return TextClassification.learn(model, base, splits)


def table(*rows: tuple[str, str]) -> pa.Table:
    return pa.table({"text": [text for text, _ in rows], "topic": [topic for _, topic in rows]})


@pytest.fixture
def splits() -> dict[str, pa.Table]:
    train = [(f"please refund order {number}", "billing") for number in range(12)]
    train += [(f"my parcel {number} is late", "delivery") for number in range(8)]
    train += [(f"i cannot login {number}", "account") for number in range(8)]
    test = [
        ("refund please", "billing"),
        ("the parcel is late", "delivery"),
        ("login", "account"),
        ("refund", "billing"),
    ]
    return {"train": table(*train), "validation": table(*test[:3]), "test": table(*test)}


def test_every_baseline_is_measured_on_every_split(tiny_base: Path, splits: dict[str, pa.Table]) -> None:
    measured = baselines.measure(a_task(tiny_base, splits), tiny_base, splits)
    assert list(measured) == ["majority", "tfidf", "frozen"]
    assert measured["majority"]["test/accuracy"] == 0.5
    assert measured["majority"]["validation/accuracy"] == pytest.approx(1 / 3)
    assert measured["tfidf"]["test/accuracy"] == 1.0
    assert set(measured["frozen"]) == {
        f"{split}/{name}" for split in ("validation", "test") for name in metrics.CLASSIFICATION
    }


def test_margins_have_no_loss_and_no_calibration(tiny_base: Path, splits: dict[str, pa.Table]) -> None:
    task = a_task(tiny_base, splits)
    tfidf = baselines.measure(task, tiny_base, splits)["tfidf"]
    assert {name.removeprefix("test/") for name in tfidf if name.startswith("test/")} == (
        set(metrics.CLASSIFICATION) - {"calibration_error", "loss"}
    )


def test_a_split_without_rows_is_left_out(tiny_base: Path, splits: dict[str, pa.Table]) -> None:
    splits["validation"] = splits["validation"].slice(0, 0)
    measured = baselines.measure(a_task(tiny_base, splits), tiny_base, splits)
    assert all(name.startswith("test/") for one in measured.values() for name in one)


def test_the_majority_gives_the_shares_of_the_labels(tiny_base: Path, splits: dict[str, pa.Table]) -> None:
    task = a_task(tiny_base, splits)
    (outputs,) = baselines.majority(task, tiny_base, splits["train"], [splits["test"]])
    assert task.labels == ["account", "billing", "delivery"]
    assert np.shape(outputs) == (4, 3)
    assert np.exp(outputs[0]) == pytest.approx([9 / 31, 13 / 31, 9 / 31])


@pytest.mark.parametrize("problem", ["regression", "ordinal"])
def test_the_constant_of_a_distance_is_the_median(tiny_base: Path, problem: str) -> None:
    """No other constant is nearer to the training rows on average."""
    values = [1.0] * 4 + [2.0, 3.0, 3.0, 4.0, 9.0]
    train = pa.table({"text": ["a"] * len(values), "y": values})
    model = Model(
        task="text-classification",
        base=str(tiny_base),
        inputs={"text": ["text"]},
        target="y",
        options={"problem": problem},
    )
    task = TextClassification.learn(model, tiny_base, {"train": train})
    measured = baselines.measure(task, tiny_base, {"train": train, "test": train})["majority"]
    assert measured["test/mae"] == pytest.approx(min(np.abs(np.array(values) - one).mean() for one in values))


def test_two_labels_have_two_outputs(tiny_base: Path) -> None:
    train = table(*[(f"good room {n}", "good") for n in range(6)], *[(f"dirty room {n}", "bad") for n in range(6)])
    test = table(("good hotel", "good"), ("dirty hotel", "bad"))
    task = a_task(tiny_base, {"train": train, "test": test})
    for baseline in task.baselines.values():
        (outputs,) = baseline.outputs(task, tiny_base, train, [test])
        assert np.shape(outputs) == (2, 2)
        assert outputs[0].dtype == np.float32
    assert np.argmax(baselines.tfidf(task, tiny_base, train, [test])[0], axis=1).tolist() == [1, 0]


def test_a_label_that_only_the_test_knows_ranks_last(tiny_base: Path, splits: dict[str, pa.Table]) -> None:
    splits["test"] = table(("refund please", "billing"), ("what is it", "unheard of"))
    task = a_task(tiny_base, splits)
    unheard = task.labels.index("unheard of")
    for baseline in (baselines.tfidf, baselines.frozen):
        (outputs,) = baseline(task, tiny_base, splits["train"], [splits["test"]])
        assert np.isfinite(outputs).all()
        assert (np.argmin(outputs, axis=1) == unheard).all()


def test_chinese_is_told_apart_by_its_characters(tiny_base: Path) -> None:
    train = table(
        *[(f"房间很干净，服务员热情{number}", "好评") for number in range(6)],
        *[(f"房间很脏，服务态度差{number}", "差评") for number in range(6)],
    )
    test = table(("早餐不错，干净又热情", "好评"), ("太脏了，态度差", "差评"))
    task = a_task(tiny_base, {"train": train, "test": test})
    (outputs,) = baselines.tfidf(task, tiny_base, train, [test])
    assert task.metrics(outputs, [task.encode_target(row) for row in test.to_pylist()])["accuracy"] == 1.0


def test_embeddings_are_the_means_of_the_last_hidden_states(tiny_base: Path, splits: dict[str, pa.Table]) -> None:
    task = a_task(tiny_base, splits)
    rows = splits["test"].to_pylist()
    embeddings = baselines._embeddings(task, tiny_base, [*rows, rows[0]])
    model = AutoModel.from_pretrained(tiny_base).eval()
    for row, embedding in zip(rows, embeddings, strict=False):
        (example,) = task.encode([row])
        with torch.inference_mode():  # alone, so without padding
            hidden = model(input_ids=torch.tensor([example["input_ids"]])).last_hidden_state
        np.testing.assert_allclose(embedding, hidden[0].mean(0).numpy(), atol=1e-5)
    assert np.array_equal(embeddings[-1], embeddings[0])


def test_batches_hold_every_place_once_and_no_more_tokens_than_they_may() -> None:
    lengths = np.random.default_rng(1).integers(1, 6000, 500).tolist()
    batches = baselines._batches(lengths)
    assert sorted(place for batch in batches for place in batch) == list(range(500))
    for batch in batches:
        longest = max(lengths[place] for place in batch)
        assert len(batch) == 1 or longest * len(batch) <= baselines.TOKENS_PER_BATCH


@pytest.mark.slow
@pytest.mark.skipif(not TEST_DATA, reason="HEADRACE_TEST_DATA names no folder with banking77")
def test_tfidf_on_banking77_is_what_it_is_known_to_be(tiny_base: Path) -> None:
    folder = Path(str(TEST_DATA)) / "banking77"
    splits = {name: pa.csv.read_csv(folder / f"{name}.csv") for name in ("train", "test")}
    task = a_task(tiny_base, splits, target="category")
    (outputs,) = baselines.tfidf(task, tiny_base, splits["train"], [splits["test"]])
    targets = [task.encode_target(row) for row in splits["test"].to_pylist()]
    assert 0.90 <= task.metrics(outputs, targets)["accuracy"] <= 0.91


def test_of_much_text_the_baselines_see_rows_at_even_distances(
    tiny_base: Path, splits: dict[str, pa.Table], monkeypatch: pytest.MonkeyPatch
) -> None:
    task = a_task(tiny_base, splits)
    many = pa.table({"text": ["x" * 100] * 1_000, "topic": ["a"] * 1_000})
    assert baselines.learned_from(task, many).tolist() == list(range(1_000))
    monkeypatch.setattr(baselines, "MOST_TEXT", 20_000)
    rows = baselines.learned_from(task, many)
    assert rows.tolist() == list(range(0, 1_000, 5))
    monkeypatch.setattr(baselines, "MOST_TEXT", 300)
    few = baselines.learned_from(task, splits["train"])
    assert 0 < len(few) < splits["train"].num_rows
    measured = baselines.measure(task, tiny_base, splits)
    on_those = baselines.measure(task, tiny_base, splits | {"train": splits["train"].take(pa.array(few))})
    for name in ("tfidf", "frozen"):
        assert measured[name] == on_those[name]
    assert measured["majority"] != on_those["majority"], "it holds no texts and sees every row"
