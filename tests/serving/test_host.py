"""Ray Serve itself behind its HAProxy: two replicas, a real registry, real signals, real kills."""

import asyncio
import collections
import concurrent.futures
import contextlib
import hashlib
import http.client
import json
import os
import re
import resource
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import InferenceClient

from cluster.errors import RunError, UserError
from cluster.session import Resources, usable_cores
from cluster.storage import only_one, read_json
from serving import host, keys
from serving.lineup import Served
from serving.predictor import Predictor
from serving.recipe import Replicas, Serve
from serving.rollout import Record
from serving.scheduler import Scheduler
from serving.surroundings import OURS_ALONE
from serving.wanted import Wanted
from tests.serving.conftest import TEXTS, MakeBundle, entry
from training import registry
from training.bundle import Bundle

ROOT = Path(host.__file__).parent.parent
KEY = "a-key-of-the-test"
PROGRAM = """
import json, sys
from serving.host import serve
from serving.recipe import Serve
# Errors alone take a version back: what two of them say who learned nothing differs by chance.
rollback = {"errors": 0.05, "latency": None, "labels": None, "least": 40}
options = Serve(replicas=json.loads(sys.argv[2]), rollback=rollback)
serve(["intent"], options, port=int(sys.argv[1]), announce=lambda address: print(address, flush=True))
"""
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


@dataclass
class Server:
    """A running ``serve`` and where it listens."""

    process: "subprocess.Popen[str]"
    port: int
    bundles: list[Bundle]

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def replicas(self) -> list[int]:
        """The process ids of its replicas."""
        title = f"ray::ServeReplica:headrace-{self.port}-".encode()
        return [pid for pid in pids() if described(pid, "cmdline").startswith(title)]

    def proxies(self) -> list[int]:
        """The process ids of what answers on its port, which ``serve`` itself only holds."""
        address = f"0100007F:{self.port:04X}"
        public = {inode for inode, place in listening().items() if place == address}
        return [pid for pid in pids() if sockets(pid) & public and pid != self.process.pid]

    def controllers(self) -> list[int]:
        """The process id of Serve's controller, in this session and no other."""
        ours = f"HEADRACE_HOME={os.environ['HEADRACE_HOME']}\0".encode()
        found = [pid for pid in pids() if described(pid, "cmdline").startswith(b"ray::ServeController")]
        return [pid for pid in found if ours in described(pid, "environ")]


def pids() -> list[int]:
    """All processes of this machine."""
    return [int(place.name) for place in Path("/proc").iterdir() if place.name.isdigit()]


def described(pid: int, file: str) -> bytes:
    """A file of ``/proc``; empty where the process has gone or is somebody else's."""
    try:
        return Path(f"/proc/{pid}/{file}").read_bytes()
    except OSError:
        return b""


@dataclass
class Tally:
    """What became of many requests."""

    outcomes: collections.Counter[str] = field(default_factory=collections.Counter)
    versions: collections.Counter[str] = field(default_factory=collections.Counter)

    @property
    def failed(self) -> dict[str, int]:
        return {outcome: count for outcome, count in self.outcomes.items() if outcome != "200"}


