"""What a sweep searches: recipe fields by their dotted names, checked against the recipe before anything runs."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from cluster.complaints import nearest
from cluster.settings import Document
from training.preflight import task_problems
from training.recipe import Recipe
from tuning.recipe import Range, Tune

AnyRecipe = TypeVar("AnyRecipe", bound=Recipe)

NOT_SEARCHED = {
    "name": "it says what the model is called, not how it learns",
    "description": "it says what the model is for, not how it learns",
    "data": "each trial would be measured on different rows",
    "model.task": "it says what is learned, not how",
    "model.inputs": "it says what is learned, not how",
    "model.target": "it says what is learned, not how",
    "train.workers": "it changes how fast a trial is, not what it learns",
    "train.strategy": "it changes how fast a trial is, not what it learns",
    "train.checkpoint_every": "it changes nothing that a trial learns",
    "train.max_failures": "it changes nothing that a trial learns",
    "tune": "a sweep does not search itself",
    "serve": "it says how the model is hosted, not how it learns",
}
"""Fields, or whole sections, that a sweep refuses, and why."""

ENCODING_FIELDS = ("model.base", "model.max_length")
"""Fields that rows are encoded by: each of their values is encoded once, before the first trial."""

MOST_CORNERS = 200
"""Combinations of a space's values and ends that are tried on the recipe before anything runs."""

WHOLE = "a whole number is needed"

SIGNIFICANT_DIGITS = 4
"""A found value is one that a person can type: more digits of a learning rate mean nothing."""


@dataclass(frozen=True)
class Dimension:
    """One searched field.

    Attributes:
        name: its dotted name.
        kind: ``log_uniform``, ``uniform``, ``int_uniform`` or ``choice``.
        low, high: the ends of a range, both included.
        values: of a choice, as the recipe would read them.
    """

    name: str
    kind: str
    low: float = 0
    high: float = 0
    values: tuple[Any, ...] = ()

    def discrete(self) -> tuple[Any, ...] | None:
        """All values there are; None where there is a continuum."""
        if self.kind == "choice":
            return self.values
        return tuple(range(int(self.low), int(self.high) + 1)) if self.kind == "int_uniform" else None

    def corners(self) -> tuple[Any, ...]:
        """All values of a choice, the two ends of a range."""
        return self.values if self.kind == "choice" else (self.low, self.high)

    def rounded(self, value: float) -> float:
        """``value`` with a few significant digits, still inside the range."""
        return min(max(float(f"{value:.{SIGNIFICANT_DIGITS}g}"), self.low), self.high)


@dataclass(frozen=True)
class Space:
    """All searched fields together."""

    dimensions: tuple[Dimension, ...]

    @classmethod
    def of(cls, tune: Tune) -> "Space":
        """The space of a checked ``tune.search``."""
        return cls(tuple(_dimension(name, given) for name, given in tune.search.items()))

    def combinations(self) -> int | None:
        """How many combinations there are; None where there is a continuum."""
        counts = [dimension.discrete() for dimension in self.dimensions]
        return None if None in counts else math.prod(len(values) for values in counts if values)

    def trials(self, most: int) -> int:
        """How many trials a sweep of at most so many has: no more than there are combinations."""
        combinations = self.combinations()
        return most if combinations is None else min(most, combinations)

    def only(self, names: Sequence[str]) -> "Space":
        """The space of these fields alone."""
        return Space(tuple(dimension for dimension in self.dimensions if dimension.name in names))

    def grid(self) -> Iterator[dict[str, Any]]:
        """Every combination, the last field moving fastest."""
        names = [dimension.name for dimension in self.dimensions]
        for values in itertools.product(*(dimension.discrete() or () for dimension in self.dimensions)):
            yield dict(zip(names, values, strict=True))

    def encodings(self) -> list[dict[str, Any]]:
        """Every combination of the fields that rows are encoded by; one empty one where none is searched."""
        return list(self.only(ENCODING_FIELDS).grid())


