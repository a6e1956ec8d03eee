"""Files as tables: types that lose nothing, encodings, rows that cannot be read, several files as one."""

import csv
import datetime as dt
import decimal
import gzip
import json
import math
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.errors import RunError, UserError
from training.data import text_files
from training.data.landing import ROW, Landed, Landing, as_text
from training.data.recipe import Source
from training.data.sources import identity, land


def read(folder: Path, name: str, content: bytes | str | None = None, **options: Any) -> Landed:
    if content is not None:
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    work = folder / "work"
    work.mkdir(exist_ok=True)
    return land("rows", Source(read=name, **options), folder, work)


def table(landed: Landed) -> pa.Table:
    return pa.concat_tables([pq.read_table(path) for path in landed.paths])


def values(landed: Landed, column: str) -> list[Any]:
    found: list[Any] = table(landed)[column].to_pylist()
    return found


TYPES = {
    "whole": (["1", "-20", "", "0"], "int64"),
    "leading zero": (["01012", "12345"], "string"),
    "plus sign": (["+491", "+492"], "string"),
    "more digits than a number holds": (["12345678901234567890", "1"], "string"),
    "card number among decimals": (["1.5", "4111111111111111"], "string"),
    "decimal": (["1.50", "-0.25", "3", "1e-5"], "double"),
    "coordinate": (["-23.548945985189434", "0.1"], "double"),
    "comma": (["1,5", "2,5"], "string"),
    "article numbers": (["12E3", "1E4", "10E3"], "string"),
    "exponents": (["1e+04", "2.5E7", "1E-05"], "double"),
    "version": (["1.10.1", "1.2.0"], "string"),
    "yes and no": (["yes", "no"], "string"),
    "lower truth": (["true", "false", ""], "bool"),
    "pandas truth": (["True", "False"], "bool"),
    "mixed truth": (["True", "false"], "string"),
    "date": (["2024-02-29", "1999-12-31"], "date32[day]"),
    "no date": (["2024-02-30", "1999-12-31"], "string"),
    "local date": (["29.02.2024", "31.12.1999"], "string"),
    "time": (["2024-02-29 12:00:00", "2024-02-29T12:00:00.250"], "timestamp[us]"),
    "instant": (["2024-02-29T12:00:00Z", "2024-02-29T12:00:01Z"], "timestamp[us, tz=UTC]"),
    "offset": (["2024-02-29T12:00:00+08:00", ""], "string"),
    "blank among numbers": ([" ", "29.85"], "double"),
    "nothing": (["", ""], "string"),
    "one word at the end": (["1"] * 60_000 + ["unknown"], "string"),
}


@pytest.mark.parametrize("case", TYPES)
def test_a_type_is_taken_only_if_nothing_is_lost(case: str, tmp_path: Path) -> None:
    written, kind = TYPES[case]
    landed = read(tmp_path, "rows.csv", "name,value\n" + "".join(f'n,"{value}"\n' for value in written))
    assert str(landed.schema.field("value").type) == kind
    if kind == "string":
        assert values(landed, "value") == [value or None for value in written]
    if kind in ("int64", "double"):
        assert values(landed, "value") == [float(value) if value.strip() else None for value in written]


VERSIONS = "name,value\na,1.1\nb,1.10\nc,2.0\n"


def test_a_column_that_is_called_text_is_read_as_written(tmp_path: Path) -> None:
    landed = read(tmp_path, "rows.csv", VERSIONS)
    assert values(landed, "value") == [1.1, 1.1, 2.0]
    assert landed.notes == [
        "value: 1.1 and 1.10 of rows are read as one number; data.clean.types: {value: string} keeps them apart"
    ]
    kept = land("rows", Source(read="rows.csv"), tmp_path, tmp_path / "work", texts=["value"])
    assert (values(kept, "value"), kept.notes) == (["1.1", "1.10", "2.0"], [])