@contextlib.contextmanager
def served(folder: Path, make_bundle: MakeBundle, replicas: dict[str, float]) -> Iterator[Server]:
    """``serve`` in a process of its own, with two registered versions of a model and a key."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HEADRACE_HOME", str(folder / "home"))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.delenv("RAY_ADDRESS", raising=False)
        key_file = folder / "keys"
        key_file.write_text(f"test:{hashlib.sha256(KEY.encode()).hexdigest()}\n")
        patch.setenv("HEADRACE_API_KEYS", str(key_file))
        bundles = [make_bundle(folder / "home" / "models" / "intent" / f"v{seed}", seed=seed) for seed in (1, 2)]
        bundles.append(make_bundle(folder / "home" / "models" / "intent" / "broken", tokens=10))
        assert [registry.register(bundle, None) for bundle in bundles] == [1, 2, 3]
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        words = [sys.executable, "-c", PROGRAM, str(port), json.dumps(replicas)]
        with (folder / "log").open("w") as log:
            process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=log, text=True)
            running = Server(process, port, bundles)
            try:
                assert process.stdout is not None
                announced = process.stdout.readline()
                assert announced.strip() == running.address, (folder / "log").read_text()
                yield running
            finally:
                process.terminate()
                try:
                    process.wait(90)
                except subprocess.TimeoutExpired:
                    process.kill()


@pytest.fixture(scope="module")
def server(make_bundle: MakeBundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with served(tmp_path_factory.mktemp("served"), make_bundle, {"min": 2, "max": 2}) as running:
        yield running


def reach(client: http.client.HTTPConnection) -> None:
    """Connects, where it is not connected; whoever is refused has sent nothing yet, and tries again."""
    until = time.monotonic() + 60
    while client.sock is None:
        try:
            client.connect()
        except ConnectionRefusedError:
            assert time.monotonic() < until, "refused for a minute"
            time.sleep(0.05)


def load(
    port: int,
    requests: int | Iterable[int],
    connections: int = 32,
    at: dict[int, Callable[[], object]] | None = None,
    inputs: int = 1,
    waits: list[float] | None = None,
) -> Tally:
    """Sends so many requests, or one for each number, over ``connections`` kept alive, each with so many inputs.

    ``at[n]`` is called when the n-th is about to be sent. A connection that is refused is tried again, for a minute.
    ``waits`` gets the seconds that each took.
    """
    numbers = iter(range(requests) if isinstance(requests, int) else requests)
    tally, pending = Tally(), dict(at or {})
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}

    def connection() -> None:
        client = http.client.HTTPConnection("127.0.0.1", port, timeout=300)  # a replica may have to start first
        for number in numbers:
            if number in pending:
                pending.pop(number)()
            asked = [TEXTS[(number + index) % len(TEXTS)] for index in range(inputs)]
            began = time.monotonic()
            try:
                reach(client)
                client.request("POST", "/models/intent", json.dumps({"inputs": asked}), headers)
                answer = client.getresponse()
                body = answer.read()
                tally.outcomes[str(answer.status)] += 1
                if answer.status == 200:
                    assert len(json.loads(body)[0]) == 5
                    tally.versions[answer.headers["x-headrace-version"]] += 1
            except (OSError, http.client.HTTPException) as error:
                tally.outcomes[type(error).__name__] += 1
                client.close()
            if waits is not None:
                waits.append(time.monotonic() - began)
        client.close()

    with concurrent.futures.ThreadPoolExecutor(connections) as pool:
        for done in [pool.submit(connection) for _ in range(connections)]:
            done.result()
    return tally


def versions(server: Server) -> set[str]:
    """The versions that answer, asked often enough to have reached both replicas."""
    return set(load(server.port, 24, 8).versions)


@pytest.mark.usefixtures("clients_allowed")
def test_the_client_gets_what_predict_gets(server: Server) -> None:
    client = InferenceClient(model=f"{server.address}/models/intent", token=KEY)
    predictor = Predictor(server.bundles[0], device="cpu")
    for text, expected in zip(TEXTS, predictor.predict(TEXTS), strict=True):
        got = client.text_classification(text)
        assert [element.label for element in got] == [one["label"] for one in expected]
        assert [element.score for element in got] == pytest.approx([one["score"] for one in expected], abs=1e-5)


def exchange(
    server: Server, method: str, path: str, headers: dict[str, str], body: str | None = None
) -> tuple[int, str]:
    client = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    client.request(method, path, body, headers)
    answer = client.getresponse()
    text = answer.read().decode()
    assert len(answer.headers.get_all("x-request-id") or []) <= 1
    client.close()
    return answer.status, text


def test_keys_and_headers_through_the_proxy(server: Server) -> None:
    known = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
    question = json.dumps({"inputs": "where is my card"})
    status, text = exchange(server, "POST", "/models/intent", {"Content-Type": "application/json"}, question)
    assert (status, json.loads(text)["error"]["code"]) == (401, "unauthorized")
    assert exchange(server, "GET", "/v2/health/ready", {})[0] == 200
    assert exchange(server, "GET", "/metrics", {})[0] == 401
    refused = json.loads(exchange(server, "POST", "/models/intent", {"Content-Type": "application/json"}, question)[1])
    named = refused["error"]["request_id"]
    assert re.fullmatch(r"[0-9a-f]{32}", named), f"{named} is Serve's: the request went the long way"
    # Serve would answer 408 to the first; the proxy drops both.
    rude = {**known, "x-request-timeout-seconds": "0.000001", "x-request-disconnect-disabled": "?1"}
    assert exchange(server, "POST", "/models/intent", rude, question)[0] == 200
    status, text = exchange(server, "GET", "/metrics", {**known})
    counted = sum(float(count) for count in re.findall(r'headrace_requests_total\{.*outcome="ok".*\} (\S+)', text))
    assert (status, counted) == (200, len(TEXTS) + 1)  # of both replicas together


def test_nothing_of_the_edge_can_be_reached_from_another_machine(server: Server) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # sends nothing: only asks which address would be used
        outside = probe.getsockname()[0]
    if outside.startswith("127."):
        pytest.skip("this machine has no address but loopback")
    for port in (server.port, 30000, 30001):
        with pytest.raises(OSError), socket.create_connection((outside, port), timeout=5):
            pass


def listening() -> dict[str, str]:
    """What this machine listens on, in IPv4 and IPv6: from a socket's inode to its address as the kernel writes it."""
    found = {}
    for table in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")):
        for line in table.read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == "0A":
                found[words[9]] = words[1]
    return found


