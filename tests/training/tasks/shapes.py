"""Small pictures that a small model can tell apart, and a base to start from."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import ViTConfig, ViTModel

from tests.training.recipes import recipe_of
from training.recipe import Recipe

SHAPES = ("bar", "box", "ring")


def picture(kind: str, chance: np.random.Generator, size: int = 20) -> Image.Image:
    """A bright shape somewhere on a dark, noisy ground."""
    pixels = chance.integers(0, 60, (size, size, 3), dtype=np.uint8)
    top, left = chance.integers(1, size - 11, 2)
    if kind == "bar":
        pixels[top : top + 3, left : left + 10] = 220
    else:
        pixels[top : top + 10, left : left + 10] = 220
        if kind == "ring":
            pixels[top + 3 : top + 7, left + 3 : left + 7] = 30
    return Image.fromarray(pixels)


def write_pictures(folder: Path, count: int = 60) -> None:
    """``pictures/{shape}/{number}.png`` below ``folder``."""
    chance = np.random.default_rng(3)
    for number in range(count):
        kind = SHAPES[number % len(SHAPES)]
        place = folder / "pictures" / kind / f"{number:03}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        picture(kind, chance).save(place)


def tiny_vit(folder: Path) -> Path:
    """A ViT of one layer for pictures of 20 x 20."""
    config = ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=20,
        patch_size=5,
    )
    with torch.random.fork_rng():
        torch.manual_seed(7)
        ViTModel(config, add_pooling_layer=False).save_pretrained(folder)
    return folder


def picture_recipe(folder: Path, base: Path, **sections: Any) -> Recipe:
    """A recipe over the written pictures."""
    tree: dict[str, Any] = {
        "name": "shapes",
        "data": {
            "sources": {"pictures": {"files": "pictures/*/*.png", "pattern": "{shape}/{number}.png"}},
            "split": {"validation": 0.2, "test": 0.2, "stratify": "shape"},
        },
        "model": {
            "task": "image-classification",
            "base": str(base),
            "inputs": {"image": "file"},
            "target": "shape",
        },
        "train": {"epochs": 3, "batch_size": 8, "learning_rate": 3e-3, "workers": 1, "precision": "fp32"},
    }
    return recipe_of(tree, folder, sections)
