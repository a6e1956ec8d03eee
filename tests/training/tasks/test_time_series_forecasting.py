"""Forecasting: time on a grid, windows that never see their future, and a model that beats repeating the past."""

import csv
import datetime as dt
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file, save_file
from sklearn.metrics import mean_absolute_error, mean_pinball_loss

from cluster.errors import UserError
from tests.training.recipes import recipe_of
from training.bundle import open_bundle, write_bundle
from training.data.fuse import fuse
from training.data.joined import Fusion
from training.data.recipe import Source
from training.data.sources import land
from training.encode import encode
from training.evaluation import forecasts, metrics
from training.evaluation.baselines import measure
from training.evaluation.report import ReportData, write_report
from training.inputs.timeline import Timeline
from training.inputs.windows import Shape, cut, seasons
from training.loop import make_trainee, predict, train, validate
from training.models.forecaster import ForecastConfig, ForecastModel, lags_of, open_forecaster, pinball
from training.outcome import asked
from training.recipe import Model, Recipe
from training.tasks.task import Task
from training.tasks.time_series_forecasting import TimeSeriesForecasting

CPU = torch.device("cpu")
MONDAY = dt.datetime(2026, 1, 5)


# --- time -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("moments", "season", "following"),
    [
        ([MONDAY + dt.timedelta(hours=one) for one in (0, 1, 2, 5)], 24, "2026-01-05T06:00:00"),
        ([MONDAY + dt.timedelta(minutes=15 * one) for one in range(4)], 96, "2026-01-05T01:00:00"),
        ([MONDAY.date() + dt.timedelta(days=one) for one in (0, 1, 3)], 7, "2026-01-09T00:00:00"),
        (["2026-01-05", "2026-01-12", "2026-01-19"], 52, "2026-01-26T00:00:00"),
        ([dt.date(2026, month, 1) for month in (1, 2, 3, 6)], 12, "2026-07-01T00:00:00"),
        (["2026-01-31", "2026-02-28", "2026-03-31"], 12, "2026-04-30T00:00:00"),
        ([dt.date(2026, month, 15) for month in (1, 4, 7)], 4, "2026-10-15T00:00:00"),
        ([1, 2, 3, 7], 1, 8),
    ],
)
def test_steps_are_found_and_counted_on(moments: list[Any], season: int, following: str | int) -> None:
    timeline = Timeline.learn([moments], "t")
    places = timeline.places(moments, "t")
    assert timeline.season == season
    assert places[1] - places[0] == 1
    assert timeline.moment(int(places[-1]) + 1) == following
    assert Timeline(**timeline.save()) == timeline
    told = [timeline.moment(int(place)) for place in places]
    assert timeline.places(told, "t").tolist() == places.tolist()


