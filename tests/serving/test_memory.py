"""Models leave memory and come back: the same answers in any order, within the bound, and nobody waits for ever."""

import asyncio
import copy
import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster.errors import RecipeError, UserError
from cluster.storage import write_json
from serving import host
from serving.batching import Limits
from serving.engines.engine import Subject
from serving.engines.size import own_bytes, weight_bytes
from serving.memory import Memory
from serving.outcomes import OverloadedError
from serving.predictor import Predictor
from serving.recipe import Serve
from serving.wanted import hosting
from tests.serving.conftest import TEXTS, MakeBundle, Running, entry
from tests.serving.gate import NEVER, Gate, play, scheduler_of
from tests.serving.test_edge import ask
from training.bundle import Bundle

NAMES = ("first", "second", "third")


@pytest.fixture(scope="module")
def bundles(make_bundle: MakeBundle, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    folder = tmp_path_factory.mktemp("three")
    return {name: make_bundle(folder / name, seed, name) for seed, name in enumerate(NAMES, 11)}


@pytest.fixture(scope="module")
def alone(bundles: dict[str, Bundle]) -> dict[str, Predictor]:
    """A predictor of each that never sleeps: the reference."""
    return {name: Predictor(bundle, "cpu") for name, bundle in bundles.items()}


@pytest.fixture(scope="module")
def size(alone: dict[str, Predictor]) -> int:
    """What each of them takes."""
    (size,) = {predictor.bytes for predictor in alone.values()}
    return size


@contextmanager
def bounded(edge_of: Callable[..., Any], bundles: dict[str, Bundle], limit: int) -> Iterator[Running]:
    with edge_of({name: entry(bundle) for name, bundle in bundles.items()}, Serve(memory=limit)) as running:
        yield running


def loaded(running: Running) -> set[str]:
    return {one["name"] for one in ask(running, None, "/models", "GET")[1] if one["loaded"]}


def right(running: Running, alone: dict[str, Predictor], name: str, text: str) -> bool:
    """Whether a model answers over the socket as it does alone."""
    status, value, _ = ask(running, {"inputs": [text]}, f"/models/{name}")
    assert status == 200, value
    (value,) = value
    (expected,) = alone[name].predict([text])
    assert [one["label"] for one in value] == [one["label"] for one in expected]
    return [one["score"] for one in value] == pytest.approx([one["score"] for one in expected], abs=1e-5)


# --- over a socket --------------------------------------------------------------------------------------------------


def test_all_answer_in_any_order_within_the_bound(
    edge_of: Callable[..., Any], bundles: dict[str, Bundle], alone: dict[str, Predictor], size: int
) -> None:
    with bounded(edge_of, bundles, 2 * size) as running:
        memory = running.lineup._memory
        assert loaded(running) == {"first", "second"}, "the file's order decides who is there at the start"
        order = [*NAMES, *reversed(NAMES), *random.Random(5).choices(NAMES, k=12)]
        for place, name in enumerate(order):
            assert right(running, alone, name, TEXTS[place % len(TEXTS)])
            assert memory.held() == 2 * size
            if place:
                before = next(other for other in reversed(order[:place]) if other != name)
                assert loaded(running) == {name, before}, "the two that were asked last"
        assert ask(running, {"inputs": "a"}, "/models/nobody")[0] == 404
        assert loaded(running) == {name, before}
        page = ask(running, None, "/metrics", "GET")[1]
        held = {one: f'headrace_memory_bytes{{model="{one}",version="1"}}' for one in NAMES}
        assert all(f"{held[one]} {float(size)}" in page for one in (name, before))
        assert sum(f"{line} 0.0" in page for line in held.values()) == 1
        assert 'headrace_wakes_total{model="third",version="1"}' in page


def test_all_answer_at_once_and_no_more_is_loaded_than_the_bound_and_one(
    edge_of: Callable[..., Any], bundles: dict[str, Bundle], alone: dict[str, Predictor], size: int
) -> None:
    with bounded(edge_of, bundles, 2 * size) as running:
        memory, done, most = running.lineup._memory, threading.Event(), [0]

        def watch() -> None:
            while not done.is_set():
                most[0] = max(most[0], memory.held())
                done.wait(0.001)

        watching = threading.Thread(target=watch)
        watching.start()
        asked = [(random.Random(place).choice(NAMES), TEXTS[place % len(TEXTS)]) for place in range(60)]
        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(lambda pair: right(running, alone, *pair), asked))
        done.set()
        watching.join()
        assert size <= most[0] <= 3 * size
        assert memory.held() <= 2 * size


def test_whoever_sleeps_is_still_told_of_and_checks_what_is_asked(
    edge_of: Callable[..., Any], bundles: dict[str, Bundle], size: int
) -> None:
    with bounded(edge_of, bundles, size) as running:
        for path in (
            "/models/third",
            "/v2/models/third/ready",
            "/v2/models/third",
            "/models/third/info",
            "/openapi.json",
        ):
            assert ask(running, None, path, "GET")[0] == 200
        assert ask(running, {"inputs": 7}, "/models/third")[0] == 422
        assert ask(running, {"inputs": "a", "parameters": {"top_k": 0}}, "/models/third")[0] == 422
        assert loaded(running) == {"first"}
        explained = {"inputs": ["card"], "parameters": {"explain": True}}
        status, value, _ = ask(running, explained, "/models/third")
        assert status == 200
        assert value[0][0]["attributions"], "by the weights that came back"


