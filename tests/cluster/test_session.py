"""Sessions on real Ray: what starts, what is inherited, what is left behind, and what a person is told."""

import ipaddress
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from cluster.environment import environment, prepare_environment
from cluster.errors import UserError
from cluster.session import _core_quota, on_cluster, session, usable_cores
from tests.training.test_elastic import Nodes

ROOT = Path(__file__).parents[2]

# Started in a strange folder, by its path alone, as `python /somewhere/headrace.py` would be.
LOOK = f"""
import sys, json, os
sys.path.insert(0, {str(ROOT)!r})
from cluster.session import on_cluster, resources, session

with session(local_cpus=1):
    import ray

    @ray.remote
    def look():
        import cluster.storage, serving.recipe, training.recipe, tuning.recipe
        print("a worker's stdout")
        print("a worker's stderr", file=sys.stderr)
        return {{
            "code": cluster.storage.__file__,
            "home": str(cluster.storage.home()),
            "proxy": os.environ["RAY_SERVE_ENABLE_HA_PROXY"],
        }}

    with session():  # inside another it does nothing
        seen = ray.get(look.remote())
    found = resources()
    ray.get(look.options(num_cpus=1).remote())
    place = ray._private.worker._global_node.get_session_dir_path()
    seen |= {{"cpus": found.cpus, "nodes": found.nodes, "on_cluster": on_cluster(), "place": place,
        "token": os.environ["RAY_AUTH_MODE"], "dashboard": ray.nodes()[0].get("webui")}}
    seen["initialized"] = ray.is_initialized()
seen["ended"] = not ray.is_initialized()
sys.stdout.write(json.dumps(seen))
"""

HOLD = f"""
import sys, time
from contextlib import nullcontext
sys.path.insert(0, {str(ROOT)!r})
from cluster.session import early_session, session
with early_session() if sys.argv[1] == "early" else nullcontext(), session(local_cpus=1):
    import ray
    ray.get(ray.remote(lambda: 1).remote())
    sys.stdout.write("."); sys.stdout.flush()
    time.sleep(600)
"""


def test_a_local_session_is_private_quiet_and_ends_with_its_block(home: Path, tmp_path: Path) -> None:
    strange = tmp_path / "strange"
    (strange / "training").mkdir(parents=True)
    (strange / "training" / "notes.txt").write_text("a folder of the user's that has the name of one of ours")
    (strange / "look.py").write_text(LOOK, encoding="utf-8")
    variables = {**os.environ, "HEADRACE_HOME": "state"}  # relative: a worker must not take it as relative to itself
    run = subprocess.run(
        [sys.executable, "look.py"], cwd=strange, env=variables, capture_output=True, text=True, check=True
    )
    seen = json.loads(run.stdout)  # nothing of Ray's is among it
    assert seen["code"] == str(ROOT / "cluster" / "storage.py")
    assert seen["home"] == str(strange / "state")
    assert (seen["cpus"], seen["nodes"], seen["on_cluster"]) == (1, 1, False)
    assert (seen["proxy"], seen["token"]) == ("1", "token")
    assert seen["initialized"] and seen["ended"]
    assert not Path(seen["place"]).exists()
    assert "a worker's stdout" in run.stderr and "a worker's stderr" in run.stderr
    assert "INFO" not in run.stderr and "WARNING" not in run.stderr


EARLY = f"""
import sys, json, os
sys.path.insert(0, {str(ROOT)!r})
from cluster.errors import RunError
from cluster.session import early_session, session
with early_session():
    with session():
        import ray
        taken = ray.get(ray.remote(lambda: os.getppid()).remote())
        first = ray._private.worker._global_node.get_session_dir_path()
        with session():
            assert ray._private.worker._global_node.get_session_dir_path() == first
    with session(local_cpus=1):
        second = ray._private.worker._global_node.get_session_dir_path()
        ended = not os.path.exists(first)
with early_session():
    pass
left = ray.is_initialized()
import cluster.session
def refuse():
    raise RunError("no room for its sockets")
cluster.session._session_folder = refuse
try:
    with early_session(), session():
        failed = None
except RunError as error:
    failed = str(error)
sys.stdout.write(json.dumps({{"ended": ended, "another": second != first, "left": left, "failed": failed}}))
"""


def test_a_session_that_starts_early_is_taken_by_the_first_who_asks(home: Path) -> None:
    run = subprocess.run([sys.executable, "-c", EARLY], capture_output=True, text=True, check=True)
    seen = json.loads(run.stdout)
    assert seen == {"ended": True, "another": True, "left": False, "failed": "no room for its sockets"}


