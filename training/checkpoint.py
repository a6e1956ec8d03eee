"""Checkpoints: weights, optimizer moments and position, as safetensors and JSON. Nothing here can run code."""

import shutil
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from cluster.storage import plain_disk_errors, read_json, write_json
from training.loop import Position, Trainee

WEIGHTS, MOMENTS, POSITION = "weights.safetensors", "optimizer.safetensors", "position.json"


def save(folder: Path, trainee: Trainee) -> None:
    """Writes all that a run needs to continue as if it had never stopped; the position comes last.

    Raises:
        RunError: the disk is full or cannot be written.
    """
    with plain_disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        save_file(learning(trainee), folder / WEIGHTS)
        save_file(_moments(trainee), folder / MOMENTS)
        write_json(folder / POSITION, asdict(trainee.position))


def load(folder: Path, trainee: Trainee) -> None:
    """Brings a trainee of the same recipe to where ``folder`` was saved."""
    device = str(trainee.device)
    own = learning(trainee)
    with torch.no_grad():
        for name, value in load_file(folder / WEIGHTS, device=device).items():
            own[name].copy_(value)
    names = {id(weight): name for name, weight in trainee.model.named_parameters()}
    moments = load_file(folder / MOMENTS, device=device)
    for group in trainee.optimizer.param_groups:
        for weight in group["params"]:
            prefix = f"{names[id(weight)]}/"
            state = {key.removeprefix(prefix): value for key, value in moments.items() if key.startswith(prefix)}
            if "step" in state:
                state["step"] = state["step"].cpu() if not weight.is_cuda else state["step"]
            if state:
                trainee.optimizer.state[weight] = state
    trainee.position = Position(**read_json(folder / POSITION))


def newest(folder: Path) -> Path | None:
    """The checkpoint of the highest step below ``folder``; each is complete, since it came by a rename."""
    return max(folder.glob("step-*"), default=None)


def prune(folder: Path, kept: int) -> None:
    """Removes all checkpoints below ``folder`` but the newest ``kept``."""
    for old in sorted(folder.glob("step-*"))[:-kept]:
        shutil.rmtree(old, ignore_errors=True)


def learning(trainee: Trainee) -> dict[str, torch.Tensor]:
    """The weights that learn, and the buffers that move, by name; what is frozen comes from the base again."""
    weights = {name: weight.data for name, weight in trainee.model.named_parameters() if weight.requires_grad}
    persistent = trainee.model.state_dict(keep_vars=True)
    return weights | {name: buffer for name, buffer in trainee.model.named_buffers() if name in persistent}


def _moments(trainee: Trainee) -> dict[str, torch.Tensor]:
    names = {id(weight): name for name, weight in trainee.model.named_parameters()}
    return {
        f"{names[id(weight)]}/{key}": value.contiguous()
        for weight, state in trainee.optimizer.state.items()
        for key, value in state.items()
        if torch.is_tensor(value)
    }
