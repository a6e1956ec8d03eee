"""`serve` in a process of its own, what the kernel tells of its processes, and many requests at once."""

import collections
import concurrent.futures
import contextlib
import hashlib
import http.client
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from cluster.ports import free_port
from serving import host
from tests.serving.conftest import TEXTS, MakeBundle
from training import registry
from training.bundle import Bundle

ROOT = Path(host.__file__).parent.parent
KEY = "a-key-of-the-test"
OF_REPLICAS = range(30000, 31001)  # the ports that Serve gives them
PROGRAM = """
import json, sys
from serving.host import serve
from serving.recipe import Serve
# Errors alone take a version back: what two of them say who learned nothing differs by chance.
rollback = {"errors": 0.05, "latency": None, "labels": None, "least": 40}
options = Serve(replicas=json.loads(sys.argv[2]), rollback=rollback)
serve(["intent"], options, port=int(sys.argv[1]), announce=lambda address: print(address, flush=True))
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

    def answering(self) -> list[int]:
        """Those of its replicas to which the proxy has connections: a process alone may still be loading its models."""
        lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        connected = [(words[9], int(words[1].partition(":")[2], 16)) for words in lines if words[3] == "01"]
        linked = {inode for inode, port in connected if port in OF_REPLICAS}
        return [pid for pid in self.replicas() if sockets(pid) & linked]


@contextlib.contextmanager
def served(
    folder: Path, make_bundle: MakeBundle, replicas: dict[str, float], port: int | None = None
) -> Iterator[Server]:
    """``serve`` in a process of its own, with registered versions of a model and a key; at any free port by default."""
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
        port = port or free_port()
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


def pids() -> list[int]:
    """All processes of this machine."""
    return [int(place.name) for place in Path("/proc").iterdir() if place.name.isdigit()]


def described(pid: int, file: str) -> bytes:
    """A file of ``/proc``; empty where the process has gone or is somebody else's."""
    try:
        return Path(f"/proc/{pid}/{file}").read_bytes()
    except OSError:
        return b""


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


@dataclass
class Tally:
    """What became of many requests."""

    outcomes: collections.Counter[str] = field(default_factory=collections.Counter)
    versions: collections.Counter[str] = field(default_factory=collections.Counter)

    @property
    def failed(self) -> dict[str, int]:
        return {outcome: count for outcome, count in self.outcomes.items() if outcome != "200"}


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