@pytest.mark.parametrize(
    ("moments", "selected"),
    [
        ([20240429, 20240430, 20240501], "to_date(CAST(day AS STRING), '%Y%m%d') AS day"),
        ([202311, 202312, 202401], "to_date(concat(CAST(day AS STRING), '01'), '%Y%m%d') AS day"),
    ],
)
def test_dates_that_are_written_as_numbers_are_not_counted(moments: list[int], selected: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'day' holds dates as whole numbers, as 20") as raised:
        Timeline.learn([moments], "day")
    assert f"; select {selected} in data.fuse" in str(raised.value)
    (tmp_path / "t.csv").write_text("\n".join(["day", *map(str, moments)]) + "\n")
    landed = land("t", Source(read="t.csv"), tmp_path, tmp_path)
    days = Fusion(f"SELECT {selected} FROM t", {"t": landed}, set()).rows().table["day"].to_pylist()
    assert [day.year * 100 + day.month for day in days] == [int(str(one)[:6]) for one in moments]
    for counts in ([20240430, 20240431], [202312, 202313], [2023, 2024], [20240430, 5]):
        assert Timeline.learn([counts], "day").unit == "count"


def test_what_is_no_time_is_told() -> None:
    with pytest.raises(UserError, match=r"'t': a moment such as .* is needed in every row"):
        Timeline.learn([["soon", "later"]], "t")
    with pytest.raises(UserError, match=r"'t' has no series of two different moments"):
        Timeline.learn([["2026-01-05T01:00:00"], ["2026-01-06T02:00:00"]], "t")


# --- windows --------------------------------------------------------------------------------------------------------


def table(first: int, values: list[float | None], series: str = "a") -> pa.Table:
    moments = [MONDAY + dt.timedelta(hours=first + place) for place in range(len(values))]
    rows = {
        "t": moments,
        "y": pa.array(values, pa.float64()),
        "k": [10.0 + value if value else 0.0 for value in values],
    }
    return pa.table({**rows, "s": [series] * len(values)})


SHAPE = Shape(time="t", series="s", target="y", known=("k",), past=(), context=4, horizon=2, stride=1)
HOURS = Timeline("second", 3600, int((MONDAY - dt.datetime(1970, 1, 1)).total_seconds()))


def test_no_window_sees_its_future_or_another_splits() -> None:
    """Values count up and tell when they were: a history ends where the truth begins, and the truth is of one split."""
    splits = {
        "train": table(0, [float(one) for one in range(10)]),
        "validation": table(10, [10.0, 11.0, 12.0]),
        "test": table(13, [13.0, 14.0, 15.0, 16.0]),
    }
    cutting = cut(SHAPE, HOURS, splits)
    bounds = {"train": (0, 9), "validation": (10, 12), "test": (13, 16)}
    seen = 0
    for name, (first, last) in bounds.items():
        for row in cutting[name].to_pylist():
            truth, history, future = row["y"], row["history"], row["future"]
            assert first <= truth[0] < truth[1] <= last, "the truth lies in the split"
            assert max(history["y"]) == truth[0] - 1, "and begins where the history ends"
            assert history["y"] == sorted(history["y"])[-4:]
            assert set(future) == {"t", "k"}, "of the future only what is known of it"
            assert future["k"] == [10 + one for one in truth]
            assert future["t"] == [MONDAY + dt.timedelta(hours=int(one)) for one in truth]
            seen += 1
    assert seen == 7 + 2 + 3
    first_of_test = cutting["test"].to_pylist()[0]
    assert first_of_test["history"]["y"] == [9, 10, 11, 12], "which may look back into training"


def test_series_are_kept_apart_and_gaps_show() -> None:
    both = pa.concat_tables([table(0, [1.0, 2.0, None, 4.0, 5.0, 6.0]), table(3, [70.0, 80.0, 90.0, 100.0], "b")])
    rows = cut(SHAPE, HOURS, {"train": both.take([9, 3, 0, 8, 1, 5, 2, 7, 4, 6])})["train"].to_pylist()
    assert [(row["s"], row["history"]["y"], row["y"]) for row in rows] == [
        ("a", [1.0, 2.0], [None, 4.0]),
        ("a", [1.0, 2.0, None], [4.0, 5.0]),
        ("a", [1.0, 2.0, None, 4.0], [5.0, 6.0]),
        ("b", [70.0, 80.0], [90.0, 100.0]),
    ]
    holes = both.filter(pa.array([row != 2 for row in range(10)]))
    (first, *_) = cut(SHAPE, HOURS, {"train": holes})["train"].to_pylist()
    assert (first["y"], len(first["future"]["t"])) == ([None, 4.0], 1), "a row that is not there is a gap"


def test_after_a_gap_the_truth_is_of_the_steps_that_the_answer_names() -> None:
    """Values count up and tell when they were; where rows are missing, a window begins after one that is there."""
    hours = [hour for hour in range(60) if hour % 20 not in (7, 8, 9)]
    rows = table(0, [float(hour) for hour in range(60)]).take(hours)
    model = Model(
        task="time-series-forecasting",
        inputs={"time": ["t"], "series": ["s"]},
        target="y",
        options={"horizon": 4, "context": 6, "stride": 1},
    )
    task = TimeSeriesForecasting.learn(model, Path(), {"train": rows})
    windows = task.questions({"train": rows})["train"].to_pylist()
    assert any(None in row["y"] for row in windows), "a gap may lie ahead"
    for row in windows:
        first = task.encode([row])[0]["last"] + 1
        assert [value for value in row["y"] if value is not None] == [
            hour for hour in range(first, first + 4) if hour in hours
        ]


def test_windows_are_a_stride_apart_counted_from_the_last() -> None:
    shape = Shape(**{**vars(SHAPE), "stride": 3})
    rows = cut(shape, HOURS, {"train": table(0, [float(one) for one in range(12)])})["train"].to_pylist()
    assert [row["y"] for row in rows] == [[4.0, 5.0], [7.0, 8.0], [10.0, 11.0]]


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        (
            {"train": table(0, [1.0, 2.0, 3.0]), "validation": table(1, [2.0])},
            "two rows of series 'a' stand at one step of 't'",
        ),
        (
            {"train": pa.concat_tables([table(0, [1.0]), table(2, [1.0])]), "validation": table(1, [2.0])},
            r"train, validation and test lie mixed in time, .* say data.split: \{time: t\}",
        ),
    ],
)
def test_rows_that_would_leak_are_refused(splits: dict[str, pa.Table], message: str) -> None:
    with pytest.raises(UserError, match=message):
        cut(SHAPE, HOURS, splits)