def children(pid: int) -> dict[int, str]:
    """The processes below ``pid``, by their names."""
    stats = [path.read_text().rpartition(") ") for path in Path("/proc").glob("[0-9]*/stat") if path.exists()]
    parents = {int(head.split(" (")[0]): (int(rest.split()[1]), head.split(" (")[1]) for head, _, rest in stats}
    found: dict[int, str] = {}
    wanted = {pid}
    while wanted:
        below = {child: name for child, (parent, name) in parents.items() if parent in wanted}
        found |= below
        wanted = set(below)
    return found


def runs(pid: int) -> bool:
    path = Path(f"/proc/{pid}/stat")
    return path.exists() and path.read_text().rpartition(") ")[2][0] not in "ZX"


@pytest.mark.parametrize("start", ["early", "when asked for"])
def test_sigkill_of_the_driver_ends_its_ray(start: str, home: Path, wait_until: Callable[..., None]) -> None:
    driver = subprocess.Popen([sys.executable, "-c", HOLD, start], stdout=subprocess.PIPE, text=True)
    assert driver.stdout is not None
    assert driver.stdout.read(1) == "."
    family = children(driver.pid)
    assert "raylet" in family.values()
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    # The node's two idle agents wait a minute for the GCS to come back before they follow.
    agents = ("ray::Dashboard", "ray::RuntimeEnv")
    working = [pid for pid, name in family.items() if not name.startswith(agents)]
    wait_until(lambda: not any(runs(pid) for pid in working), 30)


CONNECT = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from cluster import probe
from cluster.errors import RunError
from cluster.session import session
probe.PROBE_SECONDS = float(sys.argv[1])
try:
    with session():
        sys.stdout.write("connected")
except RunError as error:
    sys.stdout.write(str(error))
"""


@pytest.mark.slow
def test_a_node_that_does_not_answer_is_named(home: Path, wait_until: Callable[..., None]) -> None:
    """Its Ray is stopped in its tracks: the cluster takes it for alive, and what is sent there waits."""
    folder = Path(tempfile.mkdtemp(prefix="hr-", dir="/tmp"))  # short: the paths of sockets lie below it
    with ExitStack() as held:
        held.callback(shutil.rmtree, folder, ignore_errors=True)
        nodes = Nodes(folder, held, wait_until)
        second = nodes.start("second")
        variables = nodes.variables | {"RAY_ADDRESS": nodes.address, "HEADRACE_HOME": str(home)}

        def connected(patience: str) -> str:
            words = [sys.executable, "-c", CONNECT, patience]
            return subprocess.run(words, env=variables, stdout=subprocess.PIPE, text=True, check=True).stdout

        assert connected("100") == "connected"
        (raylet,) = [pid for pid, name in children(second.pid).items() if name == "raylet"]
        os.kill(raylet, signal.SIGSTOP)
        try:
            told = connected("5")
        finally:
            os.kill(raylet, signal.SIGCONT)
        (address,) = re.findall(
            r"1 of the 1 other nodes of the Ray cluster did not answer: (.*) \(nothing within 5 s", told
        )
        assert ipaddress.ip_address(address)
        assert "`ray status` on the head node shows which are alive. Start Ray there again" in told
        assert not list(home.glob(".probe-*"))


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("http://10.0.0.1:8265", "is the address of a job server; use `headrace submit --address http://10.0.0.1:8265"),
        ("ray://10.0.0.1:10001", "Ray Client is not supported, since Train and Tune need a driver on the cluster"),
    ],
)
def test_an_address_of_another_kind_says_what_to_use(
    home: Path, monkeypatch: pytest.MonkeyPatch, address: str, message: str
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    assert on_cluster()
    with pytest.raises(UserError) as raised, session():
        pass
    assert message in str(raised.value)


def test_a_session_restores_the_environment(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://10.0.0.1:8265")
    before = dict(os.environ)
    with pytest.raises(UserError), session():
        pass
    changed = {name for name in before.keys() | os.environ.keys() if before.get(name) != os.environ.get(name)}
    assert changed <= {"RAY_AUTH_MODE", "RAY_CLIENT_MODE"}  # Ray's own


def test_what_the_user_set_is_kept(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in environment():
        monkeypatch.setenv(name, "mine")
    monkeypatch.setenv("HEADRACE_HOME", str(home))
    prepare_environment()
    assert {os.environ[name] for name in environment()} == {"mine", str(home)}


def test_local_is_no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    for address in ("", " ", "local"):
        monkeypatch.setenv("RAY_ADDRESS", address)
        assert not on_cluster()


def test_the_containers_quota_counts(tmp_path: Path) -> None:
    assert _core_quota(tmp_path) is None
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    assert _core_quota(tmp_path) == 1.5
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert _core_quota(tmp_path) is None
    assert 1 <= usable_cores() <= (os.cpu_count() or 1)
