"""Several versions behind one name: exact shares, a shadow that costs clients nothing, and versions taken back."""

import collections
import contextlib
import itertools
import logging
import math
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import requests
from scipy.spatial.distance import jensenshannon

from cluster.errors import RecipeError, UserError
from cluster.storage import read_json, write_json
from serving import rollout
from serving.agreement import agreement
from serving.model import Model, Route
from serving.outcomes import Batch
from serving.predictor import Predictor
from serving.recipe import Hosted, Rollback, Serve
from serving.rollout import COMPARABLE, KEPT, NOTICEABLE_SECONDS, TRIAL, Figures, Finding, Record, Size, judge
from serving.wanted import Wanted, hosting
from tests.conftest import WORDS
from tests.serving.conftest import MakeBundle, Running, entry, route
from training import registry
from training.bundle import Bundle, open_bundle

BOUNDS = Rollback(least=100)
ASKED = [f"{word} {' '.join(WORDS.split()[: place % 23])}" for place, word in enumerate(WORDS.split())]


# --- who answers ------------------------------------------------------------------------------------------------------


def a_version(version: str) -> Any:
    """What `Model` asks of a version, without weights."""
    return SimpleNamespace(name="intent", version=version, record=Record(10))


def model_of(shares: list[int]) -> Model:
    return Model({}, [Route(a_version(str(place)), share) for place, share in enumerate(shares)])


@pytest.mark.parametrize("shares", [[90, 10], [1, 99], [34, 33, 33], [100], [0, 100], [50, 25, 25]])
def test_shares_are_exact_and_spread_out(shares: list[int]) -> None:
    model = model_of(shares)
    picked = [int(model.pick().version) for _ in range(300)]
    for place, share in enumerate(shares):
        for start in range(0, 300, 100):
            assert picked[start : start + 100].count(place) == share
        turns = [turn for turn, one in enumerate(picked) if one == place]
        gaps = [after - before for before, after in itertools.pairwise(turns)]
        if len(shares) == 2 and gaps:  # of two, neither waits longer than its share says
            assert max(gaps) <= math.ceil(100 / share)
    assert int(model.leading.version) == shares.index(max(shares))


def test_only_what_may_be_taken_back_is_on_trial() -> None:
    old = Record(10)
    steady, took_over = a_version("1"), a_version("2")
    assert list(Model({}, [Route(steady, 100)]).on_trial(10)) == []
    alone = Model({}, [Route(took_over, 100, "1", old)])
    assert list(alone.on_trial(10)) == [(took_over, old)]
    split = Model({}, [Route(steady, 90), Route(took_over, 10, "1", old), Route(a_version("3"), 0)])
    assert list(split.on_trial(10)) == [(took_over, steady.record)]
    for _ in range(TRIAL * 10 + 1):
        took_over.record.answered([])
    assert list(alone.on_trial(10)) == []  # it has passed
    assert list(split.on_trial(10)) == [(took_over, steady.record)]


# --- the verdict ------------------------------------------------------------------------------------------------------


def figures(labels: dict[str, int] | None = None, batches: dict[Size, list[float]] | None = None) -> Figures:
    return Figures(100, 0, collections.Counter(labels), batches or {})


@pytest.mark.parametrize("seed", range(5))
def test_the_divergence_is_scipys(seed: int) -> None:
    one, other = np.random.default_rng(seed).integers(0, 50, (2, 9))
    ours = {str(place): int(count) for place, count in enumerate(one) if count}
    others = {str(place): int(count) for place, count in enumerate(other) if count}
    assert rollout.divergence(ours, others) == pytest.approx(jensenshannon(one, other, base=2) ** 2, abs=1e-12)


