"""Which bundle each served model stands for, kept true in a file while aliases move in the registry."""

import logging
from pathlib import Path
from typing import Any

from cluster.errors import HeadraceError, UserError
from cluster.storage import write_json
from training import registry, store
from training.bundle import open_bundle

logger = logging.getLogger(__name__)


class Wanted:
    """Which bundle each model name stands for, and the file that says so.

    Raises:
        UserError: a model does not exist, its bundle cannot be opened, or one name is meant twice.
    """

    def __init__(self, models: list[str]) -> None:
        self.path = Path()
        self.entries: dict[str, dict[str, Any]] = {}
        self._followed: dict[str, str] = {}
        self._complaint = ""
        self._stamp = _store_stamp()
        for model in models:
            found = registry.resolve(model)
            if found.name in self.entries:
                raise UserError(f"'{model}': a model named {found.name} is served already; name it once")
            open_bundle(found.bundle)  # says now, in plain words, what a replica would say later in its log
            self.entries[found.name] = _entry(found)
            if found.alias:
                self._followed[found.name] = f"{found.name}@{found.alias}"
        if not self.entries:
            raise UserError("name at least one model to serve; `headrace models` lists them")

    def write(self, path: Path) -> None:
        """Writes the file; a reader sees the old content or the new."""
        self.path = path
        write_json(path, self.entries)

    def follow(self) -> None:
        """Looks where the aliases point now, and rewrites the file when one has moved."""
        stamp = _store_stamp()
        if stamp is not None and stamp == self._stamp:
            return
        try:
            entries = {
                name: _entry(registry.resolve(self._followed[name])) if name in self._followed else entry
                for name, entry in self.entries.items()
            }
        except HeadraceError as error:  # a store that is away for a while must not end the serving
            if str(error) != self._complaint:
                logger.warning("aliases cannot be followed for the moment: %s", error)
            self._complaint = str(error)
            return
        self._complaint, self._stamp = "", stamp
        if entries != self.entries:
            changed = [
                f"{name} version {entries[name]['version']}" for name in entries if entries[name] != self.entries[name]
            ]
            self.entries = entries
            self.write(self.path)
            logger.info("to be served from now on: %s", ", ".join(changed))


def _store_stamp() -> tuple[int, int] | None:
    """What changes with every write to the registry's own file, to spare the questions in between; None elsewhere."""
    place = store.uri()
    try:
        found = Path(place.removeprefix("sqlite:///")).stat() if place.startswith("sqlite:///") else None
    except OSError:
        return None
    return (found.st_mtime_ns, found.st_size) if found else None


def _entry(found: registry.ModelVersion) -> dict[str, Any]:
    return {"version": found.version, "bundle": str(found.bundle)}
