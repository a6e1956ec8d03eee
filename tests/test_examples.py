"""Every recipe of examples/ is valid as it stands, and every task has one."""

from pathlib import Path

import pytest

import headrace
from training.tasks.task import task_names

EXAMPLES = Path(__file__).parent.parent / "examples"
RECIPES = sorted(EXAMPLES.glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_recipe_is_valid_and_described(path: Path) -> None:
    recipe, _ = headrace.load_recipe(path)
    assert recipe.name == path.stem.replace("_", "-")
    assert f"| `{path.name}` | {recipe.model.task}" in (EXAMPLES / "README.md").read_text(encoding="utf-8")


def test_every_task_has_an_example() -> None:
    assert {headrace.load_recipe(path)[0].model.task for path in RECIPES} == set(task_names())
