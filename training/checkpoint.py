"""Checkpoints: weights, optimizer moments and position, as safetensors and JSON. Nothing here can run code.

Every worker that holds something of its own writes it: ``weights-00000.safetensors`` with the row that each of its
tensors begins at. A run is continued by any number of workers, whole or parted: each reads the rows that it needs.
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor

from cluster.storage import plain_disk_errors, read_json, write_json
from training.loop import Position, Trainee
from training.models.adapt import learned
from training.strategy import is_parted, part_of, put, whole

WEIGHTS, MOMENTS, POSITION = "weights", "optimizer", "position.json"
STARTS = "starts"
"""The key of a file's metadata: tensor name to the row of the whole that its first row is."""


def save(folder: Path, trainee: Trainee) -> None:
    """Writes all that a run needs to continue as if it had never stopped; the position comes last.

    A model that is whole on every worker is written by the first of them; a parted one by all, into one folder.

    Raises:
        RunError: the disk is full or cannot be written.
    """
    if trainee.rank > 0 and not is_parted(trainee.model):
        return
    with plain_disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder / f"{WEIGHTS}-{trainee.rank:05d}.safetensors", learning(trainee))
        _write(folder / f"{MOMENTS}-{trainee.rank:05d}.safetensors", _moments(trainee))
        if trainee.rank == 0:
            write_json(folder / POSITION, asdict(trainee.position) | {"scaler": trainee.scaler.state_dict()})


def load(folder: Path, trainee: Trainee) -> None:
    """Brings a trainee of the same recipe to where ``folder`` was saved, by however many workers."""
    with ExitStack() as files:
        weights = _Parts(folder.glob(f"{WEIGHTS}-*.safetensors"), files)
        for name, own in learning(trainee).items():
            weights.read(name, own)
        moments = _Parts(folder.glob(f"{MOMENTS}-*.safetensors"), files)
        names = {id(weight): name for name, weight in trainee.model.named_parameters()}
        for group in trainee.optimizer.param_groups:
            for weight in group["params"]:
                trainee.optimizer.state[weight].update(_state(moments, f"{names[id(weight)]}/", weight))
    trainee.position = Position(**read_json(folder / POSITION))
    if trainee.position.scaler:
        trainee.scaler.load_state_dict(trainee.position.scaler)


def _state(moments: "_Parts", prefix: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
    """The optimizer's state of one weight; nothing where it has not moved yet."""
    state = {}
    for name in moments.names(prefix):
        if moments.is_number(name):
            state[name.removeprefix(prefix)] = moments.number(name).to(weight.device if weight.is_cuda else "cpu")
        else:
            value = torch.zeros_like(weight, requires_grad=False)
            moments.read(name, value)
            state[name.removeprefix(prefix)] = value
    return state


def newest(folder: Path) -> Path | None:
    """The checkpoint of the highest step below ``folder``; each is complete, since it came by a rename."""
    return max(folder.glob("step-*"), default=None)


def prune(folder: Path, kept: int) -> None:
    """Removes all checkpoints below ``folder`` but the newest ``kept``."""
    for old in sorted(folder.glob("step-*"))[:-kept]:
        shutil.rmtree(old, ignore_errors=True)


def learning(trainee: Trainee) -> dict[str, torch.Tensor]:
    """What a checkpoint holds of the model, by name."""
    return learned(trainee.model)


def gather(trainee: Trainee) -> dict[str, torch.Tensor]:
    """The same, whole; every worker must ask for it together."""
    return {name: whole(value).cpu().contiguous() for name, value in learning(trainee).items()}


def scatter(trainee: Trainee, weights: Mapping[str, torch.Tensor]) -> None:
    """Writes whole weights to where each worker keeps its part of them."""
    own = learning(trainee)
    for name, value in weights.items():
        put(own[name], value)


def _moments(trainee: Trainee) -> dict[str, torch.Tensor]:
    names = {id(weight): name for name, weight in trainee.model.named_parameters()}
    return {
        f"{names[id(weight)]}/{key}": value
        for weight, state in trainee.optimizer.state.items()
        for key, value in state.items()
        if torch.is_tensor(value)
    }


def _write(file: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    parts = {name: part_of(tensor) for name, tensor in tensors.items()}
    starts = json.dumps({name: start for name, (_, start) in parts.items()})
    save_file({name: part.contiguous() for name, (part, _) in parts.items()}, file, metadata={STARTS: starts})


class _Parts:
    """The tensors of some files, each of which holds some of their rows."""

    def __init__(self, paths: Iterator[Path], files: ExitStack) -> None:
        self._files: list[tuple[Any, dict[str, int]]] = []
        for path in sorted(paths):
            file = files.enter_context(safe_open(path, framework="pt"))
            self._files.append((file, json.loads(file.metadata()[STARTS])))

    def names(self, prefix: str) -> list[str]:
        return [name for name in self._files[0][1] if name.startswith(prefix)]

    def is_number(self, name: str) -> bool:
        return not self._files[0][0].get_slice(name).get_shape()

    def number(self, name: str) -> torch.Tensor:
        value: torch.Tensor = self._files[0][0].get_tensor(name)
        return value

    def read(self, name: str, place: torch.Tensor) -> None:
        """Fills what this worker holds of a tensor with the rows that any of the files have of it."""
        local, start = part_of(place)
        with torch.no_grad():
            if not isinstance(place, DTensor) and self._whole(name, place):
                local.copy_(self._files[0][0].get_tensor(name))
                return
            for file, starts in self._files:
                rows = file.get_slice(name)
                first, count = starts[name], rows.get_shape()[0]
                low, high = max(start, first), min(start + local.shape[0], first + count)
                if low < high:
                    local[low - start : high - start].copy_(rows[low - first : high - first])

    def _whole(self, name: str, place: torch.Tensor) -> bool:
        return list(self._files[0][0].get_slice(name).get_shape()) == list(place.shape)
