"""Settings files: YAML whose every value knows its line, overrides, the environment, and plain errors.

    document = read(Path("recipe.yaml"), ["train.epochs=1"])
    recipe = document.validate(Recipe)

A ``${env:NAME}`` is filled in from the environment for the run only. What is stored anywhere (a bundle, a report,
the registry) is ``document.public``, where it still reads ``${env:NAME}``; ``cluster/masking.py`` masks such values
in everything that is printed or logged.
"""

import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from cluster.complaints import complaints
from cluster.errors import RecipeError, UserError
from cluster.masking import masked, redact, shown
from cluster.yaml_lines import COMMAND_LINE, Keys, Reader

Model = TypeVar("Model", bound=BaseModel)

KEY = re.compile(r"[a-z]\w*(?:\.[\w-]+)*(?=: )")

_read_last: "Document | None" = None


class Strict(BaseModel):
    """A section of a settings file: unknown keys are errors, and nothing changes after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, allow_inf_nan=False)

    example: ClassVar[str] = ""
    """How the section may be written, for whoever wrote something else."""

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """To Python ``true`` is 1, and ``epochs: yes`` would be one epoch."""
        kinds = set(_kinds(cls.model_fields[str(info.field_name)].annotation))
        if _holds_truth(value) and kinds & {int, float} and bool not in kinds:
            raise ValueError(f"a number is needed, not {shown(value)}")
        return value


def _kinds(annotation: Any) -> Iterator[Any]:
    yield annotation
    for inner in get_args(annotation):
        yield from _kinds(inner)


def _holds_truth(value: Any) -> bool:
    return any(map(_holds_truth, value)) if isinstance(value, list | tuple) else isinstance(value, bool)


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Columns = Annotated[list[str], BeforeValidator(_as_list)]
"""One name, or several."""

Count = Annotated[int, Field(le=1_000_000_000)]
"""A number of things, of which no run has more."""

Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]
"""What random numbers are drawn from; the libraries that draw them take no larger one."""


@dataclass(frozen=True)
class Document:
    """A settings file as written, with overrides applied.

    Attributes:
        path: the file.
        public: the tree of values with ``${env:NAME}`` unresolved and the secrets in addresses masked; safe to store.
        values: the tree with the environment filled in; never stored.
        lines: where each key stands, as ``file.yaml:14`` or ``command line``.
        text: of the file, as it was read; empty of settings that stand in none.
        overrides: those applied.
    """

    path: Path
    public: dict[str, Any]
    values: dict[str, Any]
    lines: dict[Keys, str] = field(repr=False)
    text: str = field(repr=False)
    overrides: tuple[str, ...]

    def overridden(self, overrides: Sequence[str]) -> "Document":
        """The same text with further overrides applied, whatever its file holds meanwhile.

        Raises:
            RecipeError: as :func:`read`.
        """
        return _of_text(self.text, [*self.overrides, *overrides], self.path)

    def validate(self, model: type[Model]) -> Model:
        """The values as ``model``.

        Raises:
            RecipeError: with one line for every problem: file, line, key, what is wrong, the value, the cure.
        """
        try:
            return model.model_validate(self.values, context={"folder": self.path.parent})
        except ValidationError as error:
            raise RecipeError(sorted(complaints(model, error, self.problem), key=_line_number)) from None

    def where(self, keys: Keys) -> str:
        """The line of the deepest key of ``keys`` that was written; a dotted key may be written part by part."""
        apart = tuple(part for key in keys for part in (key.split(".") if isinstance(key, str) else [key]))
        prefixes = [written[:depth] for written in (keys, apart) for depth in range(len(written) + 1)]
        return self.lines.get(max((one for one in prefixes if one in self.lines), key=len, default=()), self.path.name)

    def problem(self, keys: Keys, message: str) -> str:
        """One line: ``recipe.yaml:14 train.epochs: message``."""
        dotted = ".".join(map(str, keys))
        return redact(f"{self.where(keys)} {dotted}: {message}" if dotted else f"{self.where(keys)}: {message}")


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
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    return _of_text(text, overrides, path)


def is_override(word: str) -> bool:
    """Whether a word of the command line changes a field, as ``train.epochs=1`` does, and names no file."""
    return "=" in word and not word.startswith("-") and not Path(word).exists()


def of_command_line(tree: dict[str, Any], overrides: Sequence[str]) -> Document:
    """Settings that stand in no file, with overrides applied as by :func:`read`.

    Raises:
        RecipeError: as there.
    """
    return _document(Reader(COMMAND_LINE), tree, overrides, Path(COMMAND_LINE))


def placed(message: str) -> str:
    """``message`` with file and line before each of its lines that begins with a key of the file that was read last.

    What is found out only while a recipe is carried out is told by its key, wherever that happens; which file the key
    stands in, and on which line, is known here.
    """
    return "\n".join(map(_placed, message.splitlines()))


def _placed(line: str) -> str:
    found = KEY.match(line)
    keys = tuple(found[0].split(".")) if found else ()
    document = _read_last
    return f"{document.where(keys)} {line}" if document and keys and keys[:1] in document.lines else line


def _of_text(text: str, overrides: Sequence[str], path: Path) -> Document:
    global _read_last
    reader = Reader(path.name)
    _read_last = _document(reader, reader.tree(text), overrides, path, text)
    return _read_last


def _document(reader: Reader, tree: dict[str, Any], overrides: Sequence[str], path: Path, text: str = "") -> Document:
    for override in overrides:
        reader.override(tree, override)
    values = reader.resolved(tree)
    if reader.problems:
        raise RecipeError(list(map(redact, reader.problems)))
    return Document(path.resolve(), _masked(tree), values, reader.lines, text, tuple(overrides))


def _line_number(problem: str) -> int:
    """Problems in the order of the file's lines; those of the command line come last."""
    found = re.match(r"[^:]*:(\d+)", problem)
    return int(found[1]) if found else sys.maxsize


def _masked(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _masked(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_masked(value) for value in tree]
    return masked(tree) if isinstance(tree, str) else tree
