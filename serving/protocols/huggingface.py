"""The Hugging Face Inference API: ``{"inputs": …, "parameters": {…}}``, as ``huggingface_hub.InferenceClient`` asks.

``inputs`` is one input (a string, or an object with the model's columns) or a list of them. The answer is a list with
one answer for each input, for most tasks also when there is one: for text classification the client takes the first
element of what it receives. For a task with a ``lone_answer``, an input that stands in no list is answered with its
answer alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from serving.predictor import EMPTY

KEYS = {"inputs", "parameters", "options"}  # `options` (wait_for_model, use_cache) asks nothing that we do not do


class MalformedError(ValueError):
    """The body is no such request; the message names the field."""


@dataclass(frozen=True)
class Question:
    """A parsed request body."""

    inputs: list[Any]
    parameters: Mapping[str, Any]
    alone: bool = False
    """Whether the one input stood in no list."""


def parse(body: Any) -> Question:
    """The JSON value of a body as a question.

    Raises:
        MalformedError: it has the wrong shape.
    """
    if not isinstance(body, dict):
        raise MalformedError("the body must be a JSON object with 'inputs'")
    if "inputs" not in body:
        raise MalformedError("inputs: missing")
    if set(body) - KEYS:
        raise MalformedError(f"only {', '.join(sorted(KEYS))} may stand in the body")
    alone = not isinstance(body["inputs"], list)
    inputs = [body["inputs"]] if alone else body["inputs"]
    parameters = body.get("parameters") or EMPTY
    if not isinstance(parameters, dict):
        raise MalformedError("parameters: an object is needed")
    for index, value in enumerate(inputs):
        _check_text(value, f"inputs[{index}]")
    return Question(inputs, parameters or EMPTY, alone)


def media(signature: Mapping[str, Any]) -> str | None:
    """``image`` or ``audio`` where a model reads such, whose bytes may then be a whole body."""
    shapes = signature["input"].get("anyOf", [signature["input"]])
    kinds = (str(shape.get("contentMediaType", "")).partition("/")[0] for shape in shapes)
    return next((kind for kind in kinds if kind), None)


def raw(body: bytes) -> Question:
    """A body that is the one input itself."""
    return Question([body], EMPTY, alone=True)


def answer(answers: list[Any], alone: bool) -> Any:
    """The answers as the client expects them: ``alone``, the one that there is."""
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
