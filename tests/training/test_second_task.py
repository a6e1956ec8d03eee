"""A task is one file: a copy of the program with one more file trains it, reports it and answers."""

import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).parents[2]
ADDED = Path(__file__).with_name("text_scoring.py")

DRIVER = """
    import json, sys
    from pathlib import Path
    from serving.predictor import Predictor
    from training.bundle import open_bundle
    from training.fit import fit
    from training.recipe import Recipe

    if __name__ == "__main__":
        tree = json.loads(Path(sys.argv[1]).read_text())
        run = fit(Recipe.model_validate(tree, context={"folder": Path(sys.argv[1]).parent}), tree)
        answers = Predictor(open_bundle(run.bundle)).predict(["please help me", "refund"])
        print(json.dumps(run.as_json() | {"answers": answers}))
"""


def test_a_second_task_is_a_second_file(tmp_path: Path, home: Path, tiny_base: Path) -> None:
    copy = tmp_path / "copy"
    for room in ("cluster", "training", "serving"):
        shutil.copytree(ROOT / room, copy / room, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ADDED, copy / "training" / "tasks")
    texts = ["refund my order", "help", "please help me with my card today", "the app is slow", "why is it not good"]
    rows = [f"{text} {number},{len(text.split())}" for text in texts for number in range(12)]
    (tmp_path / "texts.csv").write_text("\n".join(["text,words", *rows]) + "\n", encoding="utf-8")
    recipe = {
        "name": "scores",
        "data": {"sources": {"texts": {"read": "texts.csv"}}, "split": {"validation": 0.2, "test": 0.2}},
        "model": {"task": "text-scoring", "base": str(tiny_base), "inputs": {"text": "text"}, "target": "words"},
        "train": {"epochs": 1, "batch_size": 8, "workers": 1, "precision": "fp32"},
    }
    (tmp_path / "recipe.json").write_text(json.dumps(recipe), encoding="utf-8")
    (copy / "driver.py").write_text(textwrap.dedent(DRIVER), encoding="utf-8")
    command = [sys.executable, str(copy / "driver.py"), str(tmp_path / "recipe.json")]
    environment = os.environ | {"HEADRACE_HOME": str(home), "PYTHONPATH": str(copy)}
    done = subprocess.run(command, env=environment, cwd=copy, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert "test/within_one" in result["metrics"]
    assert "test/within_one" in result["baselines"]["mean"]
    assert [list(answer) for answer in result["answers"]] == [["score"], ["score"]]
    report = Path(result["report"]).read_text(encoding="utf-8")
    assert "Always the mean" in report
    assert "Within one" in report