# --- numbers --------------------------------------------------------------------------------------------------------


def test_metrics_equal_references() -> None:
    chance = np.random.default_rng(4)
    said, truth = np.sort(chance.normal(size=(6, 5, 3)), axis=2), chance.normal(size=(6, 5))
    scales = chance.random((6, 1)) + 0.5
    quantiles = [0.1, 0.5, 0.9]
    measured = metrics.forecast(said, truth, scales, quantiles)
    assert measured.keys() == metrics.FORECAST.keys()
    assert measured["mae"] == pytest.approx(mean_absolute_error(truth, said[:, :, 1]))
    each = [
        mean_pinball_loss(truth.ravel(), said[:, :, place].ravel(), alpha=one) for place, one in enumerate(quantiles)
    ]
    assert measured["pinball"] == pytest.approx(np.mean(each))
    assert measured["mase"] == pytest.approx(np.mean(np.abs(said[:, :, 1] - truth) / scales))
    inside = (said[:, :, 0] <= truth) & (truth <= said[:, :, 2])
    assert measured["coverage_error"] == pytest.approx(abs(inside.mean() - 0.8))
    losses = pinball(torch.tensor(said), torch.tensor(truth), quantiles)
    assert (losses / torch.tensor(scales[:, 0])).mean().item() == pytest.approx(measured["loss"])
    truth[0, 1:] = np.nan
    alone = pinball(torch.tensor(said[:1, :1]), torch.tensor(truth[:1, :1]), quantiles)
    assert pinball(torch.tensor(said[:1]), torch.tensor(truth[:1]), quantiles).item() == pytest.approx(alone.item())


@pytest.mark.parametrize(
    ("timeline", "season", "context", "expected"),
    [
        (HOURS, 24, 336, [24, 168]),
        (HOURS, 168, 336, [24, 168]),
        (HOURS, 24, 100, [24]),
        (HOURS, 5, 3, [1]),
        (Timeline("second", 86_400, 0), 7, 28, [7]),
        (Timeline("month", 1, 0), 12, 24, [12]),
        (Timeline("count", 1, 0), 7, 28, [7]),
        (Timeline("count", 1, 0), 1, 28, [1]),
    ],
)
def test_seasons_are_those_of_the_recipe_and_of_the_calendar(
    timeline: Timeline, season: int, context: int, expected: list[int]
) -> None:
    assert seasons(timeline, season, context) == expected


