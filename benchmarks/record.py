"""How a benchmark keeps its result: JSON with the machine, the versions and the commit that it was measured on."""

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
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


def measured() -> dict[str, Any]:
    """When, on what machine, with what versions, at which commit."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "versions": {library: importlib.metadata.version(library) for library in LIBRARIES},
        "commit": git("rev-parse", "--short", "HEAD"),
        "clean": git("status", "--porcelain", "--untracked-files=no") == "",
    }


def git(*words: str) -> str:
    """What git answers in this repository."""
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
