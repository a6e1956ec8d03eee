"""Which weights learn, and that what was learned beside the base ends up in it."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from cluster.errors import UserError
from serving.predictor import Predictor
from training import checkpoint
from training.bundle import open_bundle
from training.data.fuse import fuse
from training.encode import Encoded, encode
from training.loop import Trainee, make_trainee, predict, train
from training.models.adapt import depth_of, learned, merge, read_adapt
from training.models.adapter import put_together
from training.outcome import finish
from training.recipe import Recipe
from training.worker import leave

CPU = torch.device("cpu")
MakeRecipe = Callable[..., Recipe]
FILES = ("model.safetensors", "adapter.safetensors")


def started(make_recipe: MakeRecipe, adapt: Any, **options: Any) -> tuple[Encoded, Trainee]:
    recipe = make_recipe(rows=200, model={"adapt": adapt}, train={"epochs": 4, "learning_rate": 2e-3, **options})
    encoded = encode(recipe, fuse(recipe))
    return encoded, make_trainee(encoded, recipe.train, recipe.model.adapt, CPU)


@pytest.mark.parametrize("variant", ["lora", "dora"])
def test_lora_learns_beside_the_base_and_is_merged_into_it(
    make_recipe: MakeRecipe, tmp_path: Path, variant: str
) -> None:
    encoded, trainee = started(make_recipe, {"lora": {"alpha": 32, "dropout": 0.1, "variant": variant}}, epochs=20)
    base = load_file(encoded.base / "model.safetensors")
    kinds = {name.split(".")[-3 if "lora_" in name else -2] for name in checkpoint.learning(trainee)}
    assert kinds <= {"lora_A", "lora_B", "lora_magnitude_vector", "classifier"}
    losses = [moment.loss for moment in train(trainee, encoded)]
    if variant == "lora":  # beside a base of random weights the other needs longer
        assert sum(losses[-15:]) < 0.8 * sum(losses[:15])
    for name, weight in trainee.model.bert.named_parameters():
        if "lora_" not in name:
            assert torch.equal(weight, base[name.replace(".base_layer", "")]), name

    before = predict(trainee, encoded.split("test"))
    merge(trainee.model)
    assert not any("lora" in name for name, _ in trainee.model.named_parameters())
    np.testing.assert_allclose(predict(trainee, encoded.split("test")), before, atol=1e-5)
    trainee.model.save_pretrained(tmp_path / "model")
    trainee.model = encoded.task.open(tmp_path / "model")
    np.testing.assert_allclose(predict(trainee, encoded.split("test")), before, atol=1e-5)


def test_a_continued_lora_run_equals_an_undisturbed_one_bit_for_bit(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    adapt = {"lora": {"dropout": 0.1}}
    encoded, undisturbed = started(make_recipe, adapt)
    losses = [moment.loss for moment in train(undisturbed, encoded)]
    _, interrupted = started(make_recipe, adapt)
    for moment in train(interrupted, encoded):
        if moment.step == 7:
            checkpoint.save(tmp_path / "kept", interrupted)
            break
    _, continued = started(make_recipe, adapt)
    checkpoint.load(tmp_path / "kept", continued)
    assert [moment.loss for moment in train(continued, encoded)] == losses[7:]


@pytest.mark.parametrize("adapt", ["head", {"lora": {"r": 4, "alpha": 32}}])
def test_an_adapter_bundle_lacks_its_base_and_answers_alike(
    make_recipe: MakeRecipe, tiny_base: Path, home: Path, tmp_path: Path, adapt: Any
) -> None:
    shutil.copytree(tiny_base, tmp_path / "base")
    bundles = {}
    for kind in ("whole", "adapter"):
        recipe = make_recipe(model={"adapt": adapt, "bundle": kind, "base": "base"})
        fused = fuse(recipe)
        encoded = encode(recipe, fused)
        trainee = make_trainee(encoded, recipe.train, recipe.model.adapt, CPU)
        list(train(trainee, encoded))
        folder = tmp_path / kind
        leave(trainee, encoded, folder / "run", apart=kind == "adapter")
        finish(recipe, {}, fused, encoded, folder / "run", folder / "bundle")
        bundles[kind] = open_bundle(folder / "bundle")
    texts = [row["text"] for row in fused.split("test").to_pylist()]
    whole, apart = (Predictor(bundle).predict(texts) for bundle in bundles.values())
    assert apart == whole
    sizes = [(one.folder / name).stat().st_size for one, name in zip(bundles.values(), FILES, strict=True)]
    assert sizes[1] < 0.2 * sizes[0]

    weights = load_file(tmp_path / "base" / "model.safetensors")
    save_file({name: weight + 0.01 for name, weight in weights.items()}, tmp_path / "base" / "model.safetensors")
    with pytest.raises(UserError, match=r"it was learned beside .*base, which has changed since"):
        Predictor(bundles["adapter"])
    shutil.rmtree(tmp_path / "base")
    with pytest.raises(UserError, match=r"model\.base: there is no folder"):
        Predictor(bundles["adapter"])


def test_weights_that_are_not_an_adapters_are_refused(make_recipe: MakeRecipe) -> None:
    encoded, trainee = started(make_recipe, "head")
    weights = learned(trainee.model)
    name = min(weights)
    for wrong in ({**weights, name: torch.zeros(7)}, {**weights, "z": torch.zeros(3)}, {}):
        with pytest.raises(UserError, match=r"^adapter\.safetensors: .* and the base with model\.adapt has"):
            put_together(encoded.task, encoded.base, "head", wrong)


def test_a_changed_base_cannot_be_left_out(make_recipe: MakeRecipe) -> None:
    with pytest.raises(ValidationError, match="say lora or head"):
        make_recipe(model={"bundle": "adapter"})


def test_frozen_weights_stay(make_recipe: MakeRecipe) -> None:
    encoded, trainee = started(make_recipe, {"freeze": ["embeddings", "layer.0"]})
    before = {name: weight.clone() for name, weight in trainee.model.named_parameters()}
    list(train(trainee, encoded))
    for name, weight in trainee.model.named_parameters():
        frozen = "embeddings" in name or "layer.0." in name
        assert torch.equal(weight, before[name]) == frozen or "pooler" in name, name


@pytest.mark.parametrize(
    ("adapt", "message"),
    [
        ({"freeze": "layers.9"}, r"^model\.adapt\.freeze: 'layers\.9' is found in no weight of the model; they are"),
        ({"lora": {"targets": "q_proj"}}, r"^model\.adapt\.lora\.targets: 'q_proj' is found in no linear layer of"),
    ],
)
def test_a_pattern_that_matches_nothing_is_told(make_recipe: MakeRecipe, adapt: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        started(make_recipe, adapt)


def test_each_layer_has_a_step_size_of_its_own(make_recipe: MakeRecipe) -> None:
    _, trainee = started(make_recipe, "full", layer_decay=0.5)
    names = {id(weight): name for name, weight in trainee.model.named_parameters()}
    peaks = {names[id(one)]: group["peak"] for group in trainee.optimizer.param_groups for one in group["params"]}
    assert peaks["classifier.weight"] == trainee.options.head_learning_rate
    for name, peak in peaks.items():
        if name.startswith("bert."):
            assert peak == pytest.approx(2e-3 * 0.5 ** (2 - depth_of(name))), name
    assert depth_of("bert.encoder.layer.1.output.dense.weight") == 2
    assert depth_of("transformer.h.11.mlp.c_fc.weight") == 12
    assert depth_of("bert.embeddings.word_embeddings.weight") == 0


def test_the_recipe_says_it_in_four_ways() -> None:
    for value in ("full", "head", {"lora": {"r": 2, "targets": "query"}}, {"freeze": "embeddings"}):
        adapt = read_adapt(value)
        assert read_adapt(adapt if isinstance(adapt, str) else adapt.model_dump()) == adapt