def test_each_step_looks_back_by_whole_seasons() -> None:
    config = ForecastConfig(context=14, horizon=5, seasons=[7, 3])
    back = config.context + torch.arange(5).unsqueeze(1) - lags_of(config)
    assert back.tolist() == [[3, 6, 9, 12, 7, 14]] * 3 + [[6, 9, 12, 15, 7, 14]] * 2
    assert lags_of(config).min() >= 0


def test_a_season_of_the_recipe_reaches_the_model() -> None:
    """What repeats exactly is said from the first, without having learned."""
    values = np.tile([0.0, 0.0, 0.0, 0.0, 0.0, 10.0, 50.0], 20)
    rows = pa.table({"t": list(range(len(values))), "y": values})
    model = Model(
        task="time-series-forecasting",
        inputs={"time": ["t"]},
        target="y",
        options={"horizon": 7, "context": 28, "season": 7},
    )
    task = TimeSeriesForecasting.learn(model, Path(), {"train": rows})
    network = task.build(Path()).eval()
    torch.nn.init.zeros_(network.exit.weight)
    torch.nn.init.zeros_(network.exit.bias)
    questions = task.questions({"train": rows})["train"].slice(0, 3).to_pylist()
    said = computed(task, network, task.encode(questions))
    np.testing.assert_allclose(said[:, :, 1], [row["y"] for row in questions], atol=1e-4)