def sockets(pid: int) -> set[str]:
    """The inodes of the sockets that a process of ours has open."""
    found = set()
    try:
        for file in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                found.add(str(file.readlink()).removeprefix("socket:[").removesuffix("]"))
    except OSError:
        pass
    return found


def test_the_proxy_listens_for_this_machine_alone(server: Server) -> None:
    there = listening()
    (proxy,) = server.proxies()
    addresses = [there[inode] for inode in sockets(proxy) if inode in there]
    assert len(set(addresses)) == 3  # the public port, the metrics, the statistics
    assert {address.partition(":")[0] for address in addresses} == {"0100007F"}, addresses


def test_a_promotion_under_load_loses_nothing(server: Server, wait_until: Callable[..., None]) -> None:
    registry.promote("intent", 1)
    wait_until(lambda: versions(server) == {"1"})
    tally = load(server.port, 400, at={100: lambda: registry.promote("intent", 2)})
    assert tally.failed == {}
    wait_until(lambda: versions(server) == {"2"})
    registry.rollback("intent")
    wait_until(lambda: versions(server) == {"1"})


def test_a_broken_version_is_taken_back_by_itself(server: Server, wait_until: Callable[..., None]) -> None:
    registry.promote("intent", 1)
    wait_until(lambda: versions(server) == {"1"})
    registry.promote("intent", 3)
    outcomes: collections.Counter[str] = collections.Counter()

    def taken_back() -> bool:
        outcomes.update(load(server.port, 24, 8).outcomes)
        return registry.resolve("intent").version == 1

    wait_until(taken_back)
    wait_until(lambda: versions(server) == {"1"})
    print("a broken version was promoted; outcomes until it was taken back:", dict(outcomes))  # noqa: T201  to quote
    assert outcomes.keys() == {"200", "500"}
    assert load(server.port, 100).failed == {}
    known = {"Authorization": f"Bearer {KEY}"}
    told = json.loads(exchange(server, "GET", "/models/intent", known)[1])
    assert [(one["version"], one["reason"]) for one in told["taken_back"]] == [("3", "errors")]


def test_a_killed_replica_costs_at_most_what_it_held_and_comes_back(
    server: Server, wait_until: Callable[..., None]
) -> None:
    victim = sorted(server.replicas())[0]
    tally = load(server.port, 400, at={100: lambda: os.kill(victim, signal.SIGKILL)})
    print("killed one of two replicas under 32 connections; failed:", tally.failed)  # noqa: T201  a figure to quote
    assert sum(tally.failed.values()) <= 32
    assert tally.outcomes["200"] >= 400 - 32
    wait_until(lambda: len(server.replicas()) == 2 and victim not in server.replicas(), 120)


