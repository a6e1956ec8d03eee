"""Settings files: YAML whose every value knows its line, overrides, the environment, and plain errors.

    document = read(Path("recipe.yaml"), ["train.epochs=1"])
    recipe = document.validate(Recipe)

A ``${env:NAME}`` is filled in from the environment for the run only. What is stored anywhere (a bundle, a report,
the registry) is ``document.public``, where it still reads ``${env:NAME}``; ``cluster/secrets.py`` masks such values
in everything that is printed or logged.
"""

import difflib
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from cluster.errors import RecipeError, UserError
from cluster.secrets import masked, redact, shown
from cluster.yaml_lines import COMMAND_LINE, Keys, Reader

Model = TypeVar("Model", bound=BaseModel)


class Strict(BaseModel):
    """A section of a settings file: unknown keys are errors, and nothing changes after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Columns = Annotated[list[str], BeforeValidator(_as_list)]
"""One name, or several."""


@dataclass(frozen=True)
class Document:
    """A settings file as written, with overrides applied.

    Attributes:
        path: the file.
        public: the tree of values with ``${env:NAME}`` unresolved and the secrets in addresses masked; safe to store.
        values: the tree with the environment filled in; never stored.
        lines: where each key stands, as ``file.yaml:14`` or ``command line``.
    """

    path: Path
    public: dict[str, Any]
    values: dict[str, Any]
    lines: dict[Keys, str] = field(repr=False)

    def validate(self, model: type[Model]) -> Model:
        """The values as ``model``.

        Raises:
            RecipeError: with one line for every problem: file, line, key, what is wrong, the value, the cure.
        """
        try:
            return model.model_validate(self.values, context={"folder": self.path.parent})
        except ValidationError as error:
            problems = dict.fromkeys(self._problem(model, one) for one in error.errors())
            raise RecipeError(sorted(problems, key=_line_number)) from None

    def where(self, keys: Keys) -> str:
        """The line of the deepest key of ``keys`` that was written."""
        for depth in range(len(keys), -1, -1):
            if keys[:depth] in self.lines:
                return self.lines[keys[:depth]]
        return self.path.name

    def problem(self, keys: Keys, message: str) -> str:
        """One line: ``recipe.yaml:14 train.epochs: message``."""
        dotted = ".".join(map(str, keys))
        return redact(f"{self.where(keys)} {dotted}: {message}" if dotted else f"{self.where(keys)}: {message}")

    def _problem(self, model: type[BaseModel], error: Any) -> str:
        keys = self._written_keys(error["loc"], error["type"])
        if error["type"] == "extra_forbidden":
            return self.problem(keys, unknown_key(str(keys[-1]), field_names(model, keys[:-1])))
        if error["type"] == "missing":
            return self.problem(keys, "missing")
        if error["type"] in ("model_type", "dict_type"):
            return self.problem(keys, f"a mapping of keys to values is needed, not {shown(error['input'])}")
        message = error["msg"].removeprefix("Value error, ")
        if error["type"] == "value_error":
            return self.problem(keys, message)
        message = message[:1].lower() + message[1:]
        return self.problem(keys, f"{message}, not {shown(error['input'])}")

    def _written_keys(self, location: Sequence[str | int], kind: str) -> Keys:
        """``location`` without the names that pydantic adds for the members of a union."""
        keys: Keys = ()
        for index, part in enumerate(location):
            last = index == len(location) - 1
            if (*keys, part) in self.lines or (last and kind == "missing"):
                keys = (*keys, part)
        return keys


def read(path: Path, overrides: Sequence[str] = ()) -> Document:
    """Reads a YAML file and applies ``key.path=value`` overrides, whose values are YAML too.

    Raises:
        UserError: the file is missing or is no UTF-8 text.
        RecipeError: it is no YAML mapping, a value cannot be read, a key stands twice, an override has no ``=``, or
            an environment variable is not set.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; `headrace new DIR` writes a recipe to start from") from None
    except IsADirectoryError:
        raise UserError(f"{path}: is a folder; name the recipe file in it") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    reader = Reader(path.name)
    return _document(reader, reader.tree(text), overrides, path)


def of_command_line(tree: dict[str, Any], overrides: Sequence[str]) -> Document:
    """Settings that stand in no file, with overrides applied as by :func:`read`.

    Raises:
        RecipeError: as there.
    """
    return _document(Reader(COMMAND_LINE), tree, overrides, Path(COMMAND_LINE))


def _document(reader: Reader, tree: dict[str, Any], overrides: Sequence[str], path: Path) -> Document:
    for override in overrides:
        reader.override(tree, override)
    values = reader.resolved(tree)
    if reader.problems:
        raise RecipeError(list(map(redact, reader.problems)))
    return Document(path=path.resolve(), public=_masked(tree), values=values, lines=reader.lines)


def unknown_key(key: str, known: Sequence[str]) -> str:
    """The message for a key that does not exist, with the nearest one that does."""
    near = difflib.get_close_matches(key, known, n=1)
    if near:
        return f"unknown key, did you mean '{near[0]}'?"
    return f"unknown key; known here: {', '.join(known)}" if known else "unknown key"


def field_names(model: type[BaseModel], keys: Keys) -> list[str]:
    """The names of the fields that may stand under ``keys`` of ``model``."""
    models = [model]
    for key in keys:
        models = [inner for one in models for inner in _models_in(_field_type(one, key))]
    return [name for one in models for name in one.model_fields]


def _line_number(problem: str) -> int:
    """Problems in the order of the file's lines; those of the command line come last."""
    found = re.match(r"[^:]*:(\d+)", problem)
    return int(found[1]) if found else sys.maxsize


def _field_type(model: type[BaseModel], key: str | int) -> Any:
    if isinstance(key, str) and key in model.model_fields:
        return model.model_fields[key].annotation
    return model  # a name chosen by the user, as in data.sources.NAME: the mapping's own value type follows


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_in(argument)


def _masked(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _masked(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_masked(value) for value in tree]
    return masked(tree) if isinstance(tree, str) else tree
