"""Probabilities that are right on average, and answers that say nothing where they are too small."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cluster.errors import UserError
from serving.predictor import Predictor
from training.bundle import open_bundle
from training.data.fuse import fuse
from training.encode import encode
from training.evaluation import calibration, metrics
from training.loop import make_trainee, train
from training.outcome import finish, said
from training.recipe import Recipe
from training.targets import KINDS, Target
from training.worker import leave

CPU = torch.device("cpu")
ROWS = 4_000


def learned(problem: str, cells: list[Any]) -> Target:
    return KINDS[problem].learn("target", {"train": cells}, {}, "none")


@pytest.mark.parametrize("factor", [0.5, 1.0, 3.0])
def test_the_temperature_undoes_what_made_a_model_too_sure(factor: float) -> None:
    """Rows are drawn from the probabilities of known logits, which are then multiplied by ``factor``."""
    draw = np.random.default_rng(3)
    logits = draw.normal(size=(ROWS, 4)) * 2
    drawn = (np.exp(metrics.log_probabilities(logits)).cumsum(axis=1) < draw.random((ROWS, 1))).sum(axis=1)
    target = learned("single-label", ["a", "b", "c", "d"])
    found = target.temperature(logits * factor, drawn.tolist())
    assert found == pytest.approx(factor, rel=0.06)
    before, after = (metrics.calibration_error(one, drawn) for one in (logits * factor, logits * factor / found))
    assert after <= before + 0.005
    assert after < 0.03

    several = learned("multi-label", ["a,b,c,d"])
    chosen = draw.random((ROWS, 4)) < metrics.sigmoid(logits)
    rows = [np.flatnonzero(one).tolist() for one in chosen]
    assert several.temperature(logits * factor, rows) == pytest.approx(factor, rel=0.06)


def test_a_model_that_makes_no_mistake_is_not_made_as_sure_as_can_be() -> None:
    target = learned("single-label", ["a", "b"])
    right = np.array([[2.0, 0.0], [0.0, 2.0]] * 100)
    found = target.temperature(right, [0, 1] * 100)
    assert calibration.COOLEST < found < 1
    sure = float(np.exp(metrics.log_probabilities(right / found)).max())
    assert sure == pytest.approx(1 - 0.5 / 201, abs=1e-3), "one further row may have either label"


def test_few_rows_tell_nothing() -> None:
    logits = np.array([[9.0, 0.0]] * (calibration.LEAST_ROWS - 1))
    assert learned("single-label", ["a", "b"]).temperature(logits, [1] * len(logits)) == 1.0
    assert learned("regression", [1.0, 2.0]).temperature(logits, [1.0] * len(logits)) == 1.0


@pytest.mark.parametrize("kind", ["whole", "adapter"])
def test_what_a_bundle_says_is_cooled(
    make_recipe: Callable[..., Recipe], tmp_path: Path, home: Path, kind: str
) -> None:
    """The weights that are kept say it, so that transformers, which knows of no temperature, says it too."""
    recipe = make_recipe(
        rows=400,
        data={"split": {"validation": 0.3, "test": 0.2}},
        model={"adapt": "head", "bundle": kind},
        train={"epochs": 3, "early_stopping": None},
    )
    fused = fuse(recipe)
    encoded = encode(recipe, fused)
    trainee = make_trainee(encoded, recipe.train, recipe.model.adapt, CPU)
    list(train(trainee, encoded))
    leave(trainee, encoded, tmp_path / "run", apart=kind == "adapter")
    measured = finish(recipe, {}, fused, encoded, tmp_path / "run", tmp_path / "bundle")
    bundle = open_bundle(tmp_path / "bundle")
    temperature = bundle.info["temperature"]
    assert temperature != 1.0
    targets, raw = encoded.split("validation").targets, said(tmp_path / "run", "validation")
    assert measured["validation/loss"] < encoded.task.metrics(raw, targets)["loss"]
    assert measured["validation/accuracy"] == encoded.task.metrics(raw, targets)["accuracy"]
    predictor = Predictor(bundle, "cpu")
    examples = encoded.split("test").examples(range(20))
    ours = np.stack(predictor.forward(examples))
    np.testing.assert_allclose(ours, np.stack(said(tmp_path / "run", "test"))[:20] / temperature, atol=1e-4)


@pytest.mark.parametrize("problem", ["single-label", "ordinal"])
def test_who_is_not_sure_abstains(problem: str) -> None:
    target = learned(problem, ["1", "2"])
    sure, unsure = np.log([0.9, 0.1]), np.log([0.45, 0.55])
    outputs = np.array([sure, unsure])
    answers = target.decode(outputs, {"abstain_below": 0.6})
    assert [one["label"] for one in answers[0]] == ["1", "2"]
    assert answers[1] == []
    assert target.decode(outputs, {"abstain_below": 0.55 - 1e-9}) == target.decode(outputs, {})
    for wrong in (2, -0.1, True, "0.5"):
        with pytest.raises(UserError, match=r"parameters\.abstain_below: a number from 0 to 1"):
            target.decode(outputs, {"abstain_below": wrong})
    with pytest.raises(UserError, match=r"parameters\.abstain_below: unknown"):
        learned("multi-label", ["a,b"]).decode(outputs, {"abstain_below": 0.5})
