"""How a sweep is shown, and that its best combination reads back as what it was."""

from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from cluster.settings import read
from tuning.ledger import Trial
from tuning.recipe import Tune
from tuning.results import best_yaml, draw, overrides, text, typed

BEST = {
    "train.learning_rate": 1e-05,
    "model.adapt": "full",
    "train.early_stopping": {"metric": "accuracy", "patience": 2},
    "model.max_length": None,
    "model.base": "two words: and more",
}


def trials() -> list[Trial]:
    def epoch(number: int, value: float, last: bool) -> dict[str, Any]:
        flags = {"best": True, "last": last}
        return {"epoch": number, "value": value, "metrics": {"accuracy": value}, "loss": 1.0, "seconds": 5.0, **flags}

    def params(rate: float, adapt: str) -> dict[str, Any]:
        return {"train.learning_rate": rate, "model.adapt": adapt}

    return [
        Trial(1, params(1e-05, "head"), "stopped", [epoch(1, 0.95, False)], 5.2),
        Trial(2, params(2e-04, "full"), "finished", [epoch(1, 0.7, False), epoch(2, 0.91234, True)], 9.8),
        Trial(3, params(1.0, "full"), "failed", [], 0.4, "step 2: the loss is nan"),
        Trial(4, params(5e-05, "full"), "finished", [epoch(1, 0.6, False), epoch(2, 0.8, True)], 70.2),
    ]


def test_the_best_reads_back_as_overrides_and_as_a_recipe(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("{}", encoding="utf-8")
    nested = read(tmp_path / "r.yaml", overrides(BEST)).values
    assert nested == {
        "train": {"learning_rate": 1e-05, "early_stopping": {"metric": "accuracy", "patience": 2}},
        "model": {"adapt": "full", "max_length": None, "base": "two words: and more"},
    }
    best = Trial(2, BEST, "finished", trials()[1].epochs)
    assert yaml.safe_load(best_yaml(best, "accuracy")) == nested
    assert best_yaml(best, "accuracy").startswith(
        "# Trial 2: accuracy 0.9123 on validation. The same on a command line:\n#   train.learning_rate=1.0e-05 model."
    )
    assert "'train.early_stopping={metric: accuracy, patience: 2}'" in typed(BEST)


def test_the_table_has_the_best_first_and_failures_last() -> None:
    lines = text(trials(), "accuracy", "max").splitlines()
    assert lines[0].split() == [
        *("trial", "status", "accuracy", "epochs", "train.learning_rate", "model.adapt", "time", "error"),
    ]
    assert [line.split()[0] for line in lines[1:]] == ["2", "1", "4", "3"]
    assert lines[1].split() == ["2", "finished", "0.9123", "2", "0.0002", "full", "10", "s"]
    assert lines[3].endswith("1 min 10 s")
    assert lines[4].endswith("step 2: the loss is nan")
    assert "error" not in text(trials()[:2], "accuracy", "max")


def test_the_picture_is_drawn_for_one_field_and_for_many(tmp_path: Path) -> None:
    search = {"train.learning_rate": {"log_uniform": [1e-5, 1]}, "model.adapt": {"choice": ["full", "head"]}}
    draw(trials(), Tune.model_validate({"metric": "accuracy", "search": search}), "max", tmp_path / "two.png")
    del search["model.adapt"]
    draw(trials(), Tune.model_validate({"metric": "accuracy", "search": search}), "max", tmp_path / "one.png")
    with Image.open(tmp_path / "two.png") as two, Image.open(tmp_path / "one.png") as one:
        assert two.size[0] > one.size[0] > 1000
        assert len(set(two.convert("RGB").resize((64, 32)).getdata())) > 50  # not blank
    assert {path.name for path in tmp_path.iterdir()} == {"one.png", "two.png"}
