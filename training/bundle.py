"""The bundle: all that training hands to serving.

A folder in the standard Hugging Face layout (``config.json``, ``model.safetensors``, tokenizer files), so that
``transformers.pipeline`` opens it without us, plus ``bundle.json`` with the task, its signature, the recipe, the
measurements and the SHA-256 of every file. A bundle holds no code and names no Python import path: it is opened only
when every file is one that is listed, unchanged, and of a kind that is data.
"""

import base64
import functools
import json
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import save_file

from cluster.errors import UserError
from cluster.storage import folder_digests, read_json, write_json
from training.artifacts import content_fingerprint
from training.models import adapter
from training.models.adapt import learned
from training.models.base import refuse_code
from training.tasks.task import Example, Task, task_class

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FORMAT_VERSION = 2
MANIFEST = "bundle.json"
HELD_OUT = "held_out.json"
"""Encoded rows that training held back, by which a server judges what computes the model."""

MOST_HELD_OUT = 512
MOST_BYTES = 4 * 2**20
"""Of ``HELD_OUT``, so that pictures do not outweigh the model."""
DATA_SUFFIXES = {".json", ".safetensors", ".txt", ".model", ".jinja"}
"""Kinds of files that are only read, never run or unpickled."""
LIBRARIES = ("torch", "transformers", "ray", "datasets")


class ForeignFileError(UserError):
    """Among a bundle's files lies one that is none of them, which somebody can take away."""


@dataclass(frozen=True)
class Bundle:
    """An opened and verified bundle.

    Attributes:
        folder: where it lies.
        info: ``bundle.json``: ``format_version``, ``name``, ``task``, ``settings``, ``signature``, ``recipe``,
            ``metrics``, ``baselines``, ``data``, ``base``, ``temperature``, ``created``, ``versions``, ``files``.
    """

    folder: Path
    info: dict[str, Any]

    @property
    def name(self) -> str:
        """The model's name."""
        return str(self.info["name"])

    @functools.cached_property
    def fingerprint(self) -> str:
        """What identifies the bundle's content, whatever its place and age."""
        return content_fingerprint(self.info)

    def task(self) -> Task:
        """The task, ready to encode and decode."""
        return task_class(self.info["task"]).load(self.info["settings"], self.folder)

    def stamps(self) -> dict[str, tuple[int, int, int]]:
        """Sizes, times and numbers of the files: while they stay the same, nobody wrote to the folder."""
        found = sorted((path.relative_to(self.folder).as_posix(), path.stat()) for path in self.folder.rglob("*"))
        return {name: (stat.st_size, stat.st_mtime_ns, stat.st_ino) for name, stat in found}

    def held_out(self) -> list[Example]:
        """Encoded rows that the model did not learn from; none in a bundle that keeps none."""
        path = self.folder / HELD_OUT
        return [_read_example(one) for one in read_json(path)] if path.exists() else []

    def model(self, task: Task | None = None) -> "PreTrainedModel":
        """The fine-tuned model, in evaluation mode, on the CPU.

        Args:
            task: this bundle's own, where the caller has it.

        Raises:
            UserError: the bundle lacks its base, which is not there or has changed.
        """
        task = task or self.task()
        base = self.info.get("base")
        return adapter.open_adapter(task, base, self.folder) if base else task.open(self.folder)

    def beside(self, task: Task) -> "PreTrainedModel":
        """The same of a bundle that lacks its base, with what was learned beside the base's weights and not in them.

        Raises:
            UserError: the base is not there or has changed.
        """
        return adapter.open_beside(task, self.info["base"], self.folder)


