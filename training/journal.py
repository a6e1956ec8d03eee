"""The file through which a run speaks while it goes on: rank 0 appends a line a step, the driver follows.

A file needs no connection between the two, survives both, and is what the report's curves are drawn from.
"""

import json
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from cluster.errors import HeadraceError

Record = dict[str, Any]

POLL_SECONDS = 1.0


class Journal:
    """Appends records as JSON lines, each whole on disk before the next step begins."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: TextIO | None = None

    def __enter__(self) -> "Journal":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file:
            self._file.close()

    def write(self, record: Record) -> None:
        """One line more."""
        if self._file is None:  # opened by the one worker that writes
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a", encoding="utf-8")
            self._file.write("\n" if self._ends_broken() else "")
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()

    def _ends_broken(self) -> bool:
        """A killed writer can leave half a line, which must not swallow the next one."""
        content = self.path.read_bytes()
        return bool(content) and not content.endswith(b"\n")


def entries(path: Path) -> list[Record]:
    """One record for each step, in order; of a step that was done again after a kill, the later one."""
    if not path.exists():
        return []
    steps: dict[int, Record] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        record = parse(line)
        if record:
            steps[record["step"]] = record
    return [steps[step] for step in sorted(steps)]


def parse(line: str) -> Record | None:
    """The record of a line; nothing for the half line of a killed writer."""
    try:
        record = json.loads(line)
    except json.JSONDecodeError:
        return None
    return record if isinstance(record, dict) and "step" in record else None


class Follower:
    """Hands over the records that appear in ``path`` while the block runs, and the rest at its end.

    They come in lists, so that what costs a transaction costs one each second and not one each step. An error of
    ``on_records`` is raised at the end of the block: work that goes on is worth more than what is told of it.
    """

    def __init__(self, path: Path, on_records: Callable[[list[Record]], None]) -> None:
        """Records that ``path`` already holds are not handed over: they are an earlier process's."""
        self._path, self._on_records = path, on_records
        self._error: HeadraceError | None = None
        self._offset = path.stat().st_size if path.exists() else 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="follow-run", daemon=True)

    def __enter__(self) -> "Follower":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        self._read()
        if self._error and error is None:
            raise self._error

    def _follow(self) -> None:
        while not self._ended.wait(POLL_SECONDS):
            self._read()

    def _read(self) -> None:
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._offset)
            content = file.read()
        whole = content[: content.rfind(b"\n") + 1]
        self._offset += len(whole)
        records = [record for record in map(parse, whole.decode("utf-8").splitlines()) if record]
        if not records or self._error:
            return
        try:
            self._on_records(records)
        except HeadraceError as error:
            self._error = error