def check_search(tune: Tune, document: Document) -> list[str]:
    """What is wrong with ``tune.search``: a finished line, with file, line and cure, for each problem.

    Every value of a choice and both ends of a range must be ones that the field itself would take, and that go with
    those of the other fields.
    """
    problems = []
    for name, given in tune.search.items():
        written = _written(document, name)
        problems += [document.problem(written, message) for message in _problems(name, given)]
        outer = next((other for other in tune.search if name.startswith(f"{other}.")), None)
        if outer:
            problems.append(
                document.problem(written, f"stands within {outer}, which is searched too; search one of them")
            )
    if problems:
        return problems
    if tune.algorithm == "grid":
        problems += _grid_problems(tune, document)
    space = Space.of(tune)
    lengths = next((one.discrete() for one in space.dimensions if one.name == "train.epochs"), None)
    if tune.scheduler == "asha" and lengths and len(lengths) > 1:
        message = (
            "asha compares trials epoch by epoch, and one of few epochs has lowered its learning rate earlier; "
            "set tune.scheduler: none, or leave train.epochs out"
        )
        problems.append(document.problem(_written(document, "train.epochs"), message))
    return problems + _misfits(space, document)


def apply(recipe: AnyRecipe, params: Mapping[str, Any]) -> AnyRecipe:
    """The recipe with ``params`` (dotted name to value) in place of its own values."""
    tree = recipe.model_dump()
    for name, value in params.items():
        *parents, last = name.split(".")
        inner = tree
        for key in parents:
            if not isinstance(inner.get(key), dict):  # left out, or a word in the place of a section, as adapt: full
                inner[key] = {}
            inner = inner[key]
        inner[last] = value
    return type(recipe).model_validate(tree, context={"folder": recipe.folder})


def own_params(recipe: Recipe, space: Space) -> dict[str, Any] | None:
    """What the recipe itself has for the searched fields; None where that lies outside of the space."""
    params = {}
    for dimension in space.dimensions:
        own = _value_of(recipe, dimension.name)
        if dimension.kind == "choice":  # where a section may be written with fewer keys than it has
            name, values = dimension.name, dimension.values
            same = [one for one in values if _value_of(apply(recipe, {name: one}), name) == own]
        else:
            number = isinstance(own, int if dimension.kind == "int_uniform" else int | float)
            same = [own] if number and dimension.low <= own <= dimension.high else []
        if not same:
            return None
        params[dimension.name] = same[0]
    return params


def _value_of(recipe: Recipe, name: str) -> Any:
    value: Any = recipe.model_dump()
    for key in name.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value


def searchable() -> list[str]:
    """The dotted names of all fields that may be searched."""
    return [name for name in _names(Recipe, "") if not _refusal(name)]


def _problems(name: str, given: Range) -> Iterator[str]:
    owner = _owner(name)
    if owner is None:
        yield _no_field(name)
        return
    reason = _refusal(name)
    if reason:
        yield f"cannot be searched: {reason}"
        return
    if name in ENCODING_FIELDS and given.kind != "choice":
        yield f"rows are encoded once for each of its values, so list them: {{choice: [{_ends(given)}]}}"
        return
    field = name.rpartition(".")[2]
    if given.kind in ("log_uniform", "uniform") and _fault(owner, field, _between(given)) == WHOLE:
        yield f"takes whole numbers; use int_uniform instead of {given.kind}"
        return
    for value in getattr(given, given.kind):
        fault = _fault(owner, field, value)
        if fault:
            yield f"{given.kind} reaches {value!r}, and the field does not take it: {fault}"


def _grid_problems(tune: Tune, document: Document) -> list[str]:
    ranges = [name for name, given in tune.search.items() if given.kind in ("log_uniform", "uniform")]
    if ranges:
        message = "a grid needs a list of values, {choice: […]}, not a range; or use algorithm: optuna or random"
        return [document.problem(_written(document, name), message) for name in ranges]
    combinations = Space.of(tune).combinations()
    if combinations is not None and combinations > tune.trials:
        message = f"the grid has {combinations} combinations and tune.trials is {tune.trials}; raise it or list fewer"
        return [document.problem(("tune", "trials"), message)]
    return []


def _misfits(space: Space, document: Document) -> list[str]:
    """What the recipe as a whole does not take: values that do not go together, by the fewest that do not."""
    values = {name: document.values[name] for name in Recipe.model_fields if name in document.values}
    try:
        recipe = Recipe.model_validate(values, context={"folder": document.path.parent})
    except ValidationError:  # told by itself
        return []
    known = task_problems(document)

    def unfit(params: Mapping[str, Any]) -> str:
        """Why the recipe cannot have these values; empty where it can."""
        try:
            changed = apply(recipe, params)
        except ValidationError as error:
            message = str(error.errors()[0]["msg"]).removeprefix("Value error, ")
            return message[:1].lower() + message[1:]
        told = task_problems(replace(document, values=changed.model_dump()))
        return next((one.partition(": ")[2] for one in told if one not in known), "")

    corners = [[(one.name, value) for value in one.corners()] for one in space.dimensions]
    problems = []
    for combination in itertools.islice(itertools.product(*corners), MOST_CORNERS):
        params = dict(combination)
        if not unfit(params):
            continue
        for name in list(params):
            fewer = {other: value for other, value in params.items() if other != name}
            params = fewer if unfit(fewer) else params
        told = ", ".join(f"{name}: {value}" for name, value in params.items())
        message = f"the recipe does not take {told}: {unfit(params)}"
        problems.append(document.problem(_written(document, next(iter(params))), message))
    return list(dict.fromkeys(problems))


