"""The fuse statement against DuckDB over the same files, the order of its rows, and what its joins matched."""

import csv
import random
from pathlib import Path
from typing import Any

import duckdb
import pytest

from cluster.errors import UserError
from training import mapped
from training.data import engine
from training.data.joined import Fusion, main_source
from training.data.landing import Landed
from training.data.recipe import Source
from training.data.sources import land
from training.data.statement import Statement


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tickets, customers and orders whose keys match only in part; some are missing and some stand twice."""
    folder = tmp_path_factory.mktemp("shop")
    chance = random.Random(5)
    customers = [(f"{number:04d}", chance.choice("AB")) for number in range(1, 60)] + [("0007", "C")]
    tickets = [
        (number, f"text {number}", chance.choice(["", *(f"{key:04d}" for key in range(1, 90))]), chance.choice("xyz"))
        for number in range(200)
    ]
    orders = [(f"{chance.randrange(1, 70):04d}", round(chance.random() * 50, 2)) for _ in range(300)]
    write(folder / "tickets.csv", "id,text,customer,label", tickets)
    write(folder / "customers.csv", "customer,plan", customers)
    write(folder / "orders.csv", "customer,amount", orders)
    return folder


def write(path: Path, header: str, rows: list[Any]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header.split(","))
        writer.writerows(rows)


@pytest.fixture
def sources(shop: Path, tmp_path: Path) -> dict[str, Landed]:
    return {name: land(name, Source(read=f"{name}.csv"), shop, tmp_path) for name in ("tickets", "customers", "orders")}


@pytest.fixture
def duck(shop: Path) -> duckdb.DuckDBPyConnection:
    connection = duckdb.connect()
    for name in ("tickets", "customers", "orders"):
        path = shop / f"{name}.csv"
        connection.execute(f"CREATE TABLE {name} AS SELECT * FROM read_csv('{path}', types={{'customer': 'VARCHAR'}})")
    return connection


STATEMENTS = {
    "one table": "SELECT id, text, label FROM tickets",
    "everything": "SELECT * FROM tickets",
    "filtered": "SELECT id, text FROM tickets WHERE label = 'x' AND customer IS NOT NULL",
    "inner": "SELECT t.id, c.plan FROM tickets t JOIN customers c ON t.customer = c.customer",
    "left": "SELECT t.id, t.text, c.plan FROM tickets t LEFT JOIN customers c ON t.customer = c.customer",
    "using": "SELECT t.id, c.plan FROM tickets t LEFT JOIN customers c USING (customer)",
    "three tables": """
        SELECT t.id, c.plan, o.amount FROM tickets t
        JOIN customers c ON t.customer = c.customer LEFT JOIN orders o ON o.customer = c.customer""",
    "a subquery joined": """
        SELECT t.id, o.spend FROM tickets t LEFT JOIN
        (SELECT customer, SUM(amount) AS spend FROM orders GROUP BY customer) o ON t.customer = o.customer""",
    "a WITH joined": """
        WITH spent AS (SELECT customer, COUNT(*) AS n FROM orders GROUP BY customer)
        SELECT t.id, s.n FROM tickets t JOIN spent s ON t.customer = s.customer WHERE s.n > 3""",
    "grouped": "SELECT customer, COUNT(*) AS n, MAX(amount) AS most FROM orders GROUP BY customer",
    "distinct": "SELECT DISTINCT customer, label FROM tickets",
    "everything, distinct": "SELECT DISTINCT * FROM customers",
    "united": "SELECT customer FROM tickets UNION ALL SELECT customer FROM orders",
    "stars within": "SELECT q.id, q.label FROM (SELECT * FROM tickets WHERE label <> 'z') q",
    "a table with itself": """
        SELECT a.id, b.id AS other FROM tickets a JOIN tickets b ON a.customer = b.customer WHERE a.id < b.id""",
    "right": "SELECT t.id, c.customer, c.plan FROM tickets t RIGHT JOIN customers c ON t.customer = c.customer",
    "full": "SELECT t.id, c.plan FROM tickets t FULL JOIN customers c ON t.customer = c.customer",
    "counted": "SELECT COUNT(*) AS n, AVG(amount) AS mean FROM orders",
    "a window": "SELECT id, ROW_NUMBER() OVER (PARTITION BY label ORDER BY id) AS place FROM tickets",
    "a case": "SELECT id, CASE WHEN label = 'x' THEN 1 ELSE 0 END AS is_x, UPPER(text) AS loud FROM tickets",
    "semicolon": "SELECT id FROM tickets;",
    "from in an expression": "SELECT id, SUBSTRING(text, 1, 4) AS start FROM tickets",
}


@pytest.mark.parametrize("case", STATEMENTS)
def test_the_rows_are_those_of_another_engine(
    case: str, sources: dict[str, Landed], duck: duckdb.DuckDBPyConnection
) -> None:
    found = Fusion(STATEMENTS[case], sources, set()).rows().table
    expected = duck.sql(STATEMENTS[case]).to_arrow_table()
    assert found.column_names == expected.column_names
    assert content(found.to_pylist()) == content(expected.to_pylist())


def content(rows: list[dict[str, Any]]) -> list[str]:
    return sorted(str([round(v, 6) if isinstance(v, float) else v for v in row.values()]) for row in rows)


@pytest.mark.parametrize("case", STATEMENTS)
def test_the_rows_have_one_order(case: str, sources: dict[str, Landed]) -> None:
    first = Fusion(STATEMENTS[case], sources, set()).rows().table
    assert all(Fusion(STATEMENTS[case], sources, set()).rows().table.equals(first) for _ in range(3))


def test_rows_stand_as_in_the_source(sources: dict[str, Landed]) -> None:
    statement = "SELECT t.id, c.plan FROM customers c JOIN tickets t ON t.customer = c.customer WHERE c.plan <> 'B'"
    rows = Fusion(statement, sources, set()).rows()
    assert rows.origins["customers"].tolist() == sorted(rows.origins["customers"].tolist())
    assert rows.table["id"].to_pylist() == (rows.origins["tickets"] - 2).tolist()  # ticket 0 stands on line 2


@pytest.mark.parametrize(
    "order",
    ["t.label DESC, t.id", "label, id DESC", "2, 1", "t.customer DESC NULLS LAST, t.id", "customer NULLS FIRST, id"],
)
def test_an_order_by_is_kept(order: str, sources: dict[str, Landed], duck: duckdb.DuckDBPyConnection) -> None:
    statement = f"SELECT t.id, t.label, t.customer FROM tickets t ORDER BY {order}"
    found = Fusion(statement, sources, set()).rows().table
    assert found.to_pylist() == duck.sql(statement).to_arrow_table().to_pylist()


def test_expressions_without_a_name_leave_the_others_theirs(sources: dict[str, Landed]) -> None:
    statement = "SELECT upper(t.label), t.id, t.text, t.customer AS who FROM tickets t ORDER BY 1, 2 DESC"
    table = Fusion(statement, sources, set()).rows().table
    assert table.column_names == ["label", "id", "text", "who"]
    keys = list(zip(table["label"].to_pylist(), [-number for number in table["id"].to_pylist()], strict=True))
    assert keys == sorted(keys)
    counted = "SELECT label, COUNT(*) FROM tickets GROUP BY label ORDER BY 2 DESC"
    table = Fusion(counted, sources, set()).rows().table
    assert all(table.column_names)
    counts = table[1].to_pylist()
    assert counts == sorted(counts, reverse=True)


def test_an_order_by_of_what_is_not_selected(sources: dict[str, Landed], duck: duckdb.DuckDBPyConnection) -> None:
    statement = "SELECT t.text FROM tickets t ORDER BY t.label, t.id DESC LIMIT 20"
    found = Fusion(statement, sources, set()).rows().table
    assert found.to_pylist() == duck.sql(statement).to_arrow_table().to_pylist()


@pytest.mark.parametrize(
    ("statement", "main"),
    [
        ("SELECT * FROM tickets t JOIN customers c ON t.customer = c.customer", "tickets"),
        ("SELECT * FROM (SELECT * FROM customers) c JOIN tickets t ON t.customer = c.customer", "customers"),
        ("WITH w AS (SELECT * FROM orders) SELECT * FROM w JOIN tickets t ON t.customer = w.customer", "orders"),
        ("SELECT customer FROM tickets UNION ALL SELECT customer FROM orders", "tickets"),
        ("WITH tickets AS (SELECT * FROM orders) SELECT * FROM tickets", "orders"),
    ],
)
def test_the_main_source_is_the_first_of_the_outermost_from(statement: str, main: str) -> None:
    assert main_source(statement, ["tickets", "customers", "orders"]) == main


def test_a_held_out_source_takes_the_place_of_the_main_one(
    shop: Path, sources: dict[str, Landed], tmp_path: Path
) -> None:
    write(shop / "later.csv", "id,text,customer,label", [(900, "new", "0003", "x"), (901, "newer", "9999", "y")])
    sources["later"] = land("later", Source(read="later.csv"), shop, tmp_path)
    statement = """
        SELECT t.id, c.plan, n.tickets FROM tickets t LEFT JOIN customers c ON t.customer = c.customer
        LEFT JOIN (SELECT customer, COUNT(*) AS tickets FROM tickets GROUP BY customer) n ON n.customer = t.customer"""
    fusion = Fusion(statement, sources, {"later"})
    assert len(fusion.rows()) == 200 + sum(fusion.rows().origins["customers"] == 61)  # customer 0007 stands twice
    later = fusion.rows("later")
    assert later.table.to_pylist()[1] == {"id": 901, "plan": None, "tickets": 1}
    assert later.origins["later"].tolist() == [2, 3]


def test_what_joins_matched_is_what_another_engine_counts(
    sources: dict[str, Landed], duck: duckdb.DuckDBPyConnection
) -> None:
    joins = Fusion(STATEMENTS["three tables"], sources, set()).joins()
    assert [join["kind"] for join in joins] == ["inner", "left"]
    assert_side(joins[0]["left"], "tickets", "customers", duck)
    assert_side(joins[0]["right"], "customers", "tickets", duck)
    assert_side(joins[1]["left"], "customers", "orders", duck)
    assert_side(joins[1]["right"], "orders", "customers", duck)


def assert_side(side: dict[str, Any], table: str, other: str, duck: duckdb.DuckDBPyConnection) -> None:
    def one(query: str) -> int:
        return int(duck.execute(query).fetchall()[0][0])

    has = f"customer IN (SELECT customer FROM {other} WHERE customer IS NOT NULL)"
    assert side == {
        "table": table,
        "rows": one(f"SELECT COUNT(*) FROM {table}"),
        "matched": one(f"SELECT COUNT(*) FROM {table} WHERE {has}"),
        "unmatched": one(f"SELECT COUNT(*) FROM {table} WHERE NOT {has}"),
        "without_key": one(f"SELECT COUNT(*) FROM {table} WHERE customer IS NULL"),
        "keys": one(f"SELECT COUNT(DISTINCT customer) FROM {table}"),
        "matched_keys": one(f"SELECT COUNT(DISTINCT customer) FROM {table} WHERE {has}"),
        "unmatched_keys": one(f"SELECT COUNT(DISTINCT customer) FROM {table} WHERE NOT {has}"),
        "repeated_keys": one(
            f"SELECT COUNT(*) FROM (SELECT customer FROM {table} WHERE customer IS NOT NULL "
            "GROUP BY customer HAVING COUNT(*) > 1)"
        ),
    }


@pytest.mark.parametrize("case", ["a subquery joined", "a WITH joined"])
def test_a_side_that_is_a_query_is_counted(case: str, sources: dict[str, Landed]) -> None:
    join = Fusion(STATEMENTS[case], sources, set()).joins()[0]
    assert join["right"]["rows"] == join["right"]["keys"] > 0
    assert join["left"]["rows"] == 200


def test_a_condition_that_is_no_equality_is_said_not_to_be_counted(sources: dict[str, Landed]) -> None:
    statement = "SELECT t.id FROM tickets t JOIN orders o ON t.id < o.amount"
    joins = list(Statement(statement, sources).joins())
    assert joins[0].keys == ()
    counted = Fusion(statement, sources, set()).joins()
    assert counted[0]["note"] == "not counted: no equality of two tables' columns"


def test_keys_of_different_types_are_pointed_out(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", "id,x", [(1, "p"), (2, "q")])
    write(tmp_path / "b.csv", "id,y", [("01", "p"), ("2", "q")])
    sources = {name: land(name, Source(read=f"{name}.csv"), tmp_path, tmp_path) for name in "ab"}
    join = Fusion("SELECT a.x, b.y FROM a LEFT JOIN b ON a.id = b.id", sources, set()).joins()[0]
    assert (join["left"]["matched"], join["left"]["unmatched"]) == (1, 1)
    assert join["types"] == "the key is int64 on the left and text on the right; equal only where their texts are equal"


def test_nothing_is_added_where_rows_are_not_those_of_a_source(sources: dict[str, Landed]) -> None:
    for case in ("grouped", "distinct", "united", "stars within", "counted", "everything, distinct"):
        assert Statement(STATEMENTS[case], sources).tracked(engine.row_column) is None, case


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT t.id FROM tickets t; -- done",
        "SELECT id, FROM tickets",
        "SELECT t.id -- a comma,\nFROM tickets t -- all",
    ],
)
def test_rows_are_known_whatever_stands_around_the_statement(statement: str, sources: dict[str, Landed]) -> None:
    assert Fusion(statement, sources, set()).rows().origins["tickets"].tolist() == list(range(2, 202))


def test_a_disk_that_takes_nothing_is_no_fault_of_the_statement(
    sources: dict[str, Landed], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mapped, "PART", 100)
    monkeypatch.setenv("HEADRACE_HOME", "/proc/nowhere")
    with pytest.raises(OSError, match="/proc/nowhere"):
        engine.run("SELECT id, text FROM tickets", engine.tables(sources, numbered=False))


CURED = {
    "trim(text)": "strip(text)",
    "ltrim(text)": "lstrip(text)",
    "rtrim(text)": "rstrip(text)",
    "btrim(text)": "strip(text)",
    "nullif(text, label)": "CASE WHEN a = b THEN NULL ELSE a END",
    "ifnull(text, label)": "coalesce(a, b)",
    "nvl(text, label)": "coalesce(a, b)",
    "if(text = label, text, label)": "CASE WHEN … THEN … ELSE … END",
    "CASE WHEN text = label THEN text END": "write ELSE NULL",
    "substring(text from 1 for 2)": "substring(text, start, length)",
    "position('t' in text)": "find(text, 'part')",
    "strpos(text, 't')": "find(text, 'part')",
    "text ~ 't'": "regexp_match(text, 'pattern')",
}


@pytest.mark.parametrize("expression", CURED)
def test_what_the_engine_calls_otherwise_is_told(expression: str, sources: dict[str, Landed]) -> None:
    with pytest.raises(UserError) as raised:
        Fusion(f"SELECT {expression} AS x FROM tickets", sources, set()).rows()
    assert CURED[expression] in str(raised.value)


def test_values_that_a_cast_cannot_read_are_counted(tmp_path: Path) -> None:
    amounts = ["12.5", "1,234.50", "1,234.50", "n/a", "", "7"]
    write(tmp_path / "o.csv", "id,amount,day", [(n, one, f"2024-0{n + 1}-31") for n, one in enumerate(amounts)])
    write(tmp_path / "c.csv", "id,name", [(1, "x"), (2, "y")])
    sources = {name: land(name, Source(read=f"{name}.csv"), tmp_path, tmp_path) for name in "oc"}

    def found(statement: str) -> list[tuple[Any, ...]]:
        return [tuple(one.values()) for one in Fusion(statement, sources, set()).casts()]

    lost = ("CAST(amount AS DOUBLE)", "o", 5, 3, "1,234.50")
    assert found("SELECT SUM(CAST(amount AS DOUBLE)) AS total FROM o") == [lost]
    assert found("SELECT c.name, q.n FROM c JOIN (SELECT id, CAST(amount AS DOUBLE) AS n FROM o) q ON c.id = q.id") == [
        lost
    ]
    assert found("SELECT c.name, amount::DOUBLE AS n, x.day::DATE AS d FROM c JOIN o AS x ON c.id = x.id") == [
        lost,
        ("CAST(x.day AS DATE)", "o", 6, 3, "2024-02-31"),
    ]
    plain = "SELECT CAST(replace(amount, ',', '') AS DOUBLE) AS n FROM o"
    assert found(plain) == [("CAST(REPLACE(amount, ',', '') AS DOUBLE)", "o", 5, 1, "n/a")]
    guarded = (
        "SELECT CASE WHEN amount = 'n/a' THEN NULL ELSE CAST(id AS STRING) END AS n, CAST(id AS STRING) AS i FROM o"
    )
    assert found(guarded) == []
