"""Versions that cannot be served, and those that can be only after a while: who answers meanwhile, and what is told.

A server must be able to start one more replica at any time, whatever somebody has promoted.
"""

import errno
import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import UserError
from cluster.storage import read_json, write_json
from serving import lineup as lineups
from serving.lineup import Lineup
from serving.metrics import Metrics
from serving.patience import FIRST_PAUSE, LONGEST_PAUSE, Patience
from serving.predictor import Predictor
from serving.recipe import Hosted, Serve
from serving.wanted import Wanted
from tests.serving.conftest import MakeBundle, entry, route
from tests.serving.test_completions import writers
from training import registry, store
from training.bundle import Bundle, open_bundle


@pytest.fixture(scope="module")
def made(make_bundle: MakeBundle, tmp_path_factory: pytest.TempPathFactory) -> list[Bundle]:
    """Versions of one model; the first is the smallest."""
    folder = tmp_path_factory.mktemp("versions")
    return [make_bundle(folder / f"v{seed}", seed, tokens=100 if seed == 1 else None) for seed in (1, 2, 3)]


@pytest.fixture
def versions(home: Path, made: list[Bundle]) -> list[Bundle]:
    """The same in this test's own home, registered, the first in production."""
    own = [home / "models" / "intent" / one.folder.name for one in made]
    for one, folder in zip(made, own, strict=True):
        shutil.copytree(one.folder, folder)
    bundles = [open_bundle(folder) for folder in own]
    assert [registry.register(one, None) for one in bundles] == [1, 2, 3]
    return bundles


def spoil(bundle: Bundle) -> None:
    """Somebody lays hands on it."""
    (bundle.folder / "config.json").write_text("{}", encoding="utf-8")


@contextmanager
def replica(wanted: Path, options: Serve | None = None) -> Iterator[Lineup]:
    """One more that starts now and follows the file."""
    started = Lineup(wanted, options or Serve(), Metrics())
    try:
        yield started
    finally:
        started.close()


def served(lineup: Lineup, name: str = "intent") -> list[tuple[str, int]]:
    return [(one.served.version, one.share) for one in lineup.models[name].routes]


def refused(lineup: Lineup) -> Any:
    return lineup.models["intent"].about()["refused"]


def failed(lineup: Lineup) -> float:
    return float(lineup._metrics._swaps.labels("intent", "failed")._value.get())


# --- what the driver takes up -----------------------------------------------------------------------------------------


