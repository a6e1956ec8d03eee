"""Models on one base: what each says in company is what it says alone, and the base is there once."""

import hashlib
import itertools
import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from cluster.storage import write_json
from serving import shared_base
from serving.batching import Failed, isolated
from serving.families import Families, Family, Seat, kinship
from serving.keys import Keys
from serving.memory import Memory
from serving.outcomes import Batch
from serving.predictor import EMPTY, Predictor
from serving.recipe import Serve
from serving.scheduler import Scheduler
from tests.serving.conftest import LABELS, TEXTS, Running, entry
from tests.serving.test_edge import ask
from training.bundle import Bundle, open_bundle, write_bundle
from training.models.adapt import adapt_model
from training.models.base import base_digest
from training.recipe import Model
from training.tasks.task import task_class

ADAPTED: dict[str, dict[str, Any]] = {
    "every-layer": {"adapt": {"lora": {"r": 4}}},
    "queries": {"adapt": {"lora": {"r": 2, "targets": ["query"]}}, "labels": LABELS[:3]},
    "head": {"adapt": "head"},
    "yes-or-no": {"adapt": {"lora": {"r": 3, "targets": ["dense"]}}, "labels": ["no", "yes"]},
}

MakeAdapted = Callable[..., Bundle]


@pytest.fixture(scope="module")
def make_adapted(tiny_base: Path) -> MakeAdapted:
    """``make_adapted(folder, name, adapt="head", labels=LABELS, seed=1, …)``: a bundle that lacks its base."""
    seeds = itertools.count(1)

    def make(
        folder: Path, name: str, adapt: Any = "head", labels: list[str] = LABELS, base: Path = tiny_base, **more: Any
    ) -> Bundle:
        plain = {"task": "text-classification", "base": str(base), "inputs": {"text": ["text"]}, "target": "label"}
        rows = pa.table({"text": labels, "label": more.pop("targets", labels)})
        model = Model(**{**plain, "adapt": adapt, "bundle": "adapter", **more})
        task = task_class(model.task).learn(model, base, {"train": rows})
        with torch.random.fork_rng():
            torch.manual_seed(next(seeds))
            network = task.build(base)
            adapt_model(network, task.head(network), model.adapt)
            for part, weight in network.named_parameters():
                if weight.requires_grad and weight.ndim > 1:
                    torch.nn.init.normal_(weight, std=1.0 if "classifier" in part else 0.2)
        folder.mkdir(parents=True)
        kept = {"name": str(base), "digest": base_digest(base), "adapt": model.model_dump()["adapt"]}
        none: dict[str, Any] = {}
        write_bundle(
            folder, model=network, task=task, name=name, recipe=none, metrics={}, baselines={}, data=none, base=kept
        )
        return open_bundle(folder)

    return make


