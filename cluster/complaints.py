"""What is wrong with settings: one plain line for each mistake, with the nearest key and an example of the right form.

Pydantic tells of a union what every member finds wrong. A person meant one of them, so only the errors of the one that
fits best are told.
"""

import difflib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from cluster.masking import shown
from cluster.yaml_lines import Keys

NO_MAPPING = ("model_type", "dict_type")
UNKNOWN, MISSING = "extra_forbidden", "missing"
SHOULD_BE = "input should be "
ALIASES = {
    "lr": "learning_rate",
    "bs": "batch_size",
    "batch": "batch_size",
    "wd": "weight_decay",
    "num_epochs": "epochs",
    "num_train_epochs": "epochs",
    "lr_scheduler": "schedule",
    "warmup_ratio": "warmup",
}
"""What others call a key of ours, whose letters do not tell."""

LIKE = 0.65  # of difflib's 0 to 1; below it `intent` is taken for `text`


@dataclass(frozen=True)
class Mistake:
    """One error of pydantic.

    Attributes:
        keys: where it stands, without the names that pydantic gives the members of unions.
        kind: pydantic's name for what is wrong.
        message: the same in words, without the value.
        value: what was written.
        section: the one that holds the last key.
        example: how the value, or the section, may be written; empty where nothing says so.
        unions: those on the way that are still to be judged: where each stands, and the member that complains.
    """

    keys: Keys
    kind: str
    message: str
    value: Any
    section: type[BaseModel]
    example: str
    unions: tuple[tuple[Keys, str], ...]


def complaints(model: type[BaseModel], error: ValidationError, tell: Callable[[Keys, str], str]) -> list[str]:
    """A line for each mistake; ``tell`` makes it of its keys and its message."""
    mistakes = _one_each(_best([_mistake(model, one) for one in error.errors()]))
    return list(dict.fromkeys(tell(one.keys, _words(one)) for one in mistakes))


