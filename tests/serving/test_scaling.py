"""How many replicas there are: the arithmetic by hand, and Serve itself from one replica to two, to none and back."""

import asyncio
import itertools
import json
import math
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.serve.config import AutoscalingPolicy

from cluster.session import usable_cores
from serving.host import replica_cores
from serving.outcomes import Backlog, Batch
from serving.recipe import Replicas
from serving.scaling import Policy, Report, wanted
from serving.workload import MEMORY_SECONDS, Traffic, Workload
from tests.serving.conftest import TEXTS, MakeBundle, entry
from tests.serving.served import Server, load, served
from tests.serving.test_edge import ask
from training.bundle import Bundle

# What the controller does with a policy, in a process that can import none of our packages.
CONTROLLER = """
import json, pathlib, sys
sys.modules.update(dict.fromkeys(["serving", "tuning", "training", "cluster"]))
from types import SimpleNamespace
from ray import cloudpickle
policy = cloudpickle.loads(pathlib.Path(sys.argv[1]).read_bytes())(target_wait_seconds=0.5, idle_seconds=60)
metrics = {name: {"r": [SimpleNamespace(value=value)]} for name, value in json.loads(sys.argv[2]).items()}
print(policy(SimpleNamespace(
    target_num_replicas=1, running_replicas=["r"], raw_metrics=metrics, total_num_requests=3
))[0])
"""


@pytest.mark.parametrize(
    ("reports", "present", "expected"),
    [
        ([(0.0, 0.0)], 1, 1),  # idle
        ([(0.5, 1.0)], 1, 1),  # the wait that is aimed at
        ([(0.6, 1.0)], 1, 2),
        ([(3.0, 1.0)], 1, 6),
        ([(0.2, 1.0), (0.9, 1.0)], 2, 3),  # spread evenly they would wait 0.55 s each
        ([(0.0, 1.0)], 1, 1),  # one client that never waits: busy, but nothing a second one would do sooner
        ([(0.0, 0.5), (0.0, 0.5), (0.0, 0.5)], 3, 2),  # no queue, and yet one alone would drown
        ([(0.0, 0.2), (0.0, 0.2), (0.0, 0.2)], 3, 1),
        ([(0.0, 0.7)], 3, 1),  # two that were asked for have not come
    ],
)
def test_as_many_as_bring_the_wait_to_what_is_aimed_at(
    reports: list[tuple[float, float]], present: int, expected: int
) -> None:
    assert wanted([Report(wait, busy, 0.0) for wait, busy in reports], present, 0.5) == expected


def context(reports: list[Report], *, running: int, target: int = 1, requests: float = 0.0) -> Any:
    """What Serve hands to a policy, as far as ours looks at it."""
    older = SimpleNamespace(value=-1.0)
    metrics = {
        name: {index: [older, SimpleNamespace(value=getattr(report, name))] for index, report in enumerate(reports)}
        for name in Report._fields
    }
    return SimpleNamespace(
        target_num_replicas=target, running_replicas=range(running), raw_metrics=metrics, total_num_requests=requests
    )


def test_none_is_needed_when_all_have_been_idle_and_nobody_asks() -> None:
    policy, idle, asked = Policy(0.5, 60), Report(0.0, 0.0, 61.0), Report(0.0, 0.0, 59.0)
    assert policy(context([idle], running=1))[0] == 0
    assert policy(context([idle, asked], running=2, target=2))[0] == 1
    assert policy(context([idle], running=1, requests=0.1))[0] == 1  # Serve would bring it back at once
    assert policy(context([], running=0, target=0))[0] == 0
    assert policy(context([], running=0, target=1))[0] == 1  # it is starting
    assert policy(context([idle], running=2, target=3))[0] == 3  # one has not said anything yet


def test_the_policy_runs_where_none_of_our_code_is(tmp_path: Path) -> None:
    policy = AutoscalingPolicy(
        policy_function=f"{Policy.__module__}:{Policy.__name__}",
        policy_kwargs={"target_wait_seconds": 0.5, "idle_seconds": 60},
    )
    (tmp_path / "policy").write_bytes(policy.get_serialized_policy_def() or b"")
    report = json.dumps(Report(1.2, 1.0, 0.0)._asdict())
    words = [sys.executable, "-I", "-c", CONTROLLER, str(tmp_path / "policy"), report]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert (done.stdout, done.returncode) == ("3\n", 0), done.stderr


class Waiting:
    """A model with a backlog."""

    def __init__(self, name: str, tokens: int, unmeasured: int) -> None:
        self.name, self.version, self.scheduler = name, "1", self
        self._backlog = Backlog(tokens, unmeasured)

    def backlog(self) -> Backlog:
        return self._backlog


