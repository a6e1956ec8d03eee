"""Daft, which runs the fuse statement: embedded in this process, or on Ray when the run is on a cluster."""

import functools
import importlib
import os
import re
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import TYPE_CHECKING

import pyarrow as pa

from cluster.session import on_cluster, session, usable_cores
from training.data.landing import HIDDEN, ROW, Landed
from training.mapped import mapped

if TYPE_CHECKING:
    import daft

CURES = {
    "Unsupported operator: '||'": "join texts with concat(a, b)",
    "on types: Timestamp": "compare a time with CAST('2024-01-31' AS TIMESTAMP)",
    "on types: String, Timestamp": "compare a time with CAST('2024-01-31' AS TIMESTAMP)",
    "CrossJoin": "write JOIN … ON with the columns that belong together",
    "non-equality join": "keep equalities in the ON and move the other conditions into a WHERE",
    "QUALIFY": "put the window function into a subquery and filter around it with WHERE",
    "'TRIM'": "write strip(text)",
    "`btrim` not found": "write strip(text)",
    "`ltrim` not found": "write lstrip(text)",
    "`rtrim` not found": "write rstrip(text)",
    "`nullif` not found": "write CASE WHEN a = b THEN NULL ELSE a END",
    "`ifnull` not found": "write coalesce(a, b)",
    "`nvl` not found": "write coalesce(a, b)",
    "`if` not found": "write CASE WHEN … THEN … ELSE … END",
    "no else result": "write ELSE NULL before the END",
    "[FOR len])": "write substring(text, start, length), which counts from 1",
    "'POSITION'": "write find(text, 'part'), which counts from 0 and gives -1 where the part is not there",
    "`strpos` not found": "write find(text, 'part'), which counts from 0 and gives -1 where the part is not there",
    "operator: '~'": "write regexp_match(text, 'pattern')",
    "'TOP'": "write LIMIT at the end",
}


LINE = re.compile(r"SQL error at Line: (\d+)")

WHOLE_DIGITS = 18
"""A whole number of so many digits is one of 64 bits."""

MORSEL = 8_192
"""Rows that Daft passes on at a time where it runs in this process."""


class StatementError(Exception):
    """Daft would not run a statement; the message is its reason in one line, with a cure where one is known."""


def tables(sources: Mapping[str, Landed], *, numbered: bool) -> "dict[str, daft.DataFrame]":
    """The sources as Daft tables; ``numbered`` adds each table's row numbers as the column :func:`row_column`."""
    return {name: _table(name, landed, numbered) for name, landed in sources.items()}


def row_column(table: str) -> str:
    """The hidden column that holds the row numbers of ``table``. Its name differs by table: joins keep both."""
    return f"{HIDDEN}row_{table}"


def run(statement: str, sources: "Mapping[str, daft.DataFrame]") -> pa.Table:
    """What the statement gives. The order of its rows is Daft's, which may differ from run to run.

    Raises:
        StatementError: Daft refuses it.
    """
    return collect(lazy_frame(statement, sources))


def lazy_frame(statement: str, sources: "Mapping[str, daft.DataFrame]") -> "daft.DataFrame":
    """The statement as a table that is not computed yet."""
    module = _daft()
    try:
        frame: daft.DataFrame = module.sql(statement, register_globals=False, **sources)
        return frame
    except Exception as error:  # noqa: BLE001  Daft raises its own types and plain Exception alike
        line = LINE.search(str(error)) if "\n" in statement else None
        raise StatementError(f"{f'line {line[1]} of the statement: ' if line else ''}{_reason(error)}") from None


def collect(frame: "daft.DataFrame") -> pa.Table:
    """The rows of a table, laid down as they are computed.

    Raises:
        StatementError: computing it failed.
    """
    names = frame.column_names
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise StatementError(f"two columns are named '{twice}'; rename one with AS")
    plain = pa.schema([(field.name, _plain_type(field.type)) for field in frame.schema().to_pyarrow_schema()])
    return mapped(_computed(frame, plain), plain)


def _computed(frame: "daft.DataFrame", schema: pa.Schema) -> Iterator[pa.Table]:
    """The rows as they are computed. A disk that is full while they are laid down is no fault of the statement's."""
    try:
        for batch in frame.to_arrow_iter():
            yield pa.Table.from_batches([batch]).cast(schema)
    except Exception as error:  # noqa: BLE001
        raise StatementError(_reason(error)) from None


def _table(name: str, landed: Landed, numbered: bool) -> "daft.DataFrame":
    try:
        frame: daft.DataFrame = _daft().read_parquet(landed.paths)
    except Exception as error:  # noqa: BLE001
        raise StatementError(_reason(error)) from None
    column = row_column(name)
    if not landed.numbered:
        return frame._add_monotonically_increasing_id(column) if numbered else frame
    return frame.with_column_renamed(ROW, column) if numbered else frame.exclude(ROW)


def _plain_type(kind: pa.DataType) -> pa.DataType:
    """The types that Parquet readers everywhere agree on."""
    if pa.types.is_decimal(kind):  # of a CAST in the statement: those of sources have landed as something else
        return pa.float64() if kind.scale else pa.int64() if kind.precision <= WHOLE_DIGITS else pa.string()
    if pa.types.is_large_string(kind) or pa.types.is_null(kind):
        return pa.string()
    if pa.types.is_integer(kind):
        return pa.int64()
    return pa.float64() if pa.types.is_floating(kind) else kind


def _reason(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    marked = [line.removeprefix("REASON:").strip() for line in lines if line.startswith("REASON:")]
    causes = [line.removeprefix("Due to:").strip() for line in lines if line.startswith("Due to:")]
    reason = (marked or causes or lines or [type(error).__name__])[0]
    for noise in ("DaftError::External ", "DaftError::TypeError ", "DaftError::ValueError ", "Daft error: "):
        reason = reason.replace(noise, "")
    cure = next((cure for sign, cure in CURES.items() if sign in str(error)), None)
    return f"{reason}; {cure}" if cure else reason


def _daft() -> ModuleType:
    _choose_runner()
    return importlib.import_module("daft")


@functools.cache
def _choose_runner() -> None:
    """Daft takes its runner once in a process, and would take Ray whenever a local session happens to be open."""
    os.environ["DAFT_PROGRESS_BAR"] = "0"  # its bar writes over ours
    os.environ["DAFT_ANALYTICS_ENABLED"] = "0"  # nothing about a company's data leaves the machine
    import daft

    if on_cluster():
        with session():  # or Daft would connect by itself, without our code; a cluster stays connected afterwards
            daft.set_runner_ray(noop_if_initialized=True)
    else:
        daft.set_runner_native()
        # By itself Daft reads eight files at a time and passes on 131,072 rows: of long texts, gigabytes.
        daft.set_execution_config(default_morsel_size=MORSEL, scantask_max_parallel=usable_cores())
