"""What is predicted of a row: one label, several labels, a label of an order, or a number.

A task that predicts one of these for a row, from whatever inputs, holds a :class:`Target`. It knows how a cell of the
target column becomes a tensor, what the loss is, and how the model's outputs become answers and metrics.

    cell -> encode -> tensor -> loss
                     outputs -> decode -> answer
                            \\-> metrics
"""

from collections.abc import Mapping
from typing import Any

from training.targets.labels import ManyLabels, OneLabel, Ordinal
from training.targets.number import Number
from training.targets.target import LabelOptions, Target, TargetOptions

__all__ = [
    "KINDS",
    "Kinds",
    "LabelOptions",
    "ManyLabels",
    "Number",
    "OneLabel",
    "Ordinal",
    "Target",
    "TargetOptions",
    "every_metric",
    "load_target",
]

Kinds = Mapping[str, type[Target]]
"""What can be predicted: problem to target."""

KINDS: Kinds = {kind.problem: kind for kind in (OneLabel, ManyLabels, Ordinal, Number)}


def every_metric(kinds: Kinds) -> dict[str, str]:
    """The metrics of these targets together: what a recipe may name before its problem is looked at."""
    return {name: way for kind in kinds.values() for name, way in kind.metrics_known.items()}


def load_target(settings: Mapping[str, Any], kinds: Kinds = KINDS) -> Target:
    """The target that ``save`` gave these settings for."""
    arguments = dict(settings)
    return kinds[arguments.pop("problem")](**arguments)
