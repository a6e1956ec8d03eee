"""Broken data files of every kind, each with the exact words that a person reads."""

import io
import sqlite3
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.errors import UserError
from training.data.fuse import fuse
from training.recipe import Recipe

GOOD = [f"{number},text number {number} of this file,{'ab'[number % 2]}" for number in range(40)]


def csv_bytes(*broken: str, header: str = "id,text,label", encoding: str = "utf-8") -> bytes:
    return ("\n".join([header, *GOOD, *broken]) + "\n").encode(encoding)


def zipped(*names: str) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name in names:
            archive.writestr(name, "<xml/>")
    return packed.getvalue()


FILES: dict[str, tuple[str, bytes, dict[str, Any], str]] = {
    "empty": ("rows.csv", b"", {}, "data.sources.rows: rows.csv is empty; it needs a line of column names"),
    "only a header": (
        "rows.csv",
        b"id,text,label\n",
        {},
        "data.sources.rows: the source has no rows",
    ),
    "gb18030 read as utf-8": (
        "rows.csv",
        csv_bytes("41,距离川沙公路较近，但是公交指示不对。,a", encoding="gb18030"),
        {},
        "data.sources.rows: rows.csv is not utf-8 text (line 42, byte 1317); set data.sources.rows.encoding: gb18030",
    ),
    "latin-1 read as utf-8": (
        "rows.csv",
        csv_bytes("41,Der Käse ist schön und größer,a", encoding="latin-1"),
        {},
        "data.sources.rows: rows.csv is not utf-8 text (line 42, byte 1322); set data.sources.rows.encoding: cp1252",
    ),
    "utf-8 read as gb18030": (
        "rows.csv",
        csv_bytes("41,房间很大，床有2M宽，整体感觉经济实惠不错!,a"),
        {"encoding": "gb18030"},
        "data.sources.rows: rows.csv is not gb18030 text (line 42, byte 1337); set data.sources.rows.encoding: utf-8",
    ),
    "no such encoding": (
        "rows.csv",
        csv_bytes(),
        {"encoding": "utf-9"},
        "data.sources.rows.encoding: there is no encoding 'utf-9'; common ones are utf-8, gb18030, big5, shift_jis, "
        "latin-1 and cp1252",
    ),
    "semicolons": (
        "rows.csv",
        b"id;text;label\n1;hello;a\n",
        {},
        "data.sources.rows: rows.csv has one column, 'id;text;label'; set data.sources.rows.delimiter: ';'",
    ),
    "two columns of one name": (
        "rows.csv",
        csv_bytes(header="text,text,label"),
        {},
        "data.sources.rows: rows.csv has two columns named 'text'; rename one",
    ),
    "too few values": (
        "rows.csv",
        csv_bytes("41,only two", "42,again only two"),
        {},
        "rows: 2 of 42 rows cannot be used, more than data.max_rejected: 0.01 allows. "
        "rows row 42: 2 values for 3 columns: '41,only two'; rows row 43: 2 values for 3 columns: '42,again only two'. "
        "All of them: {rejected}",
    ),
    "a quote that is never closed": (
        "rows.csv",
        csv_bytes('41,"a quote opens,a', "42,another row,b"),
        {},
        "rows: 1 of 42 rows cannot be used, more than data.max_rejected: 0.01 allows. "
        "rows row 42: a quote is opened and never closed: '41,\"a quote opens,a'. All of them: {rejected}",
    ),
    "text after a closing quote": (
        "rows.csv",
        csv_bytes('41,"a word" and more,a'),
        {},
        "rows: 1 of 41 rows cannot be used, more than data.max_rejected: 0.01 allows. "
        "rows row 42: text after a closing quote: '41,\"a word\" and more,a'. All of them: {rejected}",
    ),
    "a line that is no JSON": (
        "rows.jsonl",
        b'{"text": "one", "label": "a"}\n{"text": "two"\n[1, 2]\n',
        {},
        "rows: 2 of 3 rows cannot be used, more than data.max_rejected: 0.01 allows. "
        "rows row 2: no valid JSON at column 15: Expecting ',' delimiter: '{{\"text\": \"two\"'; "
        "rows row 3: not a JSON object: '[1, 2]'. All of them: {rejected}",
    ),
    "half an array": (
        "rows.json",
        b'[{"text": "one", "label": "a"},\n {"text": "two"',
        {},
        "data.sources.rows: rows.json is no valid JSON (line 2, column 16): Expecting ',' delimiter",
    ),
    "one object over many lines": (
        "rows.json",
        b'{\n  "rows": []\n}\n',
        {},
        "data.sources.rows: rows.json holds one JSON object; it needs an array of objects, or one object on each line",
    ),
    "no Parquet": (
        "rows.parquet",
        b"id,text,label\n",
        {},
        "data.sources.rows: rows.parquet is no Parquet file: Parquet magic bytes not found in footer. "
        "Either the file is corrupted or this is not a parquet file",
    ),
    "no gzip": (
        "rows.csv.gz",
        b"id,text,label\n",
        {},
        "data.sources.rows: rows.csv.gz cannot be read: Not a gzipped file (b'id')",
    ),
    "a workbook": (
        "rows.xlsx",
        b"",
        {},
        "data.sources.rows.read: rows.xlsx is an Excel workbook; save the sheet as CSV UTF-8 and name that file",
    ),
    "a workbook that is called CSV": (
        "rows.csv",
        zipped("[Content_Types].xml", "xl/workbook.xml"),
        {},
        "data.sources.rows: rows.csv is an Excel workbook; save the sheet as CSV UTF-8 and name that file",
    ),
    "an old workbook that is called CSV": (
        "rows.csv",
        bytes.fromhex("d0cf11e0a1b11ae1") + bytes(600),
        {"encoding": "latin-1"},
        "data.sources.rows: rows.csv is an Excel workbook; save the sheet as CSV UTF-8 and name that file",
    ),
    "an archive": (
        "rows.csv.zip",
        zipped("rows.csv"),
        {"format": "csv"},
        "data.sources.rows: rows.csv.zip is a ZIP archive; unpack it and name the file within",
    ),
    "an ending that does not tell": (
        "rows.dat",
        b"id,text,label\n",
        {},
        "data.sources.rows.read: the ending of rows.dat does not tell its format; "
        "add data.sources.rows.format: csv, json, jsonl or parquet",
    ),
    "a database that is none": (
        "rows.db",
        b"id,text,label\n" * 100,
        {"database": "sqlite:///rows.db", "query": "SELECT * FROM rows"},
        "data.sources.rows.query: sqlite:///{folder}/rows.db says: file is not a database",
    ),
}


