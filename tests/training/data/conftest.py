"""What the tests of the data stage share: recipes in a line, and a real PostgreSQL."""

import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from training.recipe import Recipe

MakeRecipe = Callable[..., Recipe]


@pytest.fixture
def make_recipe(tmp_path: Path) -> MakeRecipe:
    """``make_recipe(sources, fuse=None, text="text", target="label", **data)``: a recipe that lies in ``tmp_path``."""

    def make(
        sources: dict[str, Any], fuse: str | None = None, text: Any = "text", target: str = "label", **data: Any
    ) -> Recipe:
        written = {
            "name": "tried",
            "data": {"sources": sources, "fuse": fuse, **data},
            "model": {"task": "text-classification", "base": "unused", "inputs": {"text": text}, "target": target},
        }
        return Recipe.model_validate(written, context={"folder": tmp_path})

    return make


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a real PostgreSQL server that lives as long as the tests."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"))
    if not programs:
        pytest.skip("PostgreSQL's server is not installed (Debian: apt install postgresql)")
    pytest.importorskip("psycopg")
    folder = _folder_of_its_own(tmp_path_factory)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    tools = programs[-1].parent
    database = folder / "database"
    _as_server_user([tools / "initdb", "-D", database, "-A", "trust", "-U", "tester", "-E", "UTF8", "--no-sync"])
    options = f"-p {port} -k {folder} -h 127.0.0.1 -c fsync=off"
    _as_server_user([tools / "pg_ctl", "-D", database, "-o", options, "-l", folder / "log", "-w", "start"])
    try:
        yield f"postgresql+psycopg://tester:open-sesame@127.0.0.1:{port}/postgres"
    finally:
        _as_server_user([tools / "pg_ctl", "-D", database, "-m", "immediate", "-w", "stop"])
        shutil.rmtree(folder, ignore_errors=True)


def _folder_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """PostgreSQL refuses to run as root, and its own user cannot look into root's folders."""
    if os.geteuid() != 0:
        return tmp_path_factory.mktemp("postgres")
    made = subprocess.run(
        ["su", "postgres", "-s", "/bin/sh", "-c", "mktemp -d /tmp/headrace-postgres-XXXXXX"],
        check=True,
        capture_output=True,
        text=True,
    )
    return Path(made.stdout.strip())


def _as_server_user(command: list[Any]) -> None:
    words = [str(word) for word in command]
    if os.geteuid() == 0:
        words = ["su", "postgres", "-s", "/bin/sh", "-c", 'exec "$0" "$@"', "--", *words]
    # Its output goes nowhere: the server would inherit a pipe and keep the reader waiting.
    subprocess.run(words, check=True, cwd="/tmp", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=60)
