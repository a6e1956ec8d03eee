"""A file of rows answered some rows at a time: the same answers, in bounded memory, whole or not at all."""

import csv
import gzip
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import headrace
from cluster.errors import UserError
from serving.answering import Chunks, answer_into, answer_to
from serving.predictor import Predictor
from training.bundle import Bundle
from training.data import table as tables
from training.data.table import open_table

ROWS = [{"text": f"where is my parcel {'please ' * (number % 3)}{number}", "id": number} for number in range(7)]
FORMATS = ("rows.csv", "rows.tsv.gz", "rows.json", "rows.jsonl", "rows.parquet")


class Counting(Predictor):
    """Remembers how many rows it was asked at once."""

    def predict(self, inputs: Sequence[Any], *args: Any, **options: Any) -> list[Any]:
        self.asked = [*getattr(self, "asked", []), len(inputs)]
        return super().predict(inputs, *args, **options)


def written(folder: Path, name: str) -> Path:
    file = folder / name
    if name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(ROWS), file, row_group_size=4)
    elif name.endswith(".tsv.gz"):
        lines = ["text\tid", *(f"{row['text']}\t{row['id']}" for row in ROWS)]
        file.write_bytes(gzip.compress("\n".join(lines).encode()))
    elif name.endswith(".csv"):
        file.write_text("\n".join(["text,id", *(f"{row['text']},{row['id']}" for row in ROWS)]) + "\n")
    elif name.endswith(".json"):
        file.write_text(json.dumps(ROWS))
    else:
        file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return file


def close(one: str, other: str) -> bool:
    """Whether two files of answers say the same; a batch of other lengths moves the last digits of a score."""
    pairs = zip(map(json.loads, one.splitlines()), map(json.loads, other.splitlines()), strict=True)
    return all(
        [entry["label"] for entry in first] == [entry["label"] for entry in second]
        and [entry["score"] for entry in first] == pytest.approx([entry["score"] for entry in second], abs=1e-5)
        for first, second in pairs
    )


@pytest.mark.parametrize("name", FORMATS)
def test_chunks_give_the_file_that_all_rows_at_once_give(
    bundle: Bundle, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = written(tmp_path, name)
    alone = [json.dumps(one, ensure_ascii=False) for one in Predictor(bundle).predict([dict(row) for row in ROWS])]
    monkeypatch.setattr("headrace.open_model", lambda model: bundle)
    monkeypatch.setattr("serving.predictor.Predictor", Counting)
    asked: list[int] = []
    monkeypatch.setattr(Counting, "asked", asked, raising=False)
    for chunk in (100, 3):
        monkeypatch.setattr(tables, "CHUNK", chunk)
        headrace.predict("topics", file, tmp_path / f"{chunk}.jsonl")
    whole, parts = ((tmp_path / f"{chunk}.jsonl").read_text(encoding="utf-8") for chunk in (100, 3))
    assert whole == "".join(f"{line}\n" for line in alone)
    assert close(parts, whole)
    assert "predicting 100 % · 7/7 rows" in capsys.readouterr().err


def test_no_more_rows_are_held_than_a_chunk_has(bundle: Bundle, tmp_path: Path) -> None:
    predictor = Counting(bundle)
    read: list[int] = []

    def chunks(found: Any) -> Chunks:
        for one in found:
            read.append(one.num_rows)
            yield one.to_pylist()
            assert predictor.asked == read  # before the next is read

    signature = bundle.info["signature"]
    for name in FORMATS:
        predictor.asked = []
        read.clear()
        with open_table(written(tmp_path, name), signature, chunk=3) as table:
            assert table.rows == 7
            assert answer_into(tmp_path / "out.jsonl", predictor, chunks(table.chunks), {"top_k": 1}, 7) == 7
        assert max(read) <= 3
        assert sum(read) == 7
    assert all(len(json.loads(line)) == 1 for line in (tmp_path / "out.jsonl").read_text().splitlines())


def test_what_is_printed_is_one_line_for_each_row_or_one_object(bundle: Bundle) -> None:
    predictor = Predictor(bundle)
    answers = predictor.predict(ROWS)
    out = io.StringIO()
    assert answer_to(out, predictor, [ROWS], {}, 7, as_json=False) == 7
    assert out.getvalue() == "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in answers)
    for rows in (ROWS, []):
        out = io.StringIO()
        answer_to(out, predictor, [rows] if rows else [], {}, len(rows), as_json=True)
        expected = {"rows": len(rows), "answers": answers if rows else []}
        assert out.getvalue() == json.dumps(expected, ensure_ascii=False) + "\n"


def test_a_wrong_row_is_named_by_its_place_in_the_file_and_leaves_no_answers(bundle: Bundle, tmp_path: Path) -> None:
    output, out = tmp_path / "out.jsonl", io.StringIO()
    output.write_text("old\n")
    lacking = cast(Chunks, [ROWS[:3], [*ROWS[3:5], {"id": 5}]])
    with pytest.raises(UserError, match=r"^row 6: text: missing"):
        answer_into(output, Predictor(bundle), lacking, {}, 6)
    with pytest.raises(UserError, match=r"^row 6: text: missing"):
        answer_to(out, Predictor(bundle), lacking, {}, 6, as_json=False)
    assert (output.read_text(), out.getvalue()) == ("old\n", "")
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl"]


def test_a_file_without_rows_has_no_answers(bundle: Bundle, tmp_path: Path) -> None:
    signature: Mapping[str, Any] = bundle.info["signature"]
    (tmp_path / "rows.csv").write_text("text,id\n")
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "rows.parquet")
    for name in ("rows.csv", "rows.parquet"):
        with open_table(tmp_path / name, signature) as table:
            (only,) = table.chunks
        assert (table.rows, only.num_rows) == (0, 0)
        assert "text" in only.column_names


def test_a_table_has_each_row_with_its_answer_after_it(bundle: Bundle, tmp_path: Path) -> None:
    predictor = Predictor(bundle)
    rows = [{**row, "note": 'a "quoted", and\nbroken line', "tags": ["a", 1], "file": b"x"} for row in ROWS]
    assert answer_into(tmp_path / "out.csv", predictor, [rows], {}, 7) == 7
    with (tmp_path / "out.csv").open(newline="", encoding="utf-8") as file:
        told = list(csv.DictReader(file))
    assert list(told[0]) == ["text", "id", "note", "tags", "answer_label", "answer_score"]
    for row, line, answer in zip(rows, told, predictor.predict(rows), strict=True):
        assert [line["text"], line["id"], line["note"]] == [row["text"], str(row["id"]), row["note"]]
        assert json.loads(line["tags"]) == row["tags"]
        assert line["answer_label"] == answer[0]["label"]
        assert float(line["answer_score"]) == pytest.approx(answer[0]["score"], abs=1e-5)
