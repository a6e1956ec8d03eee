"""The Hugging Face Inference API: ``{"inputs": …, "parameters": {…}}``, as ``huggingface_hub.InferenceClient`` asks.

``inputs`` is one input (a string, or an object with the model's columns) or a list of them. The answer is a list with
one answer for each input, also when there is one: for text classification the client takes the first element of
what it receives.
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
    inputs = body["inputs"] if isinstance(body["inputs"], list) else [body["inputs"]]
    parameters = body.get("parameters") or EMPTY
    if not isinstance(parameters, dict):
        raise MalformedError("parameters: an object is needed")
    for index, value in enumerate(inputs):
        _check_text(value, f"inputs[{index}]")
    return Question(inputs, parameters or EMPTY)


def answer(answers: list[Any]) -> Any:
    """The answers as the client expects them."""
    return answers


def schema(signature: Mapping[str, Any], max_items: int) -> dict[str, Any]:
    """JSON Schemas of the request body and of the answer, from a bundle's signature."""
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
    return {"body": body, "answer": {"type": "array", "items": signature["output"]}}


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
