"""What stands in the way of a server: what is refused before Ray starts, and what becomes of a start that hangs."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.errors import RunError, UserError
from cluster.session import Resources
from cluster.storage import only_one
from serving import host, keys
from serving.recipe import Replicas, Serve
from serving.surroundings import OURS_ALONE
from tests.serving.conftest import MakeBundle
from tests.serving.served import ROOT, load, served

# What the replica is to read never comes (a pipe that nobody writes to), or is gone when it looks for it.
STUCK = """
import os, pathlib, shutil, sys
from cluster.errors import RunError
from serving import host, wanted
from serving.recipe import Serve

def never(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(path)
    print(path, flush=True)

def gone(path, content, write=wanted.write_json):
    write(path, content)
    shutil.rmtree(sys.argv[1])

wanted.write_json = {"never": never, "gone": gone}[sys.argv[2]]
try:
    host.serve([sys.argv[1]], Serve(), "0.0.0.0", 0, announce=lambda address: print("answers"), without_keys=True)
except RunError as error:
    print(error)
print("ended", flush=True)
"""


def refuse(address: str) -> None:
    raise AssertionError("it must not get so far")


def test_a_taken_port_is_said_before_ray_starts(home: Path, make_bundle: MakeBundle) -> None:
    made = make_bundle(home / "models" / "intent" / "a")
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(RunError, match=rf"cannot listen on 127\.0\.0\.1:{port} \(Address already in use\)"):
            host.serve([str(made.folder)], Serve(), port=port, announce=refuse)


def test_a_second_server_of_the_same_name_is_refused_before_ray_starts(
    home: Path, make_bundle: MakeBundle, free_port: int
) -> None:
    made = make_bundle(home / "models" / "intent" / "a")
    with (
        only_one(home / "serving" / host.app_name(free_port)),
        pytest.raises(RunError, match=f"runs already at port {free_port}; stop that first"),
    ):
        host.serve([str(made.folder)], Serve(), port=free_port, announce=refuse)
    assert not (home / "serving" / f"{host.app_name(free_port)}.json").exists()


def test_another_home_or_a_cluster_gives_a_server_another_name(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [host.app_name(8000), host.app_name(8001)]
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    names.append(host.app_name(8000))
    monkeypatch.setenv("HEADRACE_HOME", str(home / "of-somebody-else"))
    names.append(host.app_name(8000))
    assert len(set(names)) == 4


@pytest.mark.parametrize("variable", OURS_ALONE)
def test_what_would_open_the_proxy_to_others_is_refused(
    variable: str, home: Path, make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_bundle(home / "models" / "intent" / "a")
    monkeypatch.setenv(variable, "9101")
    with pytest.raises(UserError, match=f"{variable}: unset"):
        host.serve([str(made.folder)], Serve(), announce=refuse)


def test_replicas_that_can_never_be_placed_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    three = Replicas(min=3, max=3)
    host.require_room(three, Resources(cpus=2, gpus=0, nodes=1))  # local replicas share the cores
    host.require_room(three, Resources(cpus=2, gpus=3, nodes=1))
    with pytest.raises(UserError, match=r"replicas\.min is 3 and each replica takes a GPU, of which there are 2"):
        host.require_room(three, Resources(cpus=2, gpus=2, nodes=1))
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    with pytest.raises(UserError, match="each replica takes a core, of which the cluster has 2"):
        host.require_room(three, Resources(cpus=2, gpus=0, nodes=1))


def stuck(home: Path, make_bundle: MakeBundle, how: str) -> "subprocess.Popen[str]":
    """A server whose replica cannot start."""
    made = make_bundle(home / "models" / "intent" / "a")
    words = [sys.executable, "-c", STUCK, str(made.folder), how]
    without_keys = {name: value for name, value in os.environ.items() if name != keys.VARIABLE}
    return subprocess.Popen(
        words, cwd=ROOT, env=without_keys, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def read_by_somebody(pipe: Path) -> bool:
    """Whether a process has opened a pipe for reading."""
    try:
        os.close(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))
    except OSError:
        return False
    return True


def test_one_interrupt_ends_a_start_that_hangs(
    home: Path, make_bundle: MakeBundle, wait_until: Callable[..., None]
) -> None:
    with stuck(home, make_bundle, "never") as process:
        assert process.stdout is not None
        pipe = Path(process.stdout.readline().strip())
        wait_until(lambda: read_by_somebody(pipe), 120)  # the replica is in the middle of its start
        process.send_signal(signal.SIGINT)
        out, told = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, "ended\n")
    assert "warning: whoever reaches 0.0.0.0:" in told
    assert not pipe.exists()


def test_other_machines_are_not_let_in_without_keys(
    home: Path, make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(keys.VARIABLE, raising=False)
    made = make_bundle(home / "models" / "intent" / "a")
    with pytest.raises(UserError, match=r"whoever reaches 0\.0\.0\.0:8000 could ask .* or say --without-keys"):
        host.serve([str(made.folder)], Serve(), "0.0.0.0", announce=lambda address: None)


@pytest.mark.slow
def test_a_replica_that_fails_to_start_is_told_of(home: Path, make_bundle: MakeBundle) -> None:
    with stuck(home, make_bundle, "gone") as process:
        out, told = process.communicate(timeout=240)
    assert out.startswith("the replicas did not start: "), told
    assert out.endswith("\nended\n")
    assert "bundle.json" in out


def test_models_that_are_not_there(home: Path, make_bundle: MakeBundle) -> None:
    made = make_bundle(home / "models" / "intent" / "a")
    for models, message in [
        (["nobody"], "there is no model 'nobody'"),
        ([], "name at least one model"),
        ([str(made.folder), str(made.folder)], "served already"),
        ([str(home)], "no bundle.json|neither a model"),
    ]:
        with pytest.raises(UserError, match=message):
            host.serve(models, Serve(), announce=refuse)
    (made.folder / "config.json").write_text("{}")
    with pytest.raises(UserError, match="changed after training"):
        host.serve([str(made.folder)], Serve(), announce=refuse)


@pytest.mark.slow
def test_a_killed_server_can_be_started_again_at_once(
    tmp_path: Path, make_bundle: MakeBundle, wait_until: Callable[..., None]
) -> None:
    places = [tmp_path / "killed", tmp_path / "next"]
    for place in places:
        place.mkdir()
    with served(places[0], make_bundle, {"min": 1, "max": 1}) as killed:
        killed.process.kill()
        killed.process.wait()
        wait_until(lambda: not killed.proxies(), 10)
    with served(places[1], make_bundle, {"min": 1, "max": 1}, killed.port) as following:
        assert load(following.port, 24, 8).outcomes == {"200": 24}
