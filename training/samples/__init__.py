"""A recipe and small made-up data to start from, for each task.

The sample of a task is a folder named like it with its ``recipe.yaml``, and beside it a module, named like it with
``_`` for ``-``, whose ``write_data(folder)`` makes the data: with a fixed seed, so that it is the same every time.
"""

import importlib
from pathlib import Path

from cluster.errors import UserError
from cluster.storage import building, plain_disk_errors


def sample_tasks() -> list[str]:
    """The tasks that there is a sample for."""
    return sorted(path.parent.name for path in Path(__file__).parent.glob("*/recipe.yaml"))


def write_sample(folder: Path, task: str) -> list[Path]:
    """Writes ``recipe.yaml`` and ``data/`` for a task into a new or empty folder; the same files every time.

    Returns:
        What was written; a folder of many files as the folder.

    Raises:
        UserError: there is no sample for the task, or the folder holds something already.
        RunError: the folder cannot be written.
    """
    if task not in sample_tasks():
        raise UserError(f"there is no sample for the task '{task}'; there is {', '.join(sample_tasks())}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is there already and not empty; name a new folder")
    recipe = (Path(__file__).parent / task / "recipe.yaml").read_text(encoding="utf-8")
    sample = importlib.import_module(f"training.samples.{task.replace('-', '_')}")
    with plain_disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with building(folder / "data") as data:
            sample.write_data(data)
        (folder / "recipe.yaml").write_text(recipe, encoding="utf-8")
    return [folder / "recipe.yaml", *sorted((folder / "data").iterdir())]
