"""The home of all state: where it lies, how it is written, and when a step is already done.

A *step* is a folder named by a fingerprint of everything that went into it. It appears whole or not
at all: it is built beside its place and renamed. A second run finds it and skips the work.
"""

import errno
import glob
import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from filelock import FileLock, Timeout

from cluster.errors import DiskError, HeadraceError, RunError, UserError

HOME_VARIABLE = "HEADRACE_HOME"
NOT_FLUSHED = {errno.EINVAL, errno.ENOTSUP, errno.ENOSYS}
"""What file systems say that flush no folders, as some that are shared do; the disk being full is none of it."""

UNFINISHED = re.compile(r"\.[0-9a-f]{8}$")
"""How the name of a folder ends that is being built."""

OF_RUST = re.compile(r"\(os error (\d+)\)")
"""How libraries written in Rust, such as safetensors, tell of the system's errors in errors of their own."""


def home() -> Path:
    """The absolute folder that holds all state: ``HEADRACE_HOME``, else ``.headrace`` in the working directory.

    Raises:
        UserError: it names a bucket, which memory-mapped data and SQLite cannot live in.
    """
    place = os.environ.get(HOME_VARIABLE, "").strip() or ".headrace"
    if "://" in place:
        raise UserError(
            f"{HOME_VARIABLE}={place}: state in a bucket is not supported yet; "
            "name a folder that every node can reach (a shared file system)"
        )
    return Path(place).expanduser().resolve()


def fingerprint(*parts: Any) -> str:
    """16 hex digits of the SHA-256 of ``parts`` as canonical JSON (keys sorted, no white space)."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_digest(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_digests(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file below ``folder``, by its path relative to it, in sorted order."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): file_digest(path) for path in files}


def lying_at(folder: Path, pattern: str) -> list[Path]:
    """What lies at a path below a folder (an absolute one: anywhere), or matches it where it is a glob, sorted.

    What there is by a name is meant, whatever signs of a glob stand in it, and those in the folder's own name are none.
    """
    whole = folder / Path(pattern).expanduser()
    if whole.exists():
        return [whole]
    inside = "" if Path(pattern).expanduser().is_absolute() else f"{glob.escape(str(folder))}/"
    matches = glob.glob(f"{inside}{Path(pattern).expanduser()}", recursive=True)  # noqa: PTH207 - Path.glob takes no `..`
    return sorted(map(Path, matches))


def write_text(path: Path, text: str) -> None:
    """Writes ``text`` so that a reader, or a crash, sees the old file or the new one, never half."""
    with writing(path) as file:
        file.write(text)


@contextmanager
def writing(path: Path) -> Iterator[TextIO]:
    """Yields a file to write to that becomes ``path`` when the block ends well, and vanishes when it does not."""
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    with plain_disk_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with beside.open("w", encoding="utf-8") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Writes ``value`` as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n")


def read_json(path: Path) -> Any:
    """The JSON value that ``path`` holds."""
    return json.loads(path.read_text(encoding="utf-8"))


@contextmanager
def building(folder: Path) -> Iterator[Path]:
    """Yields an empty folder that becomes ``folder`` when the block ends well, and vanishes when it does not.

    Raises:
        DiskError: the disk is full or the place cannot be written.
    """
    beside = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}")
    try:
        with plain_disk_errors(folder):
            beside.mkdir(parents=True)
            yield beside
            _appear_unless_there(beside, folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def appear(beside: Path, folder: Path) -> None:
    """Gives a finished folder its name, once all of it is on the disk: a machine that loses its power has it whole."""
    for path in [*beside.rglob("*"), beside]:
        _flush(path)
    beside.rename(folder)
    _flush(folder.parent)


def _appear_unless_there(beside: Path, folder: Path) -> None:
    """As :func:`appear`; where an equal step finished elsewhere meanwhile, that is the same result."""
    if folder.exists():
        return
    try:
        appear(beside, folder)
    except OSError:
        if not folder.exists():
            raise


def _flush(path: Path) -> None:
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    except OSError as error:
        if error.errno not in NOT_FLUSHED:
            raise
    finally:
        os.close(number)


@contextmanager
def plain_disk_errors(place: Path) -> Iterator[None]:
    """Turns a full disk or an unwritable place into one sentence that names the place.

    Raises:
        DiskError: with that sentence.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None or isinstance(error, FileNotFoundError | ConnectionError | TimeoutError):
            raise
        raise _unwritable(place, error.strerror or str(error)) from error
    except Exception as error:
        told = OF_RUST.search(str(error))
        if told is None or isinstance(error, HeadraceError) or int(told[1]) == errno.ENOENT:
            raise
        raise _unwritable(place, os.strerror(int(told[1]))) from error


def full(told: Exception | str) -> bool:
    """Whether a text that another process left of its error tells of a full disk."""
    return "No space left" in str(told) or "Disk quota" in str(told)


def _unwritable(place: Path, reason: str) -> DiskError:
    return DiskError(
        f"could not write below {place}: {reason}; free some space or set "
        f"{HOME_VARIABLE} to a folder that can be written. What was finished before is intact."
    )


@contextmanager
def only_one(folder: Path, wait: bool = False) -> Iterator[None]:
    """Holds the lock of a step: two runs with one fingerprint are one run.

    The lock belongs to the process, so a killed run leaves none behind.

    Args:
        wait: for a step that different runs share: wait for the one that makes it, and then find it made.

    Raises:
        RunError: another process is working on the same step, and ``wait`` is False.
    """
    with plain_disk_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder.with_name(f".{folder.name}.lock"))
    try:
        with plain_disk_errors(folder):
            lock.acquire(timeout=-1 if wait else 0)
    except Timeout:
        raise RunError(
            f"another process is already working on {folder.name}; wait for it, then run the command again "
            "(it will find the finished result)"
        ) from None
    try:
        for left in folder.parent.glob(f".{glob.escape(folder.name)}.*"):  # built by a process that was killed
            if UNFINISHED.search(left.name) and left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
        yield
    finally:
        lock.release()
