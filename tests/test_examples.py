"""The recipes of examples/: each is valid, runs from sources to answers, and what it reaches on real data is kept."""

import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import headrace
from benchmarks.examples import trained
from benchmarks.overhead import plain
from serving.predictor import EMPTY, Predictor
from tests.stand_ins import publish
from training.bundle import open_bundle
from training.tasks.task import task_names

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
RECIPES = sorted(EXAMPLES.glob("*.yaml"))
SMALL = ["train.epochs=1", "train.early_stopping=null"]
TEST_DATA = os.environ.get("HEADRACE_TEST_DATA", "")

every_recipe = pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)


@every_recipe
def test_the_recipe_is_valid_and_described(path: Path) -> None:
    recipe, _ = headrace.load_recipe(path)
    assert recipe.name == path.stem.replace("_", "-")
    assert f"| `{path.name}` | {recipe.model.task}" in (EXAMPLES / "README.md").read_text(encoding="utf-8")


def test_every_task_has_an_example() -> None:
    assert {headrace.load_recipe(path)[0].model.task for path in RECIPES} == set(task_names())


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The examples beside made-up data that ``prepare.py`` has brought in, and a home for all of them."""
    place = tmp_path_factory.mktemp("prepared")
    publish(place / "published")
    prepare(place / "examples", place / "published")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HEADRACE_HOME", str(place / "home"))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield place / "examples"


def prepare(examples: Path, published: Path) -> None:
    """A copy of the examples over the data sets in ``published``."""
    shutil.copytree(EXAMPLES, examples, ignore=shutil.ignore_patterns("data"))
    subprocess.run([sys.executable, str(examples / "prepare.py"), str(published)], check=True, capture_output=True)


@every_recipe
def test_the_recipe_leads_from_its_sources_to_answers(path: Path, prepared: Path) -> None:
    """All that ``headrace train`` does, in this process instead of Ray's workers."""
    bundle = open_bundle(plain(prepared / path.name, SMALL))
    metrics, baselines = bundle.info["metrics"], bundle.info["baselines"]
    headline = f"test/{bundle.task().final_headline or bundle.task().headline}"
    assert math.isfinite(metrics[headline])
    assert any(headline in measured for measured in baselines.values())
    (report,) = (prepared.parent / "home").glob(f"runs/{bundle.name}-*/report.html")
    assert bundle.task().name in report.read_text(encoding="utf-8")
    predictor, held_out = Predictor(bundle), bundle.held_out()[:2]
    if bundle.task().name == "fill-mask":
        held_out = predictor.task.encode(predictor.rows(["where is my [MASK]"]))
    assert len(predictor.answer([(example, EMPTY) for example in held_out])) == len(held_out) > 0


@every_recipe
def test_what_it_reaches_on_real_data_is_kept(path: Path) -> None:
    assert path.stem in kept_lines(), f"python benchmarks/examples.py {path.stem}"


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.skipif(not TEST_DATA, reason="HEADRACE_TEST_DATA names no folder with the data sets")
@every_recipe
def test_it_reaches_what_is_kept_again(path: Path, tmp_path: Path) -> None:
    prepare(tmp_path / "examples", Path(TEST_DATA))
    found, kept = trained(tmp_path / "examples" / path.name), kept_lines()[path.stem]
    assert {name: found[name] for name in ("task", "metric", "training rows", "test rows")}.items() <= kept.items()
    assert found["model"] == pytest.approx(kept["model"], rel=0.05)
    assert found["baselines"] == pytest.approx(kept["baselines"], rel=0.02, abs=0.001)


def kept_lines() -> dict[str, dict[str, object]]:
    """What ``benchmarks/examples.py`` measured, by the example's name."""
    kept = json.loads((ROOT / "benchmarks" / "results" / "examples.json").read_text(encoding="utf-8"))
    return {line["example"]: line for line in kept["table"]}
