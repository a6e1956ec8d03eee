"""What it costs to spread a run: two workers with a core each, against one worker with both.

    python benchmarks/workers.py --data FOLDER [--rows 1600] [--rounds 3]

FOLDER holds Banking77's train.csv (columns text, category). Both train one epoch of the same rows from the same base
(MiniLM-L6, batch 32, fp32) by ``headrace train``; the rounds take turns. Rows a second are those of the steps alone,
medians over the rounds. That both learn the same is for the tests. Writes benchmarks/results/workers.json.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from overhead import ROOT, write_sample

WORKERS = (1, 2)


def main() -> None:
    """Takes turns between one worker and two."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=1600)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    from record import keep  # type: ignore[import-not-found,unused-ignore]

    with tempfile.TemporaryDirectory() as place:
        write_sample(Path(place), options)
        rounds = [{count: trained(Path(place), count, number) for count in WORKERS} for number in range(options.rounds)]
    pace = {count: statistics.median(one[count] for one in rounds) for count in WORKERS}
    figures = {
        "rows": options.rows,
        "rows_per_second": pace,
        "two_workers_over_one": statistics.median(one[2] / one[1] for one in rounds),
        "rounds": rounds,
    }
    keep("workers", figures)


def trained(folder: Path, workers: int, number: int) -> float:
    """Rows a second over the steps of a run."""
    home = folder / f"home-{workers}-{number}"
    command = [sys.executable, str(ROOT / "headrace.py"), "train", str(folder / "recipe.yaml")]
    command += [f"train.workers={workers}", "--json"]
    subprocess.run(command, env=os.environ | {"HEADRACE_HOME": str(home)}, check=True, capture_output=True)
    (journal,) = home.glob("runs/*/metrics.jsonl")
    records = [json.loads(line) for line in journal.read_text(encoding="utf-8").splitlines()]
    pace = sum(record["rows"] for record in records) / sum(record["seconds"] for record in records)
    print(f"{workers} workers: {pace:.1f} rows/s", file=sys.stderr)
    return float(pace)


if __name__ == "__main__":
    main()