def write_bundle(
    folder: Path,
    *,
    model: "PreTrainedModel",
    task: Task,
    name: str,
    recipe: dict[str, Any],
    metrics: dict[str, float],
    baselines: dict[str, dict[str, float]],
    data: dict[str, Any],
    base: dict[str, Any] | None = None,
    held_out: Sequence[Example] = (),
    temperature: float = 1.0,
) -> Bundle:
    """Writes a bundle into ``folder``, which exists and is empty.

    Args:
        recipe: the recipe as it may be stored, with secrets unresolved.
        metrics: metric names like ``test/accuracy`` to values.
        baselines: for each baseline the same.
        data: ``rows``, ``splits`` and ``fingerprint`` of what it was trained on.
        base: what :func:`training.models.adapter.describe` says, where the bundle is to lack its base.
        held_out: encoded rows that it did not learn from; the first that fit are kept.
        temperature: what the model's outputs were divided by, which ``model`` does already.
    """
    if base is None:
        model.save_pretrained(folder)
    else:
        save_file(learned(model), folder / adapter.WEIGHTS)
    settings = task.save(folder)
    _keep(held_out, folder / HELD_OUT)
    info = {
        "format_version": FORMAT_VERSION,
        "name": name,
        "task": task.name,
        "settings": settings,
        "signature": task.signature(),
        "recipe": recipe,
        "metrics": metrics,
        "baselines": baselines,
        "data": data,
        "base": base,
        "temperature": temperature,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version()} | {library: version(library) for library in LIBRARIES},
        "files": folder_digests(folder),
    }
    write_json(folder / MANIFEST, info)
    return Bundle(folder, info)


def _keep(examples: Sequence[Example], path: Path) -> None:
    lines: list[str] = []
    size = 0
    for example in examples[:MOST_HELD_OUT]:
        lines.append(json.dumps({name: _plain(value) for name, value in example.items()}))
        size += len(lines[-1])
        if size > MOST_BYTES:
            break
    if lines:
        path.write_text(f"[{','.join(lines)}]\n", encoding="utf-8")


def _plain(value: Any) -> Any:
    return {"base64": base64.b64encode(value).decode()} if isinstance(value, bytes) else value


def _read_example(plain: dict[str, Any]) -> Example:
    packed = {name: value for name, value in plain.items() if isinstance(value, dict)}
    return plain | {name: base64.b64decode(value["base64"]) for name, value in packed.items()}


def open_bundle(folder: Path) -> Bundle:
    """Opens a bundle after checking that it is whole, unchanged and free of code.

    Raises:
        UserError: it is no bundle, of a newer format, altered, or holds a file that could run.
    """
    manifest = folder / MANIFEST
    if not manifest.is_file():
        raise UserError(f"{folder} is no headrace bundle: it has no {MANIFEST}")
    try:
        info = read_json(manifest)
    except (ValueError, RecursionError):
        raise UserError(f"{manifest} is no JSON that can be read; fetch or train the model again") from None
    if not isinstance(info, dict) or info.get("format_version") != FORMAT_VERSION:
        found = info.get("format_version") if isinstance(info, dict) else None
        raise UserError(
            f"{manifest}: format_version {found} cannot be opened; this headrace reads {FORMAT_VERSION}; "
            "train its recipe again"
        )
    if not isinstance(info.get("files"), dict):
        raise UserError(f"{manifest} does not list the bundle's files; fetch or train the model again")
    _refuse_links(folder)
    _verify(folder, info["files"])
    refuse_code(folder)
    return Bundle(folder, info)


def _refuse_links(folder: Path) -> None:
    """What is checked must be what is read, and nothing may be read that lies elsewhere or never ends, as a pipe."""
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            name = path.relative_to(folder).as_posix()
            raise UserError(f"{folder}: '{name}' is a link or no file of its own; it is not opened")


def _verify(folder: Path, listed: dict[str, str]) -> None:
    found = folder_digests(folder)
    del found[MANIFEST]
    for name in sorted(found.keys() | listed.keys()):
        if name not in listed:
            told = f"'{name}' does not belong to the bundle; it is not opened before that is gone"
            raise ForeignFileError(f"{folder}: {told}")
        if Path(name).suffix not in DATA_SUFFIXES:
            raise UserError(f"{folder}: '{name}' is of a kind that could run code; it is not opened")
        if name not in found:
            raise UserError(f"{folder}: '{name}' is missing from the bundle; fetch or train it again")
        if found[name] != listed[name]:
            raise UserError(f"{folder}: '{name}' was changed after training; it is not opened; fetch or train it again")
