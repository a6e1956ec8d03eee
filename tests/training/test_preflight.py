"""What would run where, told before anything runs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from cluster.errors import UserError
from cluster.session import usable_cores
from training.preflight import count_weights, plan
from training.recipe import Recipe

MakeRecipe = Callable[..., Recipe]


def test_weights_are_counted_by_their_number_whatever_bytes_they_take(tmp_path: Path) -> None:
    tensors = {
        "half": torch.zeros(10, 3, dtype=torch.bfloat16),
        "whole": torch.zeros(7),
        "one": torch.zeros(()),
        "position_ids": torch.arange(512),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    assert count_weights(tmp_path / "model.safetensors") == 38


def test_weights_that_were_cut_short_are_said(tmp_path: Path) -> None:
    save_file({"one": torch.zeros(1000)}, tmp_path / "model.safetensors")
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[:100])
    with pytest.raises(UserError, match=r"model\.safetensors cannot be read"):
        count_weights(tmp_path / "model.safetensors")


def test_workers_are_those_that_training_would_start(make_recipe: MakeRecipe, tiny_base: Path) -> None:
    found = plan(make_recipe(train={"workers": "auto", "batch_size": 8}))
    assert found["runs on"] == "this machine"
    assert found["workers"] == 1  # further ones would have fewer rows each than they cost
    assert found["cores"] == usable_cores()
    assert 1 <= found["cores of a worker"] <= found["cores"]
    parameters = sum(tensor.numel() for tensor in _model(tiny_base).parameters())
    assert found["weights"] == parameters


def test_more_workers_than_there_are_are_refused_before_training(make_recipe: MakeRecipe) -> None:
    with pytest.raises(UserError, match=r"^train\.workers: 4096 workers need as many"):
        plan(make_recipe(train={"workers": 4096}))


def test_a_clusters_workers_are_not_told_from_this_machines_cores(
    make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "head.example:6379")
    found = plan(make_recipe(train={"workers": "auto"}))
    assert found["runs on"] == "the cluster at head.example:6379"
    assert found["workers"] == "chosen there: one per GPU, else one per core"
    assert found.keys() & {"cores", "gpus", "cores of a worker"} == set()
    assert plan(make_recipe(train={"workers": 4096}))["workers"] == 4096


def _model(base: Path) -> Any:
    from transformers import AutoModel

    return AutoModel.from_pretrained(base)
