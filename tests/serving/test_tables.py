"""Tables and series through the edge, the former asked by the Hugging Face client as it asks whole tables."""

import http.client
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError

from serving.predictor import Predictor
from serving.recipe import Serve
from tests.serving.conftest import Running, entry
from training.bundle import Bundle, open_bundle, write_bundle
from training.recipe import Model
from training.tasks.tabular_classification import TabularClassification
from training.tasks.tabular_regression import TabularRegression
from training.tasks.task import Task
from training.tasks.time_series_forecasting import TimeSeriesForecasting

WINES = pa.table(
    {
        "acidity": [7.4, 7.8, 10.3, 8.1],
        "region": ["north", "south", "north", "south"],
        "quality": ["good", "fair", "fair", "good"],
        "price": [12.0, 9.0, 8.0, 14.0],
    }
)
HOURS = pa.table(
    {"t": [f"2026-03-01T{hour:02}:00:00" for hour in range(24)], "y": [float(one % 6) for one in range(24)]}
)


def written(folder: Path, task: Task, name: str) -> Bundle:
    folder.mkdir()
    with torch.random.fork_rng():
        torch.manual_seed(1)
        weights = task.build(Path())
    settled = task.settle(weights)
    write_bundle(folder, model=weights, task=settled, name=name, recipe={}, metrics={}, baselines={}, data={})
    return open_bundle(folder)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    return made(tmp_path_factory.mktemp("tables"))


def made(folder: Path) -> dict[str, Bundle]:
    """A model of each kind that reads tables, by name."""
    inputs = {"columns": ["acidity", "region"]}
    quality = Model(task="tabular-classification", inputs=inputs, target="quality")
    price = Model(task="tabular-regression", inputs=inputs, target="price")
    hourly = Model(
        task="time-series-forecasting", inputs={"time": ["t"]}, target="y", options={"horizon": 3, "context": 6}
    )
    tasks: dict[str, Task] = {
        "quality": TabularClassification.learn(quality, Path(), {"train": WINES}),
        "price": TabularRegression.learn(price, Path(), {"train": WINES}),
        "hourly": TimeSeriesForecasting.learn(hourly, Path(), {"train": HOURS}),
    }
    return {name: written(folder / name, task, name) for name, task in tasks.items()}


@pytest.fixture(scope="module")
def edge(edge_of: Callable[..., Any], bundles: dict[str, Bundle], bundle: Bundle) -> Iterator[Running]:
    models = {name: entry(one) for name, one in bundles.items()} | {"intent": entry(bundle)}
    with edge_of(models, Serve(max_items=4)) as running:
        yield running


def ask(running: Running, name: str, body: Any) -> tuple[int, Any]:
    connection = http.client.HTTPConnection(running.address.removeprefix("http://"), timeout=60)
    try:
        connection.request("POST", f"/models/{name}", json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


@pytest.mark.usefixtures("clients_allowed")
def test_the_hugging_face_client_asks_whole_tables(edge: Running) -> None:
    table = {"acidity": ["7.4", "10.3", ""], "region": ["north", "nowhere", None]}
    labels = InferenceClient(model=f"{edge.address}/models/quality").tabular_classification(table)
    _, numbers = ask(edge, "price", {"parameters": {}, "table": table})  # the client knows no provider of it
    rows = [dict(zip(table, cells, strict=True)) for cells in zip(*table.values(), strict=True)]
    _, ranked = ask(edge, "quality", {"inputs": rows})
    _, said = ask(edge, "price", {"inputs": rows})
    assert labels == [one[0]["label"] for one in ranked]
    assert set(labels) <= {"fair", "good"}
    assert numbers == pytest.approx([one[0]["score"] for one in said])
    assert said[0][0]["label"] == "price"
    with pytest.raises(HfHubHTTPError, match="this model reads no tables; ask it with inputs"):
        InferenceClient(model=f"{edge.address}/models/intent").tabular_classification(table)


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"table": [1]}, 422, "table: an object is needed that has a list of cells for each column"),
        ({"table": {"acidity": [1], "region": []}}, 422, "every column must have as many cells as the others"),
        ({"table": {"acidity": [1]}, "inputs": "a"}, 422, "only inputs (or table)"),
        ({"table": {"acidity": [1]}}, 422, "inputs[0].region: missing"),
        ({"table": {"acidity": [1, "x"], "region": ["a", "b"]}}, 422, "inputs[1].acidity: a number is needed"),
        ({"table": {"acidity": [1] * 5, "region": ["a"] * 5}}, 413, "4 are allowed"),
    ],
)
def test_a_wrong_table_is_told(edge: Running, body: Any, status: int, message: str) -> None:
    answered, told = ask(edge, "quality", body)
    assert answered == status
    assert message in told["error"]["message"]


def test_a_forecast_is_asked_with_the_recent_past(edge: Running) -> None:
    history = {"t": ["2026-03-02T00:00:00", "2026-03-02T01:00:00"], "y": [1, 2.5]}
    status, (answer,) = ask(edge, "hourly", {"inputs": [{"history": history}], "parameters": {"horizon": 2}})
    assert status == 200
    assert answer["time"] == ["2026-03-02T02:00:00", "2026-03-02T03:00:00"]
    assert answer["quantiles"]["0.1"] <= answer["median"] <= answer["quantiles"]["0.9"]
    status, told = ask(edge, "hourly", {"inputs": [{"history": history}], "parameters": {"horizon": 9}})
    assert (status, told["error"]["message"]) == (422, "parameters.horizon: a whole number from 1 to 3 is needed")


def test_the_smallest_question_has_an_answer(bundles: dict[str, Bundle]) -> None:
    for bundle in bundles.values():
        predictor = Predictor(bundle)
        row, parameters = predictor.blank()
        assert predictor.answer([(question, parameters) for question in predictor.task.encode([row])])
