"""One base in memory for all models that learned beside it, and one pass of it for texts of several of them.

What such a model has of its own is small: LoRA's matrices beside some of the base's layers, and its head. These hang
side by side in one network, and each row of a batch names the model whose they are. PEFT computes its layers so
(``adapter_names``); what it does not have is heads, of which each may say a different number of things.
"""

import functools
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import torch

from serving.engines.size import weight_bytes
from training.bundle import Bundle
from training.models.adapt import ADAPTER
from training.tasks.task import Batch, Example, Task

if TYPE_CHECKING:
    from peft.tuners.lora import LoraLayer
    from transformers import PreTrainedModel

TOLERANCE = 1e-4
"""By how much a model may say something else beside others than alone: what order of additions makes of fp32."""

OF_LORA = ("lora_A", "lora_B", "lora_dropout", "scaling")
"""What PEFT's layers keep by the name of an adapter and read when they compute a batch of several."""

_whose: ContextVar[Sequence[str]] = ContextVar("whose")
"""For each row of the batch that this thread computes, the model that is asked."""


class MisfitError(Exception):
    """The network cannot compute rows of several models at once; the message says why."""


class SharedBase:
    """The base, and what each model has of its own; models come and go while others compute.

    Attributes:
        bytes: what the base takes; 0 while there is none in memory.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._network: PreTrainedModel | None = None
        self._widths: dict[str, int] = {}  # by model
        self._changing = threading.Lock()
        self.bytes = 0

    @property
    def network(self) -> "PreTrainedModel":
        """The base with all that hangs in it."""
        assert self._network is not None, "the base is not in memory"
        return self._network

    def take(self, key: str, bundle: Bundle, task: Task, examples: Sequence[Example]) -> "OnSharedBase":
        """The model of a bundle that lacks its base, on this one; the first that is taken brings the base.

        Args:
            key: names the model here; no dots.
            task: the bundle's.
            examples: at which its answers are compared with what they are alone.

        Raises:
            UserError: the bundle's base is not there or has changed.
            MisfitError: the model says something else here than alone.
        """
        own = bundle.beside(task).to(self._device).eval().requires_grad_(False)
        batch = _on(self._device, task.collate(examples))
        with torch.inference_mode():
            alone = task.infer(own, batch)
        with self._changing:
            view = self._hang(key, own, task)
            self._widths[key] = alone.shape[-1]
            try:
                self._compare(key, alone, task, batch)
            except Exception as error:
                self._remove(key)
                if not self._widths:
                    self._network, self.bytes = None, 0
                raise MisfitError(f"{type(error).__name__}: {error}") from error
        return view

    def drop(self, key: str) -> None:
        """Lets go of what one model has of its own."""
        with self._changing:
            self._remove(key)

    def clear(self) -> None:
        """Lets go of everything; nobody computes meanwhile."""
        with self._changing:
            self._network, self.bytes = None, 0
            self._widths.clear()

    @torch.inference_mode()
    def compute(self, task: Task, batch: Batch, whose: Sequence[str]) -> torch.Tensor:
        """What each row's own model says of it, on the CPU, padded to the width of the widest.

        Args:
            task: of any of the models.
            whose: for each row, the model.
        """
        with _of(whose):
            return task.infer(self.network, _on(self._device, batch)).float().cpu()

    def width(self, key: str) -> int:
        """How many things a model says of a row or token: the size of its outputs' last dimension."""
        return self._widths[key]

    # --- what hangs in the network --------------------------------------------------------------------------------

    def _hang(self, key: str, own: "PreTrainedModel", task: Task) -> "OnSharedBase":
        heads = {id(module) for module in task.head(own) if any(True for _ in module.parameters())}
        named = dict(own.named_modules())
        parts: list[torch.nn.Module] = []
        first = self._network is None
        network = own if self._network is None else self._network
        for path, module in named.items():
            if id(module) in heads:
                parts.append(module)
                _heads_at(network, path).of[key] = module
            elif _is_lora(module):
                parts += [module.lora_A[ADAPTER], module.lora_B[ADAPTER]]
                _rename(module, key)
                if not first:
                    _join(network, path, module)
        if first:
            for module in filter(_is_lora, network.modules()):
                module.register_forward_pre_hook(_name_rows, with_kwargs=True)
            self.bytes = weight_bytes(own) - sum(map(weight_bytes, parts))
            self._network = own
        return OnSharedBase(self, key, parts)

    def _remove(self, key: str) -> None:
        self._widths.pop(key, None)
        for module in self.network.modules() if self._network else ():
            kept = [module.of] if isinstance(module, Heads) else []
            kept += [getattr(module, part) for part in OF_LORA] if _is_lora(module) else []
            for entries in kept:
                if key in entries:
                    entries.pop(key)

    def _compare(self, key: str, alone: torch.Tensor, task: Task, batch: Batch) -> None:
        """Asks the model by itself, and in a batch whose rows are asked of every model in turn."""
        count, keys = len(alone), list(self._widths)
        rows = {name: tensor.repeat_interleave(len(keys), 0) for name, tensor in batch.items()}
        own = torch.arange(count) * len(keys) + keys.index(key)
        for found in (
            self.compute(task, batch, [key] * count),
            self.compute(task, rows, keys * count)[own][..., : alone.shape[-1]],
        ):
            if not torch.allclose(found, alone.float().cpu(), rtol=TOLERANCE, atol=TOLERANCE):
                raise ValueError("its answers beside other models are not those that it gives alone")