def unknown_key(key: str, known: Sequence[str]) -> str:
    """The message for a key that does not exist, with the nearest one that does."""
    near = nearest(key, known)
    if near:
        return f"unknown key, did you mean '{near}'?"
    return f"unknown key; known here: {', '.join(known)}" if known else "unknown key"


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The one of ``known`` that was probably meant; None where none is near."""
    lowered = {one.lower(): one for one in known}
    section, dot, key = name.lower().rpartition(".")
    called = f"{section}{dot}{ALIASES.get(key, key)}"
    if called in lowered:
        return lowered[called]
    close = difflib.get_close_matches(name.lower(), lowered, n=1, cutoff=LIKE)
    begun = [one for one in lowered if one.startswith(name.lower()) or name.lower().startswith(one)]
    found = close or (begun if len(begun) == 1 else [])
    return lowered[found[0]] if found else None


def _mistake(model: type[BaseModel], error: Any) -> Mistake:
    keys: Keys = ()
    unions: tuple[tuple[Keys, str], ...] = ()
    section = model
    annotation: Any = model
    for part in error["loc"]:
        members = _members(annotation)
        if len(members) > 1:
            unions += ((keys, part),)
            annotation = next((one for one in members if _is_named(one, str(part))), None)
        elif part != "[key]":
            only = members[0] if members else None
            if only is not None and _is_section(only):
                section = only
            keys, annotation = (*keys, part), _within(only, part)
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] != "value_error":
        message = message[:1].lower() + message[1:]
    example = _example(section if error["type"] in (UNKNOWN, MISSING) else annotation)
    return Mistake(keys, error["type"], message, error["input"], section, example, unions)


def _members(annotation: Any) -> list[Any]:
    """What a value may be, apart from nothing."""
    origin, within = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _members(within[0])
    if origin in (Union, UnionType):
        return [member for one in within for member in _members(one)]
    return [] if annotation in (None, NoneType) else [annotation]


def _is_named(member: Any, name: str) -> bool:
    """Whether pydantic calls a member of a union so; a validator of the whole section stands before its name, as in
    ``function-after[_in_order(), Elastic]``."""
    return _is_section(member) and name.rstrip("]").split(" ")[-1] == member.__name__


def _within(annotation: Any, key: str | int) -> Any:
    """What stands under ``key`` of a section, a mapping or a list."""
    if _is_section(annotation):
        field = annotation.model_fields.get(key)
        return None if field is None else field.annotation
    arguments = get_args(annotation)
    return arguments[-1] if arguments and get_origin(annotation) in (dict, list, tuple) else None


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _example(annotation: Any) -> str:
    found = [getattr(one, "example", "") for one in _members(annotation) if _is_section(one)]
    if get_origin(annotation) is dict and (inner := _example(get_args(annotation)[1])):
        found = [f"{{NAME: {inner}}}"]
    return " or ".join(filter(None, found))


def _best(mistakes: Sequence[Mistake]) -> list[Mistake]:
    """The mistakes without those of members of a union that were not meant."""
    kept = [one for one in mistakes if not one.unions]
    judged: dict[Keys, dict[str, list[Mistake]]] = {}
    for one in mistakes:
        if one.unions:
            (keys, member), *inner = one.unions
            judged.setdefault(keys, {}).setdefault(member, []).append(replace(one, unions=tuple(inner)))
    for keys, members in judged.items():
        each = [_best(found) for found in members.values()]
        meant = [found for found in each if not any(one.keys == keys and _is_of_another_kind(one) for one in found)]
        if meant:
            chosen = min(meant, key=lambda found: (sum(_is_about_key(one, keys) for one in found), len(found)))
            kept += [_with_example(one) for one in _one_each(chosen)]
        else:
            kept.append(_together([one for found in each for one in found]))
    return kept


def _is_of_another_kind(mistake: Mistake) -> bool:
    """Whether a value is nothing that this member of the union could be."""
    return mistake.kind.endswith(("_type", "_parsing")) or mistake.kind == "literal_error"


def _is_about_key(mistake: Mistake, keys: Keys) -> bool:
    return mistake.kind in (UNKNOWN, MISSING) and mistake.keys[:-1] == keys


def _with_example(mistake: Mistake) -> Mistake:
    """A key of one member of a union needs the whole form, which its neighbours do not show."""
    if mistake.kind not in (UNKNOWN, MISSING) or not mistake.example:
        return mistake
    words = _words(mistake)
    write = " Write" if words.endswith("?") else "; write"
    return replace(mistake, kind="value_error", message=f"{words}{write} it as in {mistake.example}")


def _together(mistakes: Sequence[Mistake]) -> Mistake:
    """One mistake for a value that no member of a union takes."""
    first = mistakes[0]
    plain = [one.message.removeprefix(SHOULD_BE) for one in mistakes if one.kind not in NO_MAPPING]
    forms = [f"a mapping, as in {one.example}" if one.example else "a mapping" for one in mistakes]
    plain += [form for form, one in zip(forms, mistakes, strict=True) if one.kind in NO_MAPPING]
    return replace(first, kind="union", message=SHOULD_BE + ", or ".join(dict.fromkeys(plain)))


def _one_each(mistakes: Sequence[Mistake]) -> Iterator[Mistake]:
    """Without keys that are missing only because they are misspelt."""
    meant = {(one.keys[:-1], _meant(one)) for one in mistakes if one.kind == UNKNOWN}
    return (one for one in mistakes if one.kind != MISSING or (one.keys[:-1], one.keys[-1]) not in meant)


def _meant(mistake: Mistake) -> str | None:
    return nearest(str(mistake.keys[-1]), mistake.section.model_fields)


def _words(mistake: Mistake) -> str:
    """What is wrong, the value, the cure."""
    if mistake.kind == UNKNOWN:
        return unknown_key(str(mistake.keys[-1]), list(mistake.section.model_fields))
    if mistake.kind == MISSING:
        return "missing"
    if mistake.kind == "value_error":
        return mistake.message
    value = shown(mistake.value)
    if mistake.kind in NO_MAPPING:
        form = f", as in {mistake.example}," if mistake.example else ","
        return f"a mapping of keys to values is needed{form} not {value}"
    quotes = mistake.kind == "string_type" and not isinstance(mistake.value, dict | list | NoneType)
    return f"{mistake.message}, not {value}{'; put it in quotes' if quotes else ''}"
