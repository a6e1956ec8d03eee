"""A small real run: labelled sentences that a tiny BERT can learn, fused and encoded by the real stages."""

import csv
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.training.recipes import recipe_of
from training.recipe import Recipe

TOPICS = {
    "billing": ["invoice", "charged twice", "refund my money", "the bill is late"],
    "delivery": ["parcel lost", "late delivery", "broken order", "where is my parcel"],
    "account": ["password", "login error", "change my account", "the app is slow"],
}
FILLERS = ["please help", "i love it", "it was good", "why is it not", "what about", "we want", "to you", "today"]


@pytest.fixture
def make_recipe(tmp_path: Path, home: Path, tiny_base: Path) -> Callable[..., Recipe]:
    """``make_recipe(rows=120, train={...}, ...)``: a recipe over a CSV of sentences on three topics."""

    def make(rows: int = 120, **sections: Any) -> Recipe:
        return topics_recipe(tmp_path, tiny_base, rows, **sections)

    return make


def topics_recipe(folder: Path, base: Path, rows: int, **sections: Any) -> Recipe:
    """Writes the sentences into ``folder`` and returns a recipe over them; the same for the same arguments."""
    chance = random.Random(3)
    with (folder / "sentences.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "topic"])
        for _ in range(rows):
            topic = chance.choice(list(TOPICS))
            words = [chance.choice(FILLERS) for _ in range(chance.randrange(1, 6))]
            words.insert(chance.randrange(len(words) + 1), chance.choice(TOPICS[topic]))
            writer.writerow([" ".join(words) + f" {chance.randrange(100_000)}", topic])
    tree: dict[str, Any] = {
        "name": "topics",
        "data": {
            "sources": {"sentences": {"read": "sentences.csv"}},
            "split": {"validation": 0.2, "test": 0.2, "stratify": "topic"},
        },
        "model": {
            "task": "text-classification",
            "base": str(base),
            "inputs": {"text": "text"},
            "target": "topic",
        },
        "train": {"epochs": 2, "batch_size": 8, "learning_rate": 1e-3, "workers": 1, "precision": "fp32"},
    }
    return recipe_of(tree, folder, sections)
