"""Which weights learn: all, the head alone, all but some, or small matrices beside those of the base (LoRA).

Whatever is chosen, a run ends with one plain model: what was learned beside the base is added to it by :func:`merge`.
"""

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from pydantic import TypeAdapter
from transformers.pytorch_utils import Conv1D

from cluster.errors import UserError
from training.recipe import Adapt, Freeze, Lora, LoraOptions

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ADAPTER = "default"
"""PEFT's name for the one adapter that there is."""

LAYER = re.compile(r"\.((?:stages|layers)\.\d+\.(?:layers|blocks)\.\d+|(?:layers?|blocks?|h)\.\d+)\.")
"""How transformers' models name their numbered layers in the names of weights, also those that stand in stages."""


def read_adapt(value: Any) -> Adapt:
    """``model.adapt`` from plain values."""
    adapt: Adapt = TypeAdapter(Adapt).validate_python(value)
    return adapt


def adapt_model(model: "PreTrainedModel", head: Sequence[torch.nn.Module], adapt: Adapt) -> None:
    """Leaves only the weights that learn with a gradient; with LoRA puts its matrices beside the base's.

    Args:
        head: the modules that are new, which always learn.

    Raises:
        UserError: a pattern matches nothing.
    """
    if adapt == "full":
        return
    if isinstance(adapt, Freeze):
        for weight in _matching(model, adapt.freeze, "model.adapt.freeze"):
            weight.requires_grad_(False)
        return
    model.requires_grad_(False)
    if isinstance(adapt, Lora):
        _add_lora(model, head, adapt.lora)
    for module in head:
        module.requires_grad_(True)


def _add_lora(model: "PreTrainedModel", head: Sequence[torch.nn.Module], options: LoraOptions) -> None:
    """Low-rank matrices beside linear layers: Hu et al. (2021); with magnitudes of their own: Liu et al. (2024)."""
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(
        r=options.r,
        lora_alpha=options.alpha,
        lora_dropout=options.dropout,
        target_modules=_linear_layers(model, head, options.targets),
        use_dora=options.variant == "dora",
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
    )
    inject_adapter_in_model(config, model, ADAPTER)


def _linear_layers(model: "PreTrainedModel", head: Sequence[torch.nn.Module], targets: Sequence[str]) -> list[str]:
    """The names of the base's linear layers, or of those that one of the patterns is found in."""
    new = {id(module) for part in head for module in part.modules()}
    new.add(id(model.get_output_embeddings()))  # often tied to the input's, which merging would change as well
    names = [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D) and id(module) not in new
    ]
    if not names:
        raise UserError("model.adapt.lora: this model has no base that it could stand beside; say adapt: full")
    if not targets:
        return names
    for pattern in targets:
        if not any(re.search(pattern, name) for name in names):
            raise UserError(
                f"model.adapt.lora.targets: '{pattern}' is found in no linear layer of the base; they are named like "
                f"{', '.join(names[:3])}"
            )
    return [name for name in names if any(re.search(pattern, name) for pattern in targets)]


def _matching(model: "PreTrainedModel", patterns: Sequence[str], field: str) -> Iterator[torch.nn.Parameter]:
    weights = dict(model.named_parameters())
    for pattern in patterns:
        found = [name for name in weights if re.search(pattern, name)]
        if not found:
            raise UserError(
                f"{field}: '{pattern}' is found in no weight of the model; they are named like "
                f"{', '.join(list(weights)[:3])}"
            )
        yield from (weights[name] for name in found)


def learned(model: "PreTrainedModel") -> dict[str, torch.Tensor]:
    """The weights that learn, and the buffers that move, by name; what is frozen comes from the base again."""
    weights = {name: weight.data for name, weight in model.named_parameters() if weight.requires_grad}
    persistent = model.state_dict(keep_vars=True)
    return weights | {name: buffer for name, buffer in model.named_buffers() if name in persistent}


def merge(model: "PreTrainedModel") -> None:
    """Adds what LoRA learned to the base's own matrices and takes its layers out, in place."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in list(model.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge(safe_merge=True)
            place, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(place), attribute, module.get_base_layer())
    if hasattr(model, "peft_config"):
        del model.peft_config
        model._hf_peft_config_loaded = False


def head_of(model: "PreTrainedModel", beside: Sequence[torch.nn.Module] | None = None) -> list[torch.nn.Module]:
    """The modules that are new: the parts of the base that it came without weights for, and all that is beside it.

    Args:
        beside: what is not the base; None for all but what the model's class calls so.
    """
    if beside is None:
        beside = [module for name, module in model.named_children() if name != model.base_model_prefix]
    new: frozenset[str] = getattr(model, "new_weights", frozenset())
    base = [(name, module) for name, module in model.named_children() if module not in beside]
    return [*(part for name, module in base for part in _all_new(module, name, new)), *beside]


def _all_new(module: torch.nn.Module, path: str, new: frozenset[str]) -> Iterator[torch.nn.Module]:
    weights = {f"{path}.{name}" for name, _ in module.named_parameters()}
    if weights and weights <= new:
        yield module
    elif weights & new:
        for name, part in module.named_children():
            yield from _all_new(part, f"{path}.{name}", new)


def depths(model: torch.nn.Module) -> dict[str, int]:
    """By the name of each weight how deep it lies: in the layer of that number, from 1; 0 for embeddings.

    What stands between or after layers is as deep as the layer before it. The layers of a decoder that reads what an
    encoder says follow the encoder's; other stacks of layers stand side by side.
    """
    found: dict[str, int] = {}
    stacks: dict[str, dict[str, int]] = {}
    depth = 0
    for name, _ in model.named_parameters():
        if layer := LAYER.search(f".{name}"):
            stack = f".{name}"[: layer.start()]
            below = max(found.values(), default=0) if "decoder" in stack else 0
            numbers = stacks.setdefault(stack, {"": below})
            depth = numbers.setdefault(layer.group(1), numbers[""] + len(numbers))
        elif "embed" in name:
            depth = 0
        found[name] = depth
    return found