@pytest.mark.parametrize(("labels", "sizes"), [(3, (200, 200)), (20, (200, 1000)), (77, (1000, 1000))])
def test_what_chance_does_is_what_samples_of_one_mix_show(labels: int, sizes: tuple[int, int]) -> None:
    draw = np.random.default_rng(3)
    mix = draw.dirichlet(np.full(labels, 20.0))
    seen, expected = [], []
    for _ in range(300):
        one, other = (collections.Counter(draw.choice(labels, size, p=mix).tolist()) for size in sizes)
        ours, others = ({str(label): count for label, count in mixed.items()} for mixed in (one, other))
        seen.append(rollout.divergence(ours, others))
        expected.append(rollout.chance(ours, others))
    assert np.mean(seen) == pytest.approx(np.mean(expected), rel=0.15)


def test_a_mix_that_moved_is_found_and_one_that_chance_moved_is_not() -> None:
    draw = random.Random(5)
    names = [f"label {place}" for place in range(77)]
    ours, others = (collections.Counter(draw.choices(names, k=100)) for _ in range(2))
    reference = jensenshannon([ours[name] for name in names], [others[name] for name in names], base=2) ** 2
    assert BOUNDS.labels is not None
    assert reference > BOUNDS.labels  # few samples of many labels are never alike
    assert judge(figures(ours), figures(others), BOUNDS) is None
    moved, before = {"a": 80, "b": 20}, {"a": 20, "b": 80}
    found: Any = judge(figures(moved), figures(before), BOUNDS)
    shift = jensenshannon([80, 20], [20, 80], base=2) ** 2 - 1 / (8 * math.log(2)) * (2 / 100)
    assert found == ("labels", pytest.approx(shift), 0.2)
    assert judge(figures(moved), figures({"a": 10, "b": 40}), BOUNDS) is None  # too few to compare with
    assert judge(figures(moved), None, BOUNDS) is None
    assert judge(figures(moved), figures(before), BOUNDS.model_copy(update={"labels": None})) is None


def test_errors_are_said_as_soon_as_no_answer_could_make_up_for_them() -> None:
    record = Record(BOUNDS.least)
    for _ in range(5):
        record.failed()
    assert judge(record.figures(), None, BOUNDS) is None
    for _ in range(94):
        record.answered([[]])
    assert judge(record.figures(), None, BOUNDS) is None
    record.failed()
    found: Any = judge(record.figures(), None, BOUNDS)
    assert found == ("errors", pytest.approx(0.06), 0.05)
    before = Figures(100, 3)
    assert judge(record.figures(), before, BOUNDS) is None  # the version before failed half as often: no cure
    for _ in range(100):
        record.answered([[]])
    assert judge(record.figures(), None, BOUNDS) is None  # the last 100 are what counts


def test_slowness_is_found_among_batches_of_like_size() -> None:
    fast, slow = NOTICEABLE_SECONDS * 2, NOTICEABLE_SECONDS * 5
    many = [fast] * COMPARABLE
    found = judge(figures(batches={(8, 1): [slow] * COMPARABLE}), figures(batches={(8, 1): many}), BOUNDS)
    assert found == ("latency", 2.5, 2.0)
    # Larger batches, or two at once, take longer; hiccups are rarer than one in twenty.
    too_little: list[dict[Size, list[float]]] = [
        {(10, 1): [slow] * COMPARABLE},
        {(8, 1): [*many, slow]},
        {(8, 1): [slow] * (COMPARABLE - 1)},
        {(8, 2): [slow] * COMPARABLE},
    ]
    for ours in too_little:
        assert judge(figures(batches=ours), figures(batches={(8, 1): many}), BOUNDS) is None
    unseen: dict[Size, list[float]] = {(8, 1): [NOTICEABLE_SECONDS] * COMPARABLE}
    assert judge(figures(batches=unseen), figures(batches={(8, 1): [1e-4] * COMPARABLE}), BOUNDS) is None


def test_a_record_keeps_what_is_lately() -> None:
    record = Record(3)
    record.failed()
    for _ in range(3):
        record.answered([[{"label": "a", "score": 0.9}, {"label": "b", "score": 0.1}], [], [0.5, 0.5], "text", None])
    for _ in range(KEPT + 1):
        record.batch(Batch(1, 9, 15, 0.5, 0.0))
    record.batch(Batch(1, 9, 16, 0.5, 0.0))
    found = record.figures()
    assert (found.answers, found.failed, found.labels, record.seen) == (3, 0, {"a": 3}, 4)
    assert {size: len(seconds) for size, seconds in found.batches.items()} == {(4, 1): KEPT - 1, (5, 1): 1}
    record.reset()
    assert (record.figures(), record.seen) == (Figures(), 0)