def test_prices_are_numbers_without_a_note(tmp_path: Path) -> None:
    landed = read(tmp_path, "rows.csv", "name,value\na,1.50\nb,2.00\nc,1.50\n")
    assert (values(landed, "value"), landed.notes) == ([1.5, 2.0, 1.5], [])


def test_words_among_numbers_are_pointed_out_and_can_be_read_as_nothing(tmp_path: Path) -> None:
    ages = [str(n % 90) for n in range(60_000)] + ["NA", "-", "NA"]
    content = "age,day,zip,mood\n" + "".join(
        f"{age},{'2024-01-31' if n else 'unknown'},{'NA' if n == 7 else '01234'},{'good' if n % 2 else '3'}\n"
        for n, age in enumerate(ages)
    )
    landed = read(tmp_path, "rows.csv", content)
    assert landed.notes == [
        "age: read as text, though all but 3 of 60,003 values in rows are numbers ('NA' 2, '-' 1); "
        'data.sources.rows.missing: ["NA", "-"] reads those as empty',
        "day: read as text, though all but 1 of 60,003 values in rows are times ('unknown' 1); "
        'data.sources.rows.missing: ["unknown"] reads those as empty',
    ]
    mended = read(tmp_path, "rows.csv", missing=["NA", "-", "unknown"])
    assert values(mended, "age") == [*(n % 90 for n in range(60_000)), None, None, None]
    assert (str(mended.schema.field("day").type), mended.notes) == ("date32[day]", [])
    assert values(mended, "zip")[6:9] == ["01234", None, "01234"]


def test_what_stands_for_nothing_is_a_matter_of_csv(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"^data\.sources\.rows\.missing: it is for CSV files, and rows\.jsonl is jsonl"
    ):
        read(tmp_path, "rows.jsonl", '{"a": "NA"}', missing="NA")