def replaced(found: Callable[[], list[int]], victim: int) -> bool:
    """Whether there is one again, and another one."""
    present = found()
    return bool(present) and victim not in present


def killed(found: Callable[[], list[int]], server: Server, wait_until: Callable[..., None]) -> Tally:
    """What becomes of 200 requests over 4 connections, during which one process is killed; it has come back then."""
    victims: list[int] = []

    def alone() -> bool:
        victims[:] = found()
        return len(victims) == 1

    def kill() -> None:
        # Found only now: a proxy that has handed over to the next one meanwhile would be missed by nobody.
        wait_until(alone)
        os.kill(victims[0], signal.SIGKILL)

    tally = load(server.port, 200, 4, at={50: kill})
    wait_until(lambda: replaced(found, victims[0]), 120)
    return tally


def test_a_killed_controller_costs_nobody_an_answer_and_comes_back(
    server: Server, wait_until: Callable[..., None]
) -> None:
    wait_until(lambda: len(server.replicas()) == 2, 120)
    tally = killed(server.controllers, server, wait_until)
    print("killed the controller under 4 connections:", dict(tally.outcomes))  # noqa: T201  a figure to quote
    assert sum(tally.failed.values()) <= 4
    # The controller that came knows its replicas, and replaces one that goes or had only begun to start.
    wait_until(lambda: len(server.replicas()) == 2, 120)
    kept, gone = sorted(server.replicas())
    os.kill(gone, signal.SIGKILL)
    wait_until(lambda: len(server.replicas()) == 2 and gone not in server.replicas() and kept in server.replicas(), 120)


@pytest.mark.slow
def test_a_killed_proxy_comes_back(server: Server, wait_until: Callable[..., None]) -> None:
    wait_until(lambda: len(server.replicas()) == 2, 120)
    tally = killed(server.proxies, server, wait_until)
    print("killed the proxy under 4 connections:", dict(tally.outcomes))  # noqa: T201  a figure to quote
    assert sum(tally.failed.values()) <= 4
    assert load(server.port, 24, 8).failed == {}


@pytest.mark.slow
def test_two_thousand_requests_while_a_version_is_promoted_and_a_replica_dies(
    server: Server, wait_until: Callable[..., None]
) -> None:
    wait_until(lambda: len(server.replicas()) == 2, 120)
    registry.promote("intent", 1)
    wait_until(lambda: versions(server) == {"1"})
    victim = sorted(server.replicas())[0]
    started = time.perf_counter()
    tally = load(
        server.port,
        2000,
        at={500: lambda: registry.promote("intent", 2), 1200: lambda: os.kill(victim, signal.SIGKILL)},
    )
    seconds = time.perf_counter() - started
    print(f"2000 requests in {seconds:.1f} s; outcomes {dict(tally.outcomes)}; versions {dict(tally.versions)}")  # noqa: T201
    assert sum(tally.outcomes.values()) == 2000
    assert sum(tally.failed.values()) <= 32
    assert set(tally.versions) == {"1", "2"}