def _dimension(name: str, given: Range) -> Dimension:
    if given.choice is None:
        low, high = getattr(given, given.kind)
        return Dimension(name, given.kind, low=low, high=high)
    owner = _owner(name)
    assert owner is not None, f"{name} was not checked"
    field = name.rpartition(".")[2]
    read = [_read(owner, field, value) for value in given.choice]
    distinct = [value for index, value in enumerate(read) if value not in read[:index]]
    return Dimension(name, "choice", values=tuple(distinct))


def _ends(given: Range) -> str:
    """The two ends of a range, as a person would type them."""
    low, high = getattr(given, given.kind)
    return f"{low:g}, {high:g}"


def _between(given: Range) -> float:
    """A value inside a range that is no whole number; its ends may be."""
    low, high = getattr(given, given.kind)
    inside = low + (high - low) * 0.382
    return float(inside) if inside != int(inside) else float(low + (high - low) * 0.39)


def _fault(owner: type[BaseModel], field: str, value: Any) -> str:
    """Why ``owner`` does not take ``value`` for ``field``; empty where it does."""
    try:
        owner.model_validate({field: value})
    except ValidationError as error:
        for one in error.errors():
            if one["loc"][:1] != (field,):
                continue  # another field that is missing here; the recipe itself was checked before
            if one["type"] == "int_from_float":
                return WHOLE
            message = one["msg"].removeprefix("Value error, ")
            return message[:1].lower() + message[1:]
    return ""


def _read(owner: type[BaseModel], field: str, value: Any) -> Any:
    """``value`` as the recipe reads it, so that ``1e-5``, a text in YAML, becomes a number."""
    try:
        return owner.model_validate({field: value}).model_dump()[field]
    except ValidationError:  # other fields are missing here
        return value


def _owner(name: str) -> type[BaseModel] | None:
    """The section of the recipe that has the field ``name``; None where there is no such field."""
    *parents, last = name.split(".")
    section: type[BaseModel] = Recipe
    for key in parents:
        below = _section(section.model_fields[key].annotation) if key in section.model_fields else None
        if below is None:
            return Recipe if _refusal(name) else None  # inside a mapping of the user's own names
        section = below
    return section if last in section.model_fields or _refusal(name) else None


def _section(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_section, get_args(annotation))), None)


def _names(section: type[BaseModel], prefix: str) -> Iterator[str]:
    for field, info in section.model_fields.items():
        yield f"{prefix}{field}"
        below = _section(info.annotation)
        if below is not None:
            yield from _names(below, f"{prefix}{field}.")


def _refusal(name: str) -> str:
    parts = name.split(".")
    prefixes = (".".join(parts[:length]) for length in range(1, len(parts) + 1))
    return next((NOT_SEARCHED[prefix] for prefix in prefixes if prefix in NOT_SEARCHED), "")


def _no_field(name: str) -> str:
    names = [one for one in searchable() if _is_leaf(one)]
    short = [one for one in names if one.endswith(f".{name}")]
    near = short[0] if short else nearest(name, names)
    if near:
        return f"no field of the recipe, did you mean '{near}'?"
    return f"no field of the recipe; searched can be {', '.join(names)}"


def _is_leaf(name: str) -> bool:
    """Whether a field can have a value that is no section, as ``model.adapt`` can be ``full``, or ``{lora: …}``."""
    owner = _owner(name)
    if owner is None:
        return False
    annotation = owner.model_fields[name.rpartition(".")[2]].annotation
    return any(_section(kind) is None for kind in get_args(annotation) or (annotation,) if kind is not type(None))


def _written(document: Document, name: str) -> tuple[str, ...]:
    """The keys under which a searched field stands: one dotted key, or one for each part."""
    apart = ("tune", "search", *name.split("."))
    return apart if apart in document.lines else ("tune", "search", name)