@pytest.fixture(scope="module")
def bundles(make_adapted: MakeAdapted, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    folder = tmp_path_factory.mktemp("adapted")
    return {name: make_adapted(folder / name, name, **how) for name, how in ADAPTED.items()}


@pytest.fixture(scope="module")
def alone(bundles: dict[str, Bundle]) -> dict[str, Predictor]:
    """A predictor of each, with a base of its own in which all that was learned is merged: the reference."""
    return {name: Predictor(bundle, "cpu") for name, bundle in bundles.items()}


@contextmanager
def family_of(bundles: dict[str, Bundle]) -> Iterator[tuple[Family, dict[str, Seat]]]:
    """A family with these models, in a process without a server."""
    family = Family(lambda family: Scheduler(family.prepare, family.answer, observe=family.observe))
    seats = {name: family.take(bundle, lambda part, whole: None) for name, bundle in bundles.items()}
    yield family, seats
    for seat in seats.values():
        seat.close()
    assert family.closed
    assert family.scheduler.join(30)


def assert_alike(answer: list[Any], expected: list[Any], within: float = 1e-5) -> None:
    assert [one["label"] for one in answer] == [one["label"] for one in expected]
    assert [one["score"] for one in answer] == pytest.approx([one["score"] for one in expected], abs=within)


def questions(seats: dict[str, Seat], names: list[str]) -> list[Any]:
    texts = itertools.cycle(TEXTS)
    return [(seats[name], (seats[name].predictor.rows([next(texts)])[0], EMPTY), 0) for name in names]


# --- what they say ----------------------------------------------------------------------------------------------------


def test_a_batch_of_all_says_what_each_says_alone(bundles: dict[str, Bundle], alone: dict[str, Predictor]) -> None:
    names = random.Random(3).choices(list(bundles), k=40)
    with family_of(bundles) as (family, seats):
        assert len({kinship(bundle) for bundle in bundles.values()}) == 1
        values = questions(seats, names)
        answers = family.answer([value for value, _ in family.prepare(values)])
    for name, (_, (row, _), _), answer in zip(names, values, answers, strict=True):
        assert_alike(answer, alone[name].predict([row["text"]])[0])


def test_who_breaks_the_batch_breaks_it_for_himself(bundles: dict[str, Bundle], alone: dict[str, Predictor]) -> None:
    told: dict[str, tuple[int, float]] = {}
    with family_of(bundles) as (family, seats):
        prepared = [value for value, _ in family.prepare(questions(seats, ["head", "queries", "head", "yes-or-no"]))]
        seat, (example, parameters), length = prepared[1]
        prepared[1] = (seat, ({**example, "input_ids": [10**6]}, parameters), length)
        answers = isolated(family.answer, prepared)
        for name, one in seats.items():
            one.observe = keeping(told, name)
        family.observe(Batch(items=4, tokens=40, padded_tokens=48, seconds=0.1, oldest_waited=0.0))
    assert told == {"head": (2, 1.5), "yes-or-no": (1, 3.0)}, "who got no answer is not counted"
    assert [isinstance(answer, Failed) for answer in answers] == [False, True, False, False]
    assert_alike(answers[3], alone["yes-or-no"].predict([TEXTS[3]])[0])


def keeping(told: dict[str, tuple[int, float]], name: str) -> Callable[[Batch, Batch], None]:
    def keep(part: Batch, whole: Batch) -> None:
        told[name] = (part.items, part.share)

    return keep


# --- over a socket ----------------------------------------------------------------------------------------------------


def right(running: Running, alone: dict[str, Predictor], name: str, text: str, **parameters: Any) -> bool:
    """Whether a model answers over the socket as it does alone."""
    status, value, _ = ask(running, {"inputs": [text], "parameters": parameters}, f"/models/{name}")
    assert status == 200, value
    (expected,) = alone[name].predict([text], parameters)
    assert_alike(value[0], expected)
    if parameters:
        scores = [[word["score"] for word in one[0]["attributions"]] for one in (value[0], expected)]
        assert scores[0] == pytest.approx(scores[1], abs=1e-4)
    return True


def told(running: Running, name: str) -> dict[str, Any]:
    found: dict[str, Any] = ask(running, None, f"/models/{name}", "GET")[1]
    return found


def test_all_answer_at_once_over_one_queue(
    edge_of: Callable[..., Any],
    bundles: dict[str, Bundle],
    alone: dict[str, Predictor],
    wait_until: Callable[..., None],
) -> None:
    draw = random.Random(7)
    asked = [(draw.choice(list(bundles)), draw.choice(TEXTS)) for _ in range(80)]
    with edge_of({name: entry(bundle) for name, bundle in bundles.items()}) as running:
        (scheduler,) = {served.scheduler.family.scheduler for served in running.lineup.served()}
        with ThreadPoolExecutor(16) as pool:
            assert all(pool.map(lambda pair: right(running, alone, *pair), asked))
        assert right(running, alone, "queries", TEXTS[2], explain=True)
        assert right(running, alone, "head", TEXTS[2], explain=True)
        assert not scheduler.busy()
        assert told(running, "head")["shares_base_with"] == ["every-layer", "queries", "yes-or-no"]
        asked += [("queries", TEXTS[2]), ("head", TEXTS[2])]
        for name in bundles:  # a batch is counted after its answers are on their way
            wait_until(lambda name=name: counted(running, name) == sum(one == name for one, _ in asked))


def counted(running: Running, name: str) -> float:
    """The inputs of a model that the metrics say were computed."""
    line = f'headrace_batch_items_sum{{model="{name}",version="1"}} '
    page = running.metrics.page().decode().splitlines()
    return sum(float(one.removeprefix(line)) for one in page if one.startswith(line))


def test_the_base_is_in_memory_once_and_sleeps_with_all_of_them(
    edge_of: Callable[..., Any],
    bundles: dict[str, Bundle],
    alone: dict[str, Predictor],
    make_bundle: Any,
    tmp_path: Path,
) -> None:
    whole = make_bundle(tmp_path / "whole", name="whole")
    alone = {**alone, "whole": Predictor(whole, "cpu")}
    entries = {name: entry(bundle) for name, bundle in {**bundles, "whole": whole}.items()}
    with family_of(bundles) as (family, _):
        size, own = family.bytes, [seat.predictor.bytes for seat in family.seats]
        assert size - sum(own) == pytest.approx(min(one.bytes for one in alone.values()), rel=0.05)
        assert size < 2 * alone["head"].bytes
    with edge_of(entries, Serve(memory=size)) as running:
        memory: Memory = running.lineup._memory
        assert (memory.held(), len(memory._residents)) == (size, 2)
        for name in ("whole", "queries", "whole", "head"):
            assert right(running, alone, name, TEXTS[0])
            assert memory.held() == (alone["whole"].bytes if name == "whole" else size)
            assert told(running, "yes-or-no")["loaded"] is (name != "whole")
        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(lambda name: right(running, alone, name, TEXTS[2]), [*alone] * 4))


