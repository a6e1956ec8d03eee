"""Whole runs on real Ray: what they leave, and what is left of them when something is killed."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch.multiprocessing.spawn import ProcessRaisedException

from cluster.errors import RunError, UserError
from cluster.session import Resources
from tests.training.conftest import topics_recipe
from tests.training.together import together
from training import registry, worker
from training.bundle import ForeignFileError, open_bundle
from training.data.fuse import fuse
from training.encode import encode, open_encoded
from training.finished import ASIDE, finished_before
from training.fit import Run, fit, trained
from training.journal import entries
from training.loop import make_trainee
from training.recipe import Recipe, Train
from training.workers import workers_and_threads

MakeRecipe = Callable[..., Recipe]
WaitUntil = Callable[..., None]

LONG = {"epochs": 14, "checkpoint_every": 20, "workers": 2}

DRIVER = """
    import json, sys
    from pathlib import Path
    from cluster.errors import HeadraceError
    from training.fit import fit
    from training.recipe import Recipe

    tree, folder = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    try:
        run = fit(Recipe.model_validate(tree, context={"folder": folder}), tree)
    except HeadraceError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
    print(json.dumps(run.as_json()))
"""


def start(recipe: Recipe, home: Path) -> "subprocess.Popen[str]":
    """The driver of a run as a process of its own; what it says goes to ``log`` beside the recipe."""
    tree = recipe.folder / "tree.json"
    tree.write_text(recipe.model_dump_json(exclude_unset=True), encoding="utf-8")
    command = [sys.executable, "-c", textwrap.dedent(DRIVER), str(tree), str(recipe.folder)]
    environment = os.environ | {"HEADRACE_HOME": str(home), "PYTHONPATH": str(Path(__file__).parents[2])}
    with (recipe.folder / "log").open("a") as log:
        return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=log)


def result_of(process: "subprocess.Popen[str]") -> dict[str, Any]:
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0
    result: dict[str, Any] = json.loads(out.splitlines()[-1])
    return result


def journal(home: Path) -> list[dict[str, Any]]:
    return [record for path in home.glob("runs/*/metrics.jsonl") for record in entries(path)]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> tuple[dict[str, Any], list[Any]]:
    """What the long recipe comes to when nothing happens."""
    folder = tmp_path_factory.mktemp("calm")
    result = result_of(start(topics_recipe(folder, tiny_base, 120, train=LONG), folder / "home"))
    return result, journal(folder / "home")


def test_a_run_leaves_a_registered_bundle_a_report_and_curves(make_recipe: MakeRecipe, home: Path) -> None:
    recipe = make_recipe(rows=240, train={"epochs": 6, "learning_rate": 3e-3, "workers": 2})
    public = recipe.model_dump(mode="json")
    run = fit(recipe, public)
    assert run.metrics["test/accuracy"] > run.baselines["majority"]["test/accuracy"]
    assert set(run.baselines) == {"majority", "tfidf", "frozen"}
    assert run.data["rows"] == sum(run.data["splits"].values())
    assert run.report.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert open_bundle(run.bundle).info["metrics"] == run.metrics
    assert registry.resolve("topics").version == run.version == 1
    assert not (run.report.parent / "ray").exists(), "checkpoints are for runs that have not ended"

    again = fit(recipe, public)
    assert again == run
    assert [row["version"] for row in registry.models("topics")] == [1]

    report = run.report.read_text(encoding="utf-8")
    run.report.write_text("of the bundle that is gone", encoding="utf-8")
    shutil.rmtree(run.bundle)
    anew = fit(recipe, public)
    assert (anew.metrics, anew.version, anew.bundle) == (run.metrics, run.version, run.bundle)
    assert open_bundle(anew.bundle).info["metrics"] == run.metrics
    assert anew.report.read_text(encoding="utf-8").splitlines()[0] == report.splitlines()[0]


def test_a_bundle_that_is_not_as_it_was_written_is_trained_again(
    make_recipe: MakeRecipe, home: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    recipe = make_recipe(train={"epochs": 1})
    public = recipe.model_dump(mode="json")
    run = fit(recipe, public)
    (run.bundle / ".DS_Store").touch()
    with pytest.raises(ForeignFileError, match="not opened before that is gone"):
        fit(recipe, public)
    (run.bundle / ".DS_Store").unlink()
    (run.bundle / "model.safetensors").write_bytes(b"cut short")
    capfd.readouterr()

    anew = fit(recipe, public)
    assert anew == run
    assert open_bundle(anew.bundle).info["metrics"] == run.metrics
    (aside,) = run.bundle.parent.glob(f"*{ASIDE}*")
    assert (aside / "model.safetensors").read_bytes() == b"cut short"
    told = capfd.readouterr().err
    assert f"{run.bundle}: 'model.safetensors' was changed after training; it is not opened" in told
    assert f"It lies in {aside} from here on, and the model is trained again" in told

    assert finished_before("topics", public)
    shutil.rmtree(run.bundle)
    assert not finished_before("topics", public), "what was moved aside is no model"


def test_a_model_that_could_not_be_written_is_not_taken_for_one_that_was(
    make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    """Workers write what the model said and the model itself; files may be as long as the first and no longer."""
    recipe = make_recipe(rows=100, train={"epochs": 1})
    encoded = encode(recipe, fuse(recipe))
    with pytest.raises(
        ProcessRaisedException, match=r"could not write below .*run/model: File too large; free some space"
    ):
        together(1, leave_with_little_room, tmp_path, encoded.folder, encoded.base, recipe.train, tmp_path / "run")
    assert not trained(tmp_path / "run")


def leave_with_little_room(rank: int, data: Path, base: Path, options: Train, folder: Path) -> None:
    encoded = open_encoded(data, base)
    trainee = make_trainee(encoded, options, "full", torch.device("cpu"))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    worker.leave(trainee, encoded, folder)


def test_a_killed_worker_is_replaced_and_the_result_is_the_same(
    make_recipe: MakeRecipe,
    undisturbed: tuple[dict[str, Any], list[Any]],
    home: Path,
    wait_until: WaitUntil,
) -> None:
    process = start(make_recipe(train=LONG), home)
    wait_until(lambda: list(home.glob("runs/*/ray/checkpoints/step-*")), 120)
    victims = [child for child in psutil.Process(process.pid).children(recursive=True) if is_worker(child)]
    assert len(victims) == 2
    victims[0].send_signal(signal.SIGKILL)
    assert_same(result_of(process), journal(home), undisturbed)
    told = (home.parent / "log").read_text(encoding="utf-8")
    assert "training was interrupted and goes on from its newest checkpoint: " in told
    assert "Graceful shutdown of backend failed" not in told


def test_a_killed_driver_continues_with_the_same_command(
    make_recipe: MakeRecipe,
    undisturbed: tuple[dict[str, Any], list[Any]],
    home: Path,
    tmp_path: Path,
    wait_until: WaitUntil,
) -> None:
    recipe = make_recipe(train=LONG)
    process = start(recipe, home)
    wait_until(lambda: list(home.glob("runs/*/ray/checkpoints/step-*")), 120)
    family = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs([child for child in family if is_worker(child)], timeout=60)
    assert not alive, "workers must not go on without their driver"
    assert_same(result_of(start(recipe, home)), journal(home), undisturbed)
    assert "continues a run that was interrupted after step" in (tmp_path / "log").read_text(encoding="utf-8")


def assert_same(result: dict[str, Any], records: list[Any], undisturbed: tuple[dict[str, Any], list[Any]]) -> None:
    """Bit for bit, to every file of the bundle: the same processor, the same number of workers, fp32."""
    calm, curve = undisturbed
    assert [record["loss"] for record in records] == [record["loss"] for record in curve]
    assert result["metrics"] == calm["metrics"]
    ours, theirs = (open_bundle(Path(one["bundle"])).info for one in (result, calm))
    assert ours | {"created": None} == theirs | {"created": None}


def is_worker(process: psutil.Process) -> bool:
    try:
        return "RayTrainWorker" in " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return False


def test_a_diverging_run_names_the_step_and_is_not_tried_again(make_recipe: MakeRecipe, home: Path) -> None:
    recipe = make_recipe(train={"learning_rate": 1e38, "warmup": 0})
    with pytest.raises(RunError, match=r"step \d: the loss is .* Lower train.learning_rate"):
        fit(recipe, recipe.model_dump(mode="json"))
    assert registry.models() == []


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk takes root")
def test_a_full_disk_ends_with_a_plain_message_and_leaves_the_registry_intact(
    make_recipe: MakeRecipe, home: Path, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)], check=False)
    if mounted.returncode:
        pytest.skip("this machine does not let its root mount a disk")
    try:
        assert result_of(start(make_recipe(), disk))["version"] == 1
        (disk / "filler").write_bytes(b"\0" * (psutil.disk_usage(str(disk)).free - 300_000))
        process = start(make_recipe(train={"seed": 8}), disk)
        process.communicate(timeout=300)
        assert process.returncode == 1
        last = (tmp_path / "log").read_text(encoding="utf-8").strip().splitlines()[-1]
        assert "Traceback" not in last and str(disk) in last and "free some space" in last
        (disk / "filler").unlink()
        os.environ["HEADRACE_HOME"] = str(disk)
        assert [row["version"] for row in registry.models("topics")] == [1]
        assert open_bundle(registry.resolve("topics").bundle).name == "topics"
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


@pytest.mark.parametrize(
    ("workers", "cpus", "gpus", "nodes", "expected"),
    [
        ("auto", 2, 0, 1, (2, 1)),
        ("auto", 64, 0, 1, (4, 16)),
        ("auto", 16, 4, 1, (4, 4)),
        (1, 2, 0, 1, (1, 2)),
        (3, 8, 0, 1, (3, 2)),
        (1, 8, 0, 2, (1, 4)),  # no node has more than its own four
        (5, 16, 0, 2, (5, 2)),  # three each would fit two and two
    ],
)
def test_how_many_workers(workers: Any, cpus: int, gpus: int, nodes: int, expected: tuple[int, int]) -> None:
    assert workers_and_threads(Train(workers=workers), Resources(cpus, gpus, nodes)) == expected


def test_more_workers_than_cores_is_refused() -> None:
    with pytest.raises(UserError, match=r"^train.workers: 4 workers need as many cores, and there are 2"):
        workers_and_threads(Train(workers=4), Resources(cpus=2, gpus=0, nodes=1))


def test_the_result_is_json(tmp_path: Path) -> None:
    run = Run("topics", 1, tmp_path, tmp_path / "report.html", {"test/accuracy": 1.0}, {}, {"rows": 3})
    assert json.loads(json.dumps(run.as_json()))["bundle"] == str(tmp_path)