def test_the_wait_is_tokens_over_tokens_a_second() -> None:
    now = [0.0]
    workload = Workload(lambda: now[0])
    assert workload.report([Waiting("a", 1000, 10)], 5.0) == Report(0.0, 0.0, 5.0)  # nothing is measured yet
    for _ in range(2):
        now[0] += 2.0
        workload.ran("a", "1", Batch(items=10, tokens=200, padded_tokens=250, seconds=1.0, oldest_waited=0.0))
    # 200 tokens a second, 20 tokens an item: 1000 tokens, and ten items of unknown length
    fades = 1 + math.exp(-2.0 / MEMORY_SECONDS)
    report = workload.report([Waiting("a", 1000, 10)], 0.0)
    assert report.wait_seconds == pytest.approx((1000 + 10 * 20) / 200)
    assert report.busy == pytest.approx(fades / MEMORY_SECONDS)
    workload.ran("b", "1", Batch(items=1, tokens=100, padded_tokens=100, seconds=4.0, oldest_waited=0.0, share=32))
    both = workload.report([Waiting("a", 1000, 0), Waiting("b", 100, 0)], 0.0)
    assert both.wait_seconds == pytest.approx(1000 / 200 + 4.0 / 32)
    assert both.busy == pytest.approx((fades + 4.0 / 32) / MEMORY_SECONDS)
    now[0] += 5 * MEMORY_SECONDS
    later = workload.report([Waiting("a", 1000, 10)], 0.0)
    assert later.wait_seconds == pytest.approx(6.0)  # how fast it is was not forgotten
    assert later.busy < 0.01


def test_a_model_that_always_computes_is_busy_all_the_time() -> None:
    now = [0.0]
    workload = Workload(lambda: now[0])
    for _ in range(1000):
        now[0] += 0.2
        workload.ran("a", "1", Batch(items=1, tokens=1, padded_tokens=1, seconds=0.1, oldest_waited=0.0))
    assert workload.report([Waiting("a", 0, 0)], 0.0).busy == pytest.approx(0.5, abs=0.01)


def test_a_request_that_goes_on_is_no_idleness() -> None:
    now, seen = [0.0], []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        now[0] += 100.0
        seen.append(traffic.idle_seconds())

    traffic = Traffic(lambda: now[0])
    noticed = traffic.through(app)
    now[0] = 3.0
    assert traffic.idle_seconds() == 3.0
    asyncio.run(noticed({"type": "lifespan"}, None, None))  # type: ignore[arg-type]
    assert seen == [103.0]
    asyncio.run(noticed({"type": "http"}, None, None))  # type: ignore[arg-type]
    assert seen == [103.0, 0.0]
    assert traffic.idle_seconds() == 0.0
    now[0] += 7.0
    assert traffic.idle_seconds() == 7.0


def test_what_models_compute_is_measured_behind_the_edge(bundle: Bundle, edge_of: Callable[..., Any]) -> None:
    with edge_of({"intent": entry(bundle)}) as running:
        models = running.lineup.served()
        assert running.metrics.workload.report(models, 0.0).busy == 0.0
        assert ask(running, {"inputs": TEXTS})[0] == 200
        report = running.metrics.workload.report(models, 0.0)
    assert 0.0 < report.busy < 1.0
    assert report.wait_seconds == 0.0


def test_a_machine_is_shared_out_where_there_may_be_no_replica() -> None:
    assert replica_cores(Replicas(min=0, max=2))[1] == usable_cores()


def long_load(server: Server, stop: threading.Event, connections: int, inputs: int, pause: float) -> Any:
    """Asks until it is told to stop."""

    def numbers() -> Any:
        return itertools.takewhile(lambda _: not stop.wait(pause), itertools.count())

    return load(server.port, numbers(), connections, inputs=inputs)


@pytest.mark.slow
def test_replicas_come_with_work_and_go_without(
    make_bundle: MakeBundle, tmp_path: Path, wait_until: Callable[..., None]
) -> None:
    replicas = {"min": 0, "max": 2, "target_wait_seconds": 0.02, "down_after_seconds": 10, "idle_seconds": 10}
    with served(tmp_path, make_bundle, replicas) as server, ThreadPoolExecutor(1) as pool:
        assert len(server.replicas()) == 1

        started, stop = time.perf_counter(), threading.Event()
        loading = pool.submit(long_load, server, stop, 12, 128, 0.0)
        wait_until(lambda: len(server.answering()) == 2, 300)
        came = time.perf_counter() - started
        stop.set()
        heavy = loading.result()

        started, stop = time.perf_counter(), threading.Event()
        loading = pool.submit(long_load, server, stop, 1, 1, 0.2)
        wait_until(lambda: len(server.replicas()) == 1, 300)
        went = time.perf_counter() - started
        stop.set()
        light = loading.result()
        print(f"a second one answers after {came:.1f} s of load, gone {went:.1f} s after it")  # noqa: T201
        print(f"heavy: {dict(heavy.outcomes)}; light: {dict(light.outcomes)}")  # noqa: T201
        assert heavy.failed == light.failed == {}

        started = time.perf_counter()
        wait_until(lambda: not server.replicas(), 300)
        none = time.perf_counter() - started
        started = time.perf_counter()
        first = load(server.port, 8, 4)
        waited = time.perf_counter() - started
        print(f"none {none:.1f} s after the last request; the next four waited {waited:.1f} s: {dict(first.outcomes)}")  # noqa: T201
        assert first.failed == {}
        assert load(server.port, 24, 8).failed == {}
