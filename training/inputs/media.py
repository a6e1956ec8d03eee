"""Pictures and sounds in rows: what a file holds, where a row names it, and what a request may send instead.

In the rows of training a cell is the name of a file, the file's bytes, or Hugging Face's ``{bytes, path}``. A request
brings bytes, raw or in base64, and can never have a file of this machine read.
"""

import base64
import binascii
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any, Literal, TypeVar
from unicodedata import normalize

import pyarrow as pa
import pyarrow.fs
import torch

from cluster.errors import UserError
from cluster.storage import file_digest, fingerprint

Read = TypeVar("Read", bound=bytes)

FORMS: tuple[Literal["NFD", "NFC"], ...] = ("NFD", "NFC")

LARGEST_FILE = 64 * 2**20
"""Bytes; a larger file is not opened."""

THREADS = 4
WORTH_THREADS = 8
"""Cells; to start threads for fewer costs more than they bring."""


class UnreadableError(UserError):
    """A row whose file cannot be read: training puts the row aside, a request is told."""


def content(cell: Any) -> bytes:
    """The bytes of a cell of training rows, whose names of files are full paths or addresses.

    Raises:
        UnreadableError: there is no such file, it is empty or too large, or the cell holds neither.
    """
    if isinstance(cell, Mapping):
        cell = cell.get("bytes") or cell.get("path")
    data = _read(cell) if isinstance(cell, str) and cell else cell
    if not isinstance(data, bytes) or not data:
        raise UnreadableError("it is empty" if data in (b"", "", None) else f"{type(data).__name__} is no file")
    if len(data) > LARGEST_FILE:
        raise UnreadableError(f"it has {len(data):,} bytes; at most {LARGEST_FILE:,} are read")
    return data


def _read(address: str) -> bytes:
    try:
        if "://" in address:
            system, path = pa.fs.FileSystem.from_uri(address)
            with system.open_input_stream(path, compression=None) as stream:
                return bytes(stream.read(LARGEST_FILE + 1))
        with Path(address).open("rb") as file:
            return file.read(LARGEST_FILE + 1)
    except FileNotFoundError:
        raise UnreadableError("there is no such file") from None
    except (OSError, ValueError, pa.ArrowException) as error:
        raise UnreadableError(f"it cannot be opened ({type(error).__name__})") from None


def absent(cell: Any) -> bool:
    """Whether a cell holds no file."""
    if isinstance(cell, Mapping):
        cell = cell.get("bytes") or cell.get("path")
    return cell is None or (not cell.strip() if isinstance(cell, str) else not cell)


def each(read: Callable[[Any], Read], cells: Sequence[Any]) -> list[Read]:
    """What ``read`` makes of each cell, by several threads: decoders leave the interpreter to the others."""
    if len(cells) < WORTH_THREADS:
        return [read(cell) for cell in cells]
    with ThreadPoolExecutor(THREADS) as threads:
        return list(threads.map(read, cells))


def name(cell: Any) -> str:
    """What a person knows a cell by: the last two parts of the file's path, or nothing."""
    path = cell.get("path") if isinstance(cell, Mapping) else cell
    return "/".join(PurePosixPath(path).parts[-2:]) if isinstance(path, str) else ""


# --- training rows ----------------------------------------------------------------------------------------------------


def located(table: pa.Table, columns: Sequence[str], folder: Path) -> pa.Table:
    """The rows with each file that ``columns`` name by its full path; relative ones are relative to ``folder``."""
    for column in columns:
        if column not in table.column_names:
            continue
        kind = table.schema.field(column).type
        if _may_name(kind):
            cells = pa.array([_located(cell, folder) for cell in table[column].to_pylist()], kind)
            table = table.set_column(table.column_names.index(column), column, cells)
    return table