def test_a_version_that_was_tampered_with_never_gets_into_the_file(
    home: Path, versions: list[Bundle], wait_until: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    wanted = Wanted(["intent"])
    wanted.write(home / "serving" / "app.json")
    with replica(wanted.path) as running:
        spoil(versions[1])
        registry.promote("intent", 2)
        wanted.follow()
        (now,) = read_json(wanted.path).values()
        assert now["routes"] == entry(versions[0])["routes"]
        told = [(one["version"], one["reason"]) for one in now["taken_back"]]
        assert told == [("2", "bundle")]
        assert "intent: version 2 is not taken: " in caplog.text
        assert "'config.json' was changed after training" in caplog.text
        wait_until(lambda: running.models["intent"].about()["taken_back"] == now["taken_back"])
        with replica(wanted.path) as another:  # in the place of one that was lost
            assert served(another) == [("1", 100)]
    caplog.clear()
    store.client().set_registered_model_alias("intent", "candidate", "3")  # the store has changed; the alias has not
    wanted.follow()
    assert not caplog.records
    registry.promote("intent", 3)
    wanted.follow()
    assert wanted.entries["intent"]["routes"] == [route(versions[2], 3, 100, before=1)]
    assert registry.resolve("intent").version == 3


def test_one_that_was_made_whole_again_is_taken_when_it_is_promoted_anew(home: Path, versions: list[Bundle]) -> None:
    wanted = Wanted(["intent"])
    wanted.write(home / "serving" / "app.json")
    whole = (versions[1].folder / "config.json").read_bytes()
    spoil(versions[1])
    registry.promote("intent", 2)
    wanted.follow()
    (versions[1].folder / "config.json").write_bytes(whole)
    registry.promote("intent", 1)
    wanted.follow()
    registry.promote("intent", 2)
    wanted.follow()
    assert wanted.entries["intent"]["routes"] == [route(versions[1], 2, 100, before=1)]


def test_a_broken_version_keeps_no_other_alias_from_being_followed(
    home: Path, versions: list[Bundle], make_bundle: MakeBundle
) -> None:
    others = [make_bundle(home / "models" / "pair" / str(seed), seed, "pair") for seed in (1, 2)]
    for one in others:
        registry.register(one, None)
    wanted = Wanted([Hosted(name="intent", traffic={"production": 90, "3": 10}), "pair"])
    wanted.write(home / "serving" / "app.json")
    shutil.rmtree(versions[1].folder)  # not broken but gone, which the registry itself says
    store.client().set_registered_model_alias("intent", "production", "2")
    registry.promote("pair", 2)
    wanted.follow()
    assert wanted.entries["pair"]["routes"] == [route(others[1], 2, 100, before=1)]
    assert [one["version"] for one in wanted.entries["intent"]["routes"]] == [1, 3]


# --- what a replica starts with ---------------------------------------------------------------------------------------


def test_a_replica_starts_with_what_was_served_before_where_the_new_version_is_too_large(
    home: Path, versions: list[Bundle], wait_until: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    sizes = [Predictor(one, "cpu").bytes for one in versions]
    assert sizes[0] < sizes[1] == sizes[2]
    options = Serve(memory=sizes[0])
    wanted = Wanted(["intent"])
    wanted.write(home / "serving" / "app.json")
    with replica(wanted.path, options) as running:
        for version in (2, 3):  # the second, too, took over from one that no replica could load
            registry.promote("intent", version)
            wanted.follow()
            wait_until(lambda version=version: failed(running) == version - 1)
            told = {"versions": [str(version)], "again": False}
            assert (served(running), refused(running)) == ([("1", 100)], told)
            caplog.clear()
            with replica(wanted.path, options) as another:
                assert (served(another), refused(another)) == ([("1", 100)], told)
                assert failed(another) == 1
                assert f"intent starts with version 1 (100 %): serve.memory is {sizes[0]} bytes" in caplog.text
    registry.promote("intent", 1)
    wanted.follow()
    with replica(wanted.path, options) as another:
        assert (served(another), refused(another)) == ([("1", 100)], None)
    wanted.remove()
    assert [path.name for path in wanted.path.parent.iterdir()] == []


def test_whoever_is_new_is_at_fault_where_memory_does_not_suffice(
    versions: list[Bundle], tmp_path: Path, wait_until: Callable[..., None]
) -> None:
    """In the file's order the new version would be loaded first, and what was served all along found too large."""
    (writer,) = writers(tmp_path, {"prompt": "prompt"}).values()
    options = Serve(memory=Predictor(versions[0], "cpu").bytes + Predictor(writer, "cpu").bytes)
    wanted, others = tmp_path / "app.json", {"prompt": entry(writer)}
    write_json(wanted, {"intent": entry(versions[0], 1), **others})
    with replica(wanted, options) as running:
        write_json(wanted, {"intent": entry(versions[1], 2, before=1), **others})
        wait_until(lambda: failed(running) == 1)
        with replica(wanted, options) as another:
            assert served(another) == served(running) == [("1", 100)]
            assert served(another, "prompt") == [("1", 100)]
            assert list(another.models) == ["intent", "prompt"]


def test_a_replica_that_knows_of_nothing_before_does_not_start(
    home: Path, versions: list[Bundle], tmp_path: Path
) -> None:
    wanted = Wanted(["intent"])
    wanted.write(home / "serving" / "app.json")
    spoil(versions[0])
    with pytest.raises(UserError, match="was changed after training"), replica(wanted.path):
        pass


def test_what_an_earlier_server_served_counts_for_nothing(home: Path, versions: list[Bundle]) -> None:
    """Its folder is left where it was killed, and what it served may be long gone from production."""
    first = Wanted(["intent"])
    first.write(home / "serving" / "app.json")
    with replica(first.path):
        pass
    registry.promote("intent", 2)
    second = Wanted(["intent"])
    second.write(home / "serving" / "app.json")
    spoil(versions[1])
    with pytest.raises(UserError, match="was changed after training"), replica(second.path):
        pass


# --- what is only away for a moment -----------------------------------------------------------------------------------


class Hiccups:
    """Opens bundles, of which some cannot be read for a while."""

    def __init__(self) -> None:
        self.away: set[Path] = set()
        self.asked: list[Path] = []

    def open(self, folder: Path) -> Bundle:
        self.asked.append(folder)
        if folder in self.away:
            raise OSError(errno.ESTALE, "Stale file handle")
        return open_bundle(folder)


@pytest.fixture
def hiccups(monkeypatch: pytest.MonkeyPatch) -> Hiccups:
    found = Hiccups()
    monkeypatch.setattr(lineups, "open_bundle", found.open)
    monkeypatch.setattr("serving.patience.FIRST_PAUSE", 0.01)
    return found


def test_a_version_that_could_not_be_read_is_tried_again_until_it_can(
    made: list[Bundle], tmp_path: Path, hiccups: Hiccups, wait_until: Callable[..., None]
) -> None:
    wanted = tmp_path / "app.json"
    write_json(wanted, {"intent": entry(made[1], 1)})
    with replica(wanted) as running:
        hiccups.away.add(made[2].folder)
        write_json(wanted, {"intent": entry(made[2], 2)})
        wait_until(lambda: hiccups.asked.count(made[2].folder) > 2)
        assert (served(running), refused(running)) == ([("1", 100)], {"versions": ["2"], "again": True})
        hiccups.away.clear()
        wait_until(lambda: served(running) == [("2", 100)])
        assert refused(running) is None
        assert failed(running) == 1, "one version, however often it was tried"


def test_a_replica_that_started_with_what_was_before_comes_after(
    made: list[Bundle], tmp_path: Path, hiccups: Hiccups, wait_until: Callable[..., None]
) -> None:
    wanted = tmp_path / "app.json"
    write_json(wanted, {"intent": entry(made[1], 1)})
    with replica(wanted):
        pass
    write_json(wanted, {"intent": entry(made[2], 2)})
    hiccups.away.add(made[2].folder)
    with replica(wanted) as running:
        assert (served(running), refused(running)) == ([("1", 100)], {"versions": ["2"], "again": True})
        hiccups.away.clear()
        wait_until(lambda: served(running) == [("2", 100)])
        assert refused(running) is None


def test_a_shadow_that_could_not_be_read_is_compared_later(
    made: list[Bundle], tmp_path: Path, hiccups: Hiccups, wait_until: Callable[..., None]
) -> None:
    wanted = tmp_path / "app.json"
    shadow = {"version": 2, "bundle": str(made[2].folder)}
    write_json(wanted, {"intent": entry(made[1], 1, shadow=shadow)})
    hiccups.away.add(made[2].folder)
    with replica(wanted) as running:
        wait_until(lambda: hiccups.asked.count(made[2].folder) > 2)
        assert (served(running), refused(running)) == ([("1", 100)], {"versions": ["2"], "again": True})
        hiccups.away.clear()
        wait_until(lambda: running.models["intent"].about()["shadow"])
        assert refused(running) is None
        assert hiccups.asked.count(made[1].folder) == 1, "the version that answers is left alone"


def test_a_bundle_that_is_at_fault_is_not_tried_again(
    made: list[Bundle],
    tmp_path: Path,
    hiccups: Hiccups,
    wait_until: Callable[..., None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    wanted, broken = tmp_path / "app.json", tmp_path / "broken"
    shutil.copytree(made[2].folder, broken)
    spoil(Bundle(broken, {}))
    write_json(wanted, {"intent": entry(made[1], 1)})
    with caplog.at_level(logging.INFO), replica(wanted) as running:
        write_json(wanted, {"intent": entry(Bundle(broken, {}), 2)})
        wait_until(lambda: failed(running) == 1)
        for _ in range(5):  # as its own thread does, twice a second
            running.refresh()
        assert hiccups.asked.count(broken) == 1
        assert refused(running) == {"versions": ["2"], "again": False}
        write_json(wanted, {"intent": entry(made[1], 1)})
        wait_until(lambda: refused(running) is None)
        shutil.rmtree(broken)
        shutil.copytree(made[2].folder, broken)
        write_json(wanted, {"intent": entry(Bundle(broken, {}), 2)})  # the same words as before, of a whole bundle
        wait_until(lambda: served(running) == [("2", 100)])


def test_pauses_double_up_to_a_bound() -> None:
    now = [0.0]
    patience = Patience(lambda: now[0])
    assert patience.due("intent", {"a": 1})
    pauses = []
    for _ in range(12):
        patience.failed("intent", {"a": 1}, for_good=False)
        began = now[0]
        while not patience.due("intent", {"a": 1}):
            now[0] += FIRST_PAUSE
        pauses.append(now[0] - began)
    expected = [min(FIRST_PAUSE * 2**turn, LONGEST_PAUSE) for turn in range(12)]
    assert pauses == pytest.approx(expected, abs=FIRST_PAUSE)
    assert pauses[-1] == pauses[-2]
    assert patience.due("intent", {"a": 2}), "another entry is another matter"
    patience.failed("intent", {"a": 2}, for_good=True)
    now[0] += 1e9
    assert not patience.due("intent", {"a": 2})
    patience.forget("intent")
    assert patience.due("intent", {"a": 2})