@pytest.mark.parametrize("case", FILES)
def test_a_broken_file_is_told_exactly(
    case: str, tmp_path: Path, home: Path, make_recipe: Callable[..., Recipe]
) -> None:
    name, content, options, message = FILES[case]
    (tmp_path / name).write_bytes(content)
    source = options if "database" in options else {"read": name, **options}
    with pytest.raises(UserError) as raised:
        fuse(make_recipe({"rows": source}))
    rejected = next(iter(home.rglob("*-rejected.parquet")), None)
    assert str(raised.value) == message.format(folder=tmp_path, rejected=rejected)
    if "{rejected}" in message:
        assert rejected is not None
        assert pq.read_table(rejected).column_names == ["source", "row", "column", "value", "reason"]


RECIPES: dict[str, tuple[dict[str, Any], str]] = {
    "no such file": (
        {"sources": {"rows": {"read": "data/rowz.csv"}}},
        "data.sources.rows.read: there is no file data/rowz.csv (looked in {folder})",
    ),
    "a file that is nearly called so": (
        {"sources": {"rows": {"read": "./row.csv"}}},
        "data.sources.rows.read: there is no file ./row.csv (looked in {folder}), did you mean rows.csv?",
    ),
    "a glob that matches nothing": (
        {"sources": {"rows": {"read": "data/*.csv"}}},
        "data.sources.rows.read: no file matches data/*.csv (looked in {folder})",
    ),
    "a folder": (
        {"sources": {"rows": {"read": "folder"}}},
        "data.sources.rows.read: folder is a folder; name its files, e.g. folder/*.csv",
    ),
    "a missing input": (
        {"text": "txt"},
        "model.inputs.text: there is no column 'txt' in the fused table, did you mean 'text'? It has id, text, label",
    ),
    "a missing target and a missing group": (
        {"target": "intent", "split": {"group": "customer"}},
        "model.target: there is no column 'intent' in the fused table; it has id, text, label\n"
        "data.split.group: there is no column 'customer' in the fused table; it has id, text, label",
    ),
    "a column in capitals": (
        {"target": "LABEL"},
        "model.target: there is no column 'LABEL' in the fused table, did you mean 'label'? It has id, text, label",
    ),
    "a held out source without rows": (
        {
            "sources": {"rows": {"read": "rows.csv"}, "later": {"read": "header.csv"}},
            "split": {"test": {"source": "later"}},
        },
        "data.sources.later: the source has no rows",
    ),
    "a statement over a source without rows": (
        {
            "sources": {"rows": {"read": "rows.csv"}, "later": {"read": "header.csv"}},
            "fuse": "SELECT r.text, r.label FROM rows r JOIN later l ON r.id = l.id",
        },
        "data.fuse: there are no rows; the source later has none",
    ),
    "a held out source without the label": (
        {
            "sources": {"rows": {"read": "rows.csv"}, "later": {"read": "unlabelled.csv"}},
            "split": {"test": {"source": "later"}},
        },
        "model.target: there is no column 'label' in 'later'; it has id, text",
    ),
    "a column that the statement does not have": (
        {"fuse": "SELECT r.txt, r.label FROM rows r"},
        "data.fuse: Column txt not found in r, did you mean text? The tables are rows(id, text, label)",
    ),
    "a column in other letters": (
        {"fuse": "SELECT text, Label AS label FROM rows"},
        "data.fuse: Column Label not found in current scope, did you mean label? The tables are rows(id, text, label)",
    ),
    "a table that is almost a source": (
        {"fuse": "SELECT * FROM row"},
        "data.fuse: Table not found: row, did you mean rows? The tables are rows(id, text, label)",
    ),
    "no SQL in its third line": (
        {"fuse": "SELECT text,\n  label\n  FORM rows r"},
        "data.fuse: line 3 of the statement: Expected: end of statement, found: rows. "
        "The tables are rows(id, text, label)",
    ),
    "a function that counts otherwise": (
        {"fuse": "SELECT substr(text, 1, 3) AS text, label FROM rows"},
        "data.fuse: substr would count from 0, and SQL's from 1; write substring(text, start, length)",
    ),
    "a table that is no source": (
        {"fuse": "SELECT * FROM tickets"},
        "data.fuse: Table not found: tickets. The tables are rows(id, text, label)",
    ),
    "no SQL": (
        {"fuse": "SELEC * FROM rows"},
        "data.fuse: Expected: an SQL statement, found: SELEC. The tables are rows(id, text, label)",
    ),
    "two columns of one name in the statement": (
        {"fuse": "SELECT text, label, id AS text FROM rows"},
        "data.fuse: two columns are named 'text'; rename one with AS. The tables are rows(id, text, label)",
    ),
    "texts joined with ||": (
        {"fuse": "SELECT text || label AS text, label FROM rows"},
        "data.fuse: Unsupported SQL: 'Unsupported operator: '||''; join texts with concat(a, b). "
        "The tables are rows(id, text, label)",
    ),
    "a statement that reads what is held out": (
        {
            "sources": {"rows": {"read": "rows.csv"}, "later": {"read": "rows.csv"}},
            "fuse": "SELECT * FROM rows UNION ALL SELECT * FROM later",
            "split": {"test": {"source": "later"}},
        },
        "data.fuse: the statement reads 'later', which data.split holds out: its rows would be trained on. "
        "Leave it out; the statement runs on 'later' too, in the place of 'rows'",
    ),
    "a statement that gives no rows": (
        {"fuse": "SELECT * FROM rows WHERE id > 1000"},
        "data.fuse: there are no rows; look at the WHERE and at the keys of the joins",
    ),
    "values that break a rule": (
        {"clean": {"allowed": {"label": ["a", "c"]}}},
        "fuse: 20 of 40 rows cannot be used, more than data.max_rejected: 0.01 allows. "
        "rows row 3, label: not one of a, c: 'b'; rows row 5, label: not one of a, c: 'b'; "
        "rows row 7, label: not one of a, c: 'b'. All of them: {rejected}",
    ),
    "nothing left": (
        {"clean": {"types": {"text": "float"}}, "max_rejected": 1},
        "data.clean: none of 40 fused rows is left; removed by types 40",
    ),
    "times that are none": (
        {"split": {"time": "text"}},
        "data.split.time: 'text' is text that does not read as times; add data.clean.types: {{text: timestamp}}",
    ),
    "one time only": (
        {"fuse": "SELECT text, label, 5 AS year FROM rows", "split": {"time": "year"}},
        "data.split.time: 'year' has too few different times to hold rows out for test; "
        "set data.split.test: 0 or split another way",
    ),
    "one group only": (
        {"fuse": "SELECT text, label, 5 AS shop FROM rows", "split": {"group": "shop"}},
        "data.split: test would have no rows: 40 rows cannot be parted by group shop without near copies "
        "on both sides; bring more rows or set data.split.test: 0",
    ),
    "one source held out twice": (
        {
            "sources": {"rows": {"read": "rows.csv"}, "later": {"read": "rows.csv"}},
            "split": {"test": {"source": "later"}, "validation": {"source": "later"}},
        },
        "data.split: validation and test are both 'later'; hold out one source for each",
    ),
}