def _located(cell: Any, folder: Path) -> Any:
    if isinstance(cell, Mapping):
        return cell if cell.get("bytes") else {**cell, "path": _located(cell.get("path"), folder)}
    if not isinstance(cell, str) or not cell.strip() or "://" in cell:
        return cell
    written = folder / Path(cell).expanduser()
    if written.exists():
        return str(written)
    # data.clean.unicode may have spelled the name in another way than the disk does
    spelled = (folder / Path(normalize(form, cell)).expanduser() for form in FORMS)
    return str(next((path for path in spelled if path.exists()), written))


def digest(tables: Mapping[str, pa.Table], columns: Sequence[str]) -> str:
    """What identifies the content of the files that located rows name, in their order; a missing one counts as such."""
    seen: dict[str, str] = {}
    for column in columns:
        for table in tables.values():
            named = column in table.column_names and _may_name(table.schema.field(column).type)
            for address in map(_address, table[column].to_pylist() if named else ()):
                if address and address not in seen:
                    seen[address] = _digest(address)
    return fingerprint(list(seen.values()))


def _may_name(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_struct(kind))


def _address(cell: Any) -> str | None:
    if isinstance(cell, Mapping):
        cell = None if cell.get("bytes") else cell.get("path")
    return cell if isinstance(cell, str) else None


def _digest(address: str) -> str:
    try:
        return fingerprint(_read(address).hex()) if "://" in address else file_digest(Path(address))
    except (OSError, UnreadableError):
        return "unreadable"


# --- requests ---------------------------------------------------------------------------------------------------------


def asked(index: int, value: Any, column: str, what: str) -> Mapping[str, Any]:
    """The input of a request at ``index`` as a row: raw bytes, base64 (a ``data:`` address too), or an object of them.

    Raises:
        UserError: it is none of these, a name of a file least of all; says which input, never its content.
    """
    if isinstance(value, Mapping) and "bytes" not in value:
        if column not in value:
            raise UserError(f"inputs[{index}].{column}: missing")
        return {**value, column: sent(value[column], f"inputs[{index}].{column}", what)}
    return {column: sent(value, f"inputs[{index}]", what)}


def sent(value: Any, where: str, what: str) -> bytes:
    """The bytes of a file in a request, which may be raw or in base64.

    Raises:
        UserError: it is neither.
    """
    if isinstance(value, Mapping):
        value = value.get("bytes")
    if isinstance(value, str):
        head, comma, tail = value.partition(",")
        text = tail if comma and head.startswith("data:") and head.endswith(";base64") else value
        try:
            value = base64.b64decode("".join(text.split()), validate=True)
        except (binascii.Error, ValueError):
            raise UserError(f"{where}: a {what} is sent as base64; names of files are not read") from None
    if not isinstance(value, bytes) or not value:
        raise UserError(f"{where}: a {what} is needed, as base64")
    return value


def schema(column: str, kind: str) -> dict[str, Any]:
    """The JSON Schema of one input.

    Args:
        kind: ``image`` or ``audio``.
    """
    one = cell_schema(kind)
    return {"anyOf": [one, {"type": "object", "properties": {column: one}, "required": [column]}]}


def cell_schema(kind: str) -> dict[str, Any]:
    """The JSON Schema of one file in a request."""
    return {"type": "string", "contentEncoding": "base64", "contentMediaType": f"{kind}/*"}


def all_but_the_base(model: torch.nn.Module) -> list[torch.nn.Module]:
    """The parts of a classifier that are not its base: all but the largest, which goes by many names."""
    sizes = {part: sum(weight.numel() for weight in part.parameters()) for part in model.children()}
    base = max(sizes, key=lambda part: sizes[part])
    return [part for part in sizes if part is not base]


def one_column(role: str, columns: Sequence[str]) -> str:
    """The one column that fills a role.

    Raises:
        UserError: there are several.
    """
    if len(columns) != 1:
        raise UserError(f"model.inputs.{role}: one column is read, not {len(columns)}")
    return columns[0]
