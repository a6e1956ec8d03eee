"""Tables from real databases: SQLite files and a PostgreSQL server."""

import sqlite3
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sqlalchemy

from cluster.errors import HeadraceError, RunError, UserError
from training.data.landing import ROW, Landed
from training.data.recipe import Source
from training.data.sources import identity, land


def read(folder: Path, url: str, query: str, limit: int | None = None) -> Landed:
    return land("shop", Source(database=url, query=query), folder, folder, limit)


def rows(landed: Landed) -> list[dict[str, object]]:
    found: list[dict[str, object]] = pq.read_table(landed.paths[0]).drop_columns([ROW]).to_pylist()
    return found


@pytest.fixture
def shop(tmp_path: Path) -> str:
    (tmp_path / "data").mkdir()
    with sqlite3.connect(tmp_path / "data" / "shop.db") as connection:
        connection.execute("CREATE TABLE orders (id INTEGER, customer TEXT, amount REAL)")
        connection.executemany("INSERT INTO orders VALUES (?, ?, ?)", [(1, "007", 2.5), (2, None, 10), (3, "x", None)])
    connection.close()
    return "sqlite:///data/shop.db"


def test_a_relative_sqlite_path_is_relative_to_the_recipe(tmp_path: Path, shop: str) -> None:
    landed = read(tmp_path, shop, "SELECT * FROM orders ORDER BY id")
    assert rows(landed) == [
        {"id": 1, "customer": "007", "amount": 2.5},
        {"id": 2, "customer": None, "amount": 10.0},
        {"id": 3, "customer": "x", "amount": None},
    ]
    assert landed.ordered


def test_a_database_is_never_written(tmp_path: Path, shop: str) -> None:
    with pytest.raises(UserError, match="readonly database"):
        read(tmp_path, shop, "DELETE FROM orders RETURNING id")
    assert read(tmp_path, shop, "SELECT id FROM orders").rows == 3


def test_identity_is_that_of_the_rows_and_of_an_order_that_was_asked_for(tmp_path: Path, shop: str) -> None:
    def digest(query: str) -> object:
        return identity("shop", Source(database=shop, query=query), tmp_path, tmp_path)[0]

    forward = digest("SELECT * FROM orders ORDER BY id")
    assert forward == digest("select * from orders order  by id * 2;")
    assert forward != digest("SELECT * FROM orders ORDER BY id DESC")

    plain = digest("SELECT * FROM orders")
    assert plain == digest("SELECT * FROM orders WHERE id = 3 UNION ALL SELECT * FROM orders WHERE id < 3")
    assert plain != digest("SELECT * FROM orders WHERE id < 3")
    assert plain != digest("SELECT id + 1 AS id, customer, amount FROM orders")


@pytest.mark.parametrize(
    ("query", "ordered"),
    [
        ("SELECT id FROM orders UNION SELECT 9 ORDER\nBY id", True),
        ("SELECT id FROM orders /* ( */ ORDER BY id -- )", True),
        ("SELECT id, SUM(amount) OVER (ORDER BY (id)) AS total FROM orders", False),
        ("SELECT id FROM (SELECT id FROM orders ORDER BY abs(amount) LIMIT 2)", False),
        ("SELECT 'made to order by hand' AS note, id FROM orders -- order by nothing", False),
    ],
)
def test_only_the_statements_own_order_by_orders_rows(tmp_path: Path, shop: str, query: str, ordered: bool) -> None:
    assert read(tmp_path, shop, query).ordered is ordered


def test_more_rows_than_a_part_holds(tmp_path: Path, shop: str) -> None:
    many = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 120000) SELECT i FROM n"
    landed = read(tmp_path, shop, many)
    assert landed.rows == 120_000
    assert pa.compute.sum(pq.read_table(landed.paths[0])["i"]).as_py() == 120_000 * 120_001 // 2
    assert read(tmp_path, shop, many, limit=70_000).rows == 70_000


