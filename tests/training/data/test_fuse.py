"""The whole stage: what is written, what is counted, what is kept, and what a second run does."""

import csv
import json
import os
import random
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.errors import UserError
from training import mapped
from training.data.fuse import fuse, inspect
from training.data.split import SPLITS
from training.data.summary import summary
from training.recipe import Recipe

FUSE = """
    SELECT t.id, t.text, t.label, c.plan, o.spend FROM tickets t
    LEFT JOIN customers c ON t.customer = c.customer
    LEFT JOIN (SELECT customer, SUM(amount) AS spend FROM orders GROUP BY customer) o ON t.customer = o.customer
"""
SOURCES = {
    "tickets": {"read": "data/tickets.jsonl"},
    "customers": {"read": "data/customers.csv"},
    "orders": {"database": "sqlite:///data/shop.db", "query": "SELECT customer, amount FROM orders"},
}
OPTIONS: dict[str, Any] = {
    "clean": {
        "unicode": "NFKC",
        "types": {"id": "integer"},
        "allowed": {"label": ["billing", "delivery", "account"]},
        "drop_empty": ["text"],
        "drop_duplicates": ["text"],
        "drop_near_duplicates": {"columns": ["text"], "similarity": 0.95},
    },
    "split": {"stratify": "label", "validation": 0.1, "test": 0.2},
    "max_rejected": 0.05,
}


@pytest.fixture
def shop(tmp_path: Path, home: Path, make_recipe: Callable[..., Recipe]) -> Callable[..., Recipe]:
    """A recipe over three sources with known faults: 400 tickets, 60 customers, 150 orders."""
    (tmp_path / "data").mkdir()
    write_shop(tmp_path / "data")

    def make(**changes: Any) -> Recipe:
        return make_recipe(changes.pop("sources", SOURCES), changes.pop("fuse", FUSE), **{**OPTIONS, **changes})

    return make


def write_shop(folder: Path, *, orders_backwards: bool = False) -> None:
    chance = random.Random(11)
    words = "card money account parcel refund late lost broken login charge cancel upgrade price page".split()  # noqa: SIM905
    lines = []
    for number in range(400):
        text = " ".join(chance.choices(words, k=chance.randrange(5, 14))) + f" case {chance.randrange(10**6)}"
        row = {"id": number, "text": text, "label": ["billing", "delivery", "account"][number % 3]}
        row["customer"] = chance.choice([None, *(f"{key:04d}" for key in range(80))])
        lines.append(row)
    lines[10]["label"] = "biling"
    lines[11]["id"] = "eleven"
    lines[12]["text"] = "  "
    lines[13]["label"] = None
    lines[14]["text"] = lines[15]["text"]
    lines[16]["text"] = str(lines[17]["text"]).upper() + "!"
    written = [json.dumps(line) for line in lines]
    written[100:100] = ["{no json", "[]"]
    (folder / "tickets.jsonl").write_text("\n".join(written) + "\n")
    with (folder / "customers.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [("customer", "plan"), *((f"{key:04d}", "basic" if key % 2 else "") for key in range(60))]
        )
    orders = [(f"{chance.randrange(70):04d}", chance.randrange(1, 90)) for _ in range(150)]
    (folder / "shop.db").unlink(missing_ok=True)
    with sqlite3.connect(folder / "shop.db") as connection:
        connection.execute("CREATE TABLE orders (customer TEXT, amount INTEGER)")
        connection.executemany("INSERT INTO orders VALUES (?, ?)", orders[::-1] if orders_backwards else orders)
    connection.close()


