"""What each example learns from real data: its model beside its baselines, on the rows that were held back.

    python examples/prepare.py FOLDER && python benchmarks/examples.py [banking77 bikes …]

Each is one ``headrace train`` of a recipe of ``examples/`` in an empty home, seed and all as it stands there. A single
run says nothing of luck: differences of a percent are not to be read. Writes benchmarks/results/examples.json, in which
the examples that are not named keep their lines.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]


def main(names: list[str]) -> None:
    """Trains the examples one after the other, and keeps what is known after each."""
    from record import keep_line  # type: ignore[import-not-found,unused-ignore]

    recipes = sorted(path.stem for path in (ROOT / "examples").glob("*.yaml"))
    for name in names or recipes:
        keep_line("examples", {"example": name} | trained(ROOT / "examples" / f"{name}.yaml"), recipes)


def trained(recipe: Path) -> dict[str, Any]:
    """One line of the table: the metric that the task is judged by, of the model and of each baseline."""
    from training.bundle import open_bundle

    print(f"== {recipe.name}", file=sys.stderr)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as home:
        command = [sys.executable, str(ROOT / "headrace.py"), "train", str(recipe), "--json"]
        done = subprocess.run(command, env=os.environ | {"HEADRACE_HOME": home}, check=True, stdout=subprocess.PIPE)
        told = json.loads(done.stdout)
        task = open_bundle(Path(told["bundle"])).task()
    metric = f"test/{task.final_headline or task.headline}"
    return {
        "task": task.name,
        "training rows": told["data"]["splits"]["train"],
        "test rows": told["data"]["splits"]["test"],
        "metric": metric.removeprefix("test/"),
        "model": round(told["metrics"][metric], 4),
        "baselines": {name: round(one[metric], 4) for name, one in told["baselines"].items() if metric in one},
        "seconds": round(time.perf_counter() - started),
    }


if __name__ == "__main__":
    main(sys.argv[1:])
