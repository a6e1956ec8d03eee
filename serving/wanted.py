"""Which bundle each served model stands for, kept true in a file while aliases move in the registry."""

import json
import logging
from pathlib import Path
from typing import Any

from cluster import settings
from cluster.errors import HeadraceError, UserError
from cluster.progress import say
from cluster.storage import write_json
from serving.recipe import Hosting
from training import registry, store
from training.bundle import open_bundle

YAML = (".yaml", ".yml")

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


def is_hosting(path: Path) -> bool:
    """Whether a file says what is served, and is no recipe."""
    return "models" in settings.read(path).public


def hosting(subjects: list[str], overrides: list[str]) -> Hosting:
    """What is to be served and how: as a file says, or models by name.

    One model by name is hosted as its recipe said when it was trained, several share the defaults; ``overrides``, as
    ``serve.engine=fast``, change that.

    Raises:
        UserError: a recipe stands among several subjects.
        RecipeError: the file or an override says what there is not.
    """
    if len(subjects) == 1 and subjects[0].endswith(YAML):
        return settings.read(Path(subjects[0]), overrides).validate(Hosting)
    if not subjects or any(subject.endswith(YAML) for subject in subjects):
        raise UserError("serve takes one recipe, one serve.yaml, or models by name, each with its KEY=VALUE changes")
    alone = len(subjects) == 1
    own = open_bundle(registry.resolve(subjects[0]).bundle).info["recipe"].get("serve") if alone else None
    wanted = settings.of_command_line({"models": subjects, "serve": own or {}}, overrides).validate(Hosting)
    if not alone:
        shared = json.dumps(wanted.serve.model_dump())
        say(f"the models share one server, which takes no recipe's `serve` section but {shared}")
    return wanted


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