def test_who_asks_after_health_wakes_nobody_and_counts_as_nobody(
    edge_of: Callable[..., Any], bundles: dict[str, Bundle], alone: dict[str, Predictor], size: int
) -> None:
    with bounded(edge_of, bundles, 2 * size) as running:
        replica = object.__new__(host.Replica)
        replica._lineup = running.lineup
        assert right(running, alone, "second", "a")
        assert right(running, alone, "first", "a")
        asyncio.run(replica.check_health())
        assert loaded(running) == {"first", "second"}
        assert right(running, alone, "third", "a")
        assert loaded(running) == {"first", "third"}, "second was asked before first, whatever health asked since"


def test_a_bundle_that_was_changed_while_it_slept_is_not_loaded(
    edge_of: Callable[..., Any],
    make_bundle: MakeBundle,
    bundles: dict[str, Bundle],
    size: int,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    asleep = make_bundle(tmp_path / "asleep", seed=14, name="asleep")
    alone = {"asleep": Predictor(asleep, "cpu"), "first": Predictor(bundles["first"], "cpu")}
    weights = asleep.folder / "model.safetensors"
    kept = weights.read_bytes()
    with bounded(edge_of, {"first": bundles["first"], "asleep": asleep}, size) as running:
        weights.write_bytes(kept[:-4] + b"\0\0\0\x40")
        status, value, _ = ask(running, {"inputs": "my-private-text"}, "/models/asleep")
        assert (status, value["error"]["code"]) == (500, "internal")
        assert "was changed while the model slept" in caplog.text
        assert "my-private-text" not in caplog.text
        assert right(running, alone, "first", "a"), "the others go on"
        weights.write_bytes(kept)  # at another time, so it is read again and found to be the same
        assert right(running, alone, "asleep", "a")


def test_a_new_version_comes_first_and_the_one_before_is_forgotten(
    edge_of: Callable[..., Any],
    make_bundle: MakeBundle,
    bundles: dict[str, Bundle],
    size: int,
    tmp_path: Path,
    wait_until: Callable[..., None],
) -> None:
    other = make_bundle(tmp_path / "other", seed=15, name="first")
    alone = {"first": Predictor(other, "cpu")}
    with bounded(edge_of, bundles, 2 * size) as running:
        memory = running.lineup._memory
        entries = {name: entry(bundle) for name, bundle in bundles.items()}
        write_json(running.wanted, {**entries, "first": entry(other, 2)})
        wait_until(lambda: ask(running, {"inputs": "a"}, "/models/first")[2]["x-headrace-version"] == "2")
        assert "first" in loaded(running)
        assert right(running, alone, "first", TEXTS[0])
        wait_until(lambda: len(memory._residents) == 3)
        assert memory.held() <= 2 * size


# --- at the start ---------------------------------------------------------------------------------------------------


def test_what_can_never_fit_and_what_is_no_size_is_said_at_once(
    edge_of: Callable[..., Any], bundles: dict[str, Bundle], size: int, tmp_path: Path
) -> None:
    with (
        pytest.raises(UserError, match=f"serve.memory is {size - 1} bytes, and with first {size} are needed"),
        bounded(edge_of, bundles, size - 1),
    ):
        pass
    folder = str(bundles["first"].folder)
    assert hosting([folder], ["serve.memory=4GiB"]).serve.memory == 4 * 2**30
    for wrong in ("many", "0"):
        (tmp_path / "serve.yaml").write_text(f"models: [first]\nserve: {{memory: {wrong}}}\n")
        with pytest.raises(RecipeError, match=r"serve.yaml:2 serve\.memory"):
            hosting([str(tmp_path / "serve.yaml")], [])


def test_one_that_cannot_answer_is_found_though_it_would_sleep(
    edge_of: Callable[..., Any], bundles: dict[str, Bundle], make_bundle: MakeBundle, size: int, tmp_path: Path
) -> None:
    broken = make_bundle(tmp_path / "broken", seed=16, name="broken")
    (broken.folder / "config.json").write_text("{}")
    with (
        pytest.raises(UserError, match="was changed after training"),
        bounded(edge_of, {"first": bundles["first"], "broken": broken}, size),
    ):
        pass


# --- the rules, with models that weigh what the test says -------------------------------------------------------------


class Weight:
    """A model of ten bytes that tells what is done to it."""

    def __init__(self, name: str, told: list[str]) -> None:
        self.name, self.bytes, self.used, self.loaded, self._told = name, 10, 0.0, True, told

    def load(self) -> None:
        self.loaded = True
        self._told.append(f"+{self.name}")

    def sleep(self) -> None:
        self.loaded = False
        self._told.append(f"-{self.name}")


def ignored(*, loaded: bool, again: bool) -> None:
    """Nobody watches."""


def test_one_is_loaded_before_another_leaves_and_who_writes_never_does() -> None:
    told: list[str] = []
    memory = Memory(30)
    writer, old, recent, late = (Weight(name, told) for name in ("writer", "old", "recent", "late"))
    memory.admit(writer, ignored, stays=True)
    for used, one in enumerate((old, recent, late), 1):
        memory.admit(one, ignored)
        one.used = float(used)
    assert told == ["-late"]
    with memory.awake(late):
        assert told == ["-late", "+late", "-old"]
        assert memory.held() == 30
    memory.admit(Weight("second writer", told), ignored, stays=True)
    assert memory.held() == 30
    with pytest.raises(UserError, match="40 are needed"):
        memory.admit(Weight("third writer", told), ignored, stays=True)


def test_one_in_use_stays_and_who_needs_its_room_comes_next(wait_until: Callable[..., None]) -> None:
    """The busy one would take up its work at once again: it lets the other pass before."""
    told: list[str] = []
    memory = Memory(10)
    busy, asleep = Weight("busy", told), Weight("asleep", told)
    memory.admit(busy, ignored)
    memory.admit(asleep, ignored)
    held, told[:] = memory.awake(busy), []
    passed: list[str] = []

    def compute(one: Weight) -> None:
        with memory.awake(one):
            passed.append(one.name)

    waiting = threading.Thread(target=compute, args=(asleep,), daemon=True)
    with held:
        waiting.start()
        wait_until(lambda: memory._making_room)
        assert (told, passed) == (["+asleep"], []), "loaded, and waits: what is in use is not let go"
        again = threading.Thread(target=compute, args=(busy,), daemon=True)
        again.start()
    waiting.join(30)
    again.join(30)
    assert passed == ["asleep", "busy"]
    assert told == ["+asleep", "-busy", "+busy", "-asleep"]
    assert memory.held() == 10


def test_many_threads_with_little_memory_all_get_done() -> None:
    told: list[str] = []
    memory = Memory(20)
    models = [Weight(str(number), told) for number in range(6)]
    for one in models:
        memory.admit(one, ignored)
    inside: list[int] = []

    def compute(seed: int) -> None:
        for one in random.Random(seed).choices(models, k=200):
            with memory.awake(one):
                inside.append(sum(other.loaded for other in models))
                assert one.loaded

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(compute, range(8)))
    assert len(inside) == 1600
    assert max(inside) <= 3, "two, and the one that is being loaded"
    assert memory.held() <= 20


