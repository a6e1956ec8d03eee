"""Data that memory does not hold: 1 GB of text, of which no process of the run may hold more than 2 GB."""

import csv
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

TEXT = 1_000_000_000
"""Characters."""

LIMIT = 2 * 1024**3
"""Bytes of memory of its own that a process may have. What it maps of files it can give back at any time."""

TOPICS = {"billing": "invoice", "delivery": "parcel", "account": "password", "returns": "refund"}

RECIPE: dict[str, Any] = {
    "name": "large",
    "data": {
        "sources": {"letters": {"read": "letters.csv"}, "topics": {"read": "topics.csv"}},
        "fuse": "SELECT l.text, t.topic FROM letters l JOIN topics t ON l.number = t.number",
        "clean": {"drop_empty": ["text"], "drop_duplicates": ["text"]},
        "split": {"validation": 0.02, "test": 0.02, "stratify": "topic"},
    },
    "model": {
        "task": "text-classification",
        "base": {
            "new": {
                "type": "bert",
                "hidden_size": 32,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "intermediate_size": 64,
            },
            "tokenizer": "train",
            "vocabulary": 1000,
        },
        "inputs": {"text": "text"},
        "target": "topic",
        "max_length": 32,
    },
    "train": {"epochs": 1, "batch_size": 256, "learning_rate": 3e-3, "workers": 1},
}


def write_letters(folder: Path) -> int:
    """Letters of 20 sentences, of which the first tells the topic; returns how many there are."""
    chance = random.Random(5)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["".join(chance.choices(letters, k=chance.randrange(2, 10))) for _ in range(4_000)]
    sentences = [" ".join(chance.choices(words, k=16)) + "." for _ in range(20_000)]
    written = number = 0
    with (folder / "letters.csv").open("w") as one, (folder / "topics.csv").open("w") as other:
        rows, topics = csv.writer(one), csv.writer(other)
        rows.writerow(["number", "text"])
        topics.writerow(["number", "topic"])
        while written < TEXT:
            topic, word = chance.choice(list(TOPICS.items()))
            text = f"about my {word}: " + " ".join(chance.choices(sentences, k=20))
            rows.writerow([number, text])
            topics.writerow([number, topic])
            written += len(text)
            number += 1
    return number


@pytest.mark.slow
@pytest.mark.timeout(7_200)
def test_a_gigabyte_of_text_trains_with_two_of_memory(tmp_path: Path) -> None:
    count = write_letters(tmp_path)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    command = [sys.executable, "-m", "headrace", "train", "recipe.yaml", "--json"]
    environment = os.environ | {"HEADRACE_HOME": str(tmp_path / "home")}
    most: dict[str, int] = {}
    with (
        (tmp_path / "said.json").open("w") as out,
        subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=out) as run,
    ):
        tree = psutil.Process(run.pid)
        while run.poll() is None:
            watch(tree, most)
    assert run.returncode == 0
    told = json.loads((tmp_path / "said.json").read_text())
    held = {name: f"{bytes_ / 1024**2:.0f} MiB" for name, bytes_ in sorted(most.items())}
    sys.stdout.write(f"\n{count:,} letters; most held by {held}\n")
    assert sum(told["data"]["splits"].values()) == count
    assert told["metrics"]["test/accuracy"] > 0.95
    assert max(most.values()) < LIMIT


def watch(tree: psutil.Process, most: dict[str, int]) -> None:
    """Notes the most memory that the processes of a run have of their own."""
    for process in [tree, *tree.children(recursive=True)]:
        try:
            name = "driver" if process.pid == tree.pid else process.name()
            taken = process.memory_info().rss - process.memory_info().shared
        except psutil.NoSuchProcess:
            continue
        most[name] = max(most.get(name, 0), taken)
    psutil.wait_procs([tree], timeout=0.1)
