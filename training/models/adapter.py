"""What was learned beside a base, kept without it: a small file, and the name and content hash of the base.

Such a bundle is opened by putting the two together again, so that it answers as a whole one does. It is of use only
where the same base can be had.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file

from cluster.errors import UserError
from training.models.adapt import adapt_model, learned, merge, read_adapt
from training.models.base import EARLIER, PACKAGE, base_digest, resolve_base
from training.recipe import Adapt, NewBase, Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from training.tasks.task import Task

WEIGHTS = "adapter.safetensors"


def describe(recipe: Recipe, base: Path) -> dict[str, Any]:
    """What a bundle says of the base that it lacks: its name, its content, and what learned beside it."""
    return {"name": _name(recipe, base), "digest": base_digest(base), "adapt": recipe.model.model_dump()["adapt"]}


def _name(recipe: Recipe, base: Path) -> str:
    """As short a name as means the same on every machine and at any time, else the folder."""
    name = recipe.model.base
    if name is None or isinstance(name, NewBase) or name.startswith(EARLIER):
        return str(base)
    return name if name.startswith(PACKAGE) or not (recipe.folder / name).exists() else str(base)


def put_together(task: "Task", base: Path, adapt: Adapt, weights: Mapping[str, torch.Tensor]) -> "PreTrainedModel":
    """A base and what was learned of it or beside it, not yet one.

    Raises:
        UserError: the weights are not those that learn by ``adapt``.
    """
    model = task.build(base)
    adapt_model(model, task.head(model), adapt)
    own = learned(model)
    shapes, wanted = ({name: list(weight.shape) for name, weight in some.items()} for some in (weights, own))
    if shapes != wanted:
        other = min(name for name in shapes.keys() | wanted.keys() if shapes.get(name) != wanted.get(name))
        raise UserError(
            f"{WEIGHTS}: {other} is {shapes.get(other)}, and the base with model.adapt has {wanted.get(other)}"
        )
    for name, weight in own.items():
        weight.copy_(weights[name])
    return model


def open_adapter(task: "Task", kept: Mapping[str, Any], folder: Path) -> "PreTrainedModel":
    """The model of a bundle that lacks its base: what was learned is added to the base's weights.

    Raises:
        UserError: as :func:`open_beside`.
    """
    model = open_beside(task, kept, folder)
    merge(model)
    return model.eval()


def open_beside(task: "Task", kept: Mapping[str, Any], folder: Path) -> "PreTrainedModel":
    """The same with what was learned still beside the base's weights, which stay as they are.

    Raises:
        UserError: the base is not there, or is another one than the one that was learned beside.
    """
    base = resolve_base(kept["name"], folder)
    if base_digest(base) != kept["digest"]:
        raise UserError(
            f"{folder}: it was learned beside {kept['name']}, which has changed since; bring the earlier one back, or "
            "train with model.bundle: whole"
        )
    return put_together(task, base, read_adapt(kept["adapt"]), load_file(folder / WEIGHTS)).eval()
