"""Tables from any database that SQLAlchemy knows: one query, streamed, with nothing written on the other side."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import sqlalchemy
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError

from cluster.errors import RunError, UserError
from cluster.masking import redact
from training.data.landing import PART_ROWS, Landed, Landing
from training.data.recipe import Source

FETCHED = 5_000  # rows on their way at once
PACKAGES = {
    "psycopg": "psycopg[binary]",
    "psycopg2": "psycopg2-binary",
    "pymysql": "pymysql",
    "MySQLdb": "mysqlclient",
    "pyodbc": "pyodbc",
    "oracledb": "oracledb",
    "snowflake": "snowflake-sqlalchemy",
    "bigquery": "sqlalchemy-bigquery",
    "duckdb": "duckdb-engine",
    "clickhouse": "clickhouse-sqlalchemy",
}

SILENT = re.compile(r"""'[^']*'|"[^"]*"|`[^`]*`|--[^\n]*|/\*.*?\*/""", re.DOTALL)
"""What of a statement is quoted or a comment."""

INNERMOST = re.compile(r"\([^()]*\)")
ORDER_BY = re.compile(r"\border\s+by\b", re.IGNORECASE)


def land_database(name: str, source: Source, recipe_folder: Path, landing: Landing) -> Landed:
    """Runs the source's query and lands its rows.

    Raises:
        UserError: the address or the query is at fault, or a driver is missing.
        RunError: the database cannot be reached.
    """
    assert source.database is not None and source.query is not None
    url = _url(name, source.database, recipe_folder)
    engine = _engine(name, url)
    try:
        with engine.connect() as connection:
            _land_query(name, source.query, _read_only(connection), landing)
    except DBAPIError as error:
        raise _plain(name, url, error) from None
    except SQLAlchemyError as error:
        reason = redact(_first_line(str(error)))
        raise UserError(f"data.sources.{name}: {_shown(url)}: {reason}") from None
    finally:
        engine.dispose()
    return landing.finish("database", ordered=_is_ordered(source.query), digest=True)


def _is_ordered(query: str) -> bool:
    """Whether the statement itself has an ORDER BY; that of a window or of an inner query gives the rows no order."""
    plain, found = SILENT.sub(" ", query), 1
    while found:
        plain, found = INNERMOST.subn(" ", plain)
    return ORDER_BY.search(plain) is not None


def _url(name: str, address: str, recipe_folder: Path) -> URL:
    try:
        url = make_url(address)
    except (ArgumentError, ValueError):
        raise UserError(
            f"data.sources.{name}.database: {redact(address)!r} is no database address; "
            "write e.g. sqlite:///shop.db or postgresql://user:${env:PASSWORD}@host/name"
        ) from None
    if url.get_backend_name() != "sqlite" or url.database in (None, "", ":memory:"):
        return url
    file = Path(str(url.database)).expanduser()
    file = file if file.is_absolute() else recipe_folder / file
    if not file.is_file():  # SQLite would make an empty database of that name
        raise UserError(f"data.sources.{name}.database: there is no file {url.database} (looked in {recipe_folder})")
    return url.set(database=f"file:{quote(str(file))}", query={**url.query, "mode": "ro", "uri": "true"})


def _engine(name: str, url: URL) -> sqlalchemy.Engine:
    try:
        return sqlalchemy.create_engine(url)
    except NoSuchModuleError:
        package = PACKAGES.get(url.get_backend_name(), f"its SQLAlchemy dialect '{url.drivername}'")
        raise UserError(
            f"data.sources.{name}.database: nothing here reads {url.drivername}; install {package}"
        ) from None
    except ModuleNotFoundError as error:
        package = PACKAGES.get(str(error.name), str(error.name))
        raise UserError(
            f"data.sources.{name}.database: {url.drivername} needs a driver that is not installed; "
            f"pip install '{package}'"
        ) from None


def _read_only(connection: sqlalchemy.Connection) -> sqlalchemy.Connection:
    if connection.dialect.name == "postgresql":
        connection = connection.execution_options(postgresql_readonly=True)
    return connection.execution_options(stream_results=True, max_row_buffer=FETCHED)


def _land_query(name: str, query: str, connection: sqlalchemy.Connection, landing: Landing) -> None:
    query = query.strip().rstrip(";")
    result = connection.exec_driver_sql(query.replace("%", "%%") if _formats(connection) else query)
    if not result.returns_rows:
        raise UserError(f"data.sources.{name}.query: the statement returns no rows; write a SELECT")
    columns = list(result.keys())
    twice = next((column for column in columns if columns.count(column) > 1), None)
    if twice:
        raise UserError(f"data.sources.{name}.query: two columns are named '{twice}'; rename one with AS")
    landing.declare(columns)
    pending: list[Sequence[Any]] = []
    while not landing.full and (rows := result.fetchmany(FETCHED)):
        pending.extend(tuple(row) for row in rows)
        if len(pending) >= PART_ROWS:
            _flush(landing, columns, pending)
    _flush(landing, columns, pending)


def _formats(connection: sqlalchemy.Connection) -> bool:
    """Whether the driver takes a % in a statement for a parameter."""
    return connection.dialect.paramstyle in ("format", "pyformat")


def _flush(landing: Landing, columns: list[str], rows: list[Sequence[Any]]) -> None:
    if rows:
        first = landing.rows + 1
        values = zip(columns, (list(column) for column in zip(*rows, strict=True)), strict=True)
        landing.add(dict(values), range(first, first + len(rows)))
    rows.clear()


def _plain(name: str, url: URL, error: DBAPIError) -> UserError | RunError:
    """One sentence for what the database said. Which side is at fault is told by whether a connection stood."""
    reason = redact(_first_line(str(error.orig)))
    if isinstance(error, sqlalchemy.exc.OperationalError) and not _of_statement(error):
        return RunError(f"data.sources.{name}.database: {_shown(url)} cannot be reached: {reason}")
    return UserError(f"data.sources.{name}.query: {_shown(url)} says: {reason}")


def _of_statement(error: DBAPIError) -> bool:
    return bool(error.statement)


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "no reason given")


def _shown(url: URL) -> str:
    if url.get_backend_name() == "sqlite":
        return f"sqlite:///{unquote(str(url.database)).removeprefix('file:')}"
    return url.render_as_string(hide_password=True)
