"""What the replicas of one server have served so far, so that one which starts when that is broken has something to
start with.

A version that is promoted may load nowhere, as one that is larger than ``serve.memory``. Replicas that run stay with
what they have; those that start later have nothing to stay with. So whoever has loaded what is wanted of a model keeps
its entry beside the file of wanted models, on the storage that all share.
"""

import logging
from pathlib import Path
from typing import Any

from cluster.errors import HeadraceError
from cluster.storage import read_json, write_json

logger = logging.getLogger(__name__)


def folder_of(wanted: Path) -> Path:
    """Where it lies, given the file of wanted models."""
    return wanted.with_suffix(".proven")


class Proven:
    """The entry of each model that was last loaded, in whichever replica."""

    def __init__(self, wanted: Path) -> None:
        self._folder = folder_of(wanted)
        self._kept: dict[str, Any] = {}

    def find(self, name: str) -> dict[str, Any] | None:
        """A model's entry; None where there is none that can be read."""
        try:
            found: dict[str, Any] = read_json(self._folder / f"{name}.json")
        except (OSError, ValueError):
            return None
        return found

    def keep(self, name: str, entry: dict[str, Any]) -> None:
        """A model is served as this entry says. A disk that is full keeps nobody from being served."""
        if self._kept.get(name) == entry:
            return
        try:
            write_json(self._folder / f"{name}.json", entry)
            self._kept[name] = entry
        except (HeadraceError, OSError) as error:
            logger.warning("%s: what a replica could start with is not kept: %s", name, error)
