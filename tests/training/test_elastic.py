"""A cluster that loses a node while a run goes on, and gets a new one."""

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from cluster.session import Resources
from training.fit import spread
from training.journal import entries
from training.recipe import Recipe, Train

PROGRAM = """
import sys
from pathlib import Path
from training.fit import fit
from training.recipe import Recipe
recipe = Recipe.model_validate_json(sys.argv[1], context={"folder": Path(sys.argv[2])})
print(fit(recipe, recipe.model_dump(mode="json")).metrics["test/accuracy"])
"""


@pytest.mark.parametrize(
    ("cores", "least", "most", "expected"), [(4, 1, 2, (2, 2)), (4, 1, 8, (4, 1)), (2, 1, 8, (2, 1))]
)
def test_as_many_workers_as_there_are(cores: int, least: int, most: int, expected: tuple[int, int]) -> None:
    options = Train.model_validate({"workers": {"min": least, "max": most}})
    assert spread(options, Resources(cpus=cores, gpus=0, nodes=1)) == expected


class Nodes:
    """The nodes of a cluster, each a ``ray start --block`` of one core."""

    def __init__(self, folder: Path, held: ExitStack, wait_until: Callable[..., None]) -> None:
        self._folder, self._held, self._wait = folder, held, wait_until
        (folder / "token").write_text(secrets.token_hex(32))
        variables = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        self.variables = variables | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(folder / "token")}
        port, client = free_ports(2)
        self.address = f"127.0.0.1:{port}"
        self.start(
            "head", "--head", f"--port={port}", f"--ray-client-server-port={client}", "--include-dashboard=false"
        )

    def start(self, name: str, *words: str) -> "subprocess.Popen[bytes]":
        """One node more."""
        ray = shutil.which("ray", path=str(Path(sys.executable).parent)) or "ray"
        (agent,) = free_ports(1)
        words = words or (f"--address={self.address}",)
        fixed = ["--block", "--disable-usage-stats", "--num-cpus=1", "--min-worker-port=0", "--max-worker-port=0"]
        fixed += ["--node-ip-address=127.0.0.1", f"--dashboard-agent-listen-port={agent}"]
        fixed += [f"--temp-dir={self._folder}"] if name == "head" else []
        log = self._folder / f"{name}.log"
        with log.open("w") as file:
            node = subprocess.Popen(
                [ray, "start", *fixed, *words], env=self.variables, stdout=file, stderr=file, cwd=self._folder
            )
        self._held.callback(node.wait, 60)
        self._held.callback(node.terminate)  # with --block this ends all that it started, and nothing else
        self._wait(lambda: "Ray runtime started" in log.read_text(), 120)
        return node


def free_ports(count: int) -> list[int]:
    with ExitStack() as held:
        probes = [held.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


@pytest.fixture
def nodes(wait_until: Callable[..., None]) -> Iterator[Nodes]:
    folder = Path(tempfile.mkdtemp(prefix="hr-", dir="/tmp"))  # short: the paths of sockets lie below it
    try:
        with ExitStack() as held:
            yield Nodes(folder, held, wait_until)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.slow
def test_a_lost_node_shrinks_the_group_and_a_new_one_grows_it(
    make_recipe: Callable[..., Recipe], nodes: Nodes, home: Path, tmp_path: Path, wait_until: Callable[..., None]
) -> None:
    options = {"epochs": 400, "workers": {"min": 1, "max": 2}, "checkpoint_every": 10, "max_failures": 5}
    recipe = make_recipe(rows=240, train=options)
    second = nodes.start("second")
    variables = nodes.variables | {"RAY_ADDRESS": nodes.address, "HEADRACE_HOME": str(home)}
    root = Path(__file__).parents[2]
    with (tmp_path / "log").open("w") as log:
        words = [sys.executable, "-c", PROGRAM, recipe.model_dump_json(), str(tmp_path)]
        process = subprocess.Popen(words, env=variables, cwd=root, stdout=subprocess.PIPE, stderr=log, text=True)

    def seen() -> list[int]:
        records: list[dict[str, Any]] = [one for path in home.glob("runs/*/metrics.jsonl") for one in entries(path)]
        workers = [record["workers"] for record in records]
        return [count for at, count in enumerate(workers) if at == 0 or count != workers[at - 1]]

    try:
        wait_until(lambda: seen() == [2] and list(home.glob("runs/*/ray/checkpoints/step-*")), 180)
        second.kill()
        wait_until(lambda: seen() == [2, 1], 240)
        nodes.start("third")
        wait_until(lambda: seen() == [2, 1, 2], 240)
        told, _ = process.communicate(timeout=600)
        assert process.returncode == 0, (tmp_path / "log").read_text()[-3000:]
        assert 0 <= float(told) <= 1
    finally:
        process.kill()
