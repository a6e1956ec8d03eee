"""A small search: questions of customers, the articles that answer them, and articles that nobody asked for."""

import csv
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from tests.training.recipes import recipe_of
from training.recipe import Recipe
from training.tasks.task import Task

TOPICS = ["card", "order", "money", "parcel", "password", "invoice", "address", "plan"]
TROUBLES = ["lost", "late", "broken", "slow", "crash", "cancel", "change", "charge"]
ASKED = [
    "what about the {0}, it is {1}",
    "please help, my {0} was {1} today",
    "why is the {0} {1}",
    "{1} {0} and no help",
]


def write_search(folder: Path, seed: int = 3) -> None:
    """``questions.csv`` (question_id, question, article_id, use) and ``articles.csv`` (article_id, title, body)."""
    chance = random.Random(seed)
    articles = [(topic, trouble) for topic in TOPICS for trouble in TROUBLES]
    with (folder / "articles.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["article_id", "title", "body"])
        for number, (topic, trouble) in enumerate(articles):
            writer.writerow([number, f"{topic} {trouble}", f"what to do when your {topic} is {trouble}"])
    with (folder / "questions.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["question_id", "question", "article_id", "use"])
        for number in range(120):
            place = chance.randrange(len(articles) - 8)  # the last eight are never asked for
            question = chance.choice(ASKED).format(*articles[place]) + f" {chance.randrange(10_000)}"
            writer.writerow([number, question, place, 2])
            if number % 3 == 0:
                writer.writerow([number, question, (place + 1) % (len(articles) - 8), 1])


def search_recipe(folder: Path, base: Path, task: str, **sections: Any) -> Recipe:
    """A recipe over the files of :func:`write_search`."""
    tree: dict[str, Any] = {
        "name": "help-search",
        "data": {
            "sources": {"questions": {"read": "questions.csv"}, "articles": {"read": "articles.csv"}},
            "fuse": "SELECT q.question_id, q.question, q.use, a.title, a.body FROM questions q "
            "JOIN articles a ON q.article_id = a.article_id",
            "corpus": "SELECT title, body FROM articles",
            "split": {"validation": 0.2, "test": 0.2, "group": "question_id"},
        },
        "model": {
            "task": task,
            "base": str(base),
            "inputs": {"query": "question", "passage": ["title", "body"]},
            "target": "use",
        },
        "train": {"epochs": 2, "batch_size": 16, "learning_rate": 2e-3, "workers": 1, "precision": "fp32"},
    }
    return recipe_of(tree, folder, sections)


def asked(task: Task, **splits: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """What a task asks about the rows of each split, which are given as columns."""
    tables = {name: pa.table(dict(rows)) for name, rows in splits.items()}
    return {name: table.to_pylist() for name, table in task.questions(tables).items()}