# --- what a file may say ----------------------------------------------------------------------------------------------


def test_traffic_and_shadows_stand_in_the_file(tmp_path: Path) -> None:
    file = tmp_path / "serve.yaml"
    models = "models:\n- help\n- {name: intent, traffic: {production: 90, 4: 10}, shadow: 5}\n"
    file.write_text(f"{models}serve: {{rollback: null}}\n", encoding="utf-8")
    wanted = hosting([str(file)], [])
    assert wanted.models == [
        Hosted(name="help"),
        Hosted(name="intent", traffic={"production": 90, "4": 10}, shadow="5"),
    ]
    assert wanted.serve.rollback is None
    alone = hosting([str(file)], ["models=[intent]", "serve.traffic={production: 50, 3: 50}"])
    assert alone.serve.traffic == {"production": 50, "3": 50}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("models: [a]\nserve:\n  traffic: {b: 90, c: 20}\n", r"yaml:3 serve.traffic: the shares sum to 110; .* to 100"),
        ("models: [a]\nserve:\n  traffic:\n    b: 99.5\n    c: 1\n", r"yaml:4 serve.traffic.b: .*valid integer"),
        (
            "models: [a]\nserve:\n  traffic:\n    b: -1\n    c: 101\n",
            r"yaml:4 serve.traffic.b: .*\n.*yaml:5 serve.tr",
        ),
        ("models: [a]\nserve:\n  shadow: a/b\n", r"yaml:3 serve.shadow: 'a/b' is neither an alias, as production, nor"),
        ("models:\n- a\n- {name: b, traffic: {c: 1}}\n", r"yaml:3 models.1.traffic: the shares sum to 1;"),
        ("models:\n- a\n- {name: b, shade: c}\n", r"yaml:3 models.1.shade: unknown key, did you mean 'shadow'\?"),
        ("models: [a, b]\nserve: {shadow: c}\n", r"yaml:2 serve: serve.shadow: which of several models is meant\?"),
        ("models: [a]\nserve: {rollback: {least: 0}}\n", r"yaml:2 serve.rollback.least: "),
    ],
)
def test_a_wrong_rollout_is_told_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError, match=message):
        hosting([str(file)], [])


# --- over a socket ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def other(make_bundle: MakeBundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A second version, which learned something else."""
    return make_bundle(tmp_path_factory.mktemp("bundles") / "other", seed=2)


def ask(running: Running, text: Any = "card", path: str = "/models/intent") -> requests.Response:
    return requests.post(f"{running.address}{path}", json={"inputs": text}, timeout=60)


def about(running: Running) -> dict[str, Any]:
    told: dict[str, Any] = requests.get(f"{running.address}/models/intent", timeout=60).json()
    return told


def counted(running: Running, line: str) -> float:
    """The value of one line of the metrics page."""
    page = requests.get(f"{running.address}/metrics", timeout=60).text
    return next((float(one.rpartition(" ")[2]) for one in page.splitlines() if one.startswith(line)), 0.0)


