"""Pictures: read, refused, learned, answered as transformers answers, and never fetched from this machine's disk."""

import base64
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from transformers import AutoModel, pipeline
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from cluster.errors import UserError
from serving.predictor import Predictor
from tests.training.tasks.shapes import SHAPES, picture, picture_recipe, tiny_vit, write_pictures
from training.bundle import open_bundle, write_bundle
from training.data.fuse import fuse
from training.encode import encode, located_rows
from training.evaluation.baselines import measure
from training.inputs import images, media
from training.inputs.images import Pictures, flipped, moved, opened
from training.inputs.media import UnreadableError
from training.loop import make_trainee, predict, train, validate
from training.recipe import Recipe

CPU = torch.device("cpu")


@pytest.fixture
def recipe(tmp_path: Path, home: Path) -> Callable[..., Recipe]:
    write_pictures(tmp_path)
    base = tiny_vit(tmp_path / "base")
    return lambda **sections: picture_recipe(tmp_path, base, **sections)


def png(size: tuple[int, int] = (20, 20), mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    Image.new(mode, size, 128).save(file, "PNG")
    return file.getvalue()


# --- reading ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "it is empty"),
        (b"no picture at all", "it is no picture that can be read"),
        (png()[:60], "it is no picture that can be read"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "PNG, JPEG, WEBP, BMP, GIF, TIFF can"),
    ],
)
def test_what_is_no_picture_is_told(data: bytes, message: str) -> None:
    with pytest.raises(UnreadableError, match=message):
        opened(media.content(data))


def test_a_picture_that_unpacks_to_too_much_is_refused_unopened() -> None:
    bomb = png((9_000, 9_000), "1")
    assert len(bomb) < 50_000
    with pytest.raises(UnreadableError, match="it has 9000 x 9000 pixels; 50,000,000 are allowed"):
        opened(bomb)


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "huge.png").open("wb") as file:
        file.truncate(media.LARGEST_FILE + 1)
    with pytest.raises(UnreadableError, match="at most 67,108,864 are read"):
        media.content(str(tmp_path / "huge.png"))


def test_damage_of_any_kind_is_a_plain_error() -> None:
    """No byte of a PNG or JPEG that is changed or cut off brings anything down."""
    chance = np.random.default_rng(5)
    kinds = []
    for kind in ("PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP"):
        file = io.BytesIO()
        picture("ring", chance).save(file, kind)
        kinds.append(file.getvalue())
    for data in kinds:
        for _ in range(60):
            broken = bytearray(data[: chance.integers(8, len(data) + 1)])
            for place in chance.integers(0, len(broken), 3):
                broken[place] = chance.integers(0, 256)
            try:
                opened(bytes(broken))
            except UnreadableError:
                continue


def test_a_picture_is_turned_upright_and_coloured() -> None:
    file = io.BytesIO()
    sideways = Image.Exif()
    sideways[0x0112] = 6
    Image.new("L", (10, 4), 77).save(file, "JPEG", exif=sideways)
    seen = opened(file.getvalue())
    assert (seen.size, seen.mode) == ((4, 10), "RGB")


# --- the base's own preparation ---------------------------------------------------------------------------------------


def test_pixels_are_prepared_as_the_processor_of_the_base_does(tmp_path: Path) -> None:
    processor = ViTImageProcessorPil(
        size={"height": 16, "width": 24}, image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225]
    )
    tiny_vit(tmp_path)
    processor.save_pretrained(tmp_path)
    pictures = Pictures.learn("file", tmp_path)
    assert (pictures.plain, pictures.trained, pictures.shape) == (True, True, (3, 16, 24))
    seen = [picture(kind, np.random.default_rng(1), 31) for kind in SHAPES]
    sent = []
    for one in seen:
        file = io.BytesIO()
        one.save(file, "PNG")
        sent.append({"file": file.getvalue()})
    ours = pictures.normal(pictures.stack(pictures.read(sent))).numpy()
    np.testing.assert_allclose(ours, processor(images=seen, return_tensors="np")["pixel_values"], atol=1e-5)


