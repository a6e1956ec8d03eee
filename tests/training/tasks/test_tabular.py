"""Models of tables: cells to numbers, a model over all kinds of columns, its baselines, its answers."""

import csv
import datetime as dt
import json
import random
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from sklearn.metrics import average_precision_score, brier_score_loss, log_loss, roc_auc_score

from cluster.errors import UserError
from tests.training.recipes import recipe_of
from training.bundle import Bundle, open_bundle, write_bundle
from training.data.fuse import fuse
from training.data.landing import written
from training.encode import Encoded, encode
from training.evaluation import metrics
from training.evaluation.baselines import measure
from training.evaluation.report import ReportData, write_report
from training.inputs.cells import infer
from training.inputs.columns import MISSING, UNKNOWN, Category, Columns, Date, Number
from training.loop import Trainee, make_trainee, predict, train, validate
from training.models.adapt import read_adapt
from training.models.fusion import FusionConfig, FusionModel, Numbers, plain
from training.outcome import asked
from training.recipe import Model, Recipe
from training.tasks.tabular_classification import TabularClassification
from training.tasks.tabular_regression import TabularRegression
from training.tasks.task import Task

CPU = torch.device("cpu")


def column(values: list[Any]) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(values)])


def learned(values: list[Any], kind: type[Any], **settings: Any) -> Any:
    return kind.learn("c", column(values), {"bins": 4, "unicode": "none", **settings})


# --- cells to numbers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([1, 2, None], "number"),
        ([0.5, float("nan")], "number"),
        ([True, False], "category"),
        ([dt.date(2026, 1, 1)], "date"),
        (["29.85", " ", "1889.5"], "number"),
        (["01310", "04001"], "category"),
        (["2017-10-02 10:56:33", None], "date"),
        (["DSL", "No", "DSL"], "category"),
        ([" ", ""], "category"),
        (["1.5", "NaN", "", "nan"], "number"),
        (["nan", "NaN"], "category"),
        (["1.5", "NA"], "category"),
    ],
)
def test_a_column_is_of_the_kind_it_looks_like(values: list[Any], kind: str) -> None:
    assert infer(column(values)) == kind


def test_a_number_is_standardised_and_blank_text_is_missing() -> None:
    number = learned(["1", "3", " ", "5", None], Number)
    assert (number.mean, number.spread) == (3.0, np.std([1, 3, 5]))
    assert number.optional
    assert number.encode([number.read(cell) for cell in ("3", 5, " ", float("inf"))])[:2].tolist() == [
        0.0,
        pytest.approx(2 / np.std([1, 3, 5])),
    ]
    assert np.isnan(number.encode([None])).all()


def test_rare_new_and_missing_categories_have_entries_of_their_own() -> None:
    category = learned(["a", "b", "a", "b ", "once", None, "a"], Category)
    assert category.values == ["a", "b"]
    read = [category.read(cell) for cell in ("a", " b", "once", "new", "", None)]
    assert category.encode(read).tolist() == [2, 3, UNKNOWN, UNKNOWN, MISSING, MISSING]
    assert category.size == 4


@pytest.mark.parametrize(
    ("trained", "asked"),
    [([True, True, False, False], ["true", "True", True]), ([3, 3, 4, 4], [3, 3.0, "3", "3.0"])],
)
def test_a_category_is_the_same_however_it_is_written(trained: list[Any], asked: list[Any]) -> None:
    category = learned(trained, Category)
    assert len({int(category.encode([category.read(cell)])[0]) for cell in [trained[0], *asked]}) == 1


LONG = [123456789012345678, 123456789012345680, 9007199254740993, 7]
"""Whole numbers of which a float cannot tell the first two apart, and has no room for the third."""