class OnSharedBase(torch.nn.Module):
    """One model on a shared base, to be used as if it were alone. Its own modules are what is its own."""

    def __init__(self, base: SharedBase, key: str, own: Sequence[torch.nn.Module]) -> None:
        super().__init__()
        self.own = torch.nn.ModuleList(own)
        self._base = base
        # Whoever looks finds the parameters of the network's own.
        self.forward = functools.update_wrapper(functools.partial(_ask, base, key), type(base.network).forward)
        self.eval()

    @property
    def config(self) -> Any:
        """The network's configuration; its labels are those of the model that came first."""
        return self._base.network.config

    def get_input_embeddings(self) -> torch.nn.Module:
        """The base's."""
        found: torch.nn.Module = self._base.network.get_input_embeddings()
        return found


def _ask(base: SharedBase, key: str, *given: Any, **named: Any) -> Any:
    """What the network says where one model is asked of every row."""
    rows = next(len(value) for value in (*given, *named.values()) if isinstance(value, torch.Tensor))
    with _of([key] * rows):
        return base.network(*given, **named)


class Heads(torch.nn.Module):
    """Takes the place of a head, or of a part of it: every row goes through that of its own model."""

    def __init__(self) -> None:
        super().__init__()
        self.of = torch.nn.ModuleDict()

    def forward(self, *given: Any, **named: Any) -> torch.Tensor:
        """What the heads say, padded to the width of the widest."""
        whose = _whose.get()
        keys = list(dict.fromkeys(whose))
        if len(keys) == 1:
            said: torch.Tensor = self.of[keys[0]](*given, **named)
            return said
        places = [torch.tensor([row for row, one in enumerate(whose) if one == key]) for key in keys]
        parts = [
            self.of[key](
                *(_rows(value, rows, len(whose)) for value in given),
                **{name: _rows(value, rows, len(whose)) for name, value in named.items()},
            )
            for key, rows in zip(keys, places, strict=True)
        ]
        widest = max(part.shape[-1] for part in parts)
        together: torch.Tensor = parts[0].new_zeros((len(whose), *parts[0].shape[1:-1], widest))
        for rows, part in zip(places, parts, strict=True):
            together[rows.to(part.device), ..., : part.shape[-1]] = part
        return together


def _rows(value: Any, rows: torch.Tensor, count: int) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    if len(value) != count:
        raise MisfitError("what reaches the head has no row for each text")
    return value[rows.to(value.device)]


def _heads_at(network: torch.nn.Module, path: str) -> Heads:
    """The place of a head, made ready for several."""
    parent, _, name = path.rpartition(".")
    place = network.get_submodule(parent)
    if not isinstance(getattr(place, name), Heads):
        setattr(place, name, Heads())
    found: Heads = getattr(place, name)
    return found


def _is_lora(module: torch.nn.Module) -> bool:
    return hasattr(module, "lora_A") and hasattr(module, "base_layer")


def _rename(layer: "LoraLayer", key: str) -> None:
    for part in OF_LORA:
        entries = getattr(layer, part)
        entries[key] = entries.pop(ADAPTER)


def _join(network: torch.nn.Module, path: str, layer: "LoraLayer") -> None:
    """Puts the matrices of a model's layer beside those that hang in the network at the same place."""
    there: Any = network.get_submodule(path)
    if not _is_lora(there):
        layer.base_layer = there
        layer.register_forward_pre_hook(_name_rows, with_kwargs=True)  # before anybody else's rows can reach it
        parent, _, name = path.rpartition(".")
        setattr(network.get_submodule(parent), name, layer)
        return
    for part in reversed(OF_LORA):  # the layer takes a model for its own as soon as it has its first matrix
        getattr(there, part).update(getattr(layer, part))


def _name_rows(layer: torch.nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    return given, {**named, "adapter_names": list(_whose.get())}


@contextmanager
def _of(whose: Sequence[str]) -> Iterator[None]:
    token = _whose.set(whose)
    try:
        yield
    finally:
        _whose.reset(token)


def _on(device: torch.device, batch: Batch) -> Batch:
    return {name: tensor.to(device) for name, tensor in batch.items()}