def test_a_processor_that_does_more_is_taken_at_its_word(tmp_path: Path) -> None:
    from transformers.models.mobilevit.image_processing_pil_mobilevit import MobileViTImageProcessorPil

    processor = MobileViTImageProcessorPil(
        size={"shortest_edge": 20}, crop_size={"height": 16, "width": 16}, do_flip_channel_order=True
    )
    tiny_vit(tmp_path)
    processor.save_pretrained(tmp_path)
    pictures = Pictures.learn("file", tmp_path)
    one = picture("ring", np.random.default_rng(1), 31)
    file = io.BytesIO()
    one.save(file, "PNG")
    ours = pictures.normal(pictures.stack(pictures.read([{"file": file.getvalue()}]))).numpy()
    np.testing.assert_allclose(ours, processor(images=one, return_tensors="np")["pixel_values"], atol=1e-5)


def test_changes_of_training_are_drawn_from_torch() -> None:
    pixels = torch.arange(2 * 3 * 8 * 8, dtype=torch.float32).reshape(2, 3, 8, 8)
    drawn = []
    for _ in range(2):
        torch.manual_seed(11)
        drawn.append((flipped(pixels), moved(pixels, 0.25)))
    assert torch.equal(drawn[0][0], drawn[1][0])
    assert torch.equal(drawn[0][1], drawn[1][1])
    assert drawn[0][1].shape == pixels.shape
    mirrored = pixels.flip(-1)
    for before, after, other in zip(pixels, drawn[0][0], mirrored, strict=True):
        assert torch.equal(after, before) or torch.equal(after, other)
    assert not torch.equal(drawn[0][1], pixels)
    assert torch.equal(moved(pixels, 0.0), pixels)


# --- from folders to answers ------------------------------------------------------------------------------------------


