"""The registry against the real MLflow on SQLite, and on a tracking server."""

import os
import platform
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from cluster.errors import RunError, UserError
from cluster.storage import folder_digests, read_json, write_json
from training import artifacts, registry, store
from training.bundle import Bundle


def make_bundle(folder: Path, name: str = "support-intent", content: str = "one") -> Bundle:
    """A bundle as far as the registry looks at one: a folder with files and a manifest."""
    folder.mkdir(parents=True)
    (folder / "weights.txt").write_text(content, encoding="utf-8")
    info = {"name": name, "files": folder_digests(folder), "settings": {}, "recipe": {"name": name}}
    write_json(folder / "bundle.json", info)
    return Bundle(folder, info)


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's database with its tables, which take seconds to make, and nothing in them."""
    folder = tmp_path_factory.mktemp("store")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HEADRACE_HOME", str(folder))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        registry.start_run({}, "nobody", "0" * 16)
    return folder / "mlflow.db"


@pytest.fixture
def home(home: Path, empty_store: Path) -> Path:
    home.mkdir()
    shutil.copy(empty_store, home / "mlflow.db")
    return home


def versions_in(home: Path, count: int) -> list[Bundle]:
    return [make_bundle(home / "models" / "support-intent" / str(index), content=str(index)) for index in range(count)]


def test_first_version_goes_into_production_and_later_ones_wait(home: Path) -> None:
    first, second = versions_in(home, 2)
    assert registry.register(first, None) == 1
    assert registry.register(second, None) == 2

    assert registry.resolve("support-intent") == registry.ModelVersion("support-intent", 1, "production", first.folder)
    assert registry.resolve("support-intent@production").version == 1
    assert registry.resolve("support-intent/2") == registry.ModelVersion("support-intent", 2, None, second.folder)
    assert [(row["version"], row["aliases"]) for row in registry.models("support-intent")] == [
        (2, []),
        (1, ["production"]),
    ]


def test_the_same_bundle_is_registered_once(home: Path) -> None:
    (bundle,) = versions_in(home, 1)
    assert registry.register(bundle, None) == registry.register(bundle, None) == 1
    assert len(registry.models()) == 1


def test_promote_and_roll_back_walk_the_history(home: Path) -> None:
    for bundle in versions_in(home, 3):
        registry.register(bundle, None)
    assert registry.promote("support-intent", 2).version == 2
    assert registry.promote("support-intent", 2).version == 2  # nothing changes, and the history gets no second 2
    assert registry.promote("support-intent", 3).version == 3

    assert registry.rollback("support-intent").version == 2
    assert registry.rollback("support-intent").version == 1
    with pytest.raises(UserError, match="no other version was in production before"):
        registry.rollback("support-intent")
    assert registry.resolve("support-intent").version == 1


def test_only_the_version_that_is_meant_is_rolled_back(home: Path) -> None:
    for bundle in versions_in(home, 3):
        registry.register(bundle, None)
    registry.promote("support-intent", 2)
    registry.promote("support-intent", 3)  # by somebody else, while 2 was found wanting
    assert registry.rollback("support-intent", 2).version == 3
    assert registry.rollback("support-intent", 3).version == 2


def test_an_alias_moved_in_mlflow_itself_is_part_of_the_history(home: Path) -> None:
    for bundle in versions_in(home, 3):
        registry.register(bundle, None)
    store.client().set_registered_model_alias("support-intent", "production", "3")
    registry.promote("support-intent", 2)
    assert registry.rollback("support-intent").version == 3


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("other", r"there is no model 'other' in sqlite:.*; there is support-intent"),
        ("support-intent/7", "support-intent has no version 7; it has 1"),
        ("support-intent@canary", "support-intent has no version with the alias 'canary'; it has production"),
        ("../etc/passwd", "neither a model .* nor a bundle folder"),
        ("Support Intent", "neither a model"),
        ("x' OR name != '", "neither a model"),
    ],
)
def test_what_is_not_there_is_said_plainly(home: Path, reference: str, message: str) -> None:
    registry.register(versions_in(home, 1)[0], None)
    with pytest.raises(UserError, match=message):
        registry.resolve(reference)


def test_asking_leaves_nothing_behind(home: Path) -> None:
    shutil.rmtree(home)
    assert registry.models() == []
    with pytest.raises(UserError, match="there is none"):
        registry.resolve("support-intent")
    assert not home.exists()