@pytest.mark.parametrize("case", RECIPES)
def test_a_recipe_that_does_not_fit_its_data_is_told_exactly(
    case: str, tmp_path: Path, home: Path, make_recipe: Callable[..., Recipe]
) -> None:
    options, message = RECIPES[case]
    (tmp_path / "rows.csv").write_bytes(csv_bytes())
    (tmp_path / "unlabelled.csv").write_text("id,text\n1,hello\n")
    (tmp_path / "header.csv").write_text("id,text,label\n")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError) as raised:
        fuse(make_recipe(**{"sources": {"rows": {"read": "rows.csv"}}, **options}))
    rejected = next(iter(home.rglob("*-rejected.parquet")), None)
    assert str(raised.value) == message.format(folder=tmp_path, rejected=rejected)


def test_a_parquet_file_with_broken_pages_is_told(
    tmp_path: Path, home: Path, make_recipe: Callable[..., Recipe]
) -> None:
    table = pa.table({"text": [f"text {n}" for n in range(500)], "label": ["a", "b"] * 250})
    pq.write_table(table, tmp_path / "rows.parquet", compression="none", use_dictionary=False)
    data = bytearray((tmp_path / "rows.parquet").read_bytes())
    data[4:60] = b"\xff" * 56
    (tmp_path / "rows.parquet").write_bytes(data)
    with pytest.raises(UserError, match=r"^data\.sources\.rows: the source cannot be read: "):
        fuse(make_recipe({"rows": {"read": "rows.parquet"}}))


