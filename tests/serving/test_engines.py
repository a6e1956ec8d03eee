"""Engines: each says what PyTorch says in fp32, none is taken that does not, and what was measured is kept."""

import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import requests
import torch

from cluster.errors import UserError
from cluster.storage import read_json, write_json
from serving.agreement import NEAR, agreement, says_the_same
from serving.engines import choice, pytorch
from serving.engines.choice import ENGINES, REFERENCE, best_of
from serving.engines.engine import Forward, Subject
from serving.predictor import Predictor
from serving.recipe import Serve
from tests.conftest import WORDS
from tests.serving.conftest import LABELS, TEXTS, entry
from training.bundle import HELD_OUT, MOST_BYTES, MOST_HELD_OUT, Bundle, open_bundle, write_bundle
from training.recipe import Model
from training.tasks.task import task_class

ASKED = [f"{word} {' '.join(WORDS.split()[: place % 23])}" for place, word in enumerate(WORDS.split() * 3)]


@pytest.fixture(scope="module")
def judged(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle with rows that were held back."""
    folder, task = tmp_path_factory.mktemp("bundles") / "judged", bundle.task()
    folder.mkdir()
    held = task.encode(task.rows(ASKED))
    told: Any = {"recipe": {}, "metrics": {}, "baselines": {}, "data": {}}
    return write_bundle(folder, model=bundle.model(), task=task, name="judged", held_out=held, **told)


@pytest.fixture(scope="module")
def made(judged: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where engines of the bundle were made, so that a test finds the graphs written."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HEADRACE_HOME", str(home))
        Predictor(judged, "cpu", engine="fast")
    (table,) = home.glob("engines/*/table.json")
    return table.parent


# --- every engine ---------------------------------------------------------------------------------------------------


TOLERANCES = {
    "torch-bf16": 0.05,
    "onnx-fp32": 1e-4,
    "onnx-int8": 0.2,
    "openvino-fp32": 1e-4,
    "openvino-bf16": 0.05,
}


@pytest.mark.parametrize(("engine", "tolerance"), TOLERANCES.items())
def test_an_engine_says_what_pytorch_says(judged: Bundle, made: Path, engine: Any, tolerance: float) -> None:
    """Also of batches of one, of texts shorter and longer than any it was made with, and of nothing."""
    (line,) = [line for line in read_json(made / "table.json") if line["engine"] == engine]
    if engine.endswith("bf16") and not torch.cpu._is_avx512_bf16_supported():
        assert "does not multiply in bf16" in line["unavailable"]
        return
    assert "unavailable" not in line
    reference = Predictor(judged, "cpu")
    subject = Subject(reference.task, reference.model, reference.device, judged.held_out(), made)
    forward = ENGINES[engine](subject)
    asked = [[text] for text in TEXTS] + [TEXTS, ASKED[:40]]
    for texts in asked:
        batch = reference.task.collate(reference.task.encode(reference.task.rows(texts)))
        ours, theirs = forward(batch), reference.engine.forward(batch)
        assert ours.dtype == torch.float32
        spread = float(theirs.std()) if theirs.numel() > 1 else 1.0
        np.testing.assert_allclose(ours.numpy(), theirs.numpy(), atol=tolerance * max(1.0, spread))


def with_texts_inside(kind: str, base: Path, folder: Path) -> tuple[Subject, list[Any]]:
    """A model whose task picks the texts of a batch before it asks the model, and what it may be asked."""
    rows: Any = {
        "token-classification": {"text": ["my card"], "entities": [[{"start": 3, "end": 7, "label": "thing"}]]},
        "sentence-similarity": {"query": ["where is my card"], "passage": ["card lost"]},
        "text-ranking": {"query": ["where is my card"], "passage": ["card lost"]},
    }
    roles, target = [name for name in rows[kind] if name != "entities"], "entities" if "text" in rows[kind] else None
    told = Model(task=kind, base=str(base), inputs={name: [name] for name in roles}, target=target)
    task = task_class(kind).learn(told, base, {"train": pa.table(rows[kind])})
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = task.build(base).eval()
    pairs = [{"query": text, "texts": ASKED[place : place + 1 + place % 3]} for place, text in enumerate(ASKED[:40])]
    asked: list[Any] = pairs if kind == "text-ranking" else ASKED[:40]
    return Subject(task, model, torch.device("cpu"), task.encode(task.rows(asked)), folder), asked


@pytest.mark.parametrize("kind", ["token-classification", "sentence-similarity", "text-ranking"])
@pytest.mark.parametrize("engine", ["onnx-fp32", "openvino-fp32"])
def test_what_a_task_does_around_its_model_stays_with_the_task(
    tiny_base: Path, tmp_path: Path, kind: str, engine: Any
) -> None:
    subject, asked = with_texts_inside(kind, tiny_base, tmp_path)
    task, reference, calls = subject.task, pytorch.fp32(subject), []
    forward = ENGINES[engine](subject)
    subject.model.register_forward_hook(lambda *said: calls.append(said))
    for part in (asked[:1], asked[5:8], asked[20:37], asked[:2] * 9):
        batch = task.collate(task.encode(task.rows(part)))
        ours = forward(batch)
        assert not calls, "the graph computes, and not the model"
        np.testing.assert_allclose(ours.numpy(), reference(batch).numpy(), atol=1e-4)
        calls.clear()


@pytest.mark.parametrize("engine", ["onnx-fp32", "openvino-fp32"])
def test_lanes_that_compute_at_once_say_what_one_says(judged: Bundle, made: Path, engine: Any) -> None:
    """Each thread with its share of the cores, as the scheduler's lanes have it, and batches of many shapes."""
    reference = Predictor(judged, "cpu")
    subject = Subject(reference.task, reference.model, reference.device, judged.held_out(), made, lanes=2)
    forward = ENGINES[engine](subject)
    encoded = reference.task.encode(reference.task.rows(ASKED))
    batches = [reference.task.collate(encoded[place : place + 1 + place % 7]) for place in range(0, 60, 3)]

    def lane(share: int) -> list[torch.Tensor]:
        torch.set_num_threads(share)
        return [forward(batch) for batch in batches]

    with ThreadPoolExecutor(2) as lanes:
        found = [*lanes.map(lane, [1, 1]), lane(torch.get_num_threads())]
    for batch, *outputs in zip(batches, *found, strict=True):
        expected = reference.engine.forward(batch).numpy()
        for ours in outputs:
            np.testing.assert_allclose(ours.numpy(), expected, atol=1e-4)


def test_no_engine_tells_its_makers_that_it_is_used(judged: Bundle, made: Path) -> None:
    """OpenVINO's package for that is installed beside it, and is never imported."""
    program = (
        "import sys; from pathlib import Path; from training.bundle import open_bundle\n"
        "from serving.predictor import Predictor\nPredictor(open_bundle(Path(sys.argv[1])), 'cpu', 'openvino-fp32')\n"
        "assert 'openvino' in sys.modules and sys.modules['openvino_telemetry'] is None\n"
        "print([name for name in sys.modules if name.startswith('openvino_telemetry.')])"
    )
    variables = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "HEADRACE_HOME": str(made.parents[1])}
    command = [sys.executable, "-c", program, str(judged.folder)]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


