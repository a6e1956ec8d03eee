"""What fusing costs: five tables of a market place, joined by one statement, against DuckDB and pandas.

    python benchmarks/fusion.py --data FOLDER [--times 100] [--rounds 3]

FOLDER holds Olist's CSV files; each row is there ``times`` times, with keys of its own each time. Every contender reads
the CSV files and writes the joined rows (headrace as Arrow, the others as Parquet), in a process of its own; the rounds
take turns, figures are medians. headrace also types every cell, puts aside what it cannot read, counts for every join
what matched, and parts the rows into training, validation and test by time; the others do not. Writes
benchmarks/results/fusion.json.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

CONTENDERS = ("headrace", "duckdb", "pandas")
TABLES = {
    "orders": ["order_id", "customer_id"],
    "order_items": ["order_id", "product_id", "seller_id"],
    "products": ["product_id"],
    "customers": ["customer_id"],
    "sellers": ["seller_id"],
}
"""The tables, and the keys of each that are made new."""


def main() -> None:
    """Takes turns between the contenders, or is one of them where the parent asks for it."""
    options = arguments()
    if options.one:
        print(json.dumps(contend(options)))
        return
    from record import keep

    with tempfile.TemporaryDirectory(dir=options.scratch) as place:
        folder = Path(place)
        rows = {name: scale(options.data / f"{name}.csv", folder, keys, options.times) for name, keys in TABLES.items()}
        size = sum(path.stat().st_size for path in folder.glob("*.csv"))
        rounds = [{one: child(one, folder) for one in CONTENDERS} for _ in range(options.rounds)]
    middle = {
        one: {key: round(statistics.median(r[one][key] for r in rounds), 2) for key in rounds[0][one]}
        for one in CONTENDERS
    }
    figures = {
        "times": options.times,
        "rows read": rows,
        "gigabytes of CSV": round(size / 1e9, 3),
        "medians": middle,
        "headrace_over": {
            one: round(middle["headrace"]["seconds"] / middle[one]["seconds"], 2) for one in CONTENDERS[1:]
        },
        "rounds": rounds,
    }
    keep("fusion", figures)


def arguments() -> argparse.Namespace:
    """The command line; --one is for the parent's own children."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--times", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scratch", type=Path, help="where there is room for the scaled files")
    parser.add_argument("--one", choices=CONTENDERS)
    return parser.parse_args()


def scale(source: Path, folder: Path, keys: list[str], times: int) -> int:
    """Writes a table ``times`` times over, with other keys each time; returns its rows."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.csv as csv

    text = csv.ConvertOptions(column_types={name: pa.string() for name in header(source)}, strings_can_be_null=True)
    table = csv.read_csv(source, convert_options=text, parse_options=csv.ParseOptions(newlines_in_values=True))
    with csv.CSVWriter(folder / source.name, table.schema) as out:
        for time_ in range(times):
            own = table
            for key in keys:
                fresh = pc.binary_join_element_wise(own[key], str(time_), "-")
                own = own.set_column(own.schema.get_field_index(key), key, fresh)
            out.write_table(own)
    return int(table.num_rows * times)


def header(source: Path) -> list[str]:
    """The names of a CSV file's columns."""
    with source.open(encoding="utf-8") as file:
        return [name.strip('"') for name in file.readline().strip().split(",")]


def child(name: str, folder: Path) -> dict[str, float]:
    """One contender in a fresh process."""
    command = [sys.executable, __file__, "--one", name, "--data", str(folder)]
    out = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    result: dict[str, float] = json.loads(out.splitlines()[-1])
    print(name, result, file=sys.stderr)
    return result


def contend(options: argparse.Namespace) -> dict[str, float]:
    """The seconds that one contender takes, the rows it writes and the most memory it holds."""
    contender = {"headrace": headrace, "duckdb": duckdb, "pandas": pandas}[options.one]
    with tempfile.TemporaryDirectory(dir=options.data) as place:
        started = time.perf_counter()
        rows = contender(options.data, Path(place))
        seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
    return {"seconds": seconds, "rows": rows, "gibibytes": peak}


def recipe_tree(folder: Path) -> dict[str, Any]:
    """The recipe of ``examples/olist_late.yaml`` over the scaled files."""
    import yaml

    tree: dict[str, Any] = yaml.safe_load((ROOT / "examples" / "olist_late.yaml").read_text(encoding="utf-8"))
    for source in tree["data"]["sources"].values():
        source["read"] = str(folder / Path(source["read"]).name)
    return tree


def headrace(folder: Path, place: Path) -> int:
    """The data stage as a run has it."""
    os.environ["HEADRACE_HOME"] = str(place / "home")
    from training.data.fuse import fuse
    from training.recipe import Recipe

    fused = fuse(Recipe.model_validate(recipe_tree(folder), context={"folder": folder}))
    return sum(table.num_rows for table in fused.tables().values())


def duckdb(folder: Path, place: Path) -> int:
    """The same statement over the same files; DuckDB guesses the types."""
    import duckdb

    tree = recipe_tree(folder)
    engine = duckdb.connect()
    for name, source in tree["data"]["sources"].items():
        engine.read_csv(source["read"], header=True).create_view(name)
    statement = tree["data"]["fuse"].replace("DATE_DIFF(", "DATE_DIFF('day', ")
    engine.sql(statement).write_parquet(str(place / "out.parquet"), compression="zstd")
    return engine.read_parquet(str(place / "out.parquet")).shape[0]


def pandas(folder: Path, place: Path) -> int:
    """The same by hand."""
    import pandas

    orders, items, products, customers, sellers = (pandas.read_csv(folder / f"{name}.csv") for name in TABLES)
    for name in orders.columns[3:]:
        orders[name] = pandas.to_datetime(orders[name])
    orders = orders[orders["order_delivered_customer_date"].notna()]
    each = items.groupby("order_id", as_index=False).agg(
        price=("price", "sum"),
        freight=("freight_value", "sum"),
        items=("price", "size"),
        product_id=("product_id", "min"),
        seller_id=("seller_id", "min"),
    )
    joined = orders.merge(customers, on="customer_id").merge(each, on="order_id")
    joined = joined.merge(products, on="product_id", how="left").merge(sellers, on="seller_id", how="left")
    late = joined["order_delivered_customer_date"] > joined["order_estimated_delivery_date"]
    joined["arrived"] = late.map({True: "late", False: "in time"})
    joined["days_promised"] = (joined["order_estimated_delivery_date"] - joined["order_purchase_timestamp"]).dt.days
    wanted = [
        "arrived",
        "order_purchase_timestamp",
        "days_promised",
        "customer_state",
        "seller_state",
        "price",
        "freight",
    ]
    wanted += ["items", "product_category_name", "product_weight_g"]
    joined[wanted].to_parquet(place / "out.parquet", compression="zstd")
    return len(joined)


if __name__ == "__main__":
    main()
