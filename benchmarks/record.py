"""How a benchmark keeps its result: JSON with the machine, the versions and the commit that it was measured on."""

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from cluster.machine import processor  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
LIBRARIES = ("ray", "torch", "transformers", "tokenizers", "datasets", "numpy")


def keep(name: str, figures: dict[str, Any]) -> None:
    """Writes ``benchmarks/results/NAME.json`` and prints the figures."""
    RESULTS.mkdir(exist_ok=True)
    # The folder of the data is this machine's business.
    words = ["FOLDER" if Path(word).is_dir() else word for word in sys.argv[1:]]
    command = " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *words])
    record = {"command": command, "measured": measured(), **figures}
    (RESULTS / f"{name}.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(figures, indent=2))


def keep_line(name: str, line: dict[str, Any], order: Iterable[str]) -> None:
    """Puts a line with its commit into the table of a result, in which the others stay as they are.

    Args:
        line: its first column names it.
        order: the names there are; lines of others are dropped.
    """
    (key, *_), kept = line, RESULTS / f"{name}.json"
    table = json.loads(kept.read_text(encoding="utf-8"))["table"] if kept.exists() else []
    lines = {one[key]: one for one in table} | {line[key]: line | {"commit": git("rev-parse", "--short", "HEAD")}}
    keep(name, {"table": [lines[one] for one in order if one in lines]})


def measured() -> dict[str, Any]:
    """When, on what machine, with what versions, at which commit."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "versions": {library: importlib.metadata.version(library) for library in LIBRARIES},
        "commit": git("rev-parse", "--short", "HEAD"),
        "clean": git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!benchmarks/results", ":!docs")
        == "",
    }


def git(*words: str) -> str:
    """What git answers in this repository."""
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
