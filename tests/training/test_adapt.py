"""Which weights learn, and that what was learned beside the base ends up in it."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForMaskedLM,
    BeitConfig,
    BeitModel,
)

from cluster.errors import UserError
from serving.predictor import Predictor
from training import checkpoint
from training.bundle import open_bundle
from training.data.fuse import fuse
from training.encode import Encoded, encode
from training.inputs.media import all_but_the_base
from training.inputs.text import from_pretrained
from training.loop import Trainee, make_trainee, predict, train
from training.models.adapt import depths, head_of, learned, merge, read_adapt
from training.models.adapter import put_together
from training.models.fusion import FusionConfig, FusionModel
from training.optimizer import make_optimizer
from training.outcome import finish
from training.recipe import Recipe, Train
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
    depth = depths(trainee.model)
    for name, peak in peaks.items():
        if name.startswith("bert."):
            assert peak == pytest.approx(2e-3 * 0.5 ** (2 - depth[name])), name


SMALL = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8}


@pytest.mark.parametrize(
    ("kind", "settings", "expected"),
    [
        (
            "bert",
            {**SMALL, "num_hidden_layers": 3},
            {"embeddings.LayerNorm": 0, "encoder.layer.0.": 1, "encoder.layer.2.": 3, "pooler.dense": 3},
        ),
        ("vit", {**SMALL, "num_hidden_layers": 2}, {"embeddings": 0, r"\.0\.": 1, r"\.1\.": 2, "^layernorm": 2}),
        ("gpt2", {"n_embd": 8, "n_layer": 2, "n_head": 2}, {"wpe": 0, "h.0.": 1, "h.1.": 2, "ln_f": 2}),
        (
            "convnext",
            {"hidden_sizes": [8, 8], "depths": [1, 2], "num_stages": 2},
            {
                "embeddings": 0,
                "stages.0.layers.0.": 1,
                "stages.1.downsampling": 1,
                "stages.1.layers.0.": 2,
                "stages.1.layers.1.": 3,
                "^layernorm": 3,
            },
        ),
        (
            "t5",
            {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 2, "num_heads": 2},
            {
                "shared": 0,
                "encoder.block.0.layer.1.": 1,
                "encoder.block.1.layer.0.": 2,
                "encoder.final_layer_norm": 2,
                "decoder.block.0.layer.2.": 3,
                "decoder.block.1.layer.0.": 4,
                "decoder.final_layer_norm": 4,
            },
        ),
        (
            "clip",
            {
                "text_config": {**SMALL, "num_hidden_layers": 2},
                "vision_config": {**SMALL, "num_hidden_layers": 2, "image_size": 4, "patch_size": 2},
            },
            {
                "text_model.encoder.layers.1.": 2,
                "text_model.final_layer_norm": 2,
                "vision_model.embeddings": 0,
                "vision_model.encoder.layers.0.": 1,
                "vision_model.post_layernorm": 2,
            },
        ),
    ],
)
def test_what_lies_above_the_last_layer_is_as_deep_as_it(
    kind: str, settings: dict[str, Any], expected: dict[str, int]
) -> None:
    more = {} if kind in ("vit", "convnext", "clip") else {"vocab_size": 9}
    with torch.device("meta"):
        found = depths(AutoModel.from_config(AutoConfig.for_model(kind, **settings, **more)))
    for part, depth in expected.items():
        of_part = {name: one for name, one in found.items() if re.search(part, name)}
        assert of_part, part
        assert set(of_part.values()) == {depth}, part


def test_what_a_base_has_no_weights_for_is_learned_and_kept(
    make_recipe: MakeRecipe, tiny_base: Path, home: Path, tmp_path: Path
) -> None:
    """A masked language model has no pooler, which a classifier reads through: another draw is another model."""
    shutil.copytree(tiny_base, tmp_path / "base")
    AutoModelForMaskedLM.from_pretrained(tiny_base).save_pretrained(tmp_path / "base")
    for adapt in ("head", {"lora": {"r": 2}}):
        recipe = make_recipe(model={"adapt": adapt, "base": "base"}, train={"head_learning_rate": 7.0})
        encoded = encode(recipe, fuse(recipe))
        trainee = make_trainee(encoded, recipe.train, recipe.model.adapt, CPU)
        model = trainee.model
        new = {id(module) for module in encoded.task.head(model) if any(True for _ in module.parameters())}
        assert new == {id(model.bert.pooler), id(model.classifier)}
        peaks = {id(one): group["peak"] for group in trainee.optimizer.param_groups for one in group["params"]}
        assert peaks[id(model.bert.pooler.dense.weight)] == 7.0
        weights = {name: weight.clone() for name, weight in learned(model).items()}
        assert {"bert.pooler.dense.weight", "bert.pooler.dense.bias", "classifier.weight"} <= set(weights)
        torch.manual_seed(99)
        opened = put_together(encoded.task, encoded.base, recipe.model.adapt, weights)
        assert torch.equal(opened.bert.pooler.dense.weight, model.bert.pooler.dense.weight)
    whole = encoded.task.head(encoded.task.build(tiny_base))
    assert len(whole) == 2, "a pooler that came with the base is its own: dropout and classifier are new"


def test_a_part_of_a_base_that_sees_may_be_new(tmp_path: Path) -> None:
    config = BeitConfig(**SMALL, num_hidden_layers=1, image_size=4, patch_size=2)
    BeitModel(config, add_pooling_layer=False).save_pretrained(tmp_path)
    model = from_pretrained(AutoModelForImageClassification, tmp_path, num_labels=2)
    assert head_of(model, all_but_the_base(model)) == [model.beit.pooler, model.classifier]
    model.save_pretrained(tmp_path)
    assert head_of(from_pretrained(AutoModelForImageClassification, tmp_path), [model.classifier])[:-1] == []


def test_what_is_added_does_not_decay() -> None:
    config = FusionConfig(edges=[[0.0, 1.0], [0.0, 2.0]], sizes=[3], dates=1, date_features=2, hidden=8)
    model = FusionModel(config)
    optimizer = make_optimizer(model, [], Train(weight_decay=0.5))
    names = {id(weight): name for name, weight in model.named_parameters()}
    decayed = {names[id(one)] for group in optimizer.param_groups if group["weight_decay"] for one in group["params"]}
    assert {name for name in names.values() if name not in decayed and name.startswith(("numbers", "dates"))} == {
        "numbers.bias",
        "numbers.absent",
        "dates.bias",
    }
    assert {"numbers.weight", "numbers.slope", "dates.weight", "categories.weight", "entry.weight"} <= decayed


def test_the_recipe_says_it_in_four_ways() -> None:
    for value in ("full", "head", {"lora": {"r": 2, "targets": "query"}}, {"freeze": "embeddings"}):
        adapt = read_adapt(value)
        assert read_adapt(adapt if isinstance(adapt, str) else adapt.model_dump()) == adapt
