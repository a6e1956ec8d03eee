"""A small recipe with a sweep, and what runs it as a process of its own."""

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

REPOSITORY = Path(__file__).parents[2]
WORDS = {
    "refund": "refund money charged twice invoice",
    "delivery": "parcel late lost delivery slow",
    "login": "password account login page error",
}
PROGRAM = """
import json, sys
from pathlib import Path
from cluster.settings import read
from training.recipe import Recipe
from tuning.recipe import Tune
from tuning.sweep import sweep

class Full(Recipe):
    tune: Tune

if __name__ == "__main__":
    document = read(Path(sys.argv[1]))
    recipe = document.validate(Full)
    print(json.dumps(sweep(recipe, recipe.tune, document.public).as_json()))
"""


@pytest.fixture
def write_recipe(tmp_path: Path, tiny_base: Path) -> Callable[..., Path]:
    """``write_recipe(tune={…}, train={…})``: a recipe over 200 tickets with three intents."""
    draw = random.Random(3)
    filler = ["a", "my", "the", "please", "help", "it", "is", "not"]
    lines = ["text,intent"]
    for _ in range(200):
        intent = draw.choice(list(WORDS))
        lines.append(f"{' '.join(draw.choices(WORDS[intent].split(), k=2) + draw.choices(filler, k=5))},{intent}")
    (tmp_path / "tickets.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")

    def write(**sections: Any) -> Path:
        recipe = {
            "name": "tickets",
            "data": {"sources": {"tickets": {"read": "tickets.csv"}}, "split": {"validation": 0.2, "test": 0.1}},
            "model": {
                "task": "text-classification",
                "base": str(tiny_base),
                "inputs": {"text": "text"},
                "target": "intent",
            },
            **sections,
        }
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
        return path

    return write


@pytest.fixture
def start_sweep(tmp_path: Path, home: Path) -> Iterator[Callable[[Path], subprocess.Popen[str]]]:
    """``start_sweep(recipe)``: the sweep as a process of its own; what is left of it is ended with the test."""
    program = tmp_path / "run_sweep.py"
    program.write_text(PROGRAM, encoding="utf-8")
    started: list[subprocess.Popen[str]] = []

    def start(recipe: Path) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, str(program), str(recipe)],
            stdout=subprocess.PIPE,
            stderr=(tmp_path / f"stderr-{len(started)}.txt").open("w"),
            text=True,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def answer_of(process: subprocess.Popen[str]) -> Any:
    """The JSON object that is all a sweep prints to stdout."""
    stdout, _ = process.communicate(timeout=400)
    assert process.returncode == 0
    return json.loads(stdout)
