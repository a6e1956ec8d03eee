"""Storage: what a crash leaves behind, and who may work on a step."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cluster import storage
from cluster.errors import RunError, UserError
from cluster.storage import (
    building,
    fingerprint,
    folder_digests,
    lying_at,
    only_one,
    read_json,
    write_json,
    write_text,
    writing,
)

WRITER = """
import sys
from pathlib import Path
from cluster.storage import write_json
path, turn = Path(sys.argv[1]), 0
while True:
    turn += 1
    write_json(path, {"turn": turn, "rows": [turn] * 50_000})
    sys.stdout.write("."); sys.stdout.flush()
"""

BUILDER = """
import sys, time
from pathlib import Path
from cluster.storage import building
with building(Path(sys.argv[1])) as folder:
    (folder / "half").write_text("half")
    sys.stdout.write("."); sys.stdout.flush()
    time.sleep(600)
"""

HOLDER = """
import sys, time
from pathlib import Path
from cluster.storage import only_one
with only_one(Path(sys.argv[1])):
    sys.stdout.write("."); sys.stdout.flush()
    time.sleep(600)
"""


def start(script: str, path: Path) -> subprocess.Popen[str]:
    """A process of its own; returns once it has reached its first dot."""
    command = [sys.executable, "-c", script, str(path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])
    assert process.stdout is not None
    assert process.stdout.read(1) == "."
    return process


def kill(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate()


def test_sigkill_while_writing_leaves_the_old_or_the_new_and_never_half(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    for round_ in range(5):
        writer = start(WRITER, path)
        assert writer.stdout is not None
        writer.stdout.read(round_ + 1)  # let it write a few more times, so that the kill falls anywhere
        kill(writer)
        state = read_json(path)
        assert state["rows"] == [state["turn"]] * 50_000


def test_sigkill_while_building_leaves_no_step_and_the_next_run_builds_it(tmp_path: Path) -> None:
    step = tmp_path / "fused" / "0123"
    kill(start(BUILDER, step))
    assert not step.exists()
    with building(step) as folder:
        (folder / "whole").write_text("whole")
    assert [path.name for path in step.iterdir()] == ["whole"]


def test_a_block_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), building(tmp_path / "step") as folder:
        (folder / "half").write_text("half")
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_the_second_of_two_equal_steps_keeps_the_first(tmp_path: Path) -> None:
    step = tmp_path / "step"
    with building(step) as slow:
        (slow / "file").write_text("slow")
        with building(step) as quick:
            (quick / "file").write_text("quick")
    assert (step / "file").read_text() == "quick"
    assert [path.name for path in tmp_path.iterdir()] == ["step"]


def test_a_step_in_work_is_refused_and_a_killed_holder_frees_it(tmp_path: Path) -> None:
    step = tmp_path / "step"
    holder = start(HOLDER, step)
    with pytest.raises(RunError, match="another process is already working on step; wait for it"), only_one(step):
        pass
    kill(holder)
    with only_one(step):
        pass


def _add_one(path: Path) -> None:
    while True:
        try:
            with only_one(path):
                count = int(path.read_text() or "0")
                write_text(path, str(count + 1))
                return
        except RunError:
            continue


def test_one_at_a_time_means_no_lost_update(tmp_path: Path) -> None:
    path = tmp_path / "count"
    path.write_text("0")
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        pool.map(_add_one, [path] * 20)
    assert path.read_text() == "20"


def test_a_full_disk_is_one_sentence_and_what_was_there_stays(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    write_json(path, {"fine": True})
    full = pytest.raises(RunError, match="No space left on device; free some space or set HEADRACE_HOME")
    with full, writing(path) as file, Path("/dev/full").open("w", encoding="utf-8") as device:
        file.write("half")
        device.write("x" * 100_000)
    assert read_json(path) == {"fine": True}
    assert [one.name for one in tmp_path.iterdir()] == ["state.json"]


def test_an_unwritable_home_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with (
        pytest.raises(RunError, match=r"could not write below .*Not a directory"),
        building(tmp_path / "file" / "step"),
    ):
        pass


def test_fingerprints_tell_values_apart_and_not_the_order_of_keys() -> None:
    assert fingerprint({"a": 1, "b": [1, 2]}) == fingerprint({"b": [1, 2], "a": 1})
    assert len({fingerprint(1), fingerprint("1"), fingerprint(1.5), fingerprint(1, 1), fingerprint(None)}) == 5
    assert fingerprint("行程") == fingerprint("行程")


def test_json_keeps_every_script_readable(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"text": "酒店"})
    assert "酒店" in (tmp_path / "a.json").read_text(encoding="utf-8")
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"text": "酒店"}


def test_digests_are_of_contents_by_relative_path(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "b").write_bytes(b"")
    assert folder_digests(tmp_path) == {"deep/b": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"}


def test_home_is_absolute_and_refuses_a_bucket(home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from cluster import storage

    assert storage.home() == home
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HEADRACE_HOME")
    assert storage.home() == tmp_path / ".headrace"
    monkeypatch.setenv("HEADRACE_HOME", "s3://bucket/place")
    with pytest.raises(UserError, match="state in a bucket is not supported yet"):
        storage.home()
    assert os.environ["HEADRACE_HOME"] == "s3://bucket/place"


def test_what_a_killed_process_was_building_is_removed_by_the_next_that_builds_it(tmp_path: Path) -> None:
    step = tmp_path / "0123"
    begun, other, file = tmp_path / ".0123.2826fb8c", tmp_path / ".01234.2826fb8c", tmp_path / ".0123.note"
    for folder in (begun, other):
        folder.mkdir()
        (folder / "half").write_text("x")
    file.write_text("x")
    with only_one(step):
        assert not begun.exists()
    assert other.exists()
    assert file.exists()


def test_two_that_finish_one_step_at_once_are_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = tmp_path / "0123"

    def the_other_is_quicker(path: Path) -> None:
        step.mkdir(exist_ok=True)
        (step / "result").write_text("the other's")

    monkeypatch.setattr(storage, "_flush", the_other_is_quicker)
    with building(step) as beside:
        (beside / "result").write_text("ours")
    assert (step / "result").read_text() == "the other's"
    assert [path.name for path in tmp_path.iterdir()] == ["0123"]


def test_signs_of_a_glob_in_the_name_of_a_folder_or_a_file_are_no_glob(tmp_path: Path) -> None:
    folder = tmp_path / "proj [v2]"
    (folder / "deep").mkdir(parents=True)
    for name in ("rows [1].csv", "rows-2.csv", "deep/rows-3.csv"):
        (folder / name).write_text("a\n")
    assert lying_at(folder, "rows [1].csv") == [folder / "rows [1].csv"]
    assert lying_at(folder, "*.csv") == [folder / "rows [1].csv", folder / "rows-2.csv"]
    assert lying_at(folder, "**/rows-*.csv") == [folder / "deep" / "rows-3.csv", folder / "rows-2.csv"]
    assert lying_at(folder / "deep", str(folder / "rows-2.csv")) == [folder / "rows-2.csv"]
    assert lying_at(folder, "none.csv") == []
