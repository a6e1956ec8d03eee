"""Short sounds that a small model can tell apart, and two bases to start from: one hears samples, one a spectrogram."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.io import wavfile
from transformers import ASTConfig, ASTModel, Wav2Vec2Config, Wav2Vec2Model

from tests.training.recipes import recipe_of
from training.recipe import Recipe

KINDS = ("fall", "rise", "still")
RATE = 8_000


def tone(kind: str, chance: np.random.Generator, rate: int = RATE) -> npt.NDArray[np.int16]:
    """A quarter to half a second of a pitch that falls, rises or stays, in some noise."""
    length = int(rate * chance.uniform(0.25, 0.5))
    ends = {"fall": (1800, 500), "rise": (500, 1800), "still": (1000, 1000)}[kind]
    pitch = np.linspace(*ends, length) * chance.uniform(0.9, 1.1)
    wave = np.sin(2 * np.pi * np.cumsum(pitch) / rate) + chance.normal(0, 0.05, length)
    return (wave * 9000).astype(np.int16)


def write_tones(folder: Path, count: int = 48, speakers: int = 4) -> None:
    """``tones/{kind}_{speaker}_{number}.wav`` below ``folder``."""
    chance = np.random.default_rng(3)
    (folder / "tones").mkdir()
    for number in range(count):
        kind = KINDS[number % len(KINDS)]
        name = f"{kind}_s{number % speakers}_{number}.wav"
        wavfile.write(folder / "tones" / name, RATE, tone(kind, chance))


def tiny_wav2vec2(folder: Path, norm: str = "layer") -> Path:
    """A wav2vec2 of one layer, a step each 10 ms."""
    config = Wav2Vec2Config(
        hidden_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=48,
        conv_dim=(16, 16),
        conv_stride=(10, 8),
        conv_kernel=(20, 8),
        num_feat_extract_layers=2,
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=2,
        feat_extract_norm=norm,
    )
    return _saved(Wav2Vec2Model, config, folder)


def tiny_ast(folder: Path) -> Path:
    """An audio spectrogram transformer of two layers, for half a second."""
    config = ASTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        patch_size=8,
        frequency_stride=8,
        time_stride=8,
        max_length=48,
        num_mel_bins=32,
    )
    return _saved(ASTModel, config, folder)


def _saved(model_class: Any, config: Any, folder: Path) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model_class(config).save_pretrained(folder)
    return folder


def tone_recipe(folder: Path, base: Path, **sections: Any) -> Recipe:
    """A recipe over the written tones."""
    tree: dict[str, Any] = {
        "name": "tones",
        "data": {
            "sources": {"tones": {"files": "tones/*.wav", "pattern": "{kind}_{speaker}_{number}.wav"}},
            "split": {"validation": 0.25, "test": 0.25, "group": "speaker"},
        },
        "model": {
            "task": "audio-classification",
            "base": str(base),
            "inputs": {"audio": "file"},
            "target": "kind",
        },
        "train": {"epochs": 2, "batch_size": 8, "learning_rate": 3e-3, "workers": 1, "precision": "fp32"},
    }
    return recipe_of(tree, folder, sections)
