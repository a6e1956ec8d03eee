"""Entities in texts: how data writes them, and how found ones are scored against true ones.

An entity is a stretch of characters with a type. Data writes entities as character spans, or as one tag for each token
of a text that is already cut into tokens.
"""

import itertools
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeGuard
from unicodedata import normalize

from cluster.errors import UserError
from training.inputs.cells import read_list

METRICS = {"f1": "max", "precision": "max", "recall": "max", "macro_f1": "max"}
"""The metrics of :func:`score`, and whether more or less is better."""

OUTSIDE = "O"
OTHER_LETTERS = {"L": "E", "U": "S"}
"""The letters of BILOU tags that BIOES tags write otherwise."""


Places = list[tuple[int, int]]
"""From and up to which character each of several things stands."""


class Entity(NamedTuple):
    """A stretch ``text[start:end]`` of a type. Of tags, ``start`` and ``end`` count tokens."""

    start: int
    end: int
    type: str


class MisfitError(UserError):
    """An annotation does not fit its text. The message says why, without the text."""


# --- reading what data writes ---------------------------------------------------------------------------------------


def read_tokens(cell: Any) -> list[str] | None:
    """The tokens of a cell that holds a list of them, as such or as JSON; None where it holds anything else."""
    value = read_list(cell)
    if isinstance(value, list) and all(isinstance(one, str) for one in value):
        return value
    return None


def join(tokens: Sequence[str]) -> tuple[str, Places]:
    """Tokens as one text with a space between them, and where in it each stands."""
    places: Places = []
    at = 0
    for token in tokens:
        places.append((at, at + len(token)))
        at += len(token) + 1
    return " ".join(tokens), places


def words(text: str) -> Places:
    """Where the stretches of a text that hold no white space stand."""
    return [match.span() for match in re.finditer(r"\S+", text)]


def read_spans(value: Sequence[Any], text: str) -> list[Entity]:
    """Entities of character spans: mappings with ``start``, ``end`` and ``label``, or triples of these.

    White space at a span's ends is left out of it. A mapping's ``text``, where it has one, must be what stands there.

    Raises:
        MisfitError: a span lies outside the text, is empty or malformed, or overlaps another.
    """
    entities = sorted({_span(one, text) for one in value})
    for one, following in itertools.pairwise(entities):
        if following.start < one.end:
            raise MisfitError(
                f"the spans {one.start}-{one.end} and {following.start}-{following.end} overlap; "
                "a character can be in one entity only"
            )
    return entities


def _span(value: Any, text: str) -> Entity:
    if isinstance(value, Mapping):
        start, end, label = value.get("start"), value.get("end"), value.get("label", value.get("entity_group"))
    elif isinstance(value, list | tuple) and len(value) == 3:
        start, end, label = value
    else:
        raise MisfitError("a span is {start, end, label}")
    if not _whole(start) or not _whole(end) or not isinstance(label, str) or not label:
        raise MisfitError("a span needs whole numbers as start and end, and a text as label")
    if not 0 <= start < end <= len(text):
        raise MisfitError(f"the span {start}-{end} is not within the text's {len(text)} characters")
    inside = text[start:end]
    if isinstance(value, Mapping) and isinstance(value.get("text"), str) and value["text"] != inside:
        raise MisfitError(f"the text of the span {start}-{end} is not what stands there")
    if not inside.strip():
        raise MisfitError(f"the span {start}-{end} holds white space alone")
    start += len(inside) - len(inside.lstrip())
    return Entity(start, start + len(inside.strip()), label)


def moved(cell: Any, text: str, form: Literal["NFC", "NFKC", "NFD", "NFKD"]) -> Any:
    """A cell of character spans as it must be once ``text`` is brought to a Unicode form; another cell as it is.

    A text may grow or shrink by that: two of its characters become one, or one becomes two.
    """
    spans = read_list(cell)
    if not (isinstance(spans, list) and all(isinstance(one, Mapping) and _placed(one) for one in spans)):
        return cell
    there = [
        {
            **one,
            **{end: len(normalize(form, text[: one[end]])) for end in ("start", "end")},
            **({"text": normalize(form, one["text"])} if isinstance(one.get("text"), str) else {}),
        }
        for one in spans
    ]
    return json.dumps(there, ensure_ascii=False) if isinstance(cell, str) else there


def _placed(span: Mapping[str, Any]) -> bool:
    return _whole(span.get("start")) and _whole(span.get("end"))