BROKEN = {
    "missing file": (
        "sqlite:///data/shp.db",
        "SELECT 1",
        "data.sources.shop.database: there is no file data/shp.db (looked in {folder})",
    ),
    "no address": (
        "shop.db",
        "SELECT 1",
        "data.sources.shop.database: 'shop.db' is no database address; "
        "write e.g. sqlite:///shop.db or postgresql://user:${{env:PASSWORD}}@host/name",
    ),
    "bad statement": (
        "sqlite:///data/shop.db",
        "SELEC 1",
        'data.sources.shop.query: sqlite:///{folder}/data/shop.db says: near "SELEC": syntax error',
    ),
    "missing table": (
        "sqlite:///data/shop.db",
        "SELECT * FROM clients",
        "data.sources.shop.query: sqlite:///{folder}/data/shop.db says: no such table: clients",
    ),
    "two columns of one name": (
        "sqlite:///data/shop.db",
        "SELECT id, id FROM orders",
        "data.sources.shop.query: two columns are named 'id'; rename one with AS",
    ),
    "no rows to give": (
        "sqlite:///data/shop.db",
        "PRAGMA foreign_keys = 1",
        "data.sources.shop.query: the statement returns no rows; write a SELECT",
    ),
    "missing driver": (
        "oracle://scott:tiger@host/name",
        "SELECT 1",
        "data.sources.shop.database: oracle needs a driver that is not installed; pip install 'oracledb'",
    ),
    "unknown database": (
        "paradox://host/name",
        "SELECT 1",
        "data.sources.shop.database: nothing here reads paradox; install its SQLAlchemy dialect 'paradox'",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_wrong_is_said_in_one_sentence(case: str, tmp_path: Path, shop: str) -> None:
    url, query, message = BROKEN[case]
    with pytest.raises(UserError) as raised:
        read(tmp_path, url, query)
    assert str(raised.value) == message.format(folder=tmp_path)


def test_a_password_is_never_shown(tmp_path: Path) -> None:
    pytest.importorskip("psycopg")
    with pytest.raises(
        RunError, match=r"postgresql\+psycopg://tester:\*\*\*@127\.0\.0\.1:1/shop cannot be reached"
    ) as raised:
        read(tmp_path, "postgresql+psycopg://tester:open-sesame@127.0.0.1:1/shop", "SELECT 1")
    assert "open-sesame" not in str(raised.value)


@pytest.fixture
def fill(postgres: str) -> Callable[[str], None]:
    def run(statements: str) -> None:
        engine = sqlalchemy.create_engine(postgres)
        with engine.begin() as connection:
            connection.exec_driver_sql(statements)
        engine.dispose()

    return run


def test_the_types_of_postgres(tmp_path: Path, postgres: str, fill: Callable[[str], None]) -> None:
    fill("""
        DROP TABLE IF EXISTS kinds;
        CREATE TABLE kinds (i int, n numeric(10, 2), d date, t timestamp, z timestamptz, j jsonb,
            a text[], u uuid, o boolean);
        INSERT INTO kinds VALUES (1, 3.50, '2024-01-02', '2024-01-02 03:04:05', '2024-01-02 03:04:05+02', '{"a": 1}',
            ARRAY['x', '好'], 'c7a1a1de-0000-4000-8000-000000000000', true),
            (null, null, null, null, null, null, null, null, null)
    """)
    landed = read(tmp_path, postgres, "SELECT * FROM kinds ORDER BY i")
    types = dict(zip(landed.schema.names, map(str, landed.schema.types), strict=True))
    assert types == {
        "i": "int64",
        "n": "double",
        "d": "date32[day]",
        "t": "timestamp[us]",
        "z": "timestamp[us, tz=UTC]",
        "j": "string",
        "a": "string",
        "u": "string",
        "o": "bool",
    }
    first, second = rows(landed)
    assert (first["n"], first["j"], first["a"], str(first["z"])) == (
        3.5,
        '{"a": 1}',
        '["x", "好"]',
        "2024-01-02 01:04:05+00:00",
    )
    assert set(second.values()) == {None}


def test_a_percent_sign_is_no_parameter(tmp_path: Path, postgres: str) -> None:
    query = "SELECT word FROM (VALUES ('100%'), ('ten')) AS v(word) WHERE word LIKE '%0\\%'"
    assert rows(read(tmp_path, postgres, query)) == [{"word": "100%"}]


def test_postgres_is_only_read(tmp_path: Path, postgres: str, fill: Callable[[str], None]) -> None:
    fill(
        "DROP TABLE IF EXISTS kept; CREATE TABLE kept AS SELECT 1 AS one; "
        "CREATE OR REPLACE FUNCTION wipe() RETURNS int LANGUAGE sql AS 'DELETE FROM kept RETURNING 1'"
    )
    with pytest.raises(HeadraceError, match="read-only transaction"):
        read(tmp_path, postgres, "SELECT wipe()")
    assert read(tmp_path, postgres, "SELECT * FROM kept").rows == 1


def test_postgres_says_what_is_wrong(tmp_path: Path, postgres: str) -> None:
    with pytest.raises(UserError) as raised:
        read(tmp_path, postgres, "SELECT * FROM nowhere")
    shown = postgres.replace("open-sesame", "***")
    assert str(raised.value) == f'data.sources.shop.query: {shown} says: relation "nowhere" does not exist'
