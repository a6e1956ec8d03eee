"""Texts of our own with marked things in them, and a recipe that learns to mark them."""

import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from training.recipe import Model, Recipe
from training.tasks.token_classification import TokenClassification

CPU = torch.device("cpu")
FILLERS = ["please", "help", "i", "love", "it", "was", "good", "why", "is", "not", "what", "about", "we", "want", "to"]
FILLERS += ["you", "today", "how", "when"]
NAMES = ["late parcel", "broken card", "money", "hotel room", "big bill", "app"]


def sentence(chance: random.Random, words: int, name: str | None = None) -> tuple[str, list[dict[str, Any]]]:
    """Filler words, among them a thing in quotes of our own: ``lost X``, where X is a thing, and ``lost`` is not."""
    picked = chance.choices(FILLERS, k=words)
    name = name or chance.choice(NAMES)
    at = chance.randrange(words + 1)
    before = " ".join([*picked[:at], "lost", ""])
    after = "".join(f" {word}" for word in picked[at:])
    kind = "place" if "room" in name else "thing"
    return before + name + after, [{"start": len(before), "end": len(before) + len(name), "label": kind}]


def spans_table(rows: int, longest: int = 90) -> pa.Table:
    chance = random.Random(4)
    made = [sentence(chance, chance.choice([*range(2, 20), longest])) for _ in range(rows)]
    return pa.table({"text": [text for text, _ in made], "entities": [spans for _, spans in made]})


def make(
    base: Path, table: pa.Table, target: str = "entities", unicode: str = "none", **model: Any
) -> TokenClassification:
    settings = Model(task="token-classification", base="", inputs={"text": "text"}, target=target, **model)
    return TokenClassification.learn(settings, base, {"train": table}, unicode=unicode)


def spans_recipe(folder: Path, base: Path | dict[str, Any]) -> Recipe:
    tree: dict[str, Any] = {
        "name": "things",
        "data": {"sources": {"rows": {"read": "rows.jsonl"}}, "split": {"validation": 0.1, "test": 0.2}},
        "model": {
            "task": "token-classification",
            "base": base if isinstance(base, dict) else str(base),
            "inputs": {"text": "text"},
            "target": "entities",
        },
        "train": {"epochs": 6, "batch_size": 8, "learning_rate": 4e-3, "workers": 1, "precision": "fp32"},
    }
    return Recipe.model_validate(tree, context={"folder": folder})