def test_a_start_that_was_killed_leaves_no_half_graph(
    judged: Bundle, home: Path, wait_until: Callable[..., None]
) -> None:
    """Killed while the quantised graph is made, of which a part may lie on the disk; the next start makes it anew."""
    program = "import sys; from pathlib import Path; from training.bundle import open_bundle\n"
    program += "from serving.predictor import Predictor\nPredictor(open_bundle(Path(sys.argv[1])), 'cpu', 'onnx-int8')"
    root = str(Path(__file__).parents[2])
    variables = {**os.environ, "PYTHONPATH": root, "HEADRACE_HOME": str(home)}
    with subprocess.Popen([sys.executable, "-c", program, str(judged.folder)], env=variables) as process:
        wait_until(lambda: list(home.glob("engines/*/fp32")), 300)
        process.kill()
    again = Predictor(judged, "cpu", engine="onnx-int8")
    assert again.engine.name == "onnx-int8"
    assert agreement(again.predict(TEXTS), Predictor(judged, "cpu").predict(TEXTS)) > 0.5
    (folder,) = home.glob("engines/*/int8")
    assert [path.name for path in folder.iterdir()] == ["model.onnx"]


def test_what_was_measured_is_kept_and_decides(judged: Bundle, home: Path) -> None:
    first = Predictor(judged, "cpu", engine="fast")
    assert [line["engine"] for line in first.engine.table] == list(ENGINES)
    assert first.engine.name == best_of(first.engine.table)
    (kept,) = home.glob("engines/*/table.json")
    assert read_json(kept) == first.engine.table
    slow = [{**line, "speed": 1.0} if "speed" in line else dict(line) for line in first.engine.table]
    write_json(kept, slow)
    again = Predictor(judged, "cpu", engine="fast")
    assert (again.engine.name, again.engine.table) == (REFERENCE, slow), "the next start does not measure"
    assert again.predict(TEXTS) == Predictor(judged, "cpu").predict(TEXTS)


def test_the_address_tells_what_computes(judged: Bundle, home: Path, edge_of: Callable[..., Any]) -> None:
    with edge_of({"judged": entry(judged)}, Serve(engine="fast")) as edge:
        told = requests.get(f"{edge.address}/models/judged", timeout=60).json()["engine"]
        answers = requests.post(f"{edge.address}/models/judged", json={"inputs": TEXTS}, timeout=60).json()
        counted = requests.get(f"{edge.address}/metrics", timeout=60).text
    assert told["name"] == best_of(told["measured"])
    assert [line["engine"] for line in told["measured"]] == list(ENGINES)
    assert f'headrace_loads_total{{engine="{told["name"]}",model="judged",version="1"}} 1.0' in counted
    assert agreement(answers, Predictor(judged, "cpu").predict(TEXTS)) == 1.0


# --- which one is taken -----------------------------------------------------------------------------------------------


