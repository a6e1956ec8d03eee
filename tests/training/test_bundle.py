"""Bundles: opened by transformers without us, and by us only when whole, unchanged and free of code."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from cluster.errors import UserError
from training.bundle import Bundle, open_bundle, write_bundle
from training.data.fuse import fuse
from training.encode import encode
from training.recipe import Recipe


@pytest.fixture
def bundle(make_recipe: Callable[..., Recipe], tmp_path: Path) -> Bundle:
    recipe = make_recipe()
    encoded = encode(recipe, fuse(recipe))
    torch.manual_seed(1)
    folder = tmp_path / "bundle"
    folder.mkdir()
    return write_bundle(
        folder,
        model=encoded.task.build(encoded.base),
        task=encoded.task,
        name=recipe.name,
        recipe=recipe.model_dump(mode="json"),
        metrics={"test/accuracy": 0.5},
        baselines={},
        data={"rows": 120},
    )


def test_it_opens_as_it_was_written(bundle: Bundle) -> None:
    opened = open_bundle(bundle.folder)
    assert opened.info == bundle.info and opened.fingerprint == bundle.fingerprint
    assert opened.name == "topics"
    assert opened.task().save(bundle.folder.parent) == bundle.info["settings"]
    assert not opened.model().training


def test_transformers_opens_it_without_us_and_answers_the_same(bundle: Bundle) -> None:
    texts = ["where is my parcel", "the bill is late " * 40, ""]
    pipeline = transformers.pipeline("text-classification", str(bundle.folder), top_k=None)
    task, model = bundle.task(), bundle.model()
    with torch.inference_mode():
        outputs = list(task.forward(model, task.collate(task.encode(task.rows(texts)))).numpy())
    for ours, theirs in zip(task.decode(outputs, [], {"top_k": 3}), pipeline(texts, truncation=True), strict=True):
        assert [answer["label"] for answer in ours] == [answer["label"] for answer in theirs]
        assert [a["score"] for a in ours] == pytest.approx([a["score"] for a in theirs], abs=1e-6)


def test_a_changed_file_is_refused(bundle: Bundle) -> None:
    weights = bundle.folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(
        UserError, match=r"'model.safetensors' was changed after training; it is not opened; fetch or train"
    ):
        open_bundle(bundle.folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "modeling.py", "extra.json", "below/handler.py"])
def test_a_file_that_does_not_belong_is_refused(bundle: Bundle, name: str) -> None:
    (bundle.folder / name).parent.mkdir(exist_ok=True)
    (bundle.folder / name).write_text("{}", encoding="utf-8")
    with pytest.raises(UserError, match=f"'{name}' does not belong to the bundle; it is not opened"):
        open_bundle(bundle.folder)


def test_a_listed_file_that_could_run_is_refused(bundle: Bundle) -> None:
    """A forger can list what he adds, with its right digest; its kind gives it away."""
    from cluster.storage import file_digest

    forged = bundle.folder / "pytorch_model.bin"
    forged.write_bytes(b"\x80\x04.")
    manifest = bundle.folder / "bundle.json"
    info = json.loads(manifest.read_text(encoding="utf-8"))
    info["files"][forged.name] = file_digest(forged)
    manifest.write_text(json.dumps(info), encoding="utf-8")
    with pytest.raises(UserError, match=r"'pytorch_model.bin' is of a kind that could run code; it is not opened"):
        open_bundle(bundle.folder)


@pytest.mark.parametrize("key", ["auto_map", "_attn_implementation_internal", "trust_remote_code"])
def test_a_configuration_that_could_run_code_is_refused(bundle: Bundle, key: str) -> None:
    from cluster.storage import file_digest

    config = bundle.folder / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), key: "somebody/code"}), encoding="utf-8")
    manifest = bundle.folder / "bundle.json"
    info = json.loads(manifest.read_text(encoding="utf-8"))
    info["files"]["config.json"] = file_digest(config)
    manifest.write_text(json.dumps(info), encoding="utf-8")
    with pytest.raises(UserError, match=f"config.json of the model has '{key}', which can run foreign code"):
        open_bundle(bundle.folder)


def test_a_missing_file_and_a_newer_format_are_told(bundle: Bundle) -> None:
    (bundle.folder / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"'tokenizer.json' is missing from the bundle"):
        open_bundle(bundle.folder)
    (bundle.folder / "bundle.json").write_text('{"format_version": 99}', encoding="utf-8")
    with pytest.raises(
        UserError, match="format_version 99 cannot be opened; this headrace reads 2; train its recipe again"
    ):
        open_bundle(bundle.folder)
    with pytest.raises(UserError, match="is no headrace bundle"):
        open_bundle(bundle.folder.parent)


def test_it_holds_no_path_of_python_code(bundle: Bundle) -> None:
    """A renamed module must not break bundles that exist."""
    text = (bundle.folder / "bundle.json").read_text(encoding="utf-8")
    assert "training." not in text.replace("after training.", "")


def test_answers_do_not_depend_on_the_batch(bundle: Bundle) -> None:
    task, model = bundle.task(), bundle.model()
    texts = ["parcel", "where is my parcel and why is it not here today please help", "login error"]
    with torch.inference_mode():
        together = task.forward(model, task.collate(task.encode(task.rows(texts)))).numpy()
        alone = [task.forward(model, task.collate(task.encode(task.rows([text])))).numpy()[0] for text in texts]
    np.testing.assert_allclose(together, np.stack(alone), atol=1e-5)
