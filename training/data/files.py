"""Which files a `read:` means, and their bytes: on this machine, or behind an address such as s3://."""

import fnmatch
import gzip
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

import pyarrow as pa
import pyarrow.fs

from cluster.complaints import nearest
from cluster.errors import RunError, UserError
from cluster.storage import file_digest, lying_at
from training.data.recipe import Source

ENDINGS = {
    ".csv": "csv",
    ".tsv": "csv",
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".pq": "parquet",
}
WORKBOOKS = (".xlsx", ".xlsm", ".xls", ".ods")
WORKBOOK = "an Excel workbook; save the sheet as CSV UTF-8 and name that file"
GLOB = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class File:
    """One file of a source. ``address`` is an absolute path, or a URL where the file lies elsewhere."""

    address: str

    @property
    def name(self) -> str:
        """The last part of the address, for messages."""
        return PurePosixPath(self.address).name

    @property
    def remote(self) -> bool:
        return "://" in self.address

    def open(self) -> IO[bytes]:
        """The file's bytes, unpacked where it ends in ``.gz``."""
        if not self.remote:
            raw: Any = Path(self.address).open("rb")  # noqa: SIM115  closed by whoever asked for it
        else:
            system, path = pa.fs.FileSystem.from_uri(self.address)
            raw = system.open_input_stream(path, compression=None)
        return cast(IO[bytes], gzip.GzipFile(fileobj=raw)) if self.name.endswith(".gz") else cast(IO[bytes], raw)

    def digest(self) -> str:
        """The SHA-256 of the bytes as stored."""
        if not self.remote:
            return file_digest(Path(self.address))
        system, path = pa.fs.FileSystem.from_uri(self.address)
        digest = hashlib.sha256()
        with system.open_input_stream(path, compression=None) as stream:
            while block := stream.read(1 << 22):
                digest.update(block)
        return digest.hexdigest()


def find(name: str, source: Source, folder: Path) -> list[File]:
    """The files of a `read:` or `files:` source, sorted by name.

    Raises:
        UserError: there is none, or it is a folder.
        RunError: the store behind an address cannot be reached.
    """
    if source.files is not None:
        found = [file for address in source.files for file in _find(f"data.sources.{name}.files", address, folder)]
        return sorted(dict.fromkeys(found), key=lambda file: file.address)
    assert source.read is not None
    return _find(f"data.sources.{name}.read", source.read, folder)


def _find(key: str, address: str, folder: Path) -> list[File]:
    if "://" in address:
        return _find_remote(key, address)
    pattern = Path(address).expanduser()
    pattern = pattern if pattern.is_absolute() else folder / pattern
    if pattern.is_file():
        return [File(str(pattern.resolve()))]
    if pattern.is_dir():
        raise UserError(f"{key}: {address} is a folder; name its files, e.g. {address}/*.csv")
    matches = [path for path in lying_at(folder, address) if path.is_file()]
    if not matches:
        what = "no file matches" if GLOB.search(address) else "there is no file"
        raise UserError(f"{key}: {what} {address} (looked in {folder}){_perhaps(pattern, address)}")
    return [File(str(path.resolve())) for path in matches]


def _perhaps(missing: Path, address: str) -> str:
    """The nearest name beside a file that is missing, as a question."""
    if GLOB.search(address) or not missing.parent.is_dir():
        return ""
    near = nearest(missing.name, sorted(path.name for path in missing.parent.iterdir() if path.is_file()))
    return f", did you mean {PurePosixPath(address).with_name(near)}?" if near else ""


def _find_remote(key: str, address: str) -> list[File]:
    scheme, _, rest = address.partition("://")
    try:
        if not GLOB.search(address):
            system, path = pa.fs.FileSystem.from_uri(address)
            found = [path] if system.get_file_info(path).type == pa.fs.FileType.File else []
        else:
            system, root = pa.fs.FileSystem.from_uri(f"{scheme}://{_fixed_part(rest)}")
            selector = pa.fs.FileSelector(root, recursive=True, allow_not_found=True)
            infos = system.get_file_info(selector)
            wanted = root + rest[len(_fixed_part(rest)) :]
            found = sorted(i.path for i in infos if i.is_file and fnmatch.fnmatch(i.path, wanted))
    except (OSError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0]
        raise RunError(f"{key}: {address} cannot be reached: {reason}") from None
    if not found:
        raise UserError(f"{key}: there is no file {address}")
    return [File(f"{scheme}://{path}") for path in found]


def _fixed_part(path: str) -> str:
    """The folders before the first wildcard."""
    return path[: GLOB.search(path).start()].rpartition("/")[0]  # type: ignore[union-attr]


def format_of(name: str, source: Source, files: list[File]) -> str:
    """csv, json, jsonl or parquet: as the recipe says, else as the ending tells.

    Raises:
        UserError: neither tells.
    """
    if source.format:
        return source.format
    ending = PurePosixPath(files[0].name.removesuffix(".gz")).suffix.lower()
    if ending in WORKBOOKS:
        raise UserError(f"data.sources.{name}.read: {files[0].name} is {WORKBOOK}")
    if ending not in ENDINGS:
        raise UserError(
            f"data.sources.{name}.read: the ending of {files[0].name} does not tell its format; "
            f"add data.sources.{name}.format: csv, json, jsonl or parquet"
        )
    return ENDINGS[ending]


def delimiter_of(source: Source, file: File) -> str:
    """What separates the columns of a CSV file: as the recipe says, else a tab for ``.tsv`` and a comma for others."""
    if "delimiter" not in source.model_fields_set and file.name.removesuffix(".gz").lower().endswith(".tsv"):
        return "\t"
    return source.delimiter
