"""Real business data, where it lies on this machine: HEADRACE_TEST_DATA names the folder. Counts are DuckDB's."""

import csv
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pytest
import sqlalchemy

from training.data.fuse import fuse, inspect
from training.data.split import SPLITS
from training.recipe import Recipe

pytestmark = pytest.mark.slow

OLIST = """
    SELECT r.review_id, r.review_score, r.review_comment_message AS text, o.order_status, o.order_purchase_timestamp,
           c.customer_state, p.product_category_name AS category, i.price
    FROM order_reviews r
    JOIN orders o ON r.order_id = o.order_id
    LEFT JOIN customers c ON o.customer_id = c.customer_id
    LEFT JOIN order_items i ON i.order_id = o.order_id
    LEFT JOIN products p ON i.product_id = p.product_id
    WHERE r.review_comment_message IS NOT NULL
"""
TABLES = ("order_reviews", "orders", "order_items", "products", "customers")


@pytest.fixture(scope="session")
def real() -> Path:
    folder = Path(os.environ.get("HEADRACE_TEST_DATA", "nowhere"))
    if not folder.is_dir():
        pytest.skip("HEADRACE_TEST_DATA names no folder with the data sets")
    return folder


@pytest.fixture
def duck(real: Path) -> duckdb.DuckDBPyConnection:
    connection = duckdb.connect()
    for name in TABLES:
        connection.execute(f"CREATE TABLE {name} AS SELECT * FROM read_csv('{real}/olist/{name}.csv', quote='\"')")
    return connection


def customers(real: Path) -> tuple[list[str], list[list[str]]]:
    with (real / "olist" / "customers.csv").open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    return header, rows


@pytest.fixture(params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest, real: Path, tmp_path: Path) -> str:
    """The customers, moved into a database."""
    header, rows = customers(real)
    url = f"sqlite:///{tmp_path}/shop.db"
    if request.param == "postgres":
        url = request.getfixturevalue("postgres")
    else:
        sqlite3.connect(tmp_path / "shop.db").close()
    engine = sqlalchemy.create_engine(url)
    table = sqlalchemy.Table(
        "customers", sqlalchemy.MetaData(), *(sqlalchemy.Column(n, sqlalchemy.Text) for n in header)
    )
    with engine.begin() as connection:
        table.drop(connection, checkfirst=True)
        table.create(connection)
        connection.execute(table.insert(), [dict(zip(header, row, strict=True)) for row in rows])
    engine.dispose()
    return url


def olist(real: Path, database: str, make_recipe: Callable[..., Recipe], **options: Any) -> Recipe:
    sources: dict[str, Any] = {name: {"read": f"{real}/olist/{name}.csv"} for name in TABLES[:-1]}
    sources["customers"] = {"database": database, "query": "SELECT customer_id, customer_state FROM customers"}
    return make_recipe(sources, OLIST, target="review_score", **options)


def test_five_joined_tables_count_as_another_engine_counts(
    real: Path,
    home: Path,
    database: str,
    duck: duckdb.DuckDBPyConnection,
    make_recipe: Callable[..., Recipe],
) -> None:
    report = fuse(olist(real, database, make_recipe, split={"time": "order_purchase_timestamp"})).report
    counts = duck.execute(f"SELECT COUNT(*), COUNT(DISTINCT review_id) FROM ({OLIST})").fetchall()[0]
    assert (report["cleaned"]["fused"]["rows"], report["main"]["fused_rows"]) == (counts[0], counts[0])
    for name in TABLES:
        assert report["sources"][name]["rows"] == duck.execute(f"SELECT COUNT(*) FROM {name}").fetchall()[0][0]
    keys = [("order_reviews", "orders", "order_id"), ("orders", "customers", "customer_id")]
    keys += [("orders", "order_items", "order_id"), ("order_items", "products", "product_id")]
    for join, (left, right, key) in zip(report["joins"], keys, strict=True):
        for side, one, other in ((join["left"], left, right), (join["right"], right, left)):
            missing = (
                f"SELECT COUNT(*), COUNT(DISTINCT {key}) FROM {one} WHERE {key} NOT IN (SELECT {key} FROM {other})"
            )
            assert (side["unmatched"], side["unmatched_keys"]) == duck.execute(missing).fetchall()[0], join["on"]


def test_every_fused_value_is_that_of_another_engine(
    real: Path,
    home: Path,
    database: str,
    duck: duckdb.DuckDBPyConnection,
    make_recipe: Callable[..., Recipe],
) -> None:
    done = fuse(olist(real, database, make_recipe, clean={"unicode": "none"}, split={"test": 0.0, "validation": 0.0}))
    found = [tuple(map(str, row.values())) for row in done.split("train").to_pylist()]
    expected = [tuple(map(str, row)) for row in duck.execute(OLIST).fetchall() if str(row[2]).strip()]
    assert sorted(found) == sorted(expected)


def test_the_official_split_of_banking77(real: Path, home: Path, make_recipe: Callable[..., Recipe]) -> None:
    folder = real / "banking77"
    sources = {"train": {"read": f"{folder}/train.csv"}, "official": {"read": f"{folder}/test.csv"}}
    split = {"test": {"source": "official"}, "validation": 0.1, "stratify": "category"}
    done = fuse(make_recipe(sources, target="category", split=split))
    assert done.report["splits"]["test"] == 3080
    removed = done.report["split"]["near_copies"]["removed"]
    assert removed["train"] <= 20
    assert sum(done.report["splits"].values()) + sum(removed.values()) == 13_083
    assert all(len(done.report["labels"][name]) == 77 for name in SPLITS)


@pytest.mark.parametrize("encoding", ["utf-8", "gb18030", "utf-16"])
def test_chinese_reviews_in_any_encoding(
    encoding: str, real: Path, home: Path, tmp_path: Path, make_recipe: Callable[..., Recipe]
) -> None:
    text = next((real / "hotel_reviews_zh").glob("*.csv")).read_text(encoding="utf-8-sig")
    (tmp_path / "reviews.csv").write_bytes(text.encode(encoding))
    declared = {"encoding": "gb18030"} if encoding == "gb18030" else {}
    options = {"clean": {"drop_near_duplicates": {"columns": "review"}}, "split": {"stratify": "label"}}
    report = fuse(make_recipe({"r": {"read": "reviews.csv", **declared}}, text="review", **options)).report
    assert report["sources"]["r"]["read"] == 7766
    removed = sum(step["removed"] for step in report["cleaned"]["fused"]["cleaning"])
    assert 1 <= removed <= 20
    assert sum(report["splits"].values()) == 7766 - removed
    assert report["columns"]["label"]["distinct"] == 2


def test_a_sample_is_looked_at(real: Path, home: Path, tmp_path: Path, make_recipe: Callable[..., Recipe]) -> None:
    header, rows = customers(real)
    with sqlite3.connect(tmp_path / "shop.db") as connection:
        connection.execute(f"CREATE TABLE customers ({', '.join(header)})")
        connection.executemany(f"INSERT INTO customers VALUES ({', '.join('?' * len(header))})", rows)
    connection.close()
    found = inspect(olist(real, f"sqlite:///{tmp_path}/shop.db", make_recipe), 2000).report
    assert found["sampled"] == ["order_reviews"]
    assert found["sources"]["orders"]["rows"] == 23_240