def test_a_model_learns_and_transformers_gives_the_same_answers(recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    made = recipe(train={"epochs": 12})
    fused = fuse(made)
    assert set(fused.split("train").column_names) == {"file", "shape", "number"}
    encoded = encode(made, fused)
    assert [path.name for path in encoded.base.glob("*")] and encoded.split("train").lengths.tolist()[:2] == [1, 1]
    trainee = make_trainee(encoded, made.train, made.model.adapt, CPU)
    list(train(trainee, encoded))
    measured = validate(trainee, encoded.split("test"))
    baselines = measure(encoded.task, encoded.base, encoded.kept(located_rows(made, fused.tables())))
    assert set(baselines) == {"majority", "linear"}
    assert measured["accuracy"] > baselines["majority"]["test/accuracy"]

    folder = tmp_path / "bundle"
    folder.mkdir()
    task = encoded.task.settle(trainee.model)
    write_bundle(folder, model=trainee.model, task=task, name="m", recipe={}, metrics={}, baselines={}, data={})
    assert json.loads((folder / "preprocessor_config.json").read_text())["size"] == {"height": 20, "width": 20}
    predictor = Predictor(open_bundle(folder))
    files = sorted((tmp_path / "pictures").glob("*/*.png"))[::7]
    theirs = pipeline("image-classification", str(folder))([str(file) for file in files], top_k=3)
    raw = predictor.predict([file.read_bytes() for file in files], {"top_k": 3})
    text = [base64.b64encode(file.read_bytes()).decode() for file in files]
    assert predictor.predict([*text[:-1], {"file": "data:image/png;base64," + text[-1]}], {"top_k": 3}) == raw
    for ours, other in zip(raw, theirs, strict=True):
        assert [entry["label"] for entry in ours] == [entry["label"] for entry in other]
        assert [entry["score"] for entry in ours] == pytest.approx([entry["score"] for entry in other], rel=1e-4)


def test_a_continued_run_repeats_the_changes_of_an_undisturbed_one(recipe: Callable[..., Recipe]) -> None:
    made = recipe(model={"options": {"flip": True, "move": 0.1}}, train={"epochs": 1})
    encoded = encode(made, fuse(made))
    shutil.rmtree(made.folder / "pictures")  # what is encoded needs no file
    whole = make_trainee(encoded, made.train, made.model.adapt, CPU)
    list(train(whole, encoded))
    again = make_trainee(encoded, made.train, made.model.adapt, CPU)
    next(train(again, encoded))
    torch.rand(1000)  # whatever else drew meanwhile
    list(train(again, encoded))
    for one, other in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(one, other)
    assert predict(again, encoded.split("test"))[0] == pytest.approx(predict(again, encoded.split("test"))[0])


def test_the_linear_baseline_is_scikit_learns(recipe: Callable[..., Recipe]) -> None:
    made = recipe()
    fused = fuse(made)
    encoded = encode(made, fused)
    splits = located_rows(made, fused.tables())
    measured = measure(encoded.task, encoded.base, splits)["linear"]["test/accuracy"]

    def pixels(name: str) -> Any:
        return np.stack([np.asarray(Image.open(row["file"])).transpose(2, 0, 1).ravel() / 255 for row in rows(name)])

    def rows(name: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = splits[name].to_pylist()
        return found

    scaler = StandardScaler().fit(pixels("train"))
    model = LogisticRegression(C=0.1, max_iter=500, random_state=7)
    model.fit(scaler.transform(pixels("train")), [row["shape"] for row in rows("train")])
    right = model.predict(scaler.transform(pixels("test"))) == np.array([row["shape"] for row in rows("test")])
    assert measured == pytest.approx(right.mean())


def test_the_frozen_baseline_is_scikit_learns_on_transformers_hidden_states(
    recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    processor = ViTImageProcessorPil(size={"height": 20, "width": 20})
    processor.save_pretrained(tmp_path / "base")
    made = recipe()
    fused = fuse(made)
    encoded = encode(made, fused)
    splits = located_rows(made, fused.tables())
    measured = measure(encoded.task, encoded.base, splits)["frozen"]["test/accuracy"]
    base = AutoModel.from_pretrained(tmp_path / "base").eval()

    def hidden(name: str) -> Any:
        seen = [Image.open(row["file"]) for row in splits[name].to_pylist()]
        with torch.inference_mode():
            return base(**processor(images=seen, return_tensors="pt")).last_hidden_state.mean(1).numpy()

    scaler = StandardScaler().fit(hidden("train"))
    model = LogisticRegression(C=0.1, max_iter=500, random_state=7)
    model.fit(scaler.transform(hidden("train")), splits["train"]["shape"].to_pylist())
    right = model.predict(scaler.transform(hidden("test"))) == np.array(splits["test"]["shape"].to_pylist())
    assert measured == pytest.approx(right.mean())


@pytest.mark.parametrize("problem", ["multi-label", "regression"])
def test_other_targets_are_answered_as_transformers_does(
    recipe: Callable[..., Recipe], tmp_path: Path, problem: str
) -> None:
    wanted = {
        "multi-label": "CASE WHEN shape = 'bar' THEN 'thin' ELSE 'wide,square' END",
        "regression": "CASE WHEN shape = 'bar' THEN 30.0 WHEN shape = 'box' THEN 100.0 ELSE 84.0 END",
    }[problem]
    made = recipe(
        data={"fuse": f"SELECT file, {wanted} AS wanted FROM pictures", "split": {"validation": 0.2, "test": 0.2}},
        model={"target": "wanted", "options": {"problem": problem}},
        train={"epochs": 2},
    )
    encoded = encode(made, fuse(made))
    trainee = make_trainee(encoded, made.train, made.model.adapt, CPU)
    list(train(trainee, encoded))
    folder = tmp_path / "bundle"
    folder.mkdir()
    task = encoded.task.settle(trainee.model)
    write_bundle(folder, model=trainee.model, task=task, name="m", recipe={}, metrics={}, baselines={}, data={})
    file = next((tmp_path / "pictures" / "ring").glob("*.png"))
    (ours,) = Predictor(open_bundle(folder)).predict([file.read_bytes()])
    theirs = pipeline("image-classification", str(folder))(str(file))
    assert [one["label"] for one in ours] == [one["label"] for one in theirs]
    assert [one["score"] for one in ours] == pytest.approx([one["score"] for one in theirs], rel=1e-4)


def test_a_name_is_found_however_its_letters_are_composed(recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    """The rows are brought to one Unicode form, and a disk has its own."""
    made = recipe()
    folder = tmp_path / "pictures" / "ring"
    for file in folder.glob("*.png"):
        file.rename(folder / f"e\u0301t\u0065\u0301-{file.name}")
    assert len(encode(made, fuse(made)).split("train")) == 36


def test_files_that_cannot_be_read_are_put_aside_with_their_reasons(
    recipe: Callable[..., Recipe], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "pictures" / "box" / "001.png"
    broken.write_bytes(b"gone")
    strict = recipe()
    with pytest.raises(UserError, match=r"1 of 60 rows .* more than data\.max_rejected"):
        encode(strict, fuse(strict))
    made = recipe(data={**strict.data.model_dump(exclude_unset=True), "max_rejected": 0.05})
    fused = fuse(made)
    encoded = encode(made, fused)
    assert "box/001.png: it is no picture" in capsys.readouterr().err
    assert sum(len(encoded.split(name)) for name in ("train", "validation", "test")) == 59
    kept = encoded.kept(located_rows(made, fused.tables()))
    for name, table in kept.items():
        assert table.num_rows == len(encoded.split(name))
        assert [encoded.task.encode_target(row) for row in table.to_pylist()] == encoded.split(name).targets

    picture("box", np.random.default_rng(1)).save(broken)  # mended: the rows are made anew
    assert sum(len(encode(made, fuse(made)).split(name)) for name in ("train", "validation", "test")) == 60


def test_bytes_and_hugging_faces_structs_are_read_as_files_are(recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    files = sorted((tmp_path / "pictures").glob("*/*.png"))
    held = [{"bytes": file.read_bytes(), "path": file.name} for file in files]
    kinds: dict[str, Any] = {
        "bytes": pa.array([one["bytes"] for one in held]),
        "struct": pa.array(held, pa.struct({"bytes": pa.binary(), "path": pa.string()})),
        "named": pa.array([str(file.relative_to(tmp_path / "pictures")) for file in files]),
    }
    examples = {}
    for kind, column in kinds.items():
        table = pa.table({"image": column, "shape": [file.parent.name for file in files]})
        pq.write_table(table, tmp_path / f"{kind}.parquet")
        made = recipe(
            data={"sources": {"rows": {"read": f"{kind}.parquet"}}},
            model={"inputs": {"image": "image"}, "options": {"folder": "pictures"} if kind == "named" else {}},
        )
        encoded = encode(made, fuse(made))
        splits = [encoded.split(name) for name in ("train", "validation", "test")]
        examples[kind] = sorted(one["pixels"] for split in splits for one in split.examples(list(range(len(split)))))
        assert len(examples[kind]) == len(files)
    assert examples["bytes"] == examples["struct"] == examples["named"]


# --- requests ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("/etc/passwd", r"inputs\[0\]: a picture is sent as base64; names of files are not read"),
        ({"file": "/etc/passwd"}, r"inputs\[0\]\.file: a picture is sent as base64"),
        ({"file": {"path": "/etc/passwd"}}, r"inputs\[0\]\.file: a picture is needed"),
        ({"path": "/etc/passwd"}, r"inputs\[0\]\.file: missing"),
        ({"bytes": None, "path": "/etc/passwd"}, r"inputs\[0\]: a picture is needed"),
        ({"bytes": "/etc/passwd", "path": "/etc/passwd"}, "is sent as base64"),
        ("", r"inputs\[0\]: a picture is needed"),
        (None, "is needed"),
        (3, "is needed"),
    ],
)
def test_a_request_never_names_a_file(recipe: Callable[..., Recipe], value: Any, message: str) -> None:
    task = encode(recipe(), fuse(recipe())).task
    with pytest.raises(UserError, match=message):
        task.rows([value])


def test_a_name_that_is_base64_by_chance_is_not_opened(
    recipe: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = encode(recipe(), fuse(recipe())).task
    picture("box", np.random.default_rng(1)).save(tmp_path / "abcd", "PNG")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnreadableError, match="picture: it is no picture that can be read"):
        task.encode(task.rows(["abcd"]))


def test_a_replica_warms_up_without_a_picture(recipe: Callable[..., Recipe]) -> None:
    task = encode(recipe(), fuse(recipe())).task
    assert task.encode([{"file": ""}])[0]["pixels"] == bytes(3 * 20 * 20)
    assert task.shown(task.encode([{"file": png()}])[0])["image"].startswith("data:image/png;base64,")


def test_wrong_bases_are_told(tmp_path: Path) -> None:
    tiny_vit(tmp_path)
    with pytest.raises(UserError, match="the base takes pictures of 20 x 20, not of 32 x 32"):
        Pictures.learn("file", tmp_path, 32)
    assert images.Pictures.learn("file", tmp_path).shape == (3, 20, 20)
