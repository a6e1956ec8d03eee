"""Real pictures and sounds, learned from nothing in minutes on one core; the figures are told on stderr (``-s``)."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from cluster.progress import say
from training.data.fuse import fuse
from training.encode import encode, located_rows
from training.evaluation.baselines import measure
from training.loop import make_trainee, predict, train
from training.recipe import Recipe

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
WHISPER = {
    "type": "whisper",
    "d_model": 96,
    "encoder_layers": 3,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 256,
    "decoder_layers": 1,  # a base of this type has a decoder, which a classifier leaves out
    "decoder_attention_heads": 4,
    "decoder_ffn_dim": 96,
    "vocab_size": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
    "num_mel_bins": 64,
    "max_source_positions": 50,
    "dropout": 0.1,
    "classifier_proj_size": 96,
}
RESNET = {
    "type": "resnet",
    "layer_type": "basic",
    "embedding_size": 16,
    "hidden_sizes": [24, 48, 96],
    "depths": [1, 1, 1],
}


TRAIN = {"epochs": 60, "batch_size": 16, "learning_rate": 1e-3, "head_learning_rate": 1e-3, "weight_decay": 0.05}


def measured(folder: Path, tree: Mapping[str, Any]) -> dict[str, float]:
    """The test accuracy of a recipe's model, and of each baseline."""
    recipe = Recipe.model_validate(tree, context={"folder": folder})
    fused = fuse(recipe)
    encoded = encode(recipe, fused)
    trainee = make_trainee(encoded, recipe.train, recipe.model.adapt, CPU)
    for moment in train(trainee, encoded):
        if moment.validation:
            say(
                f"epoch {moment.epoch + 1}: loss {moment.loss:.3f}, accuracy {moment.validation.get('accuracy', 0):.4f}"
            )
    test = encoded.split("test")
    outputs = predict(trainee, test, final=True)
    found = {"model": trainee.task.metrics(outputs, test.targets)["accuracy"]}
    baselines = measure(encoded.task, encoded.base, encoded.kept(located_rows(recipe, fused.tables())))
    found |= {name: values["test/accuracy"] for name, values in baselines.items()}
    say(f"{recipe.name}: {len(encoded.split('train'))} rows to learn from, {len(test)} to test on, {found}")
    return found


def test_digits_written_as_png(tmp_path: Path, home: Path) -> None:
    digits = load_digits()
    (tmp_path / "digits").mkdir()
    for number, (pixels, digit) in enumerate(zip(digits.images, digits.target, strict=True)):
        Image.fromarray((pixels * 255 / 16).astype(np.uint8)).save(tmp_path / "digits" / f"{digit}_{number:04}.png")
    tree = {
        "name": "digits",
        "data": {
            "sources": {"digits": {"files": "digits/*.png", "pattern": "{digit}_{number}.png"}},
            "split": {"validation": 0.1, "test": 0.2, "stratify": "digit"},
        },
        "model": {
            "task": "image-classification",
            "base": {"new": RESNET, "tokenizer": None},
            "inputs": {"image": "file"},
            "target": "digit",
            "options": {"size": 32, "move": 0.1},
        },
        "train": {"epochs": 20, "learning_rate": 3e-3, "head_learning_rate": 3e-3, "weight_decay": 0.05},
    }
    found = measured(tmp_path, tree)
    assert found["model"] > found["linear"] > 0.94


@pytest.mark.parametrize("split", ["official", "speaker"])
def test_spoken_digits(tmp_path: Path, home: Path, split: str) -> None:
    """The data set's own split (takes 0 to 4 of each speaker and digit test), and speakers that were never heard."""
    folder = Path(os.environ.get("HEADRACE_TEST_DATA", "nowhere")) / "fsdd" / "recordings"
    if not folder.is_dir():
        pytest.skip("HEADRACE_TEST_DATA names no folder with the data sets")
    pattern = "{digit}_{speaker}_{index}.wav"
    every = {"sources": {"all": {"files": f"{folder}/*.wav", "pattern": pattern}}}
    apart = {
        "sources": {
            "learned": {"files": [f"{folder}/*_[5-9].wav", f"{folder}/*_??.wav"], "pattern": pattern},
            "held": {"files": f"{folder}/*_[0-4].wav", "pattern": pattern},
        },
        "split": {"test": {"source": "held"}, "validation": 0.1, "stratify": "digit"},
    }
    tree = {
        "name": f"spoken-{split}",
        "data": apart
        if split == "official"
        else every | {"split": {"validation": 0.25, "test": 0.25, "group": "speaker"}},
        "model": {
            "task": "audio-classification",
            "base": {"new": WHISPER, "tokenizer": None},
            "inputs": {"audio": "file"},
            "target": "digit",
            "options": {"seconds": 1, "shift": 0.1, "mask_time": 0.1, "mask_mels": 0.1},
        },
        "train": TRAIN,
    }
    found = measured(tmp_path, tree)
    assert found["model"] > found["majority"]
    if split == "official":
        assert found["model"] > found["linear"]
