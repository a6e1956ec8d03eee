"""A folder of files as a table: what their names tell, joined with anything, the same wherever the folder lies."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from cluster.errors import UserError
from training.data.fuse import fuse
from training.data.recipe import Source
from training.recipe import Recipe


def recipe(folder: Path, sources: dict[str, Any], **data: Any) -> Recipe:
    tree = {
        "name": "files",
        "data": {"sources": sources, "split": {"validation": 0, "test": 0.25}, **data},
        "model": {"task": "image-classification", "inputs": {"image": "file"}, "target": "label"},
    }
    return Recipe.model_validate(tree, context={"folder": folder})


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    place = tmp_path / "project" / "recordings"
    place.mkdir(parents=True)
    for digit in (0, 7):
        for index in range(6):
            (place / f"{digit}_theo_{index:02}.wav").write_bytes(b"x")
    return tmp_path / "project"


def test_parts_of_names_are_columns_that_join(recordings: Path, home: Path) -> None:
    (recordings / "words.csv").write_text("digit,label\n0,zero\n7,seven\n", encoding="utf-8")
    made = recipe(
        recordings,
        {
            "recordings": {"files": "recordings/*.wav", "pattern": "{digit}_{speaker}_{index}.wav"},
            "words": {"read": "words.csv"},
        },
        fuse="SELECT r.file, r.index, r.speaker, w.label FROM recordings r JOIN words w ON r.digit = w.digit",
    )
    rows = fuse(made).split("train").to_pylist() + fuse(made).split("test").to_pylist()
    assert len(rows) == 12
    first = next(row for row in rows if row["file"] == "recordings/7_theo_03.wav")
    assert first == {"file": "recordings/7_theo_03.wav", "index": "03", "speaker": "theo", "label": "seven"}


def test_folders_can_be_labels_and_names_be_joined_by(tmp_path: Path, home: Path) -> None:
    for kind in ("cat", "dog"):
        (tmp_path / "pets" / kind).mkdir(parents=True)
        for number in range(4):
            (tmp_path / "pets" / kind / f"{number}.png").write_bytes(b"x")
    made = recipe(tmp_path, {"pets": {"files": ["pets/cat/*.png", "pets/*/*.png"], "pattern": "{label}/{name}.png"}})
    fused = fuse(made)
    assert fused.report["rows"] == 8
    assert set(fused.split("train").column_names) == {"file", "label", "name"}
    assert set(fused.split("train")["label"].to_pylist()) == {"cat", "dog"}
    plain = recipe(tmp_path, {"pets": {"files": "pets/cat/*.png"}}, fuse="SELECT file, name, name AS label FROM pets")
    assert sorted(fuse(plain).split("train")["name"].to_pylist())[0].endswith(".png")


def test_a_name_that_does_not_match_is_rejected_with_its_reason(recordings: Path, home: Path) -> None:
    (recordings / "recordings" / "notes.wav").write_bytes(b"x")
    source = {"r": {"files": "recordings/*.wav", "pattern": "{label}_{speaker}_{index}.wav"}}
    with pytest.raises(UserError, match=r"r row 13, file: its name does not match \{label\}_\{speaker\}_\{index\}.wav"):
        fuse(recipe(recordings, source))
    fused = fuse(recipe(recordings, source, max_rejected=0.1))
    assert fused.report["rows"] == 12


def test_the_rows_are_the_same_wherever_the_folder_lies(recordings: Path, tmp_path: Path, home: Path) -> None:
    source = {"r": {"files": "recordings/*.wav", "pattern": "{label}_{speaker}_{index}.wav"}}
    moved = tmp_path / "elsewhere"
    shutil.copytree(recordings, moved)
    assert fuse(recipe(recordings, source)).fingerprint == fuse(recipe(moved, source)).fingerprint
    (moved / "recordings" / "0_theo_09.wav").write_bytes(b"x")
    assert fuse(recipe(recordings, source)).fingerprint != fuse(recipe(moved, source)).fingerprint
    absolute = {"r": {**source["r"], "files": str(recordings / "recordings" / "*.wav")}}
    assert fuse(recipe(recordings, absolute)).fingerprint == fuse(recipe(recordings, source)).fingerprint
    outside = fuse(recipe(tmp_path / "elsewhere", absolute)).split("train")["file"].to_pylist()
    assert all(Path(file).is_absolute() for file in outside)


def test_no_file_is_said(recordings: Path, home: Path) -> None:
    with pytest.raises(UserError, match=r"data.sources.r.files: no file matches pictures/\*.png"):
        fuse(recipe(recordings, {"r": {"files": "pictures/*.png"}}))


@pytest.mark.parametrize("pattern", ["name.wav", "{a}_{a}", "{a b}", "{file}.wav", "{}"])
def test_patterns_that_name_nothing_are_refused(pattern: str) -> None:
    with pytest.raises(ValidationError, match="a pattern names each part once"):
        Source(files=["*"], pattern=pattern)
    with pytest.raises(ValidationError, match="`pattern` belongs to a `files` source"):
        Source(read="a.csv", pattern="{speaker}_{name}.wav")
