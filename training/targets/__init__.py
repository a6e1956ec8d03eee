"""What is predicted of a row: one label, several labels, a label of an order, or a number.

A task that predicts one of these for a row, from whatever inputs, holds a :class:`Target`. It knows how a cell of the
target column becomes a tensor, what the loss is, and how the model's outputs become answers and metrics.

    cell -> encode -> tensor -> loss
                     outputs -> decode -> answer
                            \\-> metrics
"""

from collections.abc import Iterable, Mapping
from typing import Any

from training.targets.labels import ManyLabels, OneLabel, Ordinal
from training.targets.number import Number
from training.targets.target import Problem, Target

__all__ = [
    "KINDS",
    "ManyLabels",
    "Number",
    "OneLabel",
    "Ordinal",
    "Problem",
    "Target",
    "every_metric",
    "load_target",
]

KINDS: dict[str, type[Target]] = {kind.problem: kind for kind in (OneLabel, ManyLabels, Ordinal, Number)}


def every_metric(problems: Iterable[str] = KINDS) -> dict[str, str]:
    """The metrics of these problems together: what a recipe may name before its problem is looked at."""
    return {name: way for problem in problems for name, way in KINDS[problem].metrics_known.items()}


def load_target(settings: Mapping[str, Any]) -> Target:
    """The target that ``save`` gave these settings for."""
    arguments = dict(settings)
    return KINDS[arguments.pop("problem")](**arguments)
