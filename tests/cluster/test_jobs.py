"""Commands as jobs on a real Ray cluster of one node, with its job server and its token."""

import json
import os
import pty
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests

ROOT = Path(__file__).parents[2]
SECRET = "correct-horse-battery-staple"

RECIPE = """\
name: greetings
description: For ${env:CUSTOMER_NAME} only.
data:
  sources:
    tickets: {read: data/tickets.csv}
  split: {validation: 0.2, test: 0.2}
model:
  task: text-classification
  base: base
  inputs: {text: text}
  target: intent
"""


@dataclass(frozen=True)
class Head:
    """A running cluster."""

    server: str
    address: str
    token: Path

    def job(self, id_: str) -> str:
        """What the dashboard shows of a job, as text."""
        headers = {"Authorization": f"Bearer {self.token.read_text().strip()}"}
        return requests.get(f"{self.server}/api/jobs/{id_}", headers=headers, timeout=10).text


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """``ray start --head`` with ports, a folder and a token of its own, and a PATH that knows none of our Pythons."""
    folder = Path(tempfile.mkdtemp(prefix="hr-", dir="/tmp"))  # short: the paths of sockets lie below it
    token = folder / "token"
    token.write_text(secrets.token_hex(32))
    gcs, server, client, agent = _ports(4)
    variables = {
        **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "PATH": "/usr/bin:/bin",
    }
    variables.pop("VIRTUAL_ENV", None)
    variables.pop("HEADRACE_HOME", None)
    options = {
        "port": gcs,
        "dashboard-port": server,
        "ray-client-server-port": client,
        "dashboard-agent-listen-port": agent,
        "dashboard-host": "127.0.0.1",
        "node-ip-address": "127.0.0.1",
        "temp-dir": str(folder),
        "num-cpus": 2,
        "min-worker-port": 0,
        "max-worker-port": 0,
    }
    ray = shutil.which("ray", path=str(Path(sys.executable).parent)) or "ray"
    words = [ray, "start", "--head", "--block", "--disable-usage-stats"]
    words += [f"--{name}={value}" for name, value in options.items()]
    with (folder / "head.log").open("w") as log:
        process = subprocess.Popen(words, env=variables, stdout=log, stderr=log, cwd=folder)
    found = Head(server=f"http://127.0.0.1:{server}", address=f"127.0.0.1:{gcs}", token=token)
    try:
        _wait_for_answer(found, process, folder / "head.log")
        yield found
    finally:
        process.terminate()  # with --block this ends all that it started, and nothing else
        process.wait(60)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def project(tmp_path: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe whose data and weights git ignores."""
    folder = tmp_path / "project"
    (folder / "data").mkdir(parents=True)
    shutil.copytree(tiny_base, folder / "base")
    words = [
        "money",
        "parcel",
        "card",
        "invoice",
        "hotel",
        "plan",
        "address",
        "bill",
        "week",
        "page",
        "country",
        "room",
    ]
    pairs = [(a, b, c) for a in words for b in words for c in words if a < b < c]  # no two rows are nearly the same
    rows = [f"{a} and {b} or {c} please,{'refund' if n % 2 else 'delivery'}" for n, (a, b, c) in enumerate(pairs)]
    (folder / "data" / "tickets.csv").write_text("text,intent\n" + "\n".join(rows) + "\n")
    (folder / ".gitignore").write_text("data/\nbase/\n")
    (folder / "recipe.yaml").write_text(RECIPE)
    monkeypatch.setenv("CUSTOMER_NAME", SECRET)
    return folder


def headrace(head: Head, folder: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """One command line, as a person would type it in ``folder``."""
    return subprocess.run(
        [sys.executable, str(ROOT / "headrace.py"), *words],
        cwd=folder,
        env=_environment(head, variables),
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_command_runs_on_the_cluster_as_it_would_here(head: Head, home: Path, project: Path) -> None:
    run = headrace(head, project, "submit", "--address", head.server, "fuse", "recipe.yaml", "--json")
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)  # the job's stdout is ours, and nothing else is
    assert Path(found["folder"]).is_relative_to(home)
    assert (Path(found["folder"]) / "train.arrow").is_file()
    job = next(word for word in run.stderr.split() if word.startswith("headrace-fuse-"))
    chatter = ("Running entrypoint", "Connecting to existing Ray cluster", "it/s]", "DeprecationWarning")
    assert not [word for word in chatter if word in run.stderr]
    shown = head.job(job)
    assert '"status": "SUCCEEDED"' in shown.replace('":"', '": "')
    assert SECRET not in shown + run.stdout + run.stderr


@pytest.mark.slow
def test_a_model_is_trained_on_the_cluster_and_registered(head: Head, home: Path, project: Path) -> None:
    words = ("run", "recipe.yaml", "--json", "train.epochs=1", "train.workers=2")
    run = headrace(head, project, "submit", "--address", head.server, *words)
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert Path(found["bundle"]).is_relative_to(home)
    assert Path(found["report"]).is_file()
    assert SECRET not in run.stdout + run.stderr
    assert [path for path in home.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()] == []
    listed = headrace(head, project, "models", "--json")
    assert [one["name"] for one in json.loads(listed.stdout)["models"]] == ["greetings"]


def test_the_exit_code_of_the_command_is_ours(head: Head, home: Path, project: Path) -> None:
    (project / "recipe.yaml").write_text(RECIPE + "train: {epohcs: 1}\n")
    run = headrace(head, project, "submit", "--address", head.server, "fuse", "recipe.yaml")
    assert run.returncode == 2
    assert "recipe.yaml:12 train.epohcs: unknown key, did you mean 'epochs'?" in run.stderr

    (project / "recipe.yaml").write_text(RECIPE)
    home.mkdir(exist_ok=True)
    (home / "fused").write_text("a file where a folder belongs")
    run = headrace(head, project, "submit", "--address", head.server, "fuse", "recipe.yaml")
    assert run.returncode == 1
    assert "could not write below" in run.stderr


def test_state_that_would_be_lost_is_refused(head: Head, home: Path, project: Path) -> None:
    run = headrace(head, project, "submit", "--address", head.server, "fuse", "recipe.yaml", HEADRACE_HOME="")
    assert run.returncode == 2
    assert "HEADRACE_HOME is not set, here or on the cluster, and what the job makes would be lost" in run.stderr
    run = headrace(head, project, "submit", "--address", head.server, "fuse", "recipe.yaml", HEADRACE_HOME="state")
    assert run.returncode == 2
    assert "HEADRACE_HOME=state is relative, and a job has another working directory" in run.stderr
    run = headrace(head, project, "submit", "--address", head.server, "fuse", "recipe.yaml", HEADRACE_HOME="/proc/no")
    assert run.returncode == 1
    assert "the cluster cannot write to HEADRACE_HOME=/proc/no" in run.stderr


def test_without_the_token_one_sentence_says_what_to_do(head: Head, home: Path, tmp_path: Path) -> None:
    (tmp_path / "other-token").write_text("0" * 64)
    for path in ("nothing-here", "other-token"):
        run = headrace(head, tmp_path, "jobs", "--address", head.server, RAY_AUTH_TOKEN_PATH=str(tmp_path / path))
        assert run.returncode == 1
        assert len(run.stderr.strip().splitlines()) == 1
        assert "asks for a token and got none, or a wrong one; put the cluster's token in" in run.stderr


def test_an_address_that_does_not_answer_and_none_at_all(head: Head, home: Path, tmp_path: Path) -> None:
    (port,) = _ports(1)
    run = headrace(head, tmp_path, "jobs", "--address", f"http://127.0.0.1:{port}")
    assert run.returncode == 1
    assert f"no Ray job server answers at http://127.0.0.1:{port}; check the address" in run.stderr
    run = headrace(head, tmp_path, "jobs")
    assert run.returncode == 2
    assert "no cluster is named; give --address http://HEAD:8265" in run.stderr


def test_ctrl_c_leaves_a_job_running_or_stops_it(
    head: Head, home: Path, tmp_path: Path, wait_until: Callable[..., None]
) -> None:
    job = _sleeping_job(head)
    command = [sys.executable, str(ROOT / "headrace.py"), "jobs", "logs", job, "--address", head.server]

    leaving = subprocess.Popen(
        command,
        env=_environment(head),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert leaving.stderr is not None
    assert leaving.stderr.readline() == "asleep\n"
    leaving.send_signal(signal.SIGINT)
    assert f"job {job} goes on. To see it again: headrace jobs logs {job} --address" in leaving.communicate()[1]
    assert leaving.returncode == 130
    listed = json.loads(headrace(head, tmp_path, "jobs", "--address", head.server, "--json").stdout)["jobs"]
    assert {one["id"]: one["status"] for one in listed}[job] == "RUNNING"

    ours, theirs = pty.openpty()
    stopping = subprocess.Popen(command, env=_environment(head), stdin=theirs, stderr=subprocess.PIPE, text=True)
    assert stopping.stderr is not None
    assert stopping.stderr.readline() == "asleep\n"
    stopping.send_signal(signal.SIGINT)
    os.write(ours, b"y\n")
    assert f"job {job}: stopped" in stopping.communicate()[1]
    assert stopping.returncode == 130
    os.close(ours)
    os.close(theirs)


def test_jobs_stop_ends_a_job_and_an_unknown_one_is_said(head: Head, home: Path, tmp_path: Path) -> None:
    job = _sleeping_job(head)
    run = headrace(head, tmp_path, "jobs", "stop", job, "--address", head.server, "--json")
    assert json.loads(run.stdout)["jobs"] == [{"id": job, "status": "STOPPED"}]
    run = headrace(head, tmp_path, "jobs", "stop", "nobody", "--address", head.server)
    assert run.returncode == 2
    assert "no job nobody on this cluster" in run.stderr


CONNECT = """
import json, sys
from cluster.errors import HeadraceError
from cluster.session import on_cluster, resources, session
try:
    with session():
        import ray

        @ray.remote
        def look():
            import os, training.recipe
            return training.recipe.__file__, os.environ["RAY_SERVE_ENABLE_HA_PROXY"], os.environ["HEADRACE_HOME"]

        file, proxy, home = ray.get(look.remote())
        found = {"cluster": on_cluster(), "cpus": resources().cpus, "proxy": proxy, "home": home, "file": file}
        sys.stdout.write(json.dumps(found))
except HeadraceError as error:
    sys.stderr.write(str(error))
    sys.exit(error.exit_code)
"""


def test_a_session_connects_with_the_token_and_sends_its_code(head: Head, home: Path) -> None:
    run = _connect(head, home.parent, RAY_ADDRESS=head.address)
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert found.pop("file") != str(ROOT / "training" / "recipe.py")  # the copy that was sent
    assert found == {"cluster": True, "cpus": 2, "proxy": "1", "home": str(home)}


def test_a_session_without_the_token_says_what_to_do(head: Head, home: Path, tmp_path: Path) -> None:
    run = _connect(head, tmp_path, RAY_ADDRESS=head.address, RAY_AUTH_TOKEN_PATH=str(tmp_path / "nothing-here"))
    assert run.returncode == 1, run.stderr
    assert "no connection to the Ray cluster at RAY_ADDRESS=" in run.stderr
    assert "put the cluster's token in ~/.ray/auth_token or RAY_AUTH_TOKEN" in run.stderr
    assert "Traceback" not in run.stderr


def _connect(head: Head, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", CONNECT],
        cwd=folder,
        env=_environment(head, variables | {"PYTHONPATH": str(ROOT)}),
        capture_output=True,
        text=True,
        check=False,
    )


def _sleeping_job(head: Head) -> str:
    """A job that says one word and sleeps."""
    headers = {"Authorization": f"Bearer {head.token.read_text().strip()}"}
    job = f"sleeper-{secrets.token_hex(4)}"
    request = {"entrypoint": "echo asleep; exec sleep 600", "submission_id": job}
    requests.post(f"{head.server}/api/jobs/", json=request, headers=headers, timeout=60).raise_for_status()
    return job


def _environment(head: Head, variables: dict[str, str] | None = None) -> dict[str, str]:
    """This process's variables with the head's token and without RAY_AUTH_MODE, which is ours to set."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return {**kept, "RAY_AUTH_TOKEN_PATH": str(head.token), **(variables or {})}


def _ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports: list[int] = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def _wait_for_answer(head: Head, process: subprocess.Popen[bytes], log: Path) -> None:
    headers = {"Authorization": f"Bearer {head.token.read_text().strip()}"}
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if requests.get(f"{head.server}/api/jobs/", headers=headers, timeout=5).ok:
                return
        except requests.exceptions.RequestException:
            time.sleep(0.2)
    pytest.fail(f"no job server: {log.read_text()[-2000:]}")