def test_a_network_of_another_kind_is_not_opened(tmp_path: Path) -> None:
    model = ForecastModel(ForecastConfig(context=6, horizon=3, quantiles=[0.5]))
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    assert open_forecaster(tmp_path).config.horizon == 3
    for changed in ({"exit.weight": torch.zeros(3, 2)}, {"exit.0.weight": weights["exit.weight"]}):
        kept = {name: weight for name, weight in weights.items() if name != "exit.weight"}
        save_file(kept | changed, tmp_path / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(UserError, match="its network is of an earlier kind; train its recipe again"):
            open_forecaster(tmp_path)


def test_the_report_speaks_of_steps_whose_truth_is_known() -> None:
    truth = [[np.nan, 2.0, 3.0, np.nan, 1.0], [np.nan, 4.0, np.nan, np.nan, 1.0]]
    data = ReportData(
        name="m", task="t", metrics={}, outputs=[np.zeros((4, 1))] * 2, targets=truth, texts=["first", "second"]
    )
    found = forecasts.examples_drawn(data, [0.5])
    assert found is not None
    assert "is 3 at step 2 and 3 at step 3" in " ".join(str(found.html).split())


def test_a_forecast_moves_with_its_window() -> None:
    """Ten times the values and a thousand more give ten times the forecast and a thousand more."""
    torch.manual_seed(2)
    model = ForecastModel(ForecastConfig(context=6, horizon=3, future=2, past=1, quantiles=[0.1, 0.5, 0.9])).eval()
    values, observed = torch.randn(4, 6) * 50, torch.ones(4, 6)
    others = {"past": torch.randn(4, 6, 1), "future": torch.randn(4, 3, 2), "series": torch.zeros(4, dtype=torch.int64)}
    said = model(values=values, observed=observed, **others)
    moved = model(values=10 * values + 1000, observed=observed, **others)
    assert said.shape == (4, 3, 3)
    assert (said.diff(dim=2) >= 0).all()
    _, spread = model.scale(values, observed)
    assert (spread[:, 0] > 10).all()
    torch.testing.assert_close(moved, 10 * said + 1000, rtol=1e-3, atol=0.5)
    unseen = model(values=torch.full((4, 6), 9e9), observed=torch.zeros(4, 6), **others)
    assert (unseen.abs() < 10).all(), "what is not observed is not read"


# --- a whole run ----------------------------------------------------------------------------------------------------


@pytest.fixture
def make_sales(tmp_path: Path, home: Path) -> Callable[..., Recipe]:
    """Two shops whose days have a week, a promotion that is known before, and growth."""

    def make(**sections: Any) -> Recipe:
        draw = random.Random(2)
        with (tmp_path / "sales.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["day", "shop", "promotion", "weather", "sold"])
            for shop, level in (("north", 200.0), ("south", 40.0)):
                for number in range(400):
                    promotion, weather = draw.random() < 0.2, draw.choice(["wet", "dry"])
                    sold = level * (1 + 0.5 * math.sin(2 * math.pi * number / 7)) * (1.6 if promotion else 1)
                    sold *= 1.05 if weather == "dry" else 0.95
                    day = dt.date(2025, 1, 1) + dt.timedelta(days=number)
                    if draw.random() > 0.02:
                        writer.writerow([day, shop, promotion, weather, round(sold * draw.gauss(1, 0.05), 1)])
        tree: dict[str, Any] = {
            "name": "sales",
            "data": {"sources": {"sales": {"read": "sales.csv"}}, "split": {"time": "day"}},
            "model": {
                "task": "time-series-forecasting",
                "inputs": {"time": "day", "series": "shop", "known": ["promotion"], "past": ["weather"]},
                "target": "sold",
                "options": {"horizon": 7, "context": 21, "hidden": 32, "blocks": 1, "stride": 1, "dropout": 0},
            },
            "train": {"epochs": 12, "batch_size": 32, "head_learning_rate": 3e-3, "precision": "fp32"},
        }
        return recipe_of(tree, tmp_path, sections)

    return make


def test_it_beats_repeating_the_past_and_answers_what_it_said(
    make_sales: Callable[..., Recipe], tmp_path: Path
) -> None:
    recipe = make_sales()
    encoded = encode(recipe, fuse(recipe))
    trainee = make_trainee(encoded, recipe.train, "full", CPU)
    list(train(trainee, encoded))
    task = encoded.task
    measured = validate(trainee, encoded.split("test"))
    windows = asked(recipe, fuse(recipe), encoded)
    baselines = measure(task, encoded.base, windows)
    assert measured["mae"] < 0.6 * baselines["naive"]["test/mae"]
    assert measured["mase"] < 0.7
    assert measured["coverage_error"] < 0.3
    assert baselines["trees"]["test/mae"] < baselines["naive"]["test/mae"]
    assert set(baselines["naive"]) == {
        f"{split}/{name}" for split in ("validation", "test") for name in ("mae", "mase")
    }

    outputs = predict(trainee, encoded.split("test"))
    rows = windows["test"].to_pylist()
    page = tmp_path / "report.html"
    data = ReportData(
        name="sales",
        task=task.name,
        metrics={f"test/{name}": value for name, value in measured.items()},
        baselines=baselines,
        headline="mae",
        direction="min",
        outputs=outputs,
        targets=encoded.split("test").targets,
        texts=[task.text(row) for row in rows],
    )
    write_report(page, data, task.report_sections)
    assert "What it forecasts" in page.read_text(encoding="utf-8")

    folder = tmp_path / "bundle"
    folder.mkdir()
    write_bundle(folder, model=trainee.model, task=task, name="m", recipe={}, metrics={}, baselines={}, data={})
    bundle = open_bundle(folder)
    opened = bundle.task()
    requests = [
        {
            "shop": row["shop"],
            "history": {name: [_written(cell) for cell in cells] for name, cells in row["history"].items()},
            "future": {name: [_written(cell) for cell in cells] for name, cells in row["future"].items()},
        }
        for row in rows[:20]
    ]
    examples = opened.encode(opened.rows(requests))
    said = opened.keep(computed(opened, bundle.model(), examples), examples)
    answers = opened.decode(said, examples, {"horizon": 3})
    for answer, output, row in zip(answers, outputs, rows, strict=False):
        assert answer["time"] == [
            f"{row['history']['day'][-1] + dt.timedelta(days=step)}T00:00:00" for step in (1, 2, 3)
        ]
        assert answer["median"] == answer["quantiles"]["0.5"] == pytest.approx(output[:3, 1].tolist(), rel=1e-4)
        assert answer["quantiles"].keys() == {"0.1", "0.5", "0.9"}


@torch.inference_mode()
def computed(task: Task, model: Any, examples: list[Any]) -> torch.Tensor:
    return task.infer(model, task.collate(examples))


def _written(cell: Any) -> Any:
    return cell.isoformat() if isinstance(cell, dt.date) else cell


@pytest.fixture
def learned() -> TimeSeriesForecasting:
    moments = [MONDAY + dt.timedelta(hours=one) for one in range(40)]
    rows = pa.table(
        {"t": moments, "y": [float(one % 5) for one in range(40)], "k": [one % 2 == 0 for one in range(40)]}
    )
    model = Model(
        task="time-series-forecasting",
        inputs={"time": ["t"], "known": ["k"]},
        target="y",
        options={"horizon": 2, "context": 3, "season": 5},
    )
    return TimeSeriesForecasting.learn(model, Path(), {"train": rows})


def test_a_short_history_and_an_empty_row_are_read(learned: TimeSeriesForecasting) -> None:
    short = {"history": {"t": ["2026-02-01T00:00:00"], "y": ["3"], "k": [True]}, "future": {"t": [], "k": []}}
    long = {"t": [f"2026-02-01T0{hour}:00:00" for hour in range(6)], "y": [0, 1, 2, 3, None, 1], "k": [True] * 6}
    examples = learned.encode(learned.rows([short, {"history": long, "future": {"t": [], "k": []}}]))
    batch = learned.collate(examples)
    assert batch["values"].tolist() == [[0, 0, 3], [3, 0, 1]]
    assert batch["observed"].tolist() == [[0, 0, 1], [1, 0, 1]]
    (blank,) = learned.encode([dict.fromkeys(learned.signature()["input"]["properties"], "")])
    model = learned.build(Path()).eval()
    assert learned.infer(model, learned.collate([blank])).isfinite().all()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("now", r"inputs\[0\]: an object with 'history' is needed, not str"),
        ({}, r"inputs\[0\]\.history: an object with a list for each of t, y, k is needed"),
        ({"history": {"t": ["2026-02-01"], "y": [1]}}, r"inputs\[0\]\.history\.k: a list is needed"),
        (
            {"history": {"t": ["2026-02-01"], "y": [1, 2], "k": [True]}},
            r"inputs\[0\]\.history\.y: as many values are needed as there are in t",
        ),
        (
            {"history": {"t": ["2026-02-01"], "y": ["many"], "k": [True]}},
            r"inputs\[0\]\.history\.y: a number is needed at each step",
        ),
        (
            {"history": {"t": ["tomorrow"], "y": [1], "k": [True]}},
            r"inputs\[0\]\.history: 't': a moment such as .* is needed",
        ),
    ],
)
def test_wrong_inputs_are_named_by_place(learned: TimeSeriesForecasting, value: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        learned.rows([value])


def test_wrong_parameters_are_named(learned: TimeSeriesForecasting) -> None:
    for parameters, message in (
        ({"horizon": 3}, "a whole number from 1 to 2"),
        ({"steps": 1}, "unknown; this task takes"),
    ):
        with pytest.raises(UserError, match=rf"parameters\.\w+: {message}"):
            learned.decode([], [], parameters)


def test_options_must_make_sense(learned: TimeSeriesForecasting) -> None:
    with pytest.raises(ValueError, match=r"0\.5 among them"):
        learned.options_known.model_validate({"horizon": 3, "quantiles": [0.1, 0.9]})
    assert learned.scales == {"": 2.0} or learned.scales[""] > 0
