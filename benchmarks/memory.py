"""What a worker's memory holds at its fullest: what ``headrace check`` foretells, against what a run then takes.

    python examples/prepare.py FOLDER && python benchmarks/memory.py

Each line is a recipe of ``examples/`` with changes, checked on its first 20,000 rows and then trained for one epoch
over all of them. Taken is what the fullest worker's process held at most, as the system counts it. Writes
benchmarks/results/memory.json, in which the cases that are not named keep their lines.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

ONCE = ["train.epochs=1", "train.early_stopping=null", "train.precision=fp32"]
LONG = ["model.max_length=128", "train.batch_size=128"]
CASES: dict[str, tuple[str, list[str]]] = {
    "as it stands": ("banking77", []),
    "one worker": ("banking77", ["train.workers=1"]),
    "large batches": ("banking77", ["train.workers=1", "train.batch_size=512"]),
    "long texts": ("hotel_reviews", ["train.workers=1", *LONG]),
    "long texts in parts": ("hotel_reviews", ["train.workers=1", "train.tokens_per_device=4096", *LONG]),
    "long texts, computed twice": ("hotel_reviews", ["train.workers=1", "train.activation_checkpointing=true", *LONG]),
    "small matrices": ("hotel_reviews", ["train.workers=1", "model.adapt={lora: {r: 8}}", *LONG]),
    "a new head alone": ("hotel_reviews", ["train.workers=1", "model.adapt=head", *LONG]),
    "tags": ("wnut17", ["train.workers=1", "train.batch_size=128"]),
    "pictures": ("digits", []),
    "writing": ("bitext_replies", []),
    "a small table": ("telco_churn", []),
}


def main(names: list[str]) -> None:
    """Foretells and trains case after case."""
    from record import keep_line

    for name in names or CASES:
        example, changes = CASES[name]
        words = [str(ROOT / "examples" / f"{example}.yaml"), *ONCE, *changes]
        with tempfile.TemporaryDirectory() as home:
            told = json.loads(headrace(home, "check", *words, "--rows", "20000"))["plan"]["memory of a worker (MiB)"]
            headrace(home, "train", *words)
            (journal,) = Path(home).glob("runs/*/metrics.jsonl")
            records = [json.loads(line) for line in journal.read_text(encoding="utf-8").splitlines()]
        taken = max(record["memory"] for record in records) / 1024**2
        foretold = told["at its fullest"]
        line: dict[str, Any] = {"case": name, "example": example, "changes": " ".join(changes)}
        line |= {"foretold (MiB)": foretold, "taken (MiB)": round(taken), "ratio": round(foretold / taken, 3)}
        print(line, told, file=sys.stderr)
        keep_line("memory", line, CASES)


def headrace(home: str, *words: str) -> str:
    """What a command of headrace answers, as JSON."""
    command = [sys.executable, str(ROOT / "headrace.py"), *words, "--json"]
    return subprocess.run(
        command, env=os.environ | {"HEADRACE_HOME": home}, stdout=subprocess.PIPE, text=True, check=True
    ).stdout


if __name__ == "__main__":
    main(sys.argv[1:])
