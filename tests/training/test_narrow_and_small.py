"""Narrow arithmetic, compiled graphs and little memory: how a step is computed, not what it is."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cluster.errors import RunError, UserError
from training import checkpoint
from training.budget import find_budget
from training.data.fuse import fuse
from training.encode import Encoded, encode
from training.loop import Trainee, make_trainee, train
from training.recipe import Recipe, Train
from training.tasks.task import Batch

CPU = torch.device("cpu")


@pytest.fixture
def encoded(make_recipe: Callable[..., Recipe]) -> Encoded:
    recipe = make_recipe()
    return encode(recipe, fuse(recipe))


def trainee_of(encoded: Encoded, **options: object) -> Trainee:
    settings = {"epochs": 2, "batch_size": 8, "learning_rate": 1e-3, "workers": 1, "precision": "fp32"} | options
    trainee = make_trainee(encoded, Train.model_validate(settings), "full", CPU)
    for module in trainee.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return trainee


def losses(trainee: Trainee, encoded: Encoded) -> list[float]:
    return [moment.loss for moment in train(trainee, encoded)]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_narrow_arithmetic_learns_the_same(encoded: Encoded, precision: str) -> None:
    wide, narrow = (losses(trainee_of(encoded, precision=name), encoded) for name in ("fp32", precision))
    assert narrow == pytest.approx(wide, rel=0.02)
    assert narrow != wide


def test_a_step_whose_gradient_overflows_is_left_out(encoded: Encoded) -> None:
    trainee = trainee_of(encoded, precision="fp16")
    trainee.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**100)
    before = [weight.clone() for weight in trainee.model.parameters()]
    moments = train(trainee, encoded)
    first = next(moments)
    assert math.isfinite(first.loss)
    assert trainee.scaler.get_scale() == 2.0**99
    assert all(torch.equal(*pair) for pair in zip(trainee.model.parameters(), before, strict=True))
    while trainee.scaler.get_scale() < 2.0**98:
        next(moments)


def test_what_the_scaler_knows_is_kept(encoded: Encoded, tmp_path: Path) -> None:
    undisturbed = trainee_of(encoded, precision="fp16")
    undisturbed.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40, growth_interval=3)
    kept = []
    for moment in train(undisturbed, encoded):
        kept.append(moment.loss)
        if moment.step == 5:
            checkpoint.save(tmp_path / "kept", undisturbed)
    continued = trainee_of(encoded, precision="fp16")
    checkpoint.load(tmp_path / "kept", continued)
    assert losses(continued, encoded) == kept[5:]
    assert continued.scaler.state_dict() == undisturbed.scaler.state_dict()


def test_a_loss_that_is_not_finite_is_no_overflow(encoded: Encoded) -> None:
    trainee = trainee_of(encoded, precision="fp16")
    with torch.no_grad():
        trainee.model.classifier.bias[0] = math.inf
    with pytest.raises(RunError, match="No weight was changed"):
        next(train(trainee, encoded))


def with_memory(trainee: Trainee, tokens: int) -> list[int]:
    """A device whose memory holds so many padded tokens of a training batch; returns what was tried."""
    tried: list[int] = []
    forward = trainee.task.forward

    def limited(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        if torch.is_grad_enabled():
            tried.append(batch["input_ids"].numel())
            if tried[-1] > tokens:
                raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(model, batch)

    trainee.task.forward = limited  # type: ignore[method-assign]
    return tried


def test_as_many_tokens_as_fit_are_computed_at_once(encoded: Encoded) -> None:
    wanted = losses(trainee_of(encoded), encoded)
    trainee = trainee_of(encoded, tokens_per_device="auto")
    before = [weight.clone() for weight in trainee.model.parameters()]
    tried = with_memory(trainee, 30)
    trainee.budget = find_budget(trainee, encoded.split("train"))
    assert trainee.budget is not None
    assert 15 < trainee.budget <= 30
    assert max(tried) > 30
    assert all(torch.equal(*pair) for pair in zip(trainee.model.parameters(), before, strict=True))
    assert all(weight.grad is None for weight in trainee.model.parameters())
    tried.clear()
    assert losses(trainee, encoded) == pytest.approx(wanted, rel=1e-4)
    assert max(tried) <= 30


def test_memory_for_all_needs_no_parts_and_too_little_is_said(encoded: Encoded) -> None:
    trainee = trainee_of(encoded, tokens_per_device="auto")
    assert find_budget(trainee, encoded.split("train")) is None
    with_memory(trainee, 2)
    with pytest.raises(UserError, match="not even the longest row fits"):
        find_budget(trainee, encoded.split("train"))


@pytest.mark.slow
def test_a_compiled_model_learns_the_same(encoded: Encoded) -> None:
    plain, compiled = (trainee_of(encoded, compile=one) for one in (False, True))
    assert losses(compiled, encoded) == pytest.approx(losses(plain, encoded), rel=1e-4)