@pytest.mark.slow
def test_ten_thousand_slow_clients_keep_nobody_out_and_are_cut(server: Server, wait_until: Callable[..., None]) -> None:
    """Half of them never finish their headers, half never their body."""
    wait_until(lambda: len(server.replicas()) == 2, 120)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1], before[1]))
    body = f"POST /models/intent HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {KEY}\r\nContent-Length: 99\r\n\r\n{{"
    slow = {}
    try:
        started = time.monotonic()
        for number in range(10_000):
            address = f"127.0.0.{2 + number % 8}"
            connection = socket.create_connection(("127.0.0.1", server.port), 30, (address, 0))
            connection.sendall(b"P" if number % 2 else body.encode())
            slow[connection.fileno()] = connection
        opened = time.monotonic() - started
        waits: list[float] = []
        tally = load(server.port, 300, 8, waits=waits)
        percentiles = [round(1000 * sorted(waits)[int(len(waits) * share)], 1) for share in (0.5, 0.99)]
        seen = select.epoll()
        for descriptor in slow:
            seen.register(descriptor, select.EPOLLIN)
        open_meanwhile = 10_000 - len(seen.poll(0, 10_000))
        wait_until(lambda: len(seen.poll(0, 10_000)) == 10_000, 120)
        ends = collections.Counter(connection.recv(12).decode() for connection in slow.values())
        print(  # noqa: T201  figures to quote
            f"10000 slow connections in {opened:.1f} s; 300 requests beside them: {dict(tally.outcomes)}, p50 and p99 "
            f"{percentiles} ms; {open_meanwhile} still open then; ends: {dict(ends)} "
            f"after {time.monotonic() - started:.1f} s"
        )
        assert tally.outcomes == {"200": 300}
        assert set(ends) <= {"HTTP/1.1 408", "HTTP/1.0 408", ""}
    finally:
        for connection in slow.values():
            connection.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_it_ends_on_sigterm_and_leaves_nothing(server: Server, wait_until: Callable[..., None]) -> None:
    wanted = Path(os.environ["HEADRACE_HOME"]) / "serving" / f"{host.app_name(server.port)}.json"
    assert wanted.exists()
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(90) == 0
    assert not wanted.exists()
    wait_until(lambda: not server.replicas(), 30)
    with pytest.raises(OSError), socket.create_connection(("127.0.0.1", server.port), timeout=5):
        pass


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


def read_by_somebody(pipe: Path) -> bool:
    """Whether a process has opened a pipe for reading."""
    try:
        os.close(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))
    except OSError:
        return False
    return True


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


def test_a_replica_is_well_while_its_model_answers_and_says_so_when_it_does_not(bundle: Bundle) -> None:
    predictor = Predictor(bundle, device="cpu")
    scheduler = Scheduler(predictor.prepare, predictor.answer)
    replica = object.__new__(host.Replica)
    served = Served("intent", "1", predictor, scheduler, Record(1), release=lambda: None)
    lineup: Any = SimpleNamespace(served=lambda: [served])
    replica._lineup = lineup
    asyncio.run(replica.check_health())
    predictor.task.reader = None  # type: ignore[attr-defined]
    with pytest.raises(AttributeError):
        asyncio.run(replica.check_health())
    scheduler.close()
    assert scheduler.join(30)
    with pytest.raises(RuntimeError, match="intent version 1 is stuck"):
        asyncio.run(replica.check_health())


def test_aliases_are_followed_and_pins_are_not(home: Path, make_bundle: MakeBundle) -> None:
    made = [make_bundle(home / "models" / "intent" / f"v{seed}", seed=seed) for seed in (1, 2)]
    for one in made:
        registry.register(one, None)
    following, pinned = Wanted(["intent"]), Wanted(["intent/1"])
    for wanted in (following, pinned):
        wanted.write(home / "serving" / f"{id(wanted)}.json")
    registry.promote("intent", 2)
    for wanted in (following, pinned):
        wanted.follow()
    assert read_json(following.path) == {"intent": entry(made[1], 2, before=1)}
    assert read_json(pinned.path) == {"intent": entry(made[0], 1)}
    shutil.move(home / "mlflow.db", home / "away.db")
    following.follow()  # a store that is away changes nothing
    assert read_json(following.path)["intent"]["routes"][0]["version"] == 2


def test_cores_are_shared_out_so_that_all_replicas_fit() -> None:
    for bounds in ({"min": 1, "max": 1}, {"min": 1, "max": 4}, {"min": 3, "max": 8}):
        replicas = Serve.model_validate({"replicas": bounds}).replicas
        cpus, threads = host.replica_cores(replicas)
        assert cpus * replicas.max <= usable_cores() or replicas.max == 1
        assert threads == max(1, usable_cores() // replicas.min)
