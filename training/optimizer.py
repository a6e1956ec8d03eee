"""What moves the weights in a step: AdamW, with a step size for every group of weights, and how it rises and falls."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from training.models.adapt import depths
from training.recipe import Train

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ADDED = ("bias", "absent")
"""How a weight is named that is added and multiplies nothing, one row of it for each column where there are several."""


def make_optimizer(model: "PreTrainedModel", head: Sequence[torch.nn.Module], options: Train) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter, 2019) that decays weight matrices, not biases and normalisation scales.

    The new head has a step size of its own, and so has each layer where ``layer_decay`` says so. Every group keeps
    its highest as ``peak``; the schedule scales it.
    """
    new = {id(weight) for module in head for weight in module.parameters()}
    depth = depths(model)
    deepest = max(depth.values())
    groups: dict[tuple[float, float], list[torch.nn.Parameter]] = {}
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            peak = options.learning_rate * options.layer_decay ** (deepest - depth[name])
            if id(weight) in new:
                peak = options.head_learning_rate
            decay = options.weight_decay if weight.ndim > 1 and name.rpartition(".")[2] not in ADDED else 0.0
            groups.setdefault((peak, decay), []).append(weight)
    return torch.optim.AdamW(
        [{"params": weights, "peak": peak, "weight_decay": decay} for (peak, decay), weights in groups.items()],
        fused=True,
    )


def schedule(step: int, steps: int, options: Train) -> float:
    """The share of the peak learning rates at ``step`` (from 0) of ``steps``: a linear rise, then the fall."""
    warmup = math.ceil(options.warmup * steps)
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    fall = {"linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2, "constant": 1.0}
    return fall[options.schedule]
