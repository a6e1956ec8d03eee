"""Two replicas under load while a version is changed or taken back, or a process killed: what it costs whom."""

import collections
import contextlib
import http.client
import json
import os
import resource
import select
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from serving import host
from tests.serving.conftest import MakeBundle
from tests.serving.served import KEY, Server, Tally, exchange, load, served, versions
from training import registry


@pytest.fixture(scope="module")
def server(make_bundle: MakeBundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with served(tmp_path_factory.mktemp("served"), make_bundle, {"min": 2, "max": 2}) as running:
        yield running


def test_what_answers_does_not_step_back_behind_other_work(server: Server) -> None:
    own = os.getpriority(os.PRIO_PROCESS, server.process.pid)
    answering = [*server.replicas(), *server.proxies(), *server.controllers()]
    assert len(answering) >= 4
    assert {os.getpriority(os.PRIO_PROCESS, pid) for pid in answering} == {own}


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


def both_answer(server: Server) -> bool:
    """Whether the proxy hands requests to two replicas, which Serve's controller has then told it of."""
    load(server.port, 24, 8)
    return len(server.answering()) == 2


def test_a_killed_controller_costs_nobody_an_answer_and_comes_back(
    server: Server, wait_until: Callable[..., None]
) -> None:
    # One that still starts when its controller goes is begun anew by the next.
    wait_until(lambda: both_answer(server), 240)
    kept, gone = sorted(server.replicas())
    tally = killed(server.controllers, server, wait_until)
    print("killed the controller under 4 connections:", dict(tally.outcomes))  # noqa: T201  a figure to quote
    assert sum(tally.failed.values()) <= 4
    # The controller that came takes over the replicas that it finds, and replaces one that goes.
    assert sorted(server.replicas()) == [kept, gone]
    os.kill(gone, signal.SIGKILL)
    wait_until(lambda: both_answer(server) and kept in server.answering(), 240)
    assert len(server.replicas()) == 2


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
    said: set[int] = set()

    def ended() -> bool:
        with contextlib.suppress(OSError, http.client.HTTPException):
            said.add(exchange(server, "GET", "/v2/health/ready", {})[0])
        return server.process.poll() is not None

    server.process.send_signal(signal.SIGTERM)
    wait_until(ended, 90)
    assert server.process.returncode == 0
    assert 200 in said  # those who came at once were still answered
    assert said <= {200, 503}, said
    assert not wanted.exists()
    wait_until(lambda: not server.replicas(), 30)
    with pytest.raises(OSError), socket.create_connection(("127.0.0.1", server.port), timeout=5):
        pass
