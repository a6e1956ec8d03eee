"""One file of rows, read as a recipe's source is: for questions to a model that is finished."""

import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.errors import UserError
from training.data.landing import ROW
from training.data.sources import land
from training.recipe import Source


def read_table(file: Path) -> pa.Table:
    """The rows of a csv, json, jsonl or parquet file, in order.

    Raises:
        UserError: the file is missing, or a row of it cannot be read: each row must get its answer.
    """
    if not file.is_file():
        raise UserError(f"{file}: no such file")
    with tempfile.TemporaryDirectory(prefix="headrace-") as folder:
        landed = land(file.stem, Source(read=str(file.resolve())), Path.cwd(), Path(folder))
        if landed.rejects:
            first = landed.rejects[0]
            raise UserError(
                f"{file}:{first.row}: {first.reason}; mend or remove the row ({landed.rejected_rows} in all)"
            )
        table = pa.concat_tables([pq.read_table(path) for path in landed.paths])
    return table.drop_columns([ROW]) if ROW in table.column_names else table