@pytest.mark.parametrize(
    ("cells", "kind"),
    [
        (LONG, pa.int64()),
        ([*LONG[:3], 2**64 - 1], pa.uint64()),
        (list(map(Decimal, LONG)), pa.decimal128(38, 0)),
        ([Decimal("1.50"), Decimal("2.00"), Decimal("7.00")], pa.decimal128(9, 2)),
        ([1.2345678901234568e17, 1e16 / 3, 3.0, 0.1, 1e300], pa.float64()),
        (["007", "7", "1e3", "1000", "1.0", " 1", "123456789012345678"], pa.string()),
        (["007", "7", "1e3"], pa.dictionary(pa.int32(), pa.string())),
        ([True, False], pa.bool_()),
        ([dt.date(2026, 1, 5), dt.date(2026, 1, 6)], pa.date32()),
    ],
    ids=str,
)
def test_a_category_is_the_same_to_a_server_as_it_was_in_training(cells: list[Any], kind: pa.DataType) -> None:
    """What was typed in training arrives as text where `predict` reads a file, and as JSON has it in a request."""
    trained = Category.learn("c", pa.chunked_array([pa.array(cells * 2, kind)]), {"bins": 4, "unicode": "none"})
    served = Columns.load(Columns([trained]).save())
    learned_as = [one["categories"] for one in served.encode([{"c": cell} for cell in cells])]
    texts = [{"c": written(cell)} for cell in cells]
    requests = [{"c": json.loads(json.dumps(cell, default=str))} for cell in cells]
    assert [one["categories"] for one in served.encode(texts)] == learned_as
    assert [one["categories"] for one in served.encode(requests)] == learned_as
    assert UNKNOWN not in [code for (code,) in learned_as]
    assert len({code for (code,) in learned_as}) == len({written(cell).strip() for cell in cells})


@pytest.mark.parametrize(
    ("asked", "means"),
    [
        ("123456789012345678", 0),
        (123456789012345678, 0),
        ("123456789012345680", 1),
        ("9007199254740993", 2),
        ("9007199254740992", None),  # which is the same float
        ("1.0", 3),
        (1.0, 3),
        (" 1 ", 3),
        ("001", 3),
        ("1e3", 4),
        ("1000.00", 4),
        ("1" * 400, None),
        ("1" * 5000, None),  # more digits than Python reads
        ("1e999", None),
        ("seven", None),
    ],
)
def test_a_whole_number_is_known_by_all_of_its_digits(asked: Any, means: int | None) -> None:
    trained = [*LONG[:3], 1, 1000]
    category = learned(trained * 2, Category)
    wanted = UNKNOWN if means is None else int(category.encode([category.read(trained[means])])[0])
    assert category.encode([category.read(asked)]).tolist() == [wanted]


def test_a_number_that_training_had_as_a_float_is_known_by_its_digits_too() -> None:
    """As pandas leaves the ids of a column in which one is missing."""
    category = learned([float(LONG[0])] * 2, Category)
    assert category.encode([category.read(one) for one in (LONG[0], str(LONG[0]), float(LONG[0]))]).tolist() == [2] * 3


def test_a_date_has_a_place_in_time_and_in_each_cycle() -> None:
    date = learned([dt.datetime(2026, 1, 1), dt.datetime(2026, 1, 3)], Date)
    noon, missing = date.encode([date.read("2026-01-02T12:00:00"), None])
    assert noon[:4] == pytest.approx([0, 0.5, np.sin(np.pi), np.cos(np.pi)], abs=1e-9)  # half a spread past the mean
    assert missing.tolist() == [1, *[0] * 7]
    zoned = date.read("2026-01-02T13:00:00+01:00")
    assert zoned == date.read("2026-01-02T12:00:00") == date.read(dt.datetime(2026, 1, 2, 12))


def test_columns_are_the_same_after_they_were_kept() -> None:
    table = pa.table({"n": [1.0, 2.0, None], "c": ["x", "x", "y"], "d": ["2026-01-01", "2026-01-02", ""]})
    columns = Columns.learn(["n", "c", "d"], table, {}, bins=4)
    again = Columns.load(columns.save())
    rows = table.to_pylist()
    assert repr(again.encode(rows)) == repr(columns.encode(rows))
    batch = columns.collate(columns.encode(rows))
    assert batch["numbers"][2].item() == pytest.approx(0.0)  # the median of the two others
    assert batch["missing"].tolist() == [[0], [0], [1]]
    assert batch["dates"].shape == (3, 1, 8)


