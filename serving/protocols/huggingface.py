"""The Hugging Face Inference API: ``{"inputs": …, "parameters": {…}}``, as ``huggingface_hub.InferenceClient`` asks.

``inputs`` is one input (a string, or an object with the model's columns) or a list of them. The answer is a list with
one answer for each input, for most tasks also when there is one: for text classification the client takes the first
element of what it receives. For a task with a ``lone_answer``, an input that stands in no list is answered with its
answer alone. A ``table``, an object with a list of cells for each column, stands for the list of its rows; a row is
then answered with the best label, or the number, and nothing else.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from serving.predictor import EMPTY

# `options` (wait_for_model, use_cache) asks nothing that we do not do.
KEYS = {"inputs", "table", "parameters", "options"}

AT_ROOT = {"normalize", "truncate"}
"""Parameters that stand beside ``inputs`` where vectors are asked for, as the client's ``feature_extraction`` does."""


class MalformedError(ValueError):
    """The body is no such request; the message names the field."""


@dataclass(frozen=True)
class Question:
    """A parsed request body."""

    inputs: list[Any]
    parameters: Mapping[str, Any]
    alone: bool = False
    """Whether the one input stood in no list."""
    table: bool = False
    """Whether the inputs are the rows of a table."""


def parse(body: Any) -> Question:
    """The JSON value of a body as a question.

    Raises:
        MalformedError: it has the wrong shape.
    """
    if not isinstance(body, dict):
        raise MalformedError("the body must be a JSON object with 'inputs'")
    table = "table" in body and "inputs" not in body
    if not table and "inputs" not in body:
        raise MalformedError("inputs: missing")
    if set(body) - KEYS - AT_ROOT or {"inputs", "table"} <= body.keys():
        raise MalformedError("only inputs (or table), parameters and options may stand in the body")
    alone = not table and not isinstance(body["inputs"], list)
    inputs = _rows(body["table"]) if table else [body["inputs"]] if alone else body["inputs"]
    parameters = body.get("parameters") or EMPTY
    if not isinstance(parameters, dict):
        raise MalformedError("parameters: an object is needed")
    parameters = {**parameters, **{name: body[name] for name in AT_ROOT & body.keys()}}
    for index, value in enumerate(inputs):
        _check_text(value, f"inputs[{index}]")
    return Question(inputs, parameters or EMPTY, alone, table)


def _rows(table: Any) -> list[dict[str, Any]]:
    """The rows of an object of columns."""
    if not isinstance(table, dict) or not table or not all(isinstance(cells, list) for cells in table.values()):
        raise MalformedError("table: an object is needed that has a list of cells for each column")
    if len({len(cells) for cells in table.values()}) > 1:
        raise MalformedError("table: every column must have as many cells as the others")
    return [dict(zip(table, cells, strict=True)) for cells in zip(*table.values(), strict=True)]


def media(signature: Mapping[str, Any]) -> str | None:
    """``image`` or ``audio`` where a model reads such, whose bytes may then be a whole body."""
    shapes = signature["input"].get("anyOf", [signature["input"]])
    kinds = (str(shape.get("contentMediaType", "")).partition("/")[0] for shape in shapes)
    return next((kind for kind in kinds if kind), None)


def raw(body: bytes) -> Question:
    """A body that is the one input itself."""
    return Question([body], EMPTY, alone=True)


def answer(answers: list[Any], alone: bool, cell: str | None = None) -> Any:
    """The answers as the client expects them.

    Args:
        alone: the one that there is, and no list.
        cell: of each answer's first entry this field alone.
    """
    if cell:
        return [one[0][cell] for one in answers]
    return answers[0] if alone else answers


def schema(signature: Mapping[str, Any], max_items: int, lone_answer: bool) -> dict[str, Any]:
    """JSON Schemas of the request body and of the answer, from a bundle's signature."""
    answers = {"type": "array", "items": signature["output"]}
    one = signature["input"]
    many = {"type": "array", "items": one, "maxItems": max_items}
    body = {
        "type": "object",
        "properties": {
            "inputs": {"anyOf": [one, many]},
            "parameters": signature["parameters"],
            "options": {"type": "object"},
        },
        "required": ["inputs"],
        "additionalProperties": False,
    }
    return {"body": body, "answer": {"anyOf": [signature["output"], answers]} if lone_answer else answers}


def _check_text(value: Any, where: str) -> None:
    """JSON can spell half a character (a lone surrogate), which no tokenizer takes."""
    if isinstance(value, str) and not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise MalformedError(f"{where}: not valid Unicode text") from None
    elif isinstance(value, dict):
        for inner in value.values():
            _check_text(inner, where)  # a column's name is the client's word, too
    elif isinstance(value, list):
        for inner in value:
            _check_text(inner, where)
