"""The sample project: the same each time, as untidy as promised, and a valid recipe."""

import collections
import json
import random
import sqlite3
from pathlib import Path

import pytest

import headrace
from cluster.errors import UserError
from cluster.storage import folder_digests
from training import samples
from training.data.fuse import inspect
from training.preflight import rehearse
from training.samples import text_classification
from training.samples.phrases import ASKS, SETTLED


@pytest.mark.parametrize("task", samples.sample_tasks())
def test_the_same_files_every_time(tmp_path: Path, task: str) -> None:
    for name in ("one", "two"):
        samples.write_sample(tmp_path / name, task)
    assert folder_digests(tmp_path / "one") == folder_digests(tmp_path / "two")


@pytest.mark.parametrize("task", samples.sample_tasks())
def test_the_recipe_is_valid_as_it_is_and_its_needs_can_be_told(tmp_path: Path, home: Path, task: str) -> None:
    samples.write_sample(tmp_path / "new", task)
    recipe, _ = headrace.load_recipe(tmp_path / "new" / "recipe.yaml")
    assert recipe.model.task == task
    told = rehearse(recipe, inspect(recipe, 300), 1).needs["memory of a worker (MiB)"]
    assert told["weights"] + told["optimizer"] + told["step"] > 0


def test_data_is_as_untidy_as_promised(tmp_path: Path) -> None:
    samples.write_sample(tmp_path / "new", "text-classification")
    data = tmp_path / "new" / "data"
    lines = (data / "tickets.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines if line not in text_classification.UNREADABLE]
    assert len(lines) - len(rows) == len(text_classification.UNREADABLE)
    assert len(text_classification.UNREADABLE) / len(lines) < 0.01, "more than the recipe lets pass"
    customers = (data / "customers.csv").read_text(encoding="utf-8").splitlines()
    known = {int(line.split(",")[0]) for line in customers[1:]}
    assert 0 < sum(row["customer_id"] not in known for row in rows) < 0.1 * len(rows)
    assert 0 < sum(row["intent"] is None for row in rows) < 0.02 * len(rows)
    texts = collections.Counter(row["text"] for row in rows)
    assert any(count > 1 for count in texts.values())
    orders = sqlite3.connect(data / "shop.db").execute("SELECT COUNT(*), COUNT(DISTINCT customer_id) FROM orders")
    assert orders.fetchone()[0] > 1000


def test_every_intent_has_its_share() -> None:
    counts = collections.Counter(
        row["intent"] for row in text_classification.tickets(random.Random(text_classification.SEED))
    )
    del counts[None]
    assert 8 <= len(counts) <= 12
    assert min(counts.values()) > 60


def test_phrases_expand_without_a_rest() -> None:
    draw = random.Random(1)
    for phrase in [one for grammar in (ASKS, SETTLED) for phrases in grammar.values() for one in phrases]:
        assert not set("{}|") & set(text_classification.expand(phrase, draw)), phrase


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("kept", encoding="utf-8")
    with pytest.raises(UserError, match="is there already and not empty"):
        samples.write_sample(tmp_path, "text-classification")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_an_unknown_task_is_named_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no sample for the task 'poetry'; there is .*text-classification"):
        samples.write_sample(tmp_path / "new", "poetry")