def test_one_that_is_fast_and_wrong_is_not_taken(judged: Bundle, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(subject: Subject) -> Forward:
        return lambda batch: torch.nn.functional.one_hot(torch.arange(len(batch["input_ids"])) % len(LABELS)).float()

    def breaks(subject: Subject) -> Forward:
        def forward(batch: Any) -> torch.Tensor:
            raise RuntimeError("no such kernel")

        return forward

    monkeypatch.setattr(choice, "ENGINES", {REFERENCE: pytorch.fp32, "torch-int8": wrong, "onnx-int8": breaks})
    found = Predictor(judged, "cpu", engine="fast").engine
    lines = {line["engine"]: line for line in found.table}
    assert lines["torch-int8"]["speed"] > choice.LEAST_GAIN
    assert lines["torch-int8"]["agreement"] < choice.LEAST_AGREEMENT
    assert lines["onnx-int8"] == {"engine": "onnx-int8", "unavailable": "it fails (RuntimeError)"}
    assert found.name == REFERENCE


@pytest.mark.parametrize(
    ("lines", "best"),
    [
        ([("torch-bf16", 1.0, 1.14)], REFERENCE),
        ([("torch-bf16", 1.0, 1.15)], "torch-bf16"),
        ([("torch-bf16", 1.0, 1.5), ("onnx-int8", 0.9949, 3.0)], "torch-bf16"),
        ([("torch-bf16", 1.0, 1.5), ("onnx-int8", 0.995, 3.0)], "onnx-int8"),
    ],
)
def test_the_fastest_that_agrees_is_taken(lines: list[tuple[str, float, float]], best: str) -> None:
    table: list[dict[str, Any]] = [{"engine": REFERENCE, "agreement": 1.0, "speed": 1.0}]
    table += [{"engine": name, "agreement": agreed, "speed": speed} for name, agreed, speed in lines]
    assert best_of([*table, {"engine": "onnx-fp32", "unavailable": "not installed"}]) == best


def test_the_page_says_what_holds() -> None:
    page = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")
    for figure in (f"up to {MOST_HELD_OUT} of", f"{choice.LEAST_AGREEMENT:.1%}".replace("%", " %"), f"{NEAR:.0%}"):
        assert figure.replace("1%", "1 %") in page
    assert f"at least {choice.LEAST_GAIN} times" in page
    assert all(f"`{name}`" in page for name in ENGINES)


def test_nothing_is_measured_where_no_row_was_held_back(bundle: Bundle, home: Path) -> None:
    found = Predictor(bundle, "cpu", engine="fast").engine
    assert (found.name, found.table) == (REFERENCE, ())
    with pytest.raises(UserError, match=r"serve\.engine: onnx-fp32 cannot compute this model here: "):
        Predictor(bundle, "cpu", engine="onnx-fp32")


# --- what is held back, and when two answers say the same -------------------------------------------------------------


def test_held_out_rows_come_back_as_they_were(bundle: Bundle, tmp_path: Path) -> None:
    task: Any = bundle.task()
    examples = [{"input_ids": [1, 2], "pixels": b"\x00\xff", "pictured": 1.0, "texts": [[1], []]}] * 3
    told: Any = {"recipe": {}, "metrics": {}, "baselines": {}, "data": {}}
    write_bundle(tmp_path, model=bundle.model(), task=task, name="m", held_out=examples, **told)
    assert open_bundle(tmp_path).held_out() == examples
    large = tmp_path / "large"
    large.mkdir()
    write_bundle(large, model=bundle.model(), task=task, name="m", held_out=[{"pixels": bytes(2**20)}] * 9, **told)
    assert (large / HELD_OUT).stat().st_size < MOST_BYTES + 2 * 2**20, "pictures do not outweigh the model"
    assert bundle.held_out() == []


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ([{"label": "a", "score": 0.6}, {"label": "b", "score": 0.4}], [{"label": "a", "score": 0.5}], True),
        ([{"label": "a", "score": 0.6}, {"label": "b", "score": 0.4}], [{"label": "b", "score": 0.5}], False),
        ([{"label": "days", "score": 10.0}], [{"label": "days", "score": 10.05}], True),
        ([{"label": "days", "score": 10.0}], [{"label": "days", "score": 10.5}], False),
        ([0.6, 0.8], [0.601, 0.799], True),
        ([0.6, 0.8], [0.8, 0.6], False),
        (
            [{"entity_group": "PER", "start": 0, "score": 0.9}],
            [{"entity_group": "PER", "start": 0, "score": 0.5}],
            True,
        ),
        ([{"entity_group": "PER", "start": 0, "score": 0.9}], [], False),
        ([{"index": 1, "score": 3.0}, {"index": 0, "score": 1.0}], [{"index": 0, "score": 3}, {"index": 1}], False),
        ({"mean": [1.0, 2.0]}, {"mean": [1.0, 2.001]}, True),
        ({"generated_text": "a"}, {"generated_text": "b"}, False),
        ([], [], True),
    ],
)
def test_two_answers_say_the_same(one: Any, other: Any, same: bool) -> None:
    assert says_the_same(one, other) is same
    assert agreement([one], [other]) == float(same)