def test_models_come_and_go_while_the_others_answer(
    edge_of: Callable[..., Any],
    bundles: dict[str, Bundle],
    alone: dict[str, Predictor],
    make_adapted: MakeAdapted,
    tmp_path: Path,
    wait_until: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("serving.lineup.LINGER_SECONDS", 0.0)
    newer = make_adapted(tmp_path / "newer", "queries", {"lora": {"r": 5}})
    entries = {name: entry(bundle) for name, bundle in bundles.items()}
    with edge_of(entries) as running:
        family = next(iter(running.lineup.served())).scheduler.family
        before = family.bytes
        with ThreadPoolExecutor(4) as pool:
            going_on = pool.map(lambda text: right(running, alone, "head", text), TEXTS * 10)
            write_json(running.wanted, {"queries": entry(newer, 2), "head": entries["head"]})
            wait_until(lambda: len(family.seats) == 2 and told(running, "queries")["version"] == "2")
            assert all(going_on)
        assert right(running, {"queries": Predictor(newer, "cpu")}, "queries", TEXTS[2])
        assert family.bytes < before
        hanging = {key for module in family.base.network.modules() for key in getattr(module, "lora_A", {})}
        assert len(hanging) == 1, "nothing is left of those that went"
        write_json(running.wanted, {})
        wait_until(lambda: not running.lineup._loaded)
        assert family.closed
        write_json(running.wanted, {"head": entries["head"]})
        wait_until(lambda: ask(running, None, "/models/head", "GET")[0] == 200)
        assert right(running, alone, "head", TEXTS[2])


# --- who is none of them ----------------------------------------------------------------------------------------------


def test_only_what_left_its_base_as_it_was_and_reads_alike_is_of_a_family(
    bundles: dict[str, Bundle], make_adapted: MakeAdapted, make_bundle: Any, tmp_path: Path
) -> None:
    own = kinship(bundles["head"])
    assert kinship(make_bundle(tmp_path / "whole")) is None
    assert kinship(make_adapted(tmp_path / "dora", "dora", {"lora": {"variant": "dora"}})) is None
    spans = [[{"start": 0, "end": 4, "label": label}] for label in ("card", "city")]
    tokens = {"task": "token-classification", "targets": spans}
    assert (
        kinship(make_adapted(tmp_path / "tokens", "tokens", "head", ["card of mine", "Rome is far"], **tokens)) is None
    )
    assert kinship(make_adapted(tmp_path / "short", "short", max_length=9)) not in (own, None)
    assert Families(lambda family: pytest.fail("nobody is here")).find(bundles["head"], "fast") is None


def test_a_key_learns_no_names_of_others_on_the_base(
    edge_of: Callable[..., Any], bundles: dict[str, Bundle], tmp_path: Path
) -> None:
    (tmp_path / "keys").write_text(f"desk:{hashlib.sha256(b'desk').hexdigest()} models=head,queries\n")
    with edge_of({name: entry(one) for name, one in bundles.items()}, Serve(), Keys(tmp_path / "keys")) as running:
        as_desk = {"Authorization": "Bearer desk"}
        assert ask(running, None, "/models/head", "GET", as_desk)[1]["shares_base_with"] == ["queries"]
        listed = ask(running, None, "/models", "GET", as_desk)[1]
        assert {model["name"]: model["shares_base_with"] for model in listed} == {
            "head": ["queries"],
            "queries": ["head"],
        }


def test_a_family_that_sleeps_is_not_there_either_when_all_have_left(bundles: dict[str, Bundle]) -> None:
    """What its weights took has been counted off then."""
    seen = []
    with family_of({"head": bundles["head"]}) as (family, seats):
        assert family.loaded
        family.sleep()
        family.load()
        seen.append(family.loaded)
        family.sleep()
        seats["head"].close()
        assert not family.seats
        seen.append(family.loaded)
    assert seen == [True, False]


def test_who_says_something_else_in_company_is_left_alone(
    edge_of: Callable[..., Any],
    bundles: dict[str, Bundle],
    alone: dict[str, Predictor],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(shared_base, "TOLERANCE", -1.0)
    with edge_of({name: entry(bundles[name]) for name in ("head", "queries")}) as running:
        assert "head shares its base with no other model" in caplog.text
        assert told(running, "head")["shares_base_with"] == []
        for name in ("head", "queries"):
            assert right(running, alone, name, TEXTS[2])
