"""Which bundles each served model stands for, kept true in a file while aliases move in the registry."""

import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cluster import settings
from cluster.errors import HeadraceError, UserError
from cluster.progress import say
from cluster.storage import write_json
from serving import proven, rollout
from serving.recipe import Hosted, Hosting
from serving.routing import Routing
from training import registry, store
from training.bundle import open_bundle

YAML = (".yaml", ".yml")

logger = logging.getLogger(__name__)


class Wanted:
    """Which bundles each model name stands for, and the file that says so.

    Raises:
        UserError: a model does not exist, its bundle cannot be opened, or one name is meant twice.
    """

    def __init__(self, models: Sequence[str | Hosted]) -> None:
        self.path = Path()
        self._routings: dict[str, Routing] = {}
        self._complaint = ""
        self._acted: set[Path] = set()
        self._stamp = _store_stamp()
        for model in models:
            hosted = Hosted.model_validate(model)
            routing = Routing(hosted)
            if routing.name in self._routings:
                raise UserError(f"'{hosted.name}': a model named {routing.name} is served already; name it once")
            self._routings[routing.name] = routing
        if not self._routings:
            raise UserError("name at least one model to serve; `headrace models` lists them")
        self.entries = self._entries()

    def write(self, path: Path) -> None:
        """Writes the file; a reader sees the old content or the new."""
        if path != self.path:
            _clear(path)  # of what a server that was killed left
        self.path = path
        write_json(path, self.entries)

    def remove(self) -> None:
        """Nothing is wanted any more."""
        self.path.unlink(missing_ok=True)
        _clear(self.path)

    def follow(self) -> None:
        """Acts on what replicas have found, looks where the aliases point, and rewrites the file when that changes it.

        A store or a disk that is away for a while must not end the serving: it is logged, once.
        """
        try:
            self._take_back()
            trouble = self._move()
            self._rewrite()
            if trouble:
                raise trouble
            self._complaint = ""
        except (HeadraceError, OSError) as error:
            if str(error) != self._complaint:
                logger.warning("aliases cannot be followed for the moment: %s", error)
            self._complaint = str(error)

    def _take_back(self) -> None:
        # A finding that was acted upon stays for a moment, so that a second replica that finds the same says nothing.
        for path in self._acted:
            path.unlink(missing_ok=True)
        self._acted = set()
        for path, finding in rollout.told(self.path).items():
            if finding.model in self._routings:
                self._routings[finding.model].take_back(finding)
            self._acted.add(path)

    def _move(self) -> HeadraceError | OSError | None:
        """Follows the aliases of every model; returns why that cannot be done for one, which holds up no other."""
        stamp, trouble = _store_stamp(), None
        for routing in self._routings.values() if stamp is None or stamp != self._stamp else ():
            try:
                routing.follow()
            except (HeadraceError, OSError) as error:
                trouble = trouble or error
        if trouble is None:
            self._stamp = stamp
        return trouble

    def _entries(self) -> dict[str, dict[str, Any]]:
        return {name: routing.entry() for name, routing in self._routings.items()}

    def _rewrite(self) -> None:
        entries = self._entries()
        changed = [name for name in entries if entries[name] != self.entries[name]]
        if not changed:
            return
        write_json(self.path, entries)
        self.entries = entries
        for name in changed:
            routes = ", ".join(f"version {route['version']} {route['share']} %" for route in entries[name]["routes"])
            logger.info("%s is to be served from now on in %s", name, routes)


def _clear(path: Path) -> None:
    """Nothing that replicas said of this file counts any more."""
    for folder in (rollout.folder_of(path), proven.folder_of(path)):
        shutil.rmtree(folder, ignore_errors=True)


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
        shared = json.dumps(wanted.serve.model_dump(mode="json"))
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