def test_what_stands_for_nothing_is_part_of_a_files_identity(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("a\nNA\n")
    known = [
        identity("rows", Source(read="rows.csv", missing=missing), tmp_path, tmp_path)[0] for missing in ([], ["NA"])
    ]
    assert known[0] != known[1]


TEXT = "id,text\n1,房间很大，床有2M宽\n2,早餐太差，无论去多少人\n"


@pytest.mark.parametrize(
    ("encoding", "declared"),
    [("gb18030", "gb18030"), ("utf-8-sig", "utf-8"), ("utf-16", "utf-8"), ("big5", "big5"), ("utf-8-sig", "gb18030")],
)
def test_encodings_and_byte_order_marks(encoding: str, declared: str, tmp_path: Path) -> None:
    text = TEXT if encoding != "big5" else TEXT.translate(str.maketrans("间很宽无论", "間很寬無論"))
    landed = read(tmp_path, "rows.csv", text.encode(encoding), encoding=declared)
    assert landed.schema.names == ["id", "text"]
    assert values(landed, "text") == [line.split(",")[1] for line in text.splitlines()[1:]]


def test_one_undecodable_row_among_good_ones_is_put_aside(tmp_path: Path) -> None:
    lines = [*(f"{n},größer".encode() for n in range(50)), b"50,gr\xf6\xdfer", b"51,plain"]
    landed = read(tmp_path, "rows.csv", b"\n".join([b"id,text", *lines]))
    assert landed.rows == 51
    [reject] = landed.rejects
    assert (reject.row, reject.reason, reject.value) == (52, "bytes that are no utf-8 text", "50,gr\\udcf6\\udcdfer")


@pytest.mark.parametrize(
    ("text", "guess"),
    [
        ("Der Käse ist schön und viel größer als der letzte", "cp1252"),
        ("Привет, как дела сегодня", "cp1251"),
        ("これは日本語のテキストです。よろしくお願いします", "shift_jis"),
        ("距離川沙公路較近，但是公交指示不對", "big5"),
    ],
)
def test_a_wrong_guess_gets_the_cure(text: str, guess: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"line 2, byte \d+\); set data\.sources\.rows\.encoding: {guess}$"):
        read(tmp_path, "rows.csv", f"id,text\n1,{text}\n".encode(guess))


def test_an_encoding_that_turns_text_to_garbage_is_pointed_out(tmp_path: Path) -> None:
    assert read(tmp_path, "rows.csv", TEXT, encoding="latin-1").warnings == [
        "rows.csv reads as UTF-8, yet data.sources.rows.encoding is latin-1: look at special characters"
    ]
    chinese = TEXT.splitlines()[1].encode("gb18030") * 20
    assert read(tmp_path, "rows.csv", b"text\n" + chinese.replace(b",", b""), encoding="latin-1").warnings == [
        "rows.csv looks like gb18030, yet data.sources.rows.encoding is latin-1: look at special characters"
    ]


def test_a_quote_that_is_never_closed_costs_one_row(tmp_path: Path) -> None:
    good = [f'{n},"two\nlines, {n}"' for n in range(10)]
    lines = ["id,text", *good[:4], '99,"never closed', *good[4:7], '98,"nor this', *good[7:]]
    landed = read(tmp_path, "rows.csv", "\n".join(lines) + "\n")
    assert [(one.row, one.value) for one in landed.rejects if '"n' in str(one.value)] == [
        (10, '99,"never closed'),
        (17, '98,"nor this'),
    ]
    assert values(landed, "text") == [f"two\nlines, {n}" for n in range(10)]
    assert values(landed, ROW) == [2, 4, 6, 8, 11, 13, 15, 18, 20, 22]


def test_rows_are_numbered_by_their_line(tmp_path: Path) -> None:
    landed = read(tmp_path, "rows.csv", 'id,text\n1,"a\nb"\n\n2,c\n3\n4,d\n')
    assert values(landed, ROW) == [2, 5, 7]
    assert [(one.row, one.reason, one.value) for one in landed.rejects] == [(6, "1 values for 2 columns", "3")]


def test_json_lines_keep_their_types(tmp_path: Path) -> None:
    huge = str(2**70)
    rows = [
        {"id": 1, "n": 1, "mixed": 1, "customer": {"id": 7, "tags": ["a", "b"]}, "flag": True},
        {"id": 2, "n": 2.5, "mixed": "x", "customer": {"id": 8, "tags": None}},
        {"id": 3, "n": None, "mixed": False, "big": 2**70},
    ]
    landed = read(tmp_path, "rows.jsonl", "\n".join(map(json.dumps, rows)) + "\n\n[]\n{\n" + '{"id": "\\ud800"}')
    assert table(landed).drop_columns([ROW]).to_pylist() == [
        {"id": 1, "n": 1.0, "mixed": "1", "customer.id": 7, "customer.tags": '["a", "b"]', "flag": True, "big": None},
        {"id": 2, "n": 2.5, "mixed": "x", "customer.id": 8, "customer.tags": None, "flag": None, "big": None},
        {
            "id": 3,
            "n": None,
            "mixed": "false",
            "customer.id": None,
            "customer.tags": None,
            "flag": None,
            "big": huge,
        },
    ]
    assert [(one.row, one.reason) for one in landed.rejects] == [
        (5, "not a JSON object"),
        (6, "no valid JSON at column 2: Expecting property name enclosed in double quotes"),
        (7, "half of a \\u surrogate pair"),
    ]


@pytest.mark.parametrize("content", ['[{"a": 1}, {"a": null}, 5, {"b": NaN}]', '{"a": 1}\n{"a": null}\n5\n{"b": NaN}'])
def test_a_json_file_is_an_array_or_lines(content: str, tmp_path: Path) -> None:
    landed = read(tmp_path, "rows.json", content)
    assert values(landed, "a") == [1, None, None]
    assert [(one.row, one.value) for one in landed.rejects] == [(3, "5")]


BAD_OBJECTS = {
    "half a pair": (b'{"a": "\\ud83d", "b": 1}', "half of a \\u surrogate pair"),
    "half a pair in a key": (b'{"\\udc80": 1}', "half of a \\u surrogate pair"),
    "no text": (b'{"a": "gr\xf6\xdfer"}', "bytes that are no utf-8 text"),
    "two values for a column": (b'{"a.b": 1, "a": {"b": 2}}', "two values for 'a.b'"),
    "two values the other way round": (b'{"a": {"b": 2}, "a.b": 1}', "two values for 'a.b'"),
}


@pytest.mark.parametrize("case", BAD_OBJECTS)
@pytest.mark.parametrize("lines", [False, True])
def test_an_object_that_cannot_be_a_row_is_put_aside(case: str, lines: bool, tmp_path: Path) -> None:
    bad, reason = BAD_OBJECTS[case]
    objects = [*([json.dumps({"a": "größer"}, ensure_ascii=False).encode()] * 3), bad, b'{"a": "\\ud83d\\ude00"}']
    landed = read(tmp_path, "rows.json", b"\n".join(objects) if lines else b"[" + b",\n".join(objects) + b"]")
    assert values(landed, "a") == ["größer", "größer", "größer", "😀"]
    assert [(one.row, one.reason) for one in landed.rejects] == [(4, reason)]


@pytest.mark.parametrize("start", ["[", '{"a":'])
def test_json_that_is_nested_too_deeply_is_told(start: str, tmp_path: Path) -> None:
    content = start * 100_000
    if start == "[":
        with pytest.raises(UserError, match="nested too deeply"):
            read(tmp_path, "rows.json", content)
    else:
        with pytest.raises(UserError, match="holds one JSON object"):
            read(tmp_path, "rows.json", content)


def test_a_glob_is_one_table(tmp_path: Path) -> None:
    (tmp_path / "b.csv").write_text("id,text\n3,c\n4\n")
    (tmp_path / "a.csv").write_text("text,id,extra\na,1,x\nb,2,\n")
    landed = read(tmp_path, "[ab].csv")
    assert table(landed).drop_columns([ROW]).to_pylist() == [
        {"text": "a", "id": 1, "extra": "x"},
        {"text": "b", "id": 2, "extra": None},
        {"text": "c", "id": 3, "extra": None},
    ]
    assert landed.files == 2
    assert landed.rejects[0].reason == "1 values for 2 columns (in b.csv)"


def test_parquet_stays_where_it_is(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": [1, 2]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"id": [3]}), tmp_path / "b.parquet")
    landed = read(tmp_path, "*.parquet")
    assert (landed.rows, landed.paths) == (3, [str(tmp_path / "a.parquet"), str(tmp_path / "b.parquet")])
    pq.write_table(pa.table({"id": ["x"], "more": [1]}), tmp_path / "b.parquet")
    mixed = read(tmp_path, "*.parquet")
    assert table(mixed).drop_columns([ROW]).to_pylist() == [
        {"id": "1", "more": None},
        {"id": "2", "more": None},
        {"id": "x", "more": 1},
    ]


EXACT: dict[str, tuple[pa.Array, str]] = {
    "ids of twenty digits": (
        pa.array([decimal.Decimal(10**19 + n) for n in range(3)], pa.decimal128(20, 0)),
        "string",
    ),
    "ids of few digits": (pa.array([decimal.Decimal(7), None], pa.decimal128(20, 0)), "int64"),
    "ids written as fractions": (pa.array([decimal.Decimal(2**62), None], pa.decimal128(38, 10)), "int64"),
    "prices": (pa.array([decimal.Decimal("19.99"), decimal.Decimal("0.10"), None], pa.decimal128(12, 2)), "double"),
    "averages": (pa.array([decimal.Decimal("3.3333333333333333")], pa.decimal128(38, 16)), "double"),
    "fractions too large": (pa.array([decimal.Decimal("1234567890123456.5")], pa.decimal128(20, 1)), "string"),
    "numbers beyond a sign": (pa.array([2**63, 2**63 + 1], pa.uint64()), "string"),
    "numbers without a sign": (pa.array([2**62, None], pa.uint64()), "int64"),
    "times of a day": (pa.array([dt.time(1, 2, 3)], pa.time32("s")), "time64[us]"),
    "views": (pa.array(["a", None], pa.string_view()), "string"),
    "lists of views": (pa.array([["a"], None], pa.list_(pa.string_view())), "string"),
}


@pytest.mark.parametrize("case", EXACT)
def test_a_parquet_column_keeps_each_value(case: str, tmp_path: Path) -> None:
    column, kind = EXACT[case]
    pq.write_table(pa.table({"value": column}), tmp_path / "rows.parquet")
    landed = read(tmp_path, "rows.parquet")
    assert str(landed.schema.field("value").type) == kind
    expected = column.to_pylist()
    if kind == "string":
        expected = [None if one is None else one if isinstance(one, str) else as_text(one) for one in expected]
    if kind == "double":
        expected = [None if one is None else float(one) for one in expected]
    assert values(landed, "value") == expected


def test_a_decimal_is_the_float_that_its_digits_read_as(tmp_path: Path) -> None:
    chance = random.Random(1)
    decimals = [decimal.Decimal(chance.randrange(10**15)).scaleb(-chance.randrange(1, 15)) for _ in range(500)]
    pq.write_table(pa.table({"value": pa.array(decimals, pa.decimal128(38, 15))}), tmp_path / "rows.parquet")
    assert values(read(tmp_path, "rows.parquet"), "value") == [float(str(one)) for one in decimals]


DECIMALS: dict[str, tuple[list[Any], list[Any]]] = {
    "large ids": (
        [decimal.Decimal("10000000000000000001"), decimal.Decimal("10000000000000000002"), None],
        ["10000000000000000001", "10000000000000000002", None],
    ),
    "small ids": ([decimal.Decimal("1E+3"), decimal.Decimal("7.00"), 5], [1000, 7, 5]),
    "fractions": ([decimal.Decimal("1.50"), decimal.Decimal("NaN"), 2], [1.5, None, 2.0]),
    "with floats": ([decimal.Decimal("1.50"), 0.25, decimal.Decimal("NaN")], [1.5, 0.25, None]),
    "large ids with floats": ([decimal.Decimal(2**60 + 1), 0.25], [str(2**60 + 1), "0.25"]),
    "infinite": ([decimal.Decimal("Infinity"), decimal.Decimal(1)], [math.inf, 1.0]),
    "more digits than Arrow has": ([decimal.Decimal(10**80)], [str(10**80)]),
}


@pytest.mark.parametrize("case", DECIMALS)
@pytest.mark.parametrize("apart", [False, True])
def test_decimals_of_a_database_keep_their_digits(case: str, apart: bool, tmp_path: Path) -> None:
    given, expected = DECIMALS[case]
    assert in_parts(tmp_path, [[one] for one in given] if apart else [given]) == expected


def in_parts(folder: Path, parts: list[list[Any]]) -> list[Any]:
    landing = Landing(folder, "rows")
    for part in parts:
        landing.add({"value": part}, range(len(part)))
    return values(landing.finish("database"), "value")


@pytest.mark.parametrize("parts", [[[2**53 + 1], [0.5]], [[0.5], [2**53 + 1]], [[2**53 + 1, 0.5]]])
def test_whole_numbers_that_no_float_holds_are_text_beside_floats(parts: list[list[Any]], tmp_path: Path) -> None:
    assert set(in_parts(tmp_path, parts)) == {str(2**53 + 1), "0.5"}


def test_two_columns_of_one_name_are_told(tmp_path: Path) -> None:
    pq.write_table(pa.table([[1], [2]], names=["label", "label"]), tmp_path / "rows.parquet")
    with pytest.raises(
        UserError, match=r"data\.sources\.rows: rows\.parquet has two columns named 'label'; rename one"
    ):
        read(tmp_path, "rows.parquet")


def test_packed_tabbed_and_addressed_files(tmp_path: Path) -> None:
    (tmp_path / "rows.tsv.gz").write_bytes(gzip.compress(b"id\ttext\n1\ta,b\n"))
    assert values(read(tmp_path, "rows.tsv.gz"), "text") == ["a,b"]
    landed = read(tmp_path, (tmp_path / "rows.tsv.gz").as_uri())
    assert values(landed, "text") == ["a,b"]
    (tmp_path / "other.csv").write_text("id;text\n1;a\n")
    assert values(read(tmp_path, f"{tmp_path.as_uri()}/oth*.csv", delimiter=";"), "text") == ["a"]
    with pytest.raises(UserError, match="there is no file"):
        read(tmp_path, f"{tmp_path.as_uri()}/none.csv")


@pytest.mark.parametrize(
    ("line", "options"), [("sep=;", {}), ('"sep=;"', {}), ("sep=;", {"delimiter": ";"}), ("sep=,", {"delimiter": ";"})]
)
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_excels_line_with_the_delimiter_is_no_header(
    line: str, options: dict[str, Any], encoding: str, tmp_path: Path
) -> None:
    landed = read(tmp_path, "rows.csv", f"{line}\r\nid;text\r\n1;a, b\r\n2\r\n".encode(encoding), **options)
    assert (values(landed, "text"), values(landed, ROW)) == (["a, b"], [3])
    assert [one.row for one in landed.rejects] == [4]


def test_unnamed_columns_get_names(tmp_path: Path) -> None:
    assert read(tmp_path, "rows.csv", ", text \n0,a\n").schema.names == ["column_1", "text"]


def test_where_a_file_lies_is_no_part_of_its_identity(tmp_path: Path) -> None:
    def known(folder: Path, name: str) -> Any:
        return identity("rows", Source(read=name), folder, tmp_path)[0]

    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "rows.csv").write_text("id\n1\n")
    first = known(tmp_path, "one/rows.csv")
    assert first == known(Path("/"), str(tmp_path / "one" / "rows.csv")) == known(tmp_path / "one", "./rows.csv")
    (tmp_path / "one" / "rows.csv").write_text("id\n2\n")
    assert first != known(tmp_path, "one/rows.csv")


def test_data_sets_from_a_folder(tmp_path: Path) -> None:
    import datasets

    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "good"])}
    )
    rows = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=features)
    datasets.DatasetDict({"train": rows, "test": rows.select([0])}).save_to_disk(tmp_path / "saved")
    landed = land("hub", Source(hub="saved", split="train"), tmp_path, tmp_path)
    assert values(landed, "label") == ["good", "bad"]
    with pytest.raises(UserError, match=r"the data set has the splits train, test; add data.sources.hub.split"):
        land("hub", Source(hub="saved"), tmp_path, tmp_path)
    with pytest.raises(UserError, match="there is no split 'dev'; there is train, test"):
        land("hub", Source(hub="saved", split="dev"), tmp_path, tmp_path)
    with pytest.raises(UserError, match=r"there is no folder ./nowhere"):
        land("hub", Source(hub="./nowhere"), tmp_path, tmp_path)


def test_a_hub_that_cannot_be_reached_names_the_ways_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(RunError) as raised:
        land("hub", Source(hub="nobody/no-such-data-set", split="train"), tmp_path, tmp_path)
    assert str(raised.value).startswith(
        "data.sources.hub.hub: the data set 'nobody/no-such-data-set' cannot be fetched from the hub"
    )
    assert "save_to_disk" in str(raised.value)


def test_what_is_left_of_a_line_that_is_too_long_is_no_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_files, "LONGEST_FIELD", 20)
    monkeypatch.setattr(csv, "field_size_limit", lambda limit: None)  # of the whole process, others' files with it
    landed = read(tmp_path, "rows.csv", f"text,label\ngood,a\n{'x' * 50},b\nnext,c\n{'y' * 70}")
    assert values(landed, "text") == ["good", "next"]
    assert table(landed)[ROW].to_pylist() == [2, 4]
    assert [(one.row, one.reason) for one in landed.rejects] == [
        (3, "a line of more than 20 characters"),
        (5, "a line of more than 20 characters"),
    ]
