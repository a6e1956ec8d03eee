"""CSV by Arrow's reader: the same rows, numbers and rejects as row by row, whatever stands in the file."""

import random
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from training.data import regular_csv
from training.data.encodings import encoding_of
from training.data.files import File
from training.data.landing import Landed, Landing
from training.data.text_files import land_csv

PIECES = ["a", "7", "é", ",", ",", '"', '"', '""', "\n", "\n", "\r\n", "\r", " ", "\0", "\ufeff", 'x","', '"y"\n']


def landed(path: Path, folder: Path, limit: int | None = None, delimiter: str = ",") -> Landed:
    folder.mkdir()
    landing = Landing(folder, "source", infer=True, limit=limit)
    file = File(str(path))
    land_csv(file, encoding_of("source", file, "utf-8"), delimiter, landing)
    return landing.finish("csv")


def content(one: Landed) -> tuple[object, ...]:
    rows = [row for path in one.paths for row in pq.read_table(path).to_pylist()]
    return one.schema, rows, one.rejects, one.rejected_rows


def tame(chance: random.Random) -> str:
    values = ["a", "7", '"c,d"', '"e\nf"', '"g""h"', '""', ""]
    return "\n".join(",".join(chance.choices(values, k=2)) for _ in range(9))


@pytest.mark.parametrize("block", [7, 23, 1 << 20])
def test_every_file_gives_what_it_gives_row_by_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    chance = random.Random(block)
    regular = 0
    read = regular_csv.read
    for number in range(150):
        wild = "".join(chance.choices(PIECES, k=chance.randrange(60)))
        text = "one,two\n" + chance.choice([wild, tame(chance), f"{tame(chance)}\n{wild}", f"{wild}\n{tame(chance)}"])
        path = tmp_path / f"{number}.csv"
        path.write_text(text, encoding="utf-8", newline="")
        monkeypatch.setattr(regular_csv, "BLOCK", block)
        monkeypatch.setattr(regular_csv, "read", lambda *given: None)
        expected = content(landed(path, tmp_path / f"slow-{number}"))

        def counted(*given: object) -> object:
            nonlocal regular
            found = read(*given)  # type: ignore[arg-type]
            regular += found is not None
            return found

        monkeypatch.setattr(regular_csv, "read", counted)
        assert content(landed(path, tmp_path / f"fast-{number}")) == expected, repr(text)
    assert regular > 20, "most blocks of the tame ones are read by Arrow"


def test_lines_are_counted_through_values_of_several_lines(tmp_path: Path) -> None:
    path = tmp_path / "notes.csv"
    path.write_text('id,text\n1,"two\nlines"\n2,one\n3,"and\n\nthree"\n4,last\n5\n6,six\n', encoding="utf-8")
    one = landed(path, tmp_path / "work")
    assert pq.read_table(one.paths[0])["__headrace_row"].to_pylist() == [2, 4, 5, 8, 10]
    assert [(reject.row, reject.value) for reject in one.rejects] == [(9, "5")]


def test_only_the_first_rows_are_landed_where_that_is_asked(tmp_path: Path) -> None:
    path = tmp_path / "many.csv"
    path.write_text("id\n" + "\n".join(map(str, range(1000))), encoding="utf-8")
    assert landed(path, tmp_path / "work", limit=7).rows == 7


def test_what_parts_columns_may_be_any_character(tmp_path: Path) -> None:
    path = tmp_path / "bars.csv"
    path.write_text('id¦text\n1¦"a¦b"\n2¦c\n', encoding="utf-8")
    assert [row["text"] for row in content(landed(path, tmp_path / "work", delimiter="¦"))[1]] == ["a¦b", "c"]  # type: ignore[attr-defined]