def test_each_version_answers_its_share_and_by_its_name(
    edge_of: Callable[..., Any], bundle: Bundle, other: Bundle
) -> None:
    predictors = {"1": Predictor(bundle, device="cpu"), "2": Predictor(other, device="cpu")}
    expected = {version: predictor.predict(["card"])[0] for version, predictor in predictors.items()}
    assert expected["1"] != expected["2"]
    with edge_of({"intent": entry(bundle, 1, route(other, 2, 10))}) as running:
        answers = [ask(running) for _ in range(100)]
        assert collections.Counter(one.headers["x-headrace-version"] for one in answers) == {"1": 90, "2": 10}
        for one in answers:
            said = one.json()[0]
            assert [label["score"] for label in said] == pytest.approx(
                [label["score"] for label in expected[one.headers["x-headrace-version"]]], abs=1e-5
            )
        tensors: Any = {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": ["card"]}]}
        for version in ("2", "1", "2"):
            path = f"{running.address}/v2/models/intent/versions/{version}"
            told = requests.post(f"{path}/infer", json=tensors, timeout=60).json()
            assert told["model_version"] == version
            assert told["outputs"][1]["data"] == [expected[version][0]["label"]]
            assert requests.get(path, timeout=60).json()["versions"] == [version]
        refused = requests.get(f"{running.address}/v2/models/intent/versions/3", timeout=60)
        assert (refused.status_code, refused.json()["error"]) == (404, "there are 1 and 2")
        assert requests.get(f"{running.address}/v2/models/intent", timeout=60).json()["versions"] == ["1", "2"]
        told = about(running)
        assert (told["version"], told["shadow"]) == ("1", None)
        assert told["routes"] == [{"version": "1", "share": 90}, {"version": "2", "share": 10}]


def test_a_changed_share_loads_nothing_anew(
    edge_of: Callable[..., Any], bundle: Bundle, other: Bundle, wait_until: Callable[..., None]
) -> None:
    with edge_of({"intent": entry(bundle, 1, route(other, 2, 10))}) as running:
        before = running.lineup.models["intent"]
        write_json(running.wanted, {"intent": entry(bundle, 1, route(other, 2, 60))})
        wait_until(lambda: running.lineup.models["intent"] is not before)
        after = running.lineup.models["intent"]
        assert (after.all(), after.leading) == (before.all(), before.all()[1])
        assert counted(running, 'headrace_swaps_total{model="intent",outcome="done"}') == 0


def test_a_shadow_is_compared_after_the_client_has_its_answer(
    edge_of: Callable[..., Any], bundle: Bundle, other: Bundle, wait_until: Callable[..., None]
) -> None:
    expected = agreement(*(Predictor(one, device="cpu").predict(ASKED) for one in (bundle, other)))
    assert expected < 0.5
    twin, shadow = ({"version": 2, "bundle": str(one.folder)} for one in (bundle, other))
    with edge_of({"intent": entry(bundle, 1, shadow=twin)}) as running:
        assert ask(running, ASKED).headers["x-headrace-version"] == "1"
        wait_until(lambda: about(running)["shadow"]["same"] == len(ASKED))  # the same weights, the same answers
        write_json(running.wanted, {"intent": entry(bundle, 1, shadow=shadow)})
        wait_until(lambda: about(running)["shadow"]["same"] == 0)
        assert ask(running, ASKED).headers["x-headrace-version"] == "1"
        wait_until(lambda: (told := about(running)["shadow"])["same"] + told["other"] == len(ASKED))
        told = about(running)["shadow"]
        assert (told["version"], told["agreement"], told["failed"]) == ("2", pytest.approx(expected), 0)
        assert all(seconds > 0 for seconds in told["median_seconds"].values())
        line = 'headrace_shadow_total{model="intent",outcome="same",version="2"}'
        assert counted(running, line) == len(ASKED) + told["same"]
        assert requests.get(f"{running.address}/v2/models/intent/versions/2", timeout=60).status_code == 404
        assert counted(running, 'headrace_requests_total{model="intent",outcome="ok",version="1"}') == 2

        shadow_of(running).served.predictor.task.reader = None
        assert ask(running).status_code == 200
        wait_until(lambda: about(running)["shadow"]["failed"] == 1)
        assert counted(running, 'headrace_requests_total{model="intent",outcome="internal"') == 0


def shadow_of(running: Running) -> Any:
    """Whose inside the tests reach into."""
    return running.lineup.models["intent"].shadow


def test_a_shadow_that_is_busy_is_not_asked(
    edge_of: Callable[..., Any], bundle: Bundle, other: Bundle, wait_until: Callable[..., None]
) -> None:
    shadow = {"version": 2, "bundle": str(other.folder)}
    with edge_of({"intent": entry(bundle, 1, shadow=shadow)}) as running:
        shadow_of(running)._waiting = 128  # as many inputs as it may have before it
        assert ask(running, ["card", "app"]).status_code == 200
        wait_until(lambda: about(running)["shadow"]["dropped"] == 2)  # the client has its answer before that
        shadow_of(running)._waiting = 0
        leading: Any = running.lineup.models["intent"].leading
        leading.scheduler.busy = lambda: True
        assert ask(running).status_code == 200
        wait_until(lambda: about(running)["shadow"]["dropped"] == 3)
        told = about(running)["shadow"]
    assert (told["same"] + told["other"], told["agreement"]) == (0, None)


# --- taken back -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def registered(make_bundle: MakeBundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with three registered versions, the first in production."""
    folder = tmp_path_factory.mktemp("registered")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HEADRACE_HOME", str(folder))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        made = [make_bundle(folder / "models" / "intent" / f"v{seed}", seed=seed) for seed in (1, 2, 3)]
        assert [registry.register(one, None) for one in made] == [1, 2, 3]
    return folder


@pytest.fixture
def versions(home: Path, registered: Path) -> list[Bundle]:
    """The three of them, in a home of this test's own."""
    shutil.copytree(registered, home)
    return [open_bundle(home / "models" / "intent" / f"v{seed}") for seed in (1, 2, 3)]


@contextlib.contextmanager
def driven(edge_of: Callable[..., Any], models: list[str | Hosted], options: Serve) -> Iterator[tuple[Running, Wanted]]:
    """An edge, and the driver's file that it follows."""
    wanted = Wanted(models)
    with edge_of(wanted.entries, options) as running:
        wanted.write(running.wanted)
        yield running, wanted


def routes(running: Running) -> list[tuple[str, int]]:
    return [(one.served.version, one.share) for one in running.lineup.models["intent"].routes]


def test_a_version_that_raises_is_taken_back_in_the_registry_too(
    edge_of: Callable[..., Any],
    versions: list[Bundle],
    wait_until: Callable[..., None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    options = Serve(rollback=Rollback(least=40))
    with driven(edge_of, ["intent"], options) as (running, wanted):
        assert ask(running).status_code == 200
        registry.promote("intent", 2)
        wanted.follow()
        wait_until(lambda: routes(running) == [("2", 100)])
        first: Any = running.lineup.models["intent"].leading
        first.predictor.task.reader = None  # a model that breaks inside
        failed = [ask(running).status_code for _ in range(3)]  # of 40 more than 5 % are needed
        assert failed == [500, 500, 500]
        wait_until(lambda: rollout.told(wanted.path))
        with caplog.at_level(logging.WARNING):
            wanted.follow()
        assert "intent: version 2 is taken back: 7.5% more of its requests failed (bound 5.0%), by 3" in caplog.text
        assert registry.resolve("intent").version == 1
        wait_until(lambda: routes(running) == [("1", 100)])
        assert ask(running).status_code == 200
        told = about(running)["taken_back"]
        assert [(one["version"], one["reason"], one["answers"]) for one in told] == [("2", "errors", 3)]
        assert counted(running, 'headrace_rollbacks_total{model="intent",reason="errors",version="2"}') == 1
        wanted.follow()
        assert not rollout.told(wanted.path)
        registry.promote("intent", 2)  # somebody insists: it is tried anew, and nothing of before counts
        wanted.follow()
        wait_until(lambda: routes(running) == [("2", 100)])
        assert running.lineup.models["intent"].leading.record.seen == 0
        wanted.remove()
        assert not rollout.folder_of(running.wanted).exists()


def test_a_split_version_whose_labels_moved_keeps_no_share(
    edge_of: Callable[..., Any], versions: list[Bundle], wait_until: Callable[..., None]
) -> None:
    options = Serve(rollback=Rollback(least=30, latency=None))
    split = Hosted(name="intent", traffic={"production": 60, "2": 40})
    answers = [Predictor(one, "cpu").predict(ASKED) for one in versions[:2]]
    ours, others = (collections.Counter(answer[0]["label"] for answer in given) for given in answers)
    assert rollout.divergence(ours, others) > 0.4  # the two weights say quite different things of these texts
    with driven(edge_of, [split], options) as (running, wanted):
        for text in ASKED:
            assert ask(running, text).status_code == 200
        wait_until(lambda: rollout.told(wanted.path))
        wanted.follow()
        (entry_now,) = read_json(wanted.path).values()
        assert [(one["version"], one["share"]) for one in entry_now["routes"]] == [(1, 100), (2, 0)]
        wait_until(lambda: routes(running) == [("1", 100), ("2", 0)])
        assert {ask(running).headers["x-headrace-version"] for _ in range(20)} == {"1"}
        assert about(running)["taken_back"][0]["reason"] == "labels"
        assert registry.resolve("intent").version == 1


def finding(version: int) -> Finding:
    return Finding("intent", str(version), "errors", 0.5, 0.05, 200)


def test_the_alias_of_a_place_moves_that_place_alone(home: Path, versions: list[Bundle]) -> None:
    alias("candidate", 2)
    wanted = Wanted([Hosted(name="intent", traffic={"production": 90, "candidate": 10}, shadow="3")])
    wanted.write(home / "serving" / "app.json")
    shadow = {"version": 3, "bundle": str(versions[2].folder)}
    assert wanted.entries["intent"] == entry(versions[0], 1, route(versions[1], 2, 10), shadow=shadow)
    alias("candidate", 3)
    wanted.follow()
    assert wanted.entries["intent"] == entry(versions[0], 1, route(versions[2], 3, 10, before=2), shadow=shadow)
    rollout.tell(wanted.path, finding(3))
    assert not rollout.tell(wanted.path, finding(3))  # another replica finds the same
    wanted.follow()
    assert wanted.entries["intent"]["routes"] == entry(versions[0], 1, route(versions[1], 2, 10))["routes"]
    alias("other", 3)  # the store has changed, the alias still says what was taken back
    wanted.follow()
    assert [one["version"] for one in wanted.entries["intent"]["routes"]] == [1, 2]
    registry.promote("intent", 3)  # the shadow's own version: they need not be compared
    wanted.follow()
    assert wanted.entries["intent"]["routes"] == entry(versions[2], 3, route(versions[1], 2, 10), before=1)["routes"]
    assert wanted.entries["intent"]["shadow"] is None
    registry.promote("intent", 2)
    wanted.follow()
    assert wanted.entries["intent"]["routes"] == [route(versions[1], 2, 100, before=3)]
    rollout.tell(wanted.path, finding(2))
    wanted.follow()  # production goes back; the candidate, which is the same version, has none to go back to
    assert [(one["version"], one["share"]) for one in wanted.entries["intent"]["routes"]] == [(3, 100), (2, 0)]
    assert registry.resolve("intent").version == 3


def test_what_a_replica_finds_too_late_changes_nothing(home: Path, versions: list[Bundle]) -> None:
    wanted = Wanted(["intent"])
    wanted.write(home / "serving" / "app.json")
    for late in (1, 2):  # the only one that there is, and one that does not answer
        rollout.tell(wanted.path, finding(late))
        wanted.follow()
        assert wanted.entries["intent"] == entry(versions[0], 1)
    registry.promote("intent", 2)
    wanted.follow()
    registry.promote("intent", 3)  # before the driver hears what is wrong with 2
    rollout.tell(wanted.path, finding(2))
    wanted.follow()
    assert registry.resolve("intent").version == 3
    assert [one["version"] for one in wanted.entries["intent"]["routes"]] == [3]


def test_traffic_is_not_split_where_one_version_is_named(versions: list[Bundle]) -> None:
    with pytest.raises(UserError, match=r"'intent/1' names one version, .* production, 2; serve intent, or say"):
        Wanted([Hosted(name="intent/1", traffic={"production": 50, "2": 50})])
    with pytest.raises(UserError, match="has no version with the alias 'candidate'"):
        Wanted([Hosted(name="intent", shadow="candidate")])


def alias(name: str, version: int) -> None:
    from training import store

    store.client().set_registered_model_alias("intent", name, str(version))