def test_one_that_was_forgotten_still_answers_what_it_had_taken() -> None:
    told: list[str] = []
    memory = Memory(10)
    one, other = Weight("one", told), Weight("other", told)
    memory.admit(one, ignored)
    memory.admit(other, ignored)
    memory.forget(other, ignored)
    with memory.awake(other):
        assert one.loaded
        assert other.loaded
        assert memory.held() == 10


def test_the_time_of_loading_is_no_pace() -> None:
    gate = Gate()

    @contextmanager
    def loading() -> Iterator[None]:
        gate.now += 100.0
        yield

    async def scenario() -> None:
        with scheduler_of(gate, limits=Limits(waiting=1), awake=loading) as scheduler:
            first = scheduler.submit(["a"], NEVER)
            await gate.busy()
            gate.now += 2.0
            gate.open(1)
            await first
            second = scheduler.submit(["b"], NEVER)
            await gate.busy()
            assert scheduler.running_for() == 0
            with pytest.raises(OverloadedError) as refused:
                scheduler.submit(["c", "d"], NEVER)
            assert refused.value.retry_after == pytest.approx(2.0)
            gate.open()
            await second

    play(scenario)


# --- what is counted --------------------------------------------------------------------------------------------------


def test_copies_of_engines_are_counted(bundles: dict[str, Bundle], tmp_path: Path) -> None:
    predictor = Predictor(bundles["first"], "cpu")
    model = predictor.model
    subject = Subject(predictor.task, model, predictor.device, [], tmp_path)
    assert weight_bytes(model) == predictor.bytes == 4 * sum(one.numel() for one in model.parameters()) + buffers(model)
    assert own_bytes("torch-fp32", subject) == 0
    low = copy.deepcopy(model).bfloat16()
    assert own_bytes("torch-bf16", subject) == pytest.approx(weight_bytes(low), rel=0.02)
    linear = sum(one.weight.numel() for one in model.modules() if isinstance(one, torch.nn.Linear))
    assert own_bytes("torch-int8", subject) == weight_bytes(model) - 3 * linear


def buffers(model: torch.nn.Module) -> int:
    return sum(buffer.nbytes for buffer in model.buffers())


def test_a_replica_that_ended_holds_no_memory_in_the_sum(tmp_path: Path) -> None:
    """Each replica counts in files of its own, which outlive it."""
    write = (
        "from serving.metrics import Metrics; one = Metrics(); one.memory('intent', '1', 5); one.wake('intent', '1')"
    )
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    for code in (write, f"{write}; print(one.page().decode())"):
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert 'headrace_memory_bytes{model="intent",version="1"} 5.0' in done.stdout
    assert 'headrace_wakes_total{model="intent",version="1"} 2.0' in done.stdout