def test_a_bundle_folder_needs_no_registry(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = make_bundle(tmp_path / "elsewhere")
    assert registry.resolve(str(bundle.folder)) == registry.ModelVersion("support-intent", None, None, bundle.folder)
    monkeypatch.chdir(tmp_path)
    assert registry.resolve("./elsewhere").bundle == bundle.folder
    with pytest.raises(UserError, match="there is no model 'elsewhere'"):
        registry.resolve("elsewhere")  # a bare name is a model's, never a path


def test_a_home_can_be_moved(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry.register(versions_in(home, 1)[0], None)
    moved = tmp_path / "moved"
    shutil.move(home, moved)
    monkeypatch.setenv("HEADRACE_HOME", str(moved))
    assert registry.resolve("support-intent").bundle == moved / "models" / "support-intent" / "0"


def test_a_bundle_that_is_gone_is_said_plainly(home: Path) -> None:
    (bundle,) = versions_in(home, 1)
    registry.register(bundle, None)
    shutil.rmtree(bundle.folder)
    with pytest.raises(RunError, match="the bundle of support-intent version 1 is gone from"):
        registry.resolve("support-intent")


def test_a_folder_is_a_versions_only_while_it_holds_what_was_registered(home: Path) -> None:
    (bundle,) = versions_in(home, 1)
    registry.register(bundle, None)
    shutil.rmtree(bundle.folder)
    other = make_bundle(bundle.folder, content="trained again, on another machine")
    with pytest.raises(RunError, match=r"support-intent version 1 is gone from .*, where something else lies; train"):
        registry.resolve("support-intent")
    assert registry.register(other, None) == 2
    assert registry.resolve("support-intent/2").bundle == other.folder


def test_homes_with_one_registry_do_not_take_each_others_bundles(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{home / 'mlflow.db'}")
    theirs = make_bundle(home / "models" / "support-intent" / "0", content="of their cores")
    registry.register(theirs, None)
    monkeypatch.setenv("HEADRACE_HOME", str(tmp_path / "other"))
    ours = make_bundle(tmp_path / "other" / "models" / "support-intent" / "0", content="of our cores")
    assert registry.register(ours, None) == 2
    assert registry.resolve("support-intent/1").bundle == theirs.folder
    assert registry.resolve("support-intent/2").bundle == ours.folder
    assert [row["bundle"] for row in registry.models()] == [str(ours.folder), str(theirs.folder)]


def test_a_versions_source_says_where_its_artifacts_are(home: Path) -> None:
    """Versions have lain in a folder ``bundle`` of their run, which another bundle could overwrite."""
    (bundle,) = versions_in(home, 1)
    run_id = registry.start_run({}, bundle.name, "f" * 16).run_id
    client, source = store.client(), f"runs:/{run_id}/bundle"
    client.log_artifacts(run_id, str(bundle.folder), "bundle")
    client.create_registered_model(bundle.name)
    client.create_model_version(bundle.name, source, run_id, tags=artifacts.tags(bundle))
    shutil.rmtree(bundle.folder)

    fetched = registry.resolve("support-intent/1").bundle
    assert folder_digests(fetched).items() > bundle.info["files"].items()
    (fetched / "bundle.json").write_text("{", encoding="utf-8")
    assert registry.resolve("support-intent/1").bundle == fetched
    assert read_json(fetched / "bundle.json") == bundle.info, "a damaged copy is fetched again"

    other = make_bundle(home / "models" / "support-intent" / "1", content="another")
    client.log_artifacts(run_id, str(other.folder), "bundle")
    shutil.rmtree(fetched)
    with pytest.raises(RunError, match=f"version 1 is gone from {source}, where something else lies; train it again"):
        registry.resolve("support-intent/1")
    assert not fetched.exists()


def test_a_killed_run_is_continued_without_doubled_points(home: Path) -> None:
    recipe: dict[str, Any] = {"name": "support-intent", "train": {"epochs": 3}, "data": {"password": "${env:PW}"}}
    log = registry.start_run(recipe, "support-intent", "f" * 16)
    log.log([(step, {"loss": 1 / step}) for step in range(1, 6)])

    again = registry.start_run(recipe, "support-intent", "f" * 16, log.run_id)
    again.log([(step, {"loss": 1 / step}) for step in range(4, 8)])
    again.finish("FINISHED", {"test/accuracy": 0.9})

    assert again.run_id == log.run_id
    client = store.client()
    points = [(point.step, point.value) for point in client.get_metric_history(log.run_id, "loss")]
    assert points == [(step, 1 / step) for step in range(1, 8)]
    run = client.get_run(log.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["train.epochs"] == "3"
    assert run.data.metrics["test/accuracy"] == 0.9
    assert registry.start_run(recipe, "support-intent", "e" * 16, log.run_id).run_id != log.run_id


def test_a_run_of_another_home_is_left_alone(home: Path) -> None:
    """Homes that share a registry and train one recipe have runs of one fingerprint, and weights of their own."""
    theirs = registry.start_run({}, "support-intent", "f" * 16)
    theirs.finish("FINISHED", {"test/accuracy": 0.9})
    ours = registry.start_run({}, "support-intent", "f" * 16)
    assert ours.run_id != theirs.run_id
    assert store.client().get_run(theirs.run_id).info.status == "FINISHED"


def test_an_unwritable_store_ends_in_one_sentence_and_loses_nothing(home: Path) -> None:
    """The system refuses every write past 4 KiB, as it refuses all on a full disk."""
    first, second = versions_in(home, 2)
    registry.register(first, None)
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, unlimited[1]))  # a file that grows past this is refused
    try:
        with pytest.raises(RunError, match=r"the registry at .*(disk|file).*registered before is intact"):
            registry.register(second, None)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    assert registry.resolve("support-intent").version == 1


def test_a_home_that_cannot_be_made_ends_in_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    monkeypatch.setenv("HEADRACE_HOME", str(tmp_path / "file" / "home"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(RunError, match="could not write below"):
        registry.start_run({}, "support-intent", "f" * 16)


def test_two_processes_may_start_at_once(home: Path) -> None:
    """Both find no database, and both must end with a version of their own."""
    (home / "mlflow.db").unlink()
    bundles = versions_in(home, 2)
    script = (
        "import sys; from pathlib import Path; from types import SimpleNamespace; from training import registry\n"
        "folder = Path(sys.argv[1])\n"
        "bundle = SimpleNamespace(name='support-intent', fingerprint=folder.name, folder=folder)\n"
        "print(registry.register(bundle, None))\n"
    )
    started = [
        subprocess.Popen(
            [sys.executable, "-c", script, bundle.folder], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for bundle in bundles
    ]
    results = [process.communicate(timeout=120) for process in started]
    assert sorted(out.strip() for out, _ in results) == ["1", "2"]
    assert [err for _, err in results] == ["", ""], "MLflow keeps quiet"


def unlocked(home: Path, upload: Callable[..., None]) -> Callable[..., None]:
    """The same upload, which others may write to the registry beside: it takes as long as the network takes."""

    def uploaded(*given: Any) -> None:
        with FileLock(home / ".registry.lock", timeout=0):
            upload(*given)

    return uploaded


HOLD = "import sys; from training import store\nwith store.one_writer():\n    print(flush=True); sys.stdin.read()\n"


def test_a_store_that_somebody_else_writes_to_for_long_ends_in_one_sentence(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "WAIT_SECONDS", 0.1)
    (bundle,) = versions_in(home, 1)
    other = subprocess.Popen([sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with other:  # whose input ends with the block, and it with that
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(RunError) as raised:
            registry.register(bundle, None)
    told = str(raised.value)
    assert f"{home / '.registry.lock'} is held by process {other.pid} on {platform.node()} since " in told
    assert "run the command again" in told
    assert registry.register(bundle, None) == 1


@pytest.mark.slow
def test_a_tracking_server_keeps_a_copy_of_the_bundle(
    home: Path, tmp_path: Path, free_port: int, monkeypatch: pytest.MonkeyPatch, wait_until: Callable[..., None]
) -> None:
    """Registered from two homes, which trained one recipe, resolved from another that only shares the server."""
    import urllib.error
    import urllib.request

    from mlflow import MlflowClient

    (bundle,) = versions_in(home, 1)
    store = tmp_path / "server"
    store.mkdir()
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--host",
        "127.0.0.1",
        "--port",
        str(free_port),
        "--workers",
        "1",
    ]
    command += ["--backend-store-uri", f"sqlite:///{store}/mlflow.db", "--artifacts-destination", f"{store}/artifacts"]
    log = (tmp_path / "server.log").open("w")
    server = subprocess.Popen(
        command, stdout=log, stderr=log, start_new_session=True, env=os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true"}
    )
    uri = f"http://127.0.0.1:{free_port}"

    def answers() -> bool:
        assert server.poll() is None, (tmp_path / "server.log").read_text()
        try:
            return bool(urllib.request.urlopen(f"{uri}/health", timeout=1).status == 200)
        except (urllib.error.URLError, TimeoutError):
            return False

    try:
        wait_until(answers, 90)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        monkeypatch.setattr(MlflowClient, "log_artifacts", unlocked(home, MlflowClient.log_artifacts))
        run = registry.start_run({}, "support-intent", "f" * 16)
        assert registry.register(bundle, run.run_id) == 1
        monkeypatch.setenv("HEADRACE_HOME", str(tmp_path / "second-home"))
        twin = make_bundle(tmp_path / "second-home" / "models" / "support-intent" / "0", content="of other cores")
        assert registry.register(twin, run.run_id) == 2, "even among the artifacts of one run"
        monkeypatch.setenv("HEADRACE_HOME", str(tmp_path / "third-home"))
        shutil.rmtree(bundle.folder)
        resolved = [registry.resolve(f"support-intent/{version}").bundle for version in (1, 2)]
        weights = [(folder / "weights.txt").read_text(encoding="utf-8") for folder in resolved]
        assert weights == ["0", "of other cores"]
        assert all(folder.is_relative_to(tmp_path / "third-home") for folder in resolved)
    finally:
        os.killpg(server.pid, 15)
        server.wait(30)
        log.close()


def test_versions_are_listed_with_what_they_are_judged_by(home: Path) -> None:
    plain, judged = versions_in(home, 2)
    info = judged.info | {"data": {"headline": "test/mae"}, "metrics": {"test/rmse": 0.7, "test/mae": 0.5}}
    write_json(judged.folder / "bundle.json", info)
    for bundle in (plain, Bundle(judged.folder, info)):
        registry.register(bundle, None)
    assert [(row["judged_by"], row["value"]) for row in registry.models()] == [("test/mae", 0.5), (None, None)]
