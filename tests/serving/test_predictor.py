"""The numbers are the model's own, whatever batch they were computed in."""

import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import pipeline

from cluster.errors import RunError, UserError
from serving.predictor import Predictor, by_length
from tests.serving.conftest import LABELS, TEXTS
from training.bundle import Bundle


@pytest.fixture(scope="module")
def predictor(bundle: Bundle) -> Predictor:
    return Predictor(bundle, device="cpu")


def scores(answer: list[dict[str, object]]) -> dict[str, float]:
    return {str(entry["label"]): float(str(entry["score"])) for entry in answer}


def test_the_same_numbers_as_transformers_itself(predictor: Predictor, bundle: Bundle) -> None:
    reference = pipeline("text-classification", str(bundle.folder), top_k=None, device="cpu")
    for text, answer in zip(TEXTS, predictor.predict(TEXTS, {"top_k": len(LABELS)}), strict=True):
        assert scores(answer) == pytest.approx(scores(reference([text], truncation=True)[0]), abs=1e-5)


def test_the_same_numbers_in_any_batch(predictor: Predictor) -> None:
    alone = [predictor.predict([text])[0] for text in TEXTS]
    many = [random.Random(3).choice(TEXTS) for _ in range(300)]
    together = predictor.predict(many)
    for text, answer in zip(many, together, strict=True):
        assert scores(answer) == pytest.approx(scores(alone[TEXTS.index(text)]), abs=1e-5)


def test_a_batch_decodes_each_request_with_its_own_parameters(predictor: Predictor) -> None:
    one, three = {"top_k": 1}, {"top_k": 3}
    prepared = predictor.prepare([({"text": TEXTS[0]}, one), ({"text": TEXTS[4]}, three), ({"text": TEXTS[0]}, one)])
    answers = predictor.answer([question for question, _ in prepared])
    assert [len(answer) for answer in answers] == [1, 3, 1]
    assert scores(answers[0]) == pytest.approx(scores(answers[2]))
    assert prepared[0][1] == len(predictor.task.encode([{"text": TEXTS[0]}])[0]["input_ids"])


def test_wrong_parameters_and_inputs_are_named(predictor: Predictor) -> None:
    with pytest.raises(UserError, match=r"parameters\.top_k"):
        predictor.predict(["a"], {"top_k": 0})
    with pytest.raises(UserError, match=r"inputs\[1\]"):
        predictor.predict(["a", 3])
    assert predictor.predict([]) == []


def test_several_columns_are_one_input(pair_bundle: Bundle) -> None:
    reference = pipeline("text-classification", str(pair_bundle.folder), top_k=None, device="cpu")
    [answer] = Predictor(pair_bundle, device="cpu").predict([{"subject": "card", "body": "late"}], {"top_k": 7})
    assert scores(answer) == pytest.approx(scores(reference(["card [SEP] late"])[0]), abs=1e-5)


def test_a_model_that_answers_no_numbers_is_not_served(bundle: Bundle, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(bundle.folder, tmp_path / "broken"))
    model = bundle.model()
    torch.nn.init.constant_(model.classifier.weight, float("nan"))
    model.save_pretrained(folder)
    with pytest.raises(RunError, match="not a number"):
        Predictor(Bundle(folder, bundle.info), device="cpu")


def test_batches_by_length_keep_to_the_budget_and_lose_nothing() -> None:
    lengths = [random.Random(1).randint(1, 300) for _ in range(500)]
    batches = by_length(lengths, 1024)
    assert sorted(index for batch in batches for index in batch) == list(range(500))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[index] for index in batch) <= 1024
    padded = sum(len(batch) * max(lengths[index] for index in batch) for batch in batches)
    assert padded < 1.05 * sum(lengths)
    assert by_length([], 10) == []
    assert np.concatenate(by_length([5, 5, 5], 10)).tolist() == [0, 1, 2]
