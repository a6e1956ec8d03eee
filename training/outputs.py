"""What a model said of a split's rows, kept in a file: arrays of any shapes, one for each row."""

from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from training.tasks.task import Outputs


def save(file: Path, outputs: Outputs) -> None:
    """Writes the outputs of rows, in order; all have as many dimensions as the first."""
    flat = [np.ravel(one) for one in outputs]
    values = np.concatenate(flat) if flat else np.zeros(0, dtype=np.float32)
    shapes = np.array([one.shape for one in outputs], dtype=np.int64).reshape(len(flat), -1 if flat else 0)
    save_file({"values": values, "shapes": shapes}, file)


def load(file: Path) -> Outputs:
    """What :func:`save` wrote."""
    kept = load_file(file)
    shapes = kept["shapes"]
    ends = np.cumsum(shapes.prod(axis=1))[:-1]
    parts = np.split(kept["values"], ends) if len(shapes) else []
    return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]
