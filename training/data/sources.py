"""Every source as a table that Daft can read: what is not Parquet lands as Parquet, what is stays in its place."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq

from cluster.errors import UserError
from cluster.storage import folder_digests
from training.data.databases import land_database
from training.data.encodings import encoding_of
from training.data.files import File, delimiter_of, find, format_of
from training.data.hub import land_hub, local_folder
from training.data.landing import HIDDEN, PART_ROWS, Landed, Landing, is_plain
from training.data.names import land_names, named
from training.data.recipe import Source
from training.data.text_files import land_csv, land_json, land_jsonl


def identity(name: str, source: Source, recipe_folder: Path, work: Path) -> tuple[Any, Landed | None]:
    """What tells whether a source's rows are the same as before, wherever they lie: a digest of its content.

    Databases and the hub have to be read for it, so what they gave is returned too.
    """
    if source.files is not None:
        return ["files", source.pattern, named(find(name, source, recipe_folder), recipe_folder)], None
    if source.read is not None:
        files = find(name, source, recipe_folder)
        how = [format_of(name, source, files), source.encoding, delimiter_of(source, files[0]), source.missing]
        return [*how, [_digest(name, file) for file in files]], None
    folder = local_folder(source, recipe_folder) if source.hub is not None else None
    if folder is not None:
        return ["hub", source.subset, source.split, folder_digests(folder)], None
    landed = land(name, source, recipe_folder, work)
    return [landed.kind, landed.digest], landed


def _digest(name: str, file: File) -> str:
    try:
        return file.digest()
    except PermissionError:
        raise UserError(f"data.sources.{name}: {file.address} may not be read; change its permissions") from None


def land(
    name: str,
    source: Source,
    recipe_folder: Path,
    work: Path,
    limit: int | None = None,
    as_written: Collection[str] = (),
    texts: Collection[str] = (),
) -> Landed:
    """The source as Parquet below ``work``, or in its own place.

    Args:
        limit: land only the first rows.
        as_written: columns of a text file that stay text, whatever their values look like.
        texts: columns that stay text where types are inferred, as from CSV.

    Raises:
        UserError: the source is missing, or cannot be read as what the recipe says it is.
        RunError: a database, the hub or a store cannot be reached.
    """
    if source.database is not None:
        return land_database(name, source, recipe_folder, Landing(work, name, limit=limit))
    if source.hub is not None:
        return land_hub(name, source, recipe_folder, Landing(work, name, limit=limit))
    if source.files is not None:
        landing = Landing(work, name, infer=True, limit=limit, as_written=texts)
        return land_names(source, find(name, source, recipe_folder), recipe_folder, landing)
    files = find(name, source, recipe_folder)
    kind = format_of(name, source, files)
    if source.missing and kind != "csv":
        raise UserError(
            f"data.sources.{name}.missing: it is for CSV files, and {files[0].name} is {kind}; leave it out"
        )
    if kind == "parquet":
        return _land_parquet(name, files, work, limit)
    infer = kind == "csv"
    kept = {*as_written, *texts} if infer else as_written
    landing = Landing(work, name, infer=infer, limit=limit, as_written=kept, missing=source.missing)
    for landing.file, file in enumerate(files):
        before = len(landing.rejects)
        _land_text(name, source, file, kind, landing)
        if len(files) > 1:
            _name_file(landing, before, file)
    return landing.finish(kind, files=len(files))


def _land_text(name: str, source: Source, file: File, kind: str, landing: Landing) -> None:
    try:
        encoding = encoding_of(name, file, source.encoding)
        if encoding.warning:
            landing.warnings.append(encoding.warning)
        if kind == "csv":
            named = "delimiter" in source.model_fields_set
            land_csv(file, encoding, delimiter_of(source, file), landing, named=named)
        elif kind == "jsonl":
            land_jsonl(file, encoding, landing)
        else:
            land_json(file, encoding, landing)
    except (EOFError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None and not isinstance(error, PermissionError):
            raise
        raise UserError(f"data.sources.{name}: {file.name} cannot be read: {error}") from None


def _name_file(landing: Landing, start: int, file: File) -> None:
    """Says in which of several files a rejected row stands."""
    for index in range(start, len(landing.rejects)):
        old = landing.rejects[index]
        landing.rejects[index] = type(old)(old.source, old.row, old.column, old.value, f"{old.reason} (in {file.name})")


def _land_parquet(name: str, files: list[File], work: Path, limit: int | None) -> Landed:
    opened = [_open_parquet(name, file) for file in files]
    schemas = [one.schema_arrow for one in opened]
    same = all(schema.remove_metadata().equals(schemas[0].remove_metadata()) for schema in schemas)
    for file, schema in zip(files, schemas, strict=True):
        _check_names(name, file, schema)
    if same and limit is None and all(map(is_plain, schemas[0].types)):
        return Landed(
            name=name,
            kind="parquet",
            paths=[file.address for file in files],
            schema=schemas[0].remove_metadata(),
            rows=sum(one.metadata.num_rows for one in opened),
            numbered=False,
            files=len(files),
        )
    landing = Landing(work, name, limit=limit)
    for landing.file, one in enumerate(opened):
        first = 1
        landing.declare(one.schema_arrow.names)
        for batch in one.iter_batches(batch_size=PART_ROWS):
            columns = dict(zip(batch.schema.names, batch.columns, strict=True))
            landing.add(columns, range(first, first + batch.num_rows))
            first += batch.num_rows
            if landing.full:
                break
    return landing.finish("parquet", files=len(files))


def _open_parquet(name: str, file: File) -> pq.ParquetFile:
    try:
        if not file.remote:
            return pq.ParquetFile(file.address)
        system, path = pa.fs.FileSystem.from_uri(file.address)
        return pq.ParquetFile(path, filesystem=system)
    except pa.ArrowInvalid as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise UserError(f"data.sources.{name}: {file.name} is no Parquet file: {reason}") from None


def _check_names(name: str, file: File, schema: pa.Schema) -> None:
    hidden = next((column for column in schema.names if column.startswith(HIDDEN)), None)
    if hidden:
        raise UserError(f"data.sources.{name}: a column may not be called '{hidden}'; rename it")
    twice = next((column for column in schema.names if schema.names.count(column) > 1), None)
    if twice:
        raise UserError(f"data.sources.{name}: {file.name} has two columns named '{twice}'; rename one")
