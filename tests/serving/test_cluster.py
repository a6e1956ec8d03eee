"""Two people, one Ray cluster: who comes second is told so, and what a killed server left is taken over."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from serving import host
from tests.serving.conftest import MakeBundle

PROGRAM = """
import sys
from cluster.errors import RunError
from serving.host import serve
from serving.recipe import Serve
try:
    told = lambda address: print("answers", flush=True)
    serve([sys.argv[1]], Serve(), "0.0.0.0", int(sys.argv[2]), announce=told, without_keys=True)
except RunError as error:
    print(error, flush=True)
"""


@pytest.fixture
def cluster_variables(wait_until: Callable[..., None]) -> Iterator[dict[str, str]]:
    """What a driver of a fresh cluster finds in its environment."""
    folder = Path(tempfile.mkdtemp(prefix="hr-", dir="/tmp"))  # short: the paths of sockets lie below it
    (folder / "token").write_text(secrets.token_hex(32))
    with ExitStack() as held:
        probes = [held.enter_context(socket.socket()) for _ in range(4)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        ports = [probe.getsockname()[1] for probe in probes]
    names = ("port", "dashboard-port", "ray-client-server-port", "dashboard-agent-listen-port")
    options = dict(zip(names, ports, strict=True)) | {
        "node-ip-address": "127.0.0.1",
        "temp-dir": str(folder),
        "num-cpus": 2,
        "min-worker-port": 0,
        "max-worker-port": 0,
    }
    variables = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    variables |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(folder / "token")}
    ray = shutil.which("ray", path=str(Path(sys.executable).parent)) or "ray"
    words = [ray, "start", "--head", "--block", "--disable-usage-stats"]
    words += [f"--{name}={value}" for name, value in options.items()]
    with (folder / "head.log").open("w") as log:
        head = subprocess.Popen(words, env=variables, stdout=log, stderr=log, cwd=folder)
    try:
        wait_until(lambda: "Ray runtime started" in (folder / "head.log").read_text(), 120)
        yield {**variables, "RAY_ADDRESS": f"127.0.0.1:{ports[0]}"}
    finally:
        head.terminate()  # with --block this ends all that it started, and nothing else
        head.wait(60)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.slow
def test_a_cluster_has_one_server_and_only_its_owner_replaces_it(
    cluster_variables: dict[str, str],
    make_bundle: MakeBundle,
    tmp_path: Path,
    free_port: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = make_bundle(tmp_path / "bundle")
    homes = [tmp_path / "mine", tmp_path / "of-somebody-else"]
    monkeypatch.setenv("RAY_ADDRESS", cluster_variables["RAY_ADDRESS"])
    monkeypatch.setenv("HEADRACE_HOME", str(homes[0]))
    name = host.app_name(free_port)
    wanted = homes[0] / "serving" / f"{name}.json"
    with ExitStack() as running, (tmp_path / "log").open("w") as log:

        def start(home: Path) -> "subprocess.Popen[str]":
            words = [sys.executable, "-c", PROGRAM, str(made.folder), str(free_port)]
            variables = {**cluster_variables, "HEADRACE_HOME": str(home)}
            root = Path(host.__file__).parent.parent
            process = subprocess.Popen(
                words,
                env=variables,
                cwd=root,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
            running.callback(process.kill)
            return process

        def first_line(process: "subprocess.Popen[str]") -> str:
            assert process.stdout is not None
            return process.stdout.readline().strip()

        first = start(homes[0])
        assert first_line(first) == "answers", (tmp_path / "log").read_text()
        second, stranger = start(homes[0]), start(homes[1])
        assert f"runs already at port {free_port}" in first_line(second)
        assert first_line(stranger).startswith(f"this cluster serves {name} already")
        assert [second.wait(60), stranger.wait(60)] == [0, 0]
        assert wanted.exists()  # who was refused took nothing away
        first.kill()
        first.wait(60)
        heir = start(homes[0])
        assert first_line(heir) == "answers", (tmp_path / "log").read_text()
        heir.send_signal(signal.SIGTERM)
        assert heir.wait(90) == 0
        assert not wanted.exists()
