"""A file of questions: the model's columns as written, and errors that name the command's options."""

import datetime as dt
import gzip
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.errors import UserError
from training.data.table import read_table
from training.inputs import media

READS_TEXT = {
    "input": {
        "anyOf": [{"type": "string"}, {"type": "object", "properties": {"text": {}, "when": {}}, "required": ["text"]}]
    }
}


def test_a_models_columns_are_read_as_written_and_others_as_in_training(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("text,when,label\n1.50,2024-01-05,3\n007,2024-01-05 10:00:00,4\n,true,5\n", encoding="utf-8")
    assert read_table(file, READS_TEXT).to_pylist() == [
        {"text": "1.50", "when": "2024-01-05", "label": 3},
        {"text": "007", "when": "2024-01-05 10:00:00", "label": 4},
        {"text": None, "when": "true", "label": 5},
    ]


def test_numbers_of_a_json_file_are_not_made_alike(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": 1, "label": 1}\n{"text": 2.5, "label": 2}\n{"text": null, "label": 3}\n')
    assert read_table(file, READS_TEXT)["text"].to_pylist() == ["1", "2.5", None]


def test_dates_of_a_parquet_file_are_text(tmp_path: Path) -> None:
    columns = {"text": [dt.date(2024, 1, 5), None], "when": pa.array(["a", "b"]).dictionary_encode(), "label": [1, 2]}
    pq.write_table(pa.table(columns), tmp_path / "rows.parquet")
    table = read_table(tmp_path / "rows.parquet", READS_TEXT)
    assert table["text"].to_pylist() == ["2024-01-05", None]
    assert table["when"].to_pylist() == ["a", "b"]
    assert table["label"].to_pylist() == [1, 2]


def test_another_encoding_and_delimiter(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_bytes("text;label\n我的包裹在哪里;delivery\n请把钱退给我;refund\n".encode("gb18030"))
    message = r"rows\.csv is not utf-8 text \(line 2, byte 11\); set --encoding gb18030"
    with pytest.raises(UserError, match=f"^{message}$"):
        read_table(file, READS_TEXT)
    with pytest.raises(UserError, match=re.escape("rows.csv has one column, 'text;label'; set --delimiter ';'")):
        read_table(file, READS_TEXT, "gb18030")
    rows = read_table(file, READS_TEXT, "gb18030", ";").to_pylist()
    assert rows[0] == {"text": "我的包裹在哪里", "label": "delivery"}


def test_a_tab_may_be_written_as_the_cure_writes_it(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("text\tlabel\na\tb\n", encoding="utf-8")
    with pytest.raises(UserError, match=re.escape(r'set --delimiter "\t"')):
        read_table(file, READS_TEXT)
    assert read_table(file, READS_TEXT, delimiter=r"\t").to_pylist() == [{"text": "a", "label": "b"}]
    (tmp_path / "rows.tsv.gz").write_bytes(gzip.compress(file.read_bytes()))
    assert read_table(tmp_path / "rows.tsv.gz", READS_TEXT).to_pylist() == [{"text": "a", "label": "b"}]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("rows.csv", {"encoding": "utf-9"}, "--encoding: there is no encoding 'utf-9'"),
        ("rows.csv", {"delimiter": "||"}, "--delimiter: one character is needed, not '||'"),
        ("rows.txt", {}, "rows.txt: its ending does not tell its format"),
        ("none.csv", {}, "none.csv: no such file"),
    ],
)
def test_what_cannot_be_read_is_told_without_a_recipes_keys(
    tmp_path: Path, name: str, options: dict[str, str], message: str
) -> None:
    for present in ("rows.csv", "rows.txt"):
        (tmp_path / present).write_text("text,label\na,b\n", encoding="utf-8")
    with pytest.raises(UserError) as error:
        read_table(tmp_path / name, READS_TEXT, **options)
    assert message in str(error.value)
    assert "data.sources" not in str(error.value)


def test_pictures_are_read_beside_the_table_that_names_them(tmp_path: Path) -> None:
    """As training reads them, and as an endpoint never does."""
    signature = {"input": media.schema("picture", "image")}
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "1.png").write_bytes(b"one")
    (tmp_path / "named.csv").write_text("id,picture\n7,pictures/1.png\n", encoding="utf-8")
    assert read_table(tmp_path / "named.csv", signature).to_pylist() == [{"id": 7, "picture": b"one"}]
    assert read_table(tmp_path / "pictures" / "1.png", signature).to_pylist() == [{"picture": b"one"}]
    held = pa.table({"picture": [{"bytes": b"two", "path": None}, {"bytes": None, "path": "pictures/1.png"}]})
    pq.write_table(held, tmp_path / "held.parquet")
    assert read_table(tmp_path / "held.parquet", signature)["picture"].to_pylist() == [b"two", b"one"]
    (tmp_path / "named.csv").write_text("picture\npictures/2.png\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"row 1, picture: pictures/2.png: there is no such file"):
        read_table(tmp_path / "named.csv", signature)


def test_every_row_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": "a"}\n{"text"\n{"text": "b"}\n{"text\n')
    with pytest.raises(UserError, match=r"rows\.jsonl:2: .*, and 1 more: rows 4; mend or remove them"):
        read_table(file, {"input": {"type": "string"}})


def test_a_file_without_a_column_of_the_model_is_refused_also_where_a_request_may_leave_it_out(tmp_path: Path) -> None:
    """A table model takes a missing cell for unknown: each answer would be given, and none would be worth much."""
    number = {"type": ["number", "null"]}
    signature = {"input": {"type": "object", "properties": {"spend": number, "since": number}}}
    (tmp_path / "rows.csv").write_text("Spend,since\n1,2\n")
    told = r"rows\.csv: has no column spend, which the model reads; it has Spend, since"
    with pytest.raises(UserError, match=told):
        read_table(tmp_path / "rows.csv", signature)
    with pytest.raises(UserError, match=r"rows\.csv: has no column text, which the model reads; it has Spend, since"):
        read_table(tmp_path / "rows.csv", READS_TEXT)
    (tmp_path / "rows.csv").write_text("spend,since\n,2\n")
    assert read_table(tmp_path / "rows.csv", signature).num_rows == 1
