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
from training.journal import entries
from training.recipe import Recipe, Train
from training.workers import workers_and_threads

PROGRAM = """
import sys
from pathlib import Path
from training.fit import fit
from training.recipe import Recipe
recipe = Recipe.model_validate_json(sys.argv[1], context={"folder": Path(sys.argv[2])})
print(fit(recipe, recipe.model_dump(mode="json")).metrics["test/accuracy"])
"""

OTHER_NODE = """
import sys, ray
ray.init(sys.argv[1], log_to_driver=False, logging_level="ERROR")
print(next(node["NodeID"] for node in ray.nodes() if "node:__internal_head__" not in node["Resources"]))
"""


@pytest.mark.parametrize(
    ("cores", "least", "most", "expected"), [(4, 1, 2, (2, 2)), (4, 1, 8, (4, 1)), (2, 1, 8, (2, 1))]
)
def test_as_many_workers_as_there_are(cores: int, least: int, most: int, expected: tuple[int, int]) -> None:
    options = Train.model_validate({"workers": {"min": least, "max": most}})
    assert workers_and_threads(options, Resources(cpus=cores, gpus=0, nodes=1)) == expected


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


def start(recipe: Recipe, nodes: Nodes, home: Path, folder: Path) -> "subprocess.Popen[str]":
    """A driver of its own, on the cluster."""
    variables = nodes.variables | {"RAY_ADDRESS": nodes.address, "HEADRACE_HOME": str(home)}
    words = [sys.executable, "-c", PROGRAM, recipe.model_dump_json(), str(folder)]
    with (folder / "log").open("w") as log:
        return subprocess.Popen(
            words, env=variables, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, stderr=log, text=True
        )


def records(home: Path) -> list[dict[str, Any]]:
    """What the run has told, step by step."""
    return [one for path in home.glob("runs/*/metrics.jsonl") for one in entries(path)]


@pytest.fixture
def nodes(wait_until: Callable[..., None]) -> Iterator[Nodes]:
    folder = Path(tempfile.mkdtemp(prefix="hr-", dir="/tmp"))  # short: the paths of sockets lie below it
    try:
        with ExitStack() as held:
            yield Nodes(folder, held, wait_until)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def drain(nodes: Nodes, seconds: int) -> None:
    """Tells Ray, as a cloud does before it takes a spot instance back, that the node that is no head will go."""
    ray = shutil.which("ray", path=str(Path(sys.executable).parent)) or "ray"
    listed = subprocess.run(
        [sys.executable, "-c", OTHER_NODE, nodes.address], env=nodes.variables, stdout=subprocess.PIPE, check=True
    )
    words = ["--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=test", f"--address={nodes.address}"]
    words += [f"--node-id={listed.stdout.decode().split()[-1]}", f"--deadline-remaining-seconds={seconds}"]
    subprocess.run([ray, "drain-node", *words], env=nodes.variables, check=True)


@pytest.mark.slow
def test_what_was_learned_is_kept_before_a_node_is_taken(
    make_recipe: Callable[..., Recipe], nodes: Nodes, home: Path, tmp_path: Path, wait_until: Callable[..., None]
) -> None:
    """No checkpoint is due but at the ends of epochs; the one that the run continues from lies inside one."""
    options = {"epochs": 100, "batch_size": 1, "workers": {"min": 1, "max": 2}, "checkpoint_every": 10**6}
    recipe = make_recipe(rows=2_000, train=options)
    second = nodes.start("second")
    process = start(recipe, nodes, home, tmp_path)

    def steps(workers: int) -> list[int]:
        return [record["step"] for record in records(home) if record["workers"] == workers]

    def inside() -> list[int]:
        """Steps of checkpoints that lie inside an epoch."""
        per_epoch = records(home)[0]["steps"] // 100
        kept = [int(path.name.partition("-")[2]) for path in home.glob("runs/*/ray/checkpoints/step-*")]
        return [step for step in kept if step % per_epoch]

    try:
        wait_until(lambda: steps(2), 180)
        drain(nodes, seconds=30)
        wait_until(inside, 60)
        second.kill()
        wait_until(lambda: steps(1), 240)
        per_epoch = records(home)[0]["steps"] // 100
        assert (steps(1)[0] - 1) % per_epoch != 0, "it went back to the end of an epoch"
        assert steps(1)[0] <= steps(2)[-1] + 1
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
@pytest.mark.timeout(1_800)
def test_a_lost_node_shrinks_the_group_and_a_new_one_grows_it(
    make_recipe: Callable[..., Recipe], nodes: Nodes, home: Path, tmp_path: Path, wait_until: Callable[..., None]
) -> None:
    options = {"epochs": 400, "workers": {"min": 1, "max": 2}, "checkpoint_every": 10, "max_failures": 5}
    recipe = make_recipe(rows=240, train=options)
    second = nodes.start("second")
    process = start(recipe, nodes, home, tmp_path)

    def seen() -> list[int]:
        workers = [record["workers"] for record in records(home)]
        return [count for at, count in enumerate(workers) if at == 0 or count != workers[at - 1]]

    try:
        wait_until(lambda: seen() == [2] and list(home.glob("runs/*/ray/checkpoints/step-*")), 180)
        second.kill()
        wait_until(lambda: seen() == [2, 1], 240)
        nodes.start("third")
        wait_until(lambda: seen() == [2, 1, 2], 240)
        told, _ = process.communicate(timeout=600)
        assert process.returncode == 0, (tmp_path / "log").read_text()[-3000:]
        assert 0 <= float(told.split()[-1]) <= 1, "behind what Ray says of the node that was killed"
    finally:
        process.kill()
