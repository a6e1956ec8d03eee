"""What the casts of the fuse statement make missing: the engine gives NULL for a text that it cannot read."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from training.data.engine import StatementError, run
from training.data.statement import Cast, Statement, quoted

if TYPE_CHECKING:
    import daft

SHOWN_CHARACTERS = 40


def measure(statement: Statement, tables: "Mapping[str, daft.DataFrame]") -> list[dict[str, Any]]:
    """One entry for each cast of a source's values that cannot read all of them, over all rows of that source.

    ``cast`` as written, ``source``, its ``values`` that are there, how many the cast makes ``missing``, and one of them
    as ``example``. White space alone is no value, and a cast in a CASE has a condition of its own.
    """
    columns = {name: frame.column_names for name, frame in tables.items()}
    found = [_measure(cast, tables) for cast in dict.fromkeys(statement.casts(columns))]
    return [entry for entry in found if entry and entry["missing"]]


def _measure(cast: Cast, tables: "Mapping[str, daft.DataFrame]") -> dict[str, Any] | None:
    # Pasted together from the user's own statement, and run over nothing but the user's own tables.
    cells = (
        f"SELECT CAST({cast.operand} AS STRING) AS text, CAST({cast.operand} AS {cast.kind}) AS value "  # noqa: S608
        f"FROM {quoted(cast.source)} AS {quoted(cast.alias)}"
    )
    counted = (
        "SELECT COUNT(*) AS there, SUM(CASE WHEN value IS NULL THEN 1 ELSE 0 END) AS unread, "  # noqa: S608
        "MIN(CASE WHEN value IS NULL THEN text ELSE NULL END) AS example "
        f"FROM ({cells}) AS q WHERE strip(text) <> ''"
    )
    try:
        (found,) = run(counted, tables).to_pylist()
    except StatementError:  # the statement itself will tell
        return None
    return {
        "cast": cast.written,
        "source": cast.source,
        "values": found["there"],
        "missing": found["unread"] or 0,
        "example": (found["example"] or "")[:SHOWN_CHARACTERS],
    }
