"""Tables with a column of pictures: what the picture shows and the table says, and rows without a picture."""

import base64
import csv
import io
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModel

from cluster.errors import UserError
from serving.predictor import Predictor
from tests.training.recipes import recipe_of
from tests.training.tasks.shapes import tiny_vit
from training.bundle import open_bundle, write_bundle
from training.data.fuse import fuse
from training.data.table import read_table
from training.encode import REJECTED, encode, located_rows
from training.evaluation.baselines import measure
from training.loop import make_trainee, train, validate
from training.models.adapt import read_adapt
from training.recipe import Recipe

CPU = torch.device("cpu")
ROWS = 240


def picture(kind: str, draw: random.Random) -> bytes:
    """Bars that stand or lie, somewhere: no pixel by itself tells which."""
    pixels = np.full((20, 20, 3), 30, np.uint8)
    for start in draw.sample(range(0, 20, 4), 3):
        if kind == "stand":
            pixels[:, start : start + 2] = draw.randrange(150, 250)
        else:
            pixels[start : start + 2, :] = draw.randrange(150, 250)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def parcels(tmp_path: Path, home: Path) -> Callable[..., Recipe]:
    """Whether a parcel goes up or down: by what the picture shows and the weight together; lost without a picture."""
    draw = random.Random(5)
    (tmp_path / "photos").mkdir()
    rows = []
    for number in range(ROWS):
        kind, weight = draw.choice(["stand", "lie", "none"]), round(draw.uniform(-5, 5), 2)
        if kind != "none":
            (tmp_path / "photos" / f"{number}.png").write_bytes(picture(kind, draw))
        photo = "" if kind == "none" else f"photos/{number}.png"
        way = "lost" if kind == "none" else "up" if (kind == "stand") == (weight > 0) else "down"
        rows.append({"weight": weight, "note": f"parcel {number % 7}", "photo": photo, "way": way})
    rows.append({"weight": 1, "note": "gone", "photo": "photos/gone.png", "way": "up"})
    with (tmp_path / "parcels.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)

    def recipe(**model: Any) -> Recipe:
        inputs = {"columns": ["weight"], "image": "photo"}
        options = {"size": 20, "hidden": 32, "dropout": 0.0}
        steps = {"epochs": 30, "batch_size": 16, "learning_rate": 3e-3, "head_learning_rate": 3e-3, "workers": 1}
        tree = {
            "name": "parcels",
            "data": {"sources": {"parcels": {"read": "parcels.csv"}}, "split": {"validation": 0.1, "test": 0.25}},
            "model": {"task": "tabular-classification", "inputs": inputs, "target": "way", "options": options},
            "train": {**steps, "precision": "fp32"},
        }
        return recipe_of(tree, tmp_path, {"model": model})

    return recipe


def test_picture_and_table_are_read_together(parcels: Callable[..., Recipe], tmp_path: Path) -> None:
    made = parcels()
    fused = fuse(made)
    encoded = encode(made, fused)
    assert (encoded.folder / REJECTED).exists(), "a file that is named and not there is told"
    trainee = make_trainee(encoded, made.train, made.model.adapt, CPU)
    list(train(trainee, encoded))
    measured = validate(trainee, encoded.split("test"))
    tables = encoded.kept(located_rows(made, fused.tables()))
    baselines = measure(encoded.task, encoded.base, tables)
    assert set(baselines) == {"majority", "trees", "pictures"}
    best = max(one["test/accuracy"] for one in baselines.values())
    assert measured["accuracy"] > max(0.9, best + 0.1)

    folder = tmp_path / "bundle"
    folder.mkdir()
    write_bundle(folder, model=trainee.model, task=encoded.task, name="m", recipe={}, metrics={}, baselines={}, data={})
    predictor = Predictor(open_bundle(folder))
    rows = tables["test"].to_pylist()
    sent = [
        {"weight": row["weight"], "photo": row["photo"] and base64.b64encode(Path(row["photo"]).read_bytes()).decode()}
        for row in rows
    ]
    answers = predictor.predict(sent)
    right = np.mean([answer[0]["label"] == row["way"] for answer, row in zip(answers, rows, strict=True)])
    assert right == pytest.approx(measured["accuracy"])
    assert predictor.predict([{"weight": 1}])[0][0]["label"] == "lost", "a picture may be left out"
    lines = (made.folder / "parcels.csv").read_text(encoding="utf-8").splitlines()
    (made.folder / "asked.csv").write_text("\n".join(lines[:31]) + "\n", encoding="utf-8")
    asked = read_table(made.folder / "asked.csv", encoded.task.signature()).to_pylist()
    assert {type(row["photo"]) for row in asked} == {bytes, type(None)}, "a file's rows name the pictures beside it"
    assert len(predictor.predict(asked)) == 30

    importance = encoded.task.importance(trainee.model, rows)
    assert set(importance) == {"weight", "photo"}
    assert min(importance.values()) > 0.1


def test_a_request_names_no_file(parcels: Callable[..., Recipe]) -> None:
    made = parcels()
    task = encode(made, fuse(made)).task
    with pytest.raises(UserError, match=r"inputs\[0\]\.photo: a picture is sent as base64"):
        task.rows([{"weight": 1, "photo": str(made.folder / "photos" / "1.png")}])


def test_a_base_sees_where_there_is_no_prose(parcels: Callable[..., Recipe], tmp_path: Path) -> None:
    base = tiny_vit(tmp_path / "base")
    made = parcels(base=str(base))
    encoded = encode(made, fuse(made))
    trainee = make_trainee(encoded, made.train, read_adapt("head"), CPU)
    learning = {name.partition(".")[0] for name, weight in trainee.model.named_parameters() if weight.requires_grad}
    assert trainee.model.sight.config.model_type == "vit"
    assert learning == {"numbers", "seen", "entry", "blocks", "norm", "exit"}
    theirs = AutoModel.from_pretrained(base).state_dict()
    ours = trainee.model.sight.state_dict()
    came = [name for name in theirs if not name.startswith("pooler")]
    assert len(came) > 30 and all(torch.equal(ours[name], theirs[name]) for name in came)


def test_a_base_that_reads_prose_leaves_the_pictures_to_another(
    parcels: Callable[..., Recipe], tiny_base: Path
) -> None:
    inputs = {"columns": ["weight"], "text": ["note"], "image": "photo"}
    made = parcels(base=str(tiny_base), inputs=inputs)
    encoded = encode(made, fuse(made))
    trainee = make_trainee(encoded, made.train, made.model.adapt, CPU)
    assert trainee.model.base.config.model_type == "bert"
    assert trainee.model.sight.config.model_type == "convnext"
    batch = encoded.task.collate(encoded.split("train").examples(range(8)))
    torch.autograd.backward(encoded.task.loss(encoded.task.forward(trainee.model, batch), batch).mean())
    missed = [name for name, weight in trainee.model.named_parameters() if weight.grad is None and weight.requires_grad]
    assert not missed, "DDP waits for the gradient of every weight"
