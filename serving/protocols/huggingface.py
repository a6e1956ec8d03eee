"""The Hugging Face Inference API: ``{"inputs": …, "parameters": {…}}``, as ``huggingface_hub.InferenceClient`` asks.

``inputs`` is one input (a string, or an object with the model's columns) or a list of them. The answer is a list with
one answer for each input, for most tasks also when there is one: for text classification the client takes the first
element of what it receives. For a task with a ``lone_answer``, an input that stands in no list is answered with its
answer alone. A ``table``, an object with a list of cells for each column, stands for the list of its rows; a row is
then answered with the best label, or the number, and nothing else. With ``"stream": true`` a text comes in server-sent
events.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, cast

from serving.drawing import Sampling
from serving.lineup import Served
from serving.predictor import EMPTY
from serving.protocols import described
from serving.protocols.described import TEXT, Paths, Schema
from serving.protocols.form import (
    Body,
    Call,
    Composition,
    Endpoint,
    MalformedError,
    whole_characters,
    whole_numbers,
)
from serving.writer import Piece, WritingTask

PREFIX = "/models/"

# `options` (wait_for_model, use_cache) asks nothing that we do not do.
KEYS = {"inputs", "table", "parameters", "options", "stream"}

AT_ROOT = {"normalize", "truncate"}
"""Parameters that stand beside ``inputs`` where vectors are asked for, as the client's ``feature_extraction`` does."""


def find(path: str) -> Endpoint | None:
    """``/models/{name}``."""
    name = path.removeprefix(PREFIX)
    return None if name == path or "/" in name else Endpoint(call, model=name, media=True)


def call(body: Body | bytes, served: Served) -> Call | Composition:
    """What a body asks; bytes are the one input itself.

    Raises:
        MalformedError: it has the wrong shape.
    """
    task = served.predictor.task
    if isinstance(body, bytes):
        return Call([body], EMPTY, functools.partial(_write, alone=task.lone_answer))
    if not isinstance(body, dict):
        raise MalformedError("the body must be a JSON object with 'inputs'")
    table = "table" in body and "inputs" not in body
    if not table and "inputs" not in body:
        raise MalformedError("inputs: missing")
    if set(body) - KEYS - AT_ROOT or {"inputs", "table"} <= body.keys():
        raise MalformedError("only inputs (or table), parameters, options and stream may stand in the body")
    if table and task.table_answer is None:
        raise MalformedError("table: this model reads no tables; ask it with inputs")
    alone = not table and not isinstance(body["inputs"], list)
    inputs = _rows(body["table"]) if table else [body["inputs"]] if alone else body["inputs"]
    parameters = {} if body.get("parameters") is None else body["parameters"]
    if not isinstance(parameters, dict) or not isinstance(body.get("options", {}), dict):
        raise MalformedError("parameters, options: an object is needed")
    parameters = whole_numbers({**parameters, **{name: body[name] for name in AT_ROOT & body.keys()}})
    for index, value in enumerate(inputs):
        whole_characters(value, f"inputs[{index}]")
    whole_characters(parameters, "parameters")
    if _streams(body, served):
        if not alone:
            raise MalformedError("stream: one text at a time; inputs must be no list")
        form = _Written(served)
        return Composition(inputs, parameters, Sampling(), 1, form.whole, form.event)
    write = functools.partial(_write, alone=alone and task.lone_answer, cell=task.table_answer if table else None)
    return Call(inputs, parameters or EMPTY, write)


def _streams(body: Mapping[str, Any], served: Served) -> bool:
    """Whether the text is wanted piece by piece."""
    streamed = body.get("stream")
    if not isinstance(streamed, bool | None):
        raise MalformedError("stream: true or false is needed")
    if streamed and not served.predictor.task.writes_on:
        raise MalformedError("stream: this model does not write from left to right; ask it without")
    return bool(streamed)


class _Written:
    """A text that comes piece by piece, in text-generation-inference's words; the last piece brings the whole."""

    def __init__(self, served: Served) -> None:
        self._ends, self._said = cast(WritingTask, served.predictor.task).ends, ""

    def whole(self, pieces: Sequence[Piece], prompts: Sequence[int]) -> Body:
        """The texts where nothing is streamed."""
        return [{"generated_text": piece.text} for piece in pieces]

    def event(self, index: int, piece: Piece) -> Body:
        """The data of one event."""
        self._said += piece.text
        last = piece.tokens[-1] if piece.tokens else None
        special = piece.end == "stop" and last in self._ends
        said = piece.likelihoods[-1] if piece.likelihoods else None
        told: dict[str, Any] = {
            "index": len(piece.tokens),
            "token": {"id": last, "text": piece.text, "logprob": said, "special": special},
            "generated_text": None,
            "details": None,
        }
        if piece.end is None:
            return told
        reason = "length" if piece.end == "length" else "eos_token" if special else "stop_sequence"
        details = {"finish_reason": reason, "generated_tokens": len(piece.tokens), "seed": None}
        return told | {"generated_text": self._said, "details": details}


def _write(answers: list[Any], tokens: Sequence[int], *, alone: bool, cell: str | None = None) -> Body:
    """The answers as the client expects them.

    Args:
        alone: the one that there is, and no list.
        cell: of each answer's first entry this field alone; null where the model abstains.
    """
    if cell:
        return [one[0][cell] if one else None for one in answers]
    return answers[0] if alone else answers


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


ERROR_NAME = "Error"
ERROR: Schema = {
    "type": "object",
    "properties": {"error": described.an_object({"code": TEXT, "message": TEXT, "request_id": TEXT})},
    "required": ["error"],
}


def paths(served: Served, max_items: int) -> Paths:
    """What OpenAPI says of ``/models/{name}``."""
    info, task = served.predictor.bundle.info, served.predictor.task
    signature = served.predictor.signature
    one, answers = signature["input"], {"type": "array", "items": signature["output"]}
    lone = [shape for shape in one.get("anyOf", [one]) if shape.get("type") != "array"]  # a list is one of inputs
    inputs = {"anyOf": [*lone, {"type": "array", "items": one, "maxItems": max_items}]}
    body = described.an_object(
        {"inputs": inputs},
        {
            "parameters": _or_null(signature["parameters"]),
            "options": {"type": "object"},
            "stream": {"enum": [False, None]},
        },
    )
    kinds = media(signature)
    return {
        f"{PREFIX}{served.name}": {
            "post": described.post(
                info["recipe"].get("description") or f"Ask {served.name}.",
                f"Hugging Face inference, {info['task']}, version {served.version}.",
                body,
                {"anyOf": [signature["output"], answers]} if task.lone_answer else answers,
                ERROR_NAME,
                **({f"{kinds}/*": {}, "application/octet-stream": {}} if kinds else {}),
            ),
            "get": described.get("Version, task, signature and metrics.", {"type": "object"}),
        }
    }


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}