def _whole(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def read_tags(value: Sequence[Any], names: Sequence[str] = ()) -> list[str]:
    """Tags as ``O`` or ``LETTER-TYPE``; ``names`` are those of tags that are numbers.

    Raises:
        MisfitError: something else stands among them.
    """
    tags = []
    for one in value:
        if _whole(one):
            if not 0 <= one < len(names):
                raise MisfitError(f"the tag {one} is a number; name the tags in their order with model.options.tags")
            one = names[one]
        letter, _, kind = str(one).partition("-")
        letter = OTHER_LETTERS.get(letter, letter)
        if one != OUTSIDE and (letter not in set("BIES") or not kind):
            raise MisfitError(f"'{str(one)[:40]}' is no tag; tags are O, B-TYPE and I-TYPE")
        tags.append(OUTSIDE if one == OUTSIDE else f"{letter}-{kind}")
    return tags


def chunks(tags: Sequence[str]) -> list[Entity]:
    """The entities of BIO tags, or of BIOES ones, counted in tokens.

    As the CoNLL evaluation reads them (conlleval; Tjong Kim Sang and Buchholz, 2000): an ``I`` that continues no entity
    of its type begins one. So no tag is lost, and data with ``B`` only between neighbours (IOB1) reads alike.
    """
    entities: list[Entity] = []
    before = OUTSIDE
    for place, tag in enumerate(tags):
        letter, _, kind = tag.partition("-")
        if tag != OUTSIDE:
            continues = letter in "IE" and before[:1] in set("BI") and before[2:] == kind
            start = entities.pop().start if continues else place
            entities.append(Entity(start, place + 1, kind))
        before = tag
    return entities


def placed(entities: Iterable[Entity], places: Places) -> list[Entity]:
    """Entities counted in tokens as such counted in characters; one of empty tokens alone is none."""
    spans = (Entity(places[one.start][0], places[one.end - 1][1], one.type) for one in entities)
    return [span for span in spans if span.start < span.end]


# --- scoring --------------------------------------------------------------------------------------------------------


def counts(
    found: Sequence[Iterable[Entity]], true: Sequence[Iterable[Entity]]
) -> tuple[Counter[str], Counter[str], Counter[str]]:
    """By type: entities found that are exactly right, all found, all true. One element of each for each text."""
    right, said, there = Counter[str](), Counter[str](), Counter[str]()
    for own, wanted in zip(found, true, strict=True):
        own_set, wanted_set = set(own), set(wanted)
        right.update(entity.type for entity in own_set & wanted_set)
        said.update(entity.type for entity in own_set)
        there.update(entity.type for entity in wanted_set)
    return right, said, there


def score(found: Sequence[Iterable[Entity]], true: Sequence[Iterable[Entity]]) -> dict[str, float]:
    """Precision, recall and F1 over entities of which start, end and type are right, and the mean F1 over types.

    The measure of CoNLL-2003 (Tjong Kim Sang and De Meulder, 2003), as conlleval and seqeval compute it. The mean is
    over the types that are found or true; 0/0 counts as 0.
    """
    right, said, there = counts(found, true)
    precision, recall, f1 = _rates(right.total(), said.total(), there.total())
    types = sorted(said.keys() | there.keys())
    each = [_rates(right[kind], said[kind], there[kind])[2] for kind in types]
    return {"f1": f1, "precision": precision, "recall": recall, "macro_f1": sum(each) / len(each) if each else 0.0}


def by_type(
    found: Sequence[Iterable[Entity]], true: Sequence[Iterable[Entity]], types: Sequence[str]
) -> list[dict[str, Any]]:
    """For each type ``label``, ``rows`` (true entities), ``predicted``, ``precision``, ``recall`` and ``f1``.

    A rate of 0/0 is None.
    """
    right, said, there = counts(found, true)
    lines: list[dict[str, Any]] = []
    for kind in types:
        precision, recall, f1 = _rates(right[kind], said[kind], there[kind])
        lines.append(
            {
                "label": kind,
                "rows": there[kind],
                "predicted": said[kind],
                "precision": precision if said[kind] else None,
                "recall": recall if there[kind] else None,
                "f1": f1 if said[kind] or there[kind] else None,
            }
        )
    return lines


def _rates(right: int, said: int, there: int) -> tuple[float, float, float]:
    precision = right / said if said else 0.0
    recall = right / there if there else 0.0
    return precision, recall, 2 * right / (said + there) if said + there else 0.0


def from_numbers(numbers: Any, types: Sequence[str]) -> list[Entity]:
    """Entities of lines that begin with start, end and the index of the type; or of one line of such triples."""
    lines = numbers if getattr(numbers, "ndim", 1) == 2 else [numbers[at : at + 3] for at in range(0, len(numbers), 3)]
    return [Entity(int(line[0]), int(line[1]), types[int(line[2])]) for line in lines]