def test_rows_on_the_disk_become_what_rows_in_memory_do(
    shop: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_once = fuse(shop())
    monkeypatch.setattr(mapped, "PART", 500)
    monkeypatch.setenv("HEADRACE_HOME", str(tmp_path / "other"))
    in_parts = fuse(shop())
    assert in_parts.report == at_once.report
    for name in SPLITS:
        assert in_parts.split(name).equals(at_once.split(name))


def test_every_row_is_accounted_for(shop: Callable[..., Recipe]) -> None:
    fused = fuse(shop())
    report = fused.report
    assert report == json.loads((fused.folder / "fuse.json").read_text())
    tickets = report["sources"]["tickets"]
    assert (tickets["read"], tickets["rejected"], tickets["rows"]) == (402, 2, 400)
    assert [(one["step"], one["removed"]) for one in report["cleaned"]["fused"]["cleaning"]] == [
        ("types", 1),
        ("allowed", 1),
        ("drop_empty", 1),
        ("without_target", 1),
        ("without_input", 0),
        ("drop_duplicates", 1),
        ("drop_near_duplicates", 1),
    ]
    assert report["rows"] == sum(report["splits"].values()) == report["cleaned"]["fused"]["kept"] == 394
    assert report["splits"] == {name: fused.split(name).num_rows for name in SPLITS}
    assert report["labels"]["train"] == counted(fused.split("train"), "label")
    assert report["columns"]["plan"]["missing"] == sum(
        fused.split(name)["plan"].to_pylist().count(None) for name in SPLITS
    )
    assert report["main"] == {"source": "tickets", "rows": 400, "used": 400, "unused": 0, "fused_rows": 400}
    assert [join["right"]["table"] for join in report["joins"]] == ["customers", "o (over orders)"]


def counted(table: pa.Table, column: str) -> dict[str, int]:
    values = table[column].to_pylist()
    return {
        value: values.count(value) for value in sorted(set(values), key=lambda value: (-values.count(value), value))
    }


def test_rejected_rows_say_where_they_stand_and_why(shop: Callable[..., Recipe]) -> None:
    rejected = pq.read_table(fuse(shop()).folder / "rejected.parquet").to_pylist()
    assert [(one["source"], one["row"], one["column"], one["value"]) for one in rejected] == [
        ("tickets", 101, None, "{no json"),
        ("tickets", 102, None, "[]"),
        ("tickets", 12, "id", "eleven"),
        ("tickets", 11, "label", "biling"),
    ]
    assert [one["reason"] for one in rejected][2:] == ["no integer", "not one of billing, delivery, account"]


def test_no_hidden_column_reaches_the_splits(shop: Callable[..., Recipe]) -> None:
    assert fuse(shop()).split("train").column_names == ["id", "text", "label", "plan", "spend"]
    everything = "SELECT * FROM tickets t JOIN customers c ON t.customer = c.customer"
    names = fuse(shop(fuse=everything)).split("train").column_names
    assert names == ["id", "text", "label", "customer", "c.customer", "plan"]


def test_a_second_run_reads_no_source_and_makes_nothing(shop: Callable[..., Recipe]) -> None:
    first = fuse(shop())
    stamps = {path: path.stat().st_mtime_ns for path in first.folder.iterdir()}
    second = fuse(shop())
    assert second == first
    assert stamps == {path: path.stat().st_mtime_ns for path in second.folder.iterdir()}


def test_the_fingerprint_is_that_of_content(
    shop: Callable[..., Recipe], tmp_path: Path, make_recipe: Callable[..., Recipe]
) -> None:
    first = fuse(shop())
    absolute = {**SOURCES, "customers": {"read": str(tmp_path / "data" / "customers.csv")}}
    absolute["orders"] = {
        "database": f"sqlite:///{tmp_path}/data/shop.db",
        "query": "SELECT customer, amount FROM orders;",
    }
    assert fuse(shop(sources=absolute)).fingerprint == first.fingerprint
    write_shop(tmp_path / "data", orders_backwards=True)
    assert fuse(shop()).fingerprint == first.fingerprint
    others = [
        shop(split={"seed": 8}),
        shop(fuse=FUSE.replace("SUM", "MAX")),
        shop(clean={}, max_rejected=1),
        shop(sources={**SOURCES, "orders": {**SOURCES["orders"], "query": "SELECT customer, 1 AS amount FROM orders"}}),
    ]
    marks = {fuse(other).fingerprint for other in others}
    assert len(marks | {first.fingerprint}) == 5


def test_another_order_keeps_the_first_of_other_copies(shop: Callable[..., Recipe]) -> None:
    """Of a customer's orders the first is kept, and which that is the query's ORDER BY says."""

    def kept(order: str) -> set[str]:
        query = f"SELECT customer, CAST(rowid AS TEXT) AS text, amount FROM orders ORDER BY rowid {order}"
        sources = {"orders": {"database": "sqlite:///data/shop.db", "query": query}}
        clean = {"drop_duplicates": ["customer"]}
        fused = fuse(shop(sources=sources, fuse=None, clean=clean, split={}, target="customer"))
        return {text for split in SPLITS for text in fused.split(split)["text"].to_pylist()}

    first, last = kept("ASC"), kept("DESC")
    assert ("1" in first, "1" in last, "150" in first, "150" in last) == (True, False, False, True)
    assert kept("ASC") == first


def test_the_same_rows_come_out_again(shop: Callable[..., Recipe], home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = fuse(shop())
    monkeypatch.setenv("HEADRACE_HOME", str(home.with_name("other")))
    second = fuse(shop())
    assert first.folder != second.folder
    for name in (*(f"{split}.arrow" for split in SPLITS), "rejected.parquet"):
        assert (first.folder / name).read_bytes() == (second.folder / name).read_bytes()
    assert first.report == second.report


def test_held_out_sources_are_splits(tmp_path: Path, home: Path, make_recipe: Callable[..., Recipe]) -> None:
    rows = [f"{n},question {n} about thing {n * n},{'ab'[n % 2]}" for n in range(60)]
    (tmp_path / "train.csv").write_text("\n".join(["id,text,label", *rows]))
    (tmp_path / "test.csv").write_text("\n".join(["id,text,label", *rows[:2], "900,something else entirely,b"]))
    (tmp_path / "plans.csv").write_text("id,plan\n1,gold\n900,silver\n")
    recipe = make_recipe(
        {"rows": {"read": "train.csv"}, "later": {"read": "test.csv"}, "plans": {"read": "plans.csv"}},
        "SELECT r.text, r.label, p.plan FROM rows r LEFT JOIN plans p ON r.id = p.id",
        split={"test": {"source": "later"}, "validation": 0.1},
    )
    fused = fuse(recipe)
    assert fused.split("test")["plan"].to_pylist() == [None, "gold", "silver"]
    assert fused.report["splits"] == {"train": 52, "validation": 6, "test": 3}
    assert fused.report["split"]["near_copies"]["removed"] == {"train": 2, "validation": 0, "test": 0}
    assert set(fused.report["cleaned"]) == {"fused", "later"}


def test_one_source_needs_no_statement(tmp_path: Path, home: Path, make_recipe: Callable[..., Recipe]) -> None:
    table = pa.table({"text": [f"number {n} of many {n * 7}" for n in range(50)], "label": ["a", "b"] * 25})
    pq.write_table(table, tmp_path / "rows.parquet")
    fused = fuse(make_recipe({"rows": {"read": "rows.parquet"}}, clean={"allowed": {"label": ["a", "b"]}}))
    assert fused.report["rows"] == 50
    assert fused.split("train")["text"].to_pylist() == [
        text for text in table["text"].to_pylist() if text in set(fused.split("train")["text"].to_pylist())
    ]
    rejected = fuse(
        make_recipe({"rows": {"read": "rows.parquet"}}, clean={"allowed": {"label": ["a"]}}, max_rejected=1)
    )
    assert pq.read_table(rejected.folder / "rejected.parquet")["row"].to_pylist() == list(range(2, 51, 2))


def test_runs_that_share_data_wait_for_the_one_that_makes_it(shop: Callable[..., Recipe]) -> None:
    recipe = shop()
    with ThreadPoolExecutor(3) as at_once:
        first, *others = at_once.map(fuse, [recipe] * 3)
    assert all(one.folder == first.folder and one.report == first.report for one in others)


def test_what_a_killed_run_left_is_swept_up(shop: Callable[..., Recipe], home: Path) -> None:
    ended = subprocess.check_output([sys.executable, "-c", "import os; print(os.getpid())"], text=True).strip()
    left = home / "fused" / f".landing-{os.uname().nodename}-{ended}-0badc0de"
    other = home / "fused" / ".landing-another.host-1-0badc0de"
    left.mkdir(parents=True)
    other.mkdir()
    fuse(shop())
    assert not left.exists()
    assert other.exists()
    assert [path.name for path in (home / "fused").glob(".landing-*")] == [other.name]


def test_a_look_at_a_sample(shop: Callable[..., Recipe], home: Path) -> None:
    found = inspect(shop(max_rejected=0), 100).report
    assert found["sampled"] == ["tickets"]
    assert found["sources"]["tickets"]["rows"] == 100
    assert found["sources"]["customers"]["rows"] == 60
    assert found["rejected"]["rules"] == {"fused": 2}
    assert "fused rows: 2 rows rejected" in found["notes"]
    assert any("rows of tickets find no partner" in note for note in found["notes"])
    assert list((home / "fused").iterdir()) == []
    assert inspect(shop(), 10_000).report["sampled"] == []
    with pytest.raises(UserError, match=r"^tickets: 2 of 402 rows cannot be used, more than data\.max_rejected: 0 "):
        inspect(shop(max_rejected=0), 10_000)


def test_notes_point_at_what_deserves_a_look(tmp_path: Path, home: Path, make_recipe: Callable[..., Recipe]) -> None:
    rows = [f"{n},question {n} about thing {n * n},{'a' if n else 'b'},{n % 4}" for n in range(60)]
    (tmp_path / "rows.csv").write_text("\n".join(["id,text,label,k", *rows]))
    (tmp_path / "more.csv").write_text("k,extra\n1,x\n1,y\n")
    (tmp_path / "none.csv").write_text("k,other\n77,x\n")
    recipe = make_recipe(
        {"rows": {"read": "rows.csv"}, "more": {"read": "more.csv"}, "none": {"read": "none.csv"}},
        "SELECT r.*, m.extra FROM rows r LEFT JOIN more m ON r.k = m.k LEFT JOIN none n ON n.k = r.k",
        text=["text", "extra"],
        split={"test": 0.1, "validation": 0.0},
    )
    notes = fuse(recipe).report["notes"]
    assert "rows with more ON r.k = m.k: 45 of 60 rows of rows find no partner" in notes
    assert "rows with none ON n.k = r.k: no key matches; compare what the two columns hold" in notes
    assert (
        "60 rows of rows became 75 fused rows: a join found several partners (more); aggregate them first if that is "
        "not meant"
    ) in notes
    assert "extra: 45 of 75 rows have no value" in notes
    assert any("of the training rows are 'a'" in note for note in notes)


def test_rows_of_several_files_that_a_join_multiplies_are_pointed_out(
    tmp_path: Path, home: Path, make_recipe: Callable[..., Recipe]
) -> None:
    for part in (1, 2):
        lines = [f"text {part} {row},{row % 5},{'ab'[row % 2]}" for row in range(50)]
        (tmp_path / f"rows-{part}.csv").write_text("\n".join(["text,customer,label", *lines, "wrong,9,?"]) + "\n")
    plans = [f"{customer},plan {copy}" for customer in range(5) for copy in range(3)]
    (tmp_path / "plans.csv").write_text("\n".join(["customer,plan", *plans, "9,none"]) + "\n")
    recipe = make_recipe(
        {"t": {"read": "rows-*.csv"}, "c": {"read": "plans.csv"}},
        "SELECT t.text, t.label -- what it is\nFROM t JOIN c ON t.customer = c.customer",
        clean={"allowed": {"label": ["a", "b"]}},
    )
    fused = fuse(recipe)
    assert fused.report["main"] == {"source": "t", "rows": 102, "used": 102, "unused": 0, "fused_rows": 302}
    assert any("102 rows of t became 302 fused rows" in note for note in fused.report["notes"])
    rejected = pq.read_table(fused.folder / "rejected.parquet").to_pylist()
    assert [(one["row"], one["reason"]) for one in rejected] == [
        (52, "not one of a, b (in file 1 of t)"),
        (52, "not one of a, b (in file 2 of t)"),
    ]


def test_what_a_cast_makes_missing_is_noted(tmp_path: Path, home: Path, make_recipe: Callable[..., Recipe]) -> None:
    lines = [f"text {row},{'ab'[row % 2]},{'1,5' if row % 10 else 2}".replace("1,5", '"1,5"') for row in range(50)]
    (tmp_path / "t.csv").write_text("\n".join(["text,label,price", *lines]) + "\n")
    recipe = make_recipe({"t": {"read": "t.csv"}}, "SELECT text, label, CAST(price AS DOUBLE) AS price FROM t")
    note = "fuse: CAST(price AS DOUBLE) makes 45 of 50 values of t missing, as '1,5'"
    assert note in fuse(recipe).report["notes"]


@pytest.mark.parametrize(
    "statement",
    [
        "WITH w AS (SELECT * FROM t) SELECT w.text, w.label FROM w JOIN c ON w.customer = c.customer",
        "SELECT q.text, q.label FROM (SELECT * FROM t) q JOIN c ON q.customer = c.customer",
    ],
)
def test_rows_that_are_multiplied_behind_a_subquery_are_pointed_out(
    statement: str, tmp_path: Path, home: Path, make_recipe: Callable[..., Recipe]
) -> None:
    lines = [f"text {row},{row % 5},{'ab'[row % 2]}" for row in range(50)]
    (tmp_path / "t.csv").write_text("\n".join(["text,customer,label", *lines]) + "\n")
    plans = [f"{customer},plan {copy}" for customer in range(5) for copy in range(3)]
    (tmp_path / "c.csv").write_text("\n".join(["customer,plan", *plans]) + "\n")
    report = fuse(make_recipe({"t": {"read": "t.csv"}, "c": {"read": "c.csv"}}, statement)).report
    assert report["main"] == {"source": "t", "rows": 50, "used": None, "unused": None, "fused_rows": 150}
    assert any(note.startswith("50 rows of t became 150 fused rows") for note in report["notes"])


def test_versions_that_the_recipe_calls_text_stay_apart(
    tmp_path: Path, home: Path, make_recipe: Callable[..., Recipe]
) -> None:
    lines = [f"text number {n},{'ab'[n % 2]},{['1.1', '1.10', '2.0'][n % 3]}" for n in range(60)]
    (tmp_path / "rows.csv").write_text("\n".join(["text,label,version", *lines]))
    sources = {"rows": {"read": "rows.csv"}}
    noted = fuse(make_recipe(sources)).report
    assert noted["columns"]["version"]["distinct"] == 2
    assert any(note.startswith("version: 1.1 and 1.10 of rows are read as one number") for note in noted["notes"])
    kept = make_recipe(sources, clean={"types": {"version": "string"}})
    for report in (fuse(kept).report, inspect(kept, 1000).report):
        assert report["columns"]["version"]["distinct"] == 3
        assert not any("version" in note for note in report["notes"])


def test_splits_far_from_what_was_asked_for_are_noted(
    tmp_path: Path, home: Path, make_recipe: Callable[..., Recipe]
) -> None:
    shops = [0] * 700 + [1] * 100 + [2] * 5
    lines = [f"{n} and {n * n} and {n * 7919},{'ab'[n % 2]},{shop},{n / 7}" for n, shop in enumerate(shops)]
    (tmp_path / "rows.csv").write_text("\n".join(["text,label,shop,amount", *lines]))
    sources = {"rows": {"read": "rows.csv"}}
    assert fuse(make_recipe(sources, split={"group": "shop"})).report["notes"] == [
        "test: 5 rows where 80 were asked for; rows of one group, of one time and near copies of each other stay "
        "together or are left out"
    ]
    assert fuse(make_recipe(sources, split={"stratify": "amount"})).report["notes"] == [
        "data.split.stratify: amount: too few rows share a value to keep the shares; test and validation were filled "
        "up without regard to it"
    ]


def test_labels_that_a_person_takes_for_one_are_noted(
    tmp_path: Path, home: Path, make_recipe: Callable[..., Recipe]
) -> None:
    labels = ["Yes"] * 30 + ["yes "] * 20 + ["YES"] * 10 + ["no"] * 40
    lines = [f"text number {n * n},{label}" for n, label in enumerate(labels)]
    (tmp_path / "rows.csv").write_text("\n".join(["text,label", *lines]))
    notes = fuse(make_recipe({"rows": {"read": "rows.csv"}})).report["notes"]
    assert notes == [
        "label: values that differ only by case or blanks count as different: 'Yes' (30), 'yes ' (20), 'YES' (10)"
    ]


def test_the_summary_says_which_tables_are_joined_and_what_a_length_is(
    tmp_path: Path, home: Path, make_recipe: Callable[..., Recipe]
) -> None:
    (tmp_path / "rows.csv").write_text(
        "id,text,label\n" + "".join(f"{n},text {n:03d},{'ab'[n % 2]}\n" for n in range(40))
    )
    (tmp_path / "more.csv").write_text("id,plan\n" + "".join(f"{n},x\n" for n in range(40)))
    sources = {"rows": {"read": "rows.csv"}, "more": {"read": "more.csv"}}
    statement = "SELECT r.text, r.label, m.plan FROM rows r, more m WHERE r.id = m.id"
    lines = summary(fuse(make_recipe(sources, statement)).report)
    assert "join       rows with more: not counted: no equality of two tables' columns" in lines
    assert "column     text: text, 40 different, a median of 8 characters (longest 8)" in lines
