"""Recipes of the tests."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from training.recipe import Recipe


def recipe_of(tree: Mapping[str, Any], folder: Path, sections: Mapping[str, Mapping[str, Any]]) -> Recipe:
    """The recipe that a tree says, with some fields of its sections changed; paths are relative to ``folder``."""
    changed = {section: {**tree[section], **fields} for section, fields in sections.items()}
    return Recipe.model_validate({**tree, **changed}, context={"folder": folder})