@pytest.mark.parametrize("rule", [{"types": {"tags": "string"}}, {"allowed": {"tags": ["a"]}}])
def test_a_rule_for_single_values_on_lists_is_told(
    rule: dict[str, Any], tmp_path: Path, home: Path, make_recipe: Callable[..., Recipe]
) -> None:
    pq.write_table(pa.table({"text": ["one"], "label": ["a"], "tags": [["x", "y"]]}), tmp_path / "rows.parquet")
    with pytest.raises(UserError, match=rf"^data\.clean\.{next(iter(rule))}: 'tags' holds lists or mappings"):
        fuse(make_recipe({"rows": {"read": "rows.parquet"}}, clean=rule))


def test_times_apart_are_described(tmp_path: Path, home: Path, make_recipe: Callable[..., Recipe]) -> None:
    count = 40
    columns = {"text": [f"text number {n}" for n in range(count)], "label": ["a", "b"] * (count // 2)}
    took = pa.array(range(count), pa.duration("s"))
    pq.write_table(pa.table({**columns, "took": took}), tmp_path / "rows.parquet")
    assert fuse(make_recipe({"rows": {"read": "rows.parquet"}})).report["columns"]["took"]["distinct"] == count


def test_nothing_half_done_stays(tmp_path: Path, home: Path, make_recipe: Callable[..., Recipe]) -> None:
    (tmp_path / "rows.csv").write_bytes(csv_bytes())
    with sqlite3.connect(tmp_path / "shop.db") as connection:
        connection.execute("CREATE TABLE t (id INTEGER)")
    connection.close()
    sources = {"rows": {"read": "rows.csv"}, "shop": {"database": "sqlite:///shop.db", "query": "SELECT * FROM t"}}
    with pytest.raises(UserError):
        fuse(make_recipe(sources, "SELECT nothing FROM rows"))
    assert [path.name for path in (home / "fused").iterdir() if path.suffix != ".lock"] == []
