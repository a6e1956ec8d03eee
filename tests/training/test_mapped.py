"""Tables on the disk, against the same tables in memory."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from training import mapped


@pytest.fixture(params=[300, 16 * 1024**2], ids=["on the disk", "in memory"])
def part(request: pytest.FixtureRequest, home: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many bytes are worked on at a time."""
    monkeypatch.setattr(mapped, "PART", request.param)
    return int(request.param)


def table(rows: int = 500) -> pa.Table:
    texts = [None if number % 7 == 0 else f"text {number} {'x' * (number % 30)}" for number in range(rows)]
    whole = pa.table({"number": np.arange(rows), "text": texts, "list": [[n] * (n % 3) for n in range(rows)]})
    return pa.concat_tables([whole.slice(0, 33), whole.slice(33, 300), whole.slice(333)])


def test_parts_hold_every_row_once(part: int) -> None:
    cut = list(mapped.parts(table()))
    assert pa.concat_tables(cut).equals(table())
    assert len(cut) == (1 if part > 300 else len(cut)) and all(one.nbytes < 2 * part for one in cut)
    assert [one.num_rows for one in mapped.parts(table(0))] == [0]


def test_what_is_laid_down_is_there_again(part: int, home: Path) -> None:
    laid = mapped.mapped(mapped.parts(table()), table().schema)
    assert laid.equals(table())
    assert not list(home.rglob("*")), "the file must have no name"
    assert mapped.mapped([], table().schema).equals(table(0).cast(table().schema))


def test_a_table_on_the_disk_takes_no_memory(home: Path) -> None:
    before = pa.total_allocated_bytes()
    large = pa.table({"text": ["x" * 1000] * 10_000})
    laid = mapped.mapped((large for _ in range(5)), large.schema)
    del large
    assert laid.nbytes > 50_000_000
    assert pa.total_allocated_bytes() - before < 5_000_000


def test_rows_are_kept_changed_and_put_in_order_as_in_memory(part: int) -> None:
    chance = np.random.default_rng(3)
    mask = chance.random(500) < 0.4
    assert mapped.filtered(table(), mask).equals(table().filter(pa.array(mask)))
    assert mapped.filtered(table(), np.zeros(500, dtype=bool)).num_rows == 0
    order = chance.permutation(500)
    assert mapped.taken(table(), order).equals(table().take(pa.array(order)))
    few = np.array([499, 3, 3, 0])
    assert mapped.taken(table(), few).equals(table().take(pa.array(few)))
    assert mapped.taken(table(), few[:0]).num_rows == 0
    doubled = mapped.changed(table(), lambda one: one.append_column("twice", pa.array(one["number"].to_numpy() * 2)))
    assert doubled["twice"].to_pylist() == [2 * number for number in range(500)]


def test_a_file_is_written_and_mapped(part: int, tmp_path: Path) -> None:
    mapped.keep(table(), tmp_path / "rows.arrow")
    assert mapped.kept(tmp_path / "rows.arrow").equals(table())
    mapped.keep(table(0), tmp_path / "none.arrow")
    assert mapped.kept(tmp_path / "none.arrow").num_rows == 0
