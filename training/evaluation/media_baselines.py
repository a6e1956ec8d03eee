"""The models that a fine-tuned classifier of pictures or sounds must beat, trained on the same rows."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import StandardScaler
from transformers import AutoModel

from training.evaluation.baselines import SEED, linear
from training.inputs.images import Pictures
from training.inputs.sounds import Sounds, as_floats, log_mels
from training.inputs.text import from_pretrained
from training.targets import Number, Target
from training.tasks.task import Outputs, Task

SIDE = 32
"""Pixels of a side that the linear model sees; more make it slower and no better."""

MELS = 40
BATCH = 16

Features = npt.NDArray[np.float32]


def on_pixels(task: Task, base: Path, train: pa.Table, others: Sequence[pa.Table]) -> list[Outputs]:
    """Logistic (or ridge) regression on the pixels of small versions of the pictures."""
    pictures: Pictures = cast(Any, task).pictures

    def features(table: pa.Table) -> Features:
        pixels = [pictures.array(one) for one in pictures.read(table.to_pylist())]
        small = [_small(torch.from_numpy(one.copy()).float()).numpy().ravel() for one in pixels]
        return np.array(small, dtype=np.float32).reshape(table.num_rows, -1) / np.float32(255)

    return _regression(task, train, others, [features(table) for table in (train, *others)], strength=0.1)


def _small(pixels: torch.Tensor) -> torch.Tensor:
    if max(pixels.shape[1:]) <= SIDE:
        return pixels
    return torch.nn.functional.interpolate(pixels[None], (SIDE, SIDE), mode="area")[0]


def on_mels(task: Task, base: Path, train: pa.Table, others: Sequence[pa.Table]) -> list[Outputs]:
    """Logistic (or ridge) regression on each mel band's mean and spread in each quarter of the sound."""
    sounds: Sounds = cast(Any, task).sounds

    def features(table: pa.Table) -> Features:
        rows = [_statistics(sounds, cell) for cell in table[sounds.column].to_pylist()]
        return np.array(rows, dtype=np.float32).reshape(table.num_rows, -1)

    return _regression(task, train, others, [features(table) for table in (train, *others)], strength=0.1)


def _statistics(sounds: Sounds, cell: Any) -> Features:
    mels = log_mels(as_floats(sounds.samples(cell)), sounds.rate, MELS)
    parts = [part if len(part) else mels[-1:] for part in np.array_split(mels, 4)]
    return np.concatenate([value for part in parts for value in (part.mean(axis=0), part.std(axis=0))])


def frozen(task: Task, base: Path, train: pa.Table, others: Sequence[pa.Table]) -> list[Outputs]:
    """Logistic (or ridge) regression on the mean of the untouched base's last hidden states."""
    tables = [train, *others]
    return _regression(task, train, others, [_embeddings(task, base, table) for table in tables], strength=0.1)


@torch.inference_mode()
def _embeddings(task: Task, base: Path, table: pa.Table) -> Features:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = from_pretrained(AutoModel, base).to(device).eval()
    model = getattr(model, "vision_model", model)  # of a base that also reads
    found: list[Features] = []
    for batch in table.to_batches(max_chunksize=BATCH):
        examples = task.encode(batch.to_pylist())
        alike = len({task.length(one) for one in examples}) == 1
        for part in [examples] if alike else [[one] for one in examples]:  # what is padded is not in a mean
            tensors = {name: value.to(device) for name, value in task.collate(part).items()}
            hidden = model(**_inputs(task, tensors)).last_hidden_state
            found += list((hidden.mean((2, 3)) if hidden.ndim == 4 else hidden.mean(1)).cpu().numpy())
    return np.array(found, dtype=np.float32).reshape(table.num_rows, -1)


def _inputs(task: Any, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    if hasattr(task, "pictures"):
        return {"pixel_values": task.pictures.normal(tensors["pixels"])}
    named: dict[str, torch.Tensor] = task.sounds.named(tensors)
    return named


def _regression(
    task: Task, train: pa.Table, others: Sequence[pa.Table], features: Sequence[Features], strength: float
) -> list[Outputs]:
    target: Target = cast(Any, task).target
    scaler = StandardScaler().fit(features[0])
    seen, *unseen = [scaler.transform(one) if len(one) else one for one in features]
    number = isinstance(target, Number)
    model = Ridge(alpha=10.0) if number else LogisticRegression(C=strength, max_iter=500, random_state=SEED)
    targets = [task.encode_target(row) for row in train.to_pylist()]
    return linear(target, model, seen, targets)(unseen)