@pytest.mark.parametrize(
    ("kinds", "values", "message"),
    [
        ({}, [None, None], r"'c' is empty in every training row; leave it out"),
        (
            {"c": "number"},
            ["a", "b"],
            r"'c' cannot be read: a number is needed, and 2 of 2 training rows have another value",
        ),
        ({"c": "number"}, ["1", "NA", "NA"], r"2 of 3 training rows have another value, as 'NA'; have data\.fuse make"),
        (
            {"c": "date"},
            ["2026-01-01", "soon"],
            r"a date such as .* 1 of 2 training rows have another value, as 'soon'",
        ),
        ({}, ["one", "two"], r"'c' is another text in every row, .* name it under `text` if it is prose"),
        ({"d": "number"}, [1, 2], r"model\.options\.kinds: 'd' is not among the columns"),
    ],
)
def test_a_column_that_cannot_be_learned_is_named(kinds: Any, values: list[Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Columns.learn(["c"], pa.table({"c": pa.array(values, pa.string() if values[0] is None else None)}), kinds, 4)


def test_a_number_is_encoded_piecewise() -> None:
    """Each bin says how far through it the number has come: 0 below, 1 above, a share within."""
    encoder = Numbers([[-1.0, 0.0, 2.0], [0.0, 1.0]], 3)
    with torch.no_grad():
        for weight in (encoder.slope, encoder.bias):
            weight.zero_()
        encoder.weight.copy_(torch.tensor([[[1, 0, 0], [0, 1, 0]], [[0, 0, 1], [9, 9, 9]]]))
    said = encoder(torch.tensor([[1.0, 0.25], [-0.5, 7.0], [-3.0, -1.0]]), torch.zeros(3, 2))
    assert said.tolist() == [[[1, 0.5, 0], [0, 0, 0.25]], [[0.5, 0, 0], [0, 0, 1]], [[0, 0, 0], [0, 0, 0]]]


def test_a_model_of_all_kinds_is_the_same_after_it_was_kept(tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = FusionModel(FusionConfig(edges=[[-1.0, 0.0, 1.0], [0.0]], sizes=[3, 5], dates=1, date_features=8)).eval()
    batch = {
        "numbers": torch.randn(4, 2),
        "missing": torch.tensor([[0.0, 1.0]] * 4),
        "categories": torch.tensor([[0, 1], [2, 4], [1, 0], [1, 3]]),
        "dates": torch.randn(4, 1, 8),
    }
    model.save_pretrained(tmp_path)
    again = FusionModel.from_pretrained(tmp_path).eval()
    assert torch.equal(model(**batch), again(**batch))
    assert "auto_map" not in (tmp_path / "config.json").read_text(encoding="utf-8")
    torch.manual_seed(1)
    assert torch.equal(FusionModel(model.config).eval()(**batch), model(**batch)), "drawn from the seed alone"


def test_a_base_inside_brings_no_code() -> None:
    """What is refused at the top of a config.json must not come in one level deeper."""
    inner = {"model_type": "bert", "auto_map": {"AutoModel": "evil.Model"}, "_attn_implementation_internal": "a/b"}
    assert plain({**inner, "attn_implementation": "a/b", "hidden_size": 8}) == {"model_type": "bert", "hidden_size": 8}
    sizes = {
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "intermediate_size": 8,
        "vocab_size": 9,
    }
    model = FusionModel(FusionConfig(base_config={**inner, **sizes}, sizes=[3]))
    assert type(model.base).__module__.startswith("transformers.models.bert")


# --- metrics --------------------------------------------------------------------------------------------------------


def test_ranking_metrics_equal_scikit_learns() -> None:
    chance = np.random.default_rng(5)
    logits, truth = chance.normal(size=(80, 2)), chance.integers(0, 2, 80)
    shares = np.exp(logits[:, 1]) / np.exp(logits).sum(1)
    measured = metrics.ranked(logits, truth, ["no", "yes"])
    assert measured["auc"] == pytest.approx(roc_auc_score(truth, shares))
    assert measured["average_precision"] == pytest.approx(average_precision_score(truth, shares))
    assert measured["brier"] == pytest.approx(brier_score_loss(truth, shares))
    assert measured["loss"] == pytest.approx(log_loss(truth, shares))

    logits, truth = chance.normal(size=(90, 3)), chance.integers(0, 3, 90)
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    measured = metrics.ranked(logits, truth, ["a", "b", "c"])
    assert measured["auc"] == pytest.approx(roc_auc_score(truth, shares, multi_class="ovr"))
    assert measured["average_precision"] == pytest.approx(average_precision_score(np.eye(3)[truth], shares))
    assert metrics.ranked(logits[:5], np.zeros(5, dtype=np.int64), ["a", "b", "c"])["auc"] == 0.5
    assert metrics.ranked(logits, truth, ["a", "b", "c"]).keys() == metrics.RANKED.keys()


def test_the_label_that_is_looked_for_is_the_last() -> None:
    table = pa.table({"x": [1, 2], "y": ["bad", "good"]})
    for positive, labels in ((None, ["bad", "good"]), ("bad", ["good", "bad"])):
        model = Model(
            task="tabular-classification", inputs={"columns": ["x"]}, target="y", options={"positive": positive}
        )
        assert TabularClassification.learn(model, Path(), {"train": table}).labels == labels
    model = model.model_copy(update={"options": {"positive": "ugly"}})
    with pytest.raises(UserError, match=r"model\.options\.positive: must be one of two labels; 'y' has bad, good"):
        TabularClassification.learn(model, Path(), {"train": table})


# --- a whole run ----------------------------------------------------------------------------------------------------


def loans(folder: Path, rows: int = 500) -> None:
    """Loans whose fate follows from a number, a category, a date and a word; some cells are blank."""
    draw = random.Random(3)
    with (folder / "loans.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["income", "city", "since", "note", "late", "cost"])
        for _ in range(rows):
            income, city = draw.lognormvariate(3, 0.5), draw.choice(["Bern", "Graz", "Lyon", ""])
            since = dt.date(2020, 1, 1) + dt.timedelta(days=draw.randrange(1500))
            note = draw.choice(["please help", "card lost", "good day", "charged twice"])
            risk = 2.5 * (income < 18) + 1.5 * (city == "Graz") + 2 * ("charged" in note) + (since.year > 2022) - 2.5
            late = draw.random() < 1 / (1 + np.exp(-2 * risk))
            cost = 100 + 40 * risk + draw.gauss(0, 5)
            shown = " " if draw.random() < 0.1 else f"{income:.2f}"
            writer.writerow([shown, city, since, f"{note} {draw.randrange(10_000)}", "Yes" if late else "No", cost])


@pytest.fixture
def make_loans(tmp_path: Path, home: Path, tiny_base: Path) -> Callable[..., Recipe]:
    def make(task: str, target: str, text: bool = False, **sections: Any) -> Recipe:
        loans(tmp_path)
        inputs: dict[str, Any] = {"columns": ["income", "city", "since"]} | ({"text": "note"} if text else {})
        tree: dict[str, Any] = {
            "name": "loans",
            "data": {"sources": {"loans": {"read": "loans.csv"}}, "split": {"validation": 0.15, "test": 0.25}},
            "model": {"task": task, "inputs": inputs, "target": target, "options": {"hidden": 32, "blocks": 1}},
            "train": {
                "epochs": 12,
                "batch_size": 32,
                "learning_rate": 3e-3,
                "head_learning_rate": 3e-3,
                "precision": "fp32",
            },
        }
        if text:
            tree["model"]["base"] = str(tiny_base)
        return recipe_of(tree, tmp_path, sections)

    return make


def trained(recipe: Recipe) -> tuple[Encoded, Trainee]:
    encoded = encode(recipe, fuse(recipe))
    trainee = make_trainee(encoded, recipe.train, "full", CPU)
    list(train(trainee, encoded))
    return encoded, trainee


def kept(folder: Path, trainee: Trainee, task: Task) -> Bundle:
    folder.mkdir()
    settled = task.settle(trainee.model)
    write_bundle(folder, model=trainee.model, task=settled, name="m", recipe={}, metrics={}, baselines={}, data={})
    return open_bundle(folder)


@torch.inference_mode()
def computed(task: Task, model: Any, examples: list[Any]) -> torch.Tensor:
    return task.infer(model, task.collate(examples))


def test_rows_of_equal_categories_are_no_copies(make_loans: Callable[..., Recipe]) -> None:
    recipe = make_loans("tabular-classification", "late")
    report = fuse(recipe).report
    assert report["split"]["near_copies"]["columns"] == []
    assert sum(report["splits"].values()) == 500
    with_text = fuse(make_loans("tabular-classification", "late", text=True))
    assert with_text.report["split"]["near_copies"]["columns"] == ["note"]


def test_a_classifier_of_all_kinds_of_columns(make_loans: Callable[..., Recipe], tmp_path: Path) -> None:
    """It learns from every kind, beats those that read only one, and answers as a bundle what it said in training."""
    recipe = make_loans("tabular-classification", "late", text=True)
    encoded, trainee = trained(recipe)
    task = encoded.task
    measured = validate(trainee, encoded.split("test"))
    baselines = measure(task, encoded.base, asked(recipe, fuse(recipe), encoded))
    assert measured.keys() == task.metrics_known.keys()
    assert measured["auc"] > max(baselines[name]["test/auc"] for name in ("trees", "text"))
    assert baselines["majority"]["test/auc"] == 0.5
    assert baselines["trees"]["test/auc"] > 0.6
    assert "test/brier" not in baselines["text"]

    outputs = predict(trainee, encoded.split("test"))
    said = task.decode(outputs, [], {})
    bundle = kept(tmp_path / "bundle", trainee, task)
    rows = fuse(recipe).split("test").to_pylist()
    opened = bundle.task()
    as_text = [{name: None if cell is None else str(cell) for name, cell in row.items()} for row in rows]
    examples = opened.encode(opened.rows(as_text))
    answers = opened.decode(opened.keep(computed(opened, bundle.model(), examples), examples), examples, {})
    for one, other in zip(answers, said, strict=True):
        assert [entry["label"] for entry in one] == [entry["label"] for entry in other]
        assert one[0]["score"] == pytest.approx(other[0]["score"], rel=1e-4)

    page = tmp_path / "report.html"
    data = ReportData(
        name="loans",
        task=task.name,
        metrics={f"test/{name}": value for name, value in measured.items()},
        baselines=baselines,
        labels=task.labels,
        headline=task.headline,
        outputs=outputs,
        targets=encoded.split("test").targets,
        texts=[task.text(row) for row in rows],
        importance=lambda: opened.importance(bundle.model(), rows),
    )
    write_report(page, data, task.report_sections)
    html = page.read_text(encoding="utf-8")
    assert "How well it ranks" in html
    assert "What it goes by" in html
    found = opened.importance(bundle.model(), rows)
    assert set(found) == {"income", "city", "since", "note"}
    assert min(found["income"], found["note"]) > 0.01 < max(found.values())
    assert "city: " in html


def test_a_regressor_says_the_number_itself(make_loans: Callable[..., Recipe], tmp_path: Path) -> None:
    recipe = make_loans("tabular-regression", "cost")
    encoded, trainee = trained(recipe)
    task = encoded.task
    measured = validate(trainee, encoded.split("test"))
    baselines = measure(task, encoded.base, asked(recipe, fuse(recipe), encoded))
    assert measured["mae"] < 0.75 * baselines["majority"]["test/mae"]
    assert set(baselines) == {"majority", "trees"}
    before = task.decode(predict(trainee, encoded.split("test")), [], {})
    data = ReportData(
        name="cost",
        task=task.name,
        metrics={f"test/{name}": value for name, value in measured.items()},
        headline="mae",
        direction="min",
        outputs=predict(trainee, encoded.split("test")),
        targets=encoded.split("test").targets,
    )
    write_report(tmp_path / "report.html", data, task.report_sections)
    assert "How far off it is" in (tmp_path / "report.html").read_text(encoding="utf-8")

    bundle = kept(tmp_path / "bundle", trainee, task)
    opened = bundle.task()
    rows = fuse(recipe).split("test").to_pylist()
    examples = opened.encode(opened.rows(rows))
    raw = computed(opened, bundle.model(), examples)
    after = opened.decode(opened.keep(raw, examples), examples, {})
    assert [one[0]["score"] for one in after] == pytest.approx([one[0]["score"] for one in before], rel=1e-4)
    assert raw[:, 0].tolist() == pytest.approx([one[0]["score"] for one in after], rel=1e-6)


def test_prose_needs_a_base_and_the_target_is_no_input(make_loans: Callable[..., Recipe]) -> None:
    table = pa.table({"x": [1, 2], "note": ["a", "b"], "y": [1.0, 2.0]})
    model = Model(task="tabular-regression", inputs={"columns": ["x"], "text": ["note"]}, target="y")
    with pytest.raises(UserError, match=r"model\.base: missing; the columns under model\.inputs\.text"):
        TabularRegression.learn(model, Path(), {"train": table})
    model = Model(task="tabular-regression", inputs={"columns": ["x", "y"]}, target="y")
    with pytest.raises(UserError, match=r"model\.inputs: 'y' is the target"):
        TabularRegression.learn(model, Path(), {"train": table})


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (["a"], r"inputs\[0\]: an object with the columns is needed, not str"),
        ([{"x": 1, "c": "a"}, {"x": 1}], r"inputs\[1\]\.c: missing"),
        ([{"x": "much", "c": "a"}], r"inputs\[0\]\.x: a number is needed"),
        ([{"x": 1, "c": ["a"]}], r"inputs\[0\]\.c: a string, a number or true or false is needed"),
    ],
)
def test_wrong_inputs_are_named_by_place_and_never_quoted(inputs: list[Any], message: str) -> None:
    table = pa.table({"x": [1.0, 2.0, None], "c": ["a", "a", "b"], "y": [1.0, 2.0, 3.0]})
    model = Model(task="tabular-regression", inputs={"columns": ["x", "c"]}, target="y")
    task = TabularRegression.learn(model, Path(), {"train": table})
    assert task.rows([{"c": "a"}]) == [{"c": "a", "x": None}], "a column that was missing before may be left out"
    assert task.signature()["input"]["required"] == ["c"]
    with pytest.raises(UserError, match=message):
        task.rows(inputs)


def test_there_is_no_lora_without_a_base(make_loans: Callable[..., Recipe]) -> None:
    recipe = make_loans("tabular-regression", "cost")
    encoded = encode(recipe, fuse(recipe))
    with pytest.raises(UserError, match=r"model\.adapt\.lora: this model has no base"):
        make_trainee(encoded, recipe.train, read_adapt({"lora": {"r": 2}}), CPU)
    text = make_loans("tabular-regression", "cost", text=True)
    trainee = make_trainee(encode(text, fuse(text)), text.train, read_adapt({"lora": {"r": 2}}), CPU)
    assert {
        name.partition(".")[0] for name, weight in trainee.model.named_parameters() if not weight.requires_grad
    } == {"base"}


def test_a_network_that_cannot_compute_its_layers_twice_says_so(make_loans: Callable[..., Recipe]) -> None:
    recipe = make_loans("tabular-regression", "cost", train={"activation_checkpointing": True})
    with pytest.raises(UserError, match=r"train\.activation_checkpointing: a headrace-fusion cannot"):
        trained(recipe)
