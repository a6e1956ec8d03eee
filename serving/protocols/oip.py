"""The Open Inference Protocol, version 2, as Triton's and KServe's clients ask: ``/v2/models/{name}/infer``.

A tensor holds one value of every row. The tensors of a request are named like the model's columns; where a model reads
one column, its tensor may have any name. The answer has a tensor ``answer``, in which each row's answer stands as JSON,
as the Hugging Face form gives it; besides, what is commonly wanted: of labels the best ``label`` and its ``score``, of
vectors the ``embedding``. An input of which a model says nothing, because it abstains, has an empty label and the score
0. Tensors may come as JSON or, after it, as bytes; they go back as JSON.
"""

import functools
import json
import re
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from serving.exchange import RefusalError, read_json
from serving.lineup import Served
from serving.predictor import EMPTY
from serving.protocols import described
from serving.protocols.described import TEXT, Paths, Schema, flag
from serving.protocols.form import Body, Call, Endpoint, MalformedError, an_object, whole_characters, whole_numbers

PREFIX = "/v2/"
MODEL = re.compile(r"/v2/models/([^/]+)(?:/versions/([^/]+))?(/infer|/ready)?")
TENSOR = {"name", "shape", "datatype", "data", "parameters"}
JSON_LENGTH = "inference-header-content-length"
LENGTH = 4
"""Bytes that the length of a text takes."""

TYPES = {  # of numbers: how Python's struct spells one
    "BOOL": "?",
    "INT8": "b",
    "INT16": "h",
    "INT32": "i",
    "INT64": "q",
    "UINT8": "B",
    "UINT16": "H",
    "UINT32": "I",
    "UINT64": "Q",
    "FP32": "f",
    "FP64": "d",
}


def find(path: str) -> Endpoint | None:
    """``/v2/models/{name}[/versions/{version}]/infer``."""
    match = MODEL.fullmatch(path)
    if match is None or match[3] != "/infer":
        return None
    return Endpoint(infer, model=match[1], version=match[2], read=read, loose=True)


def read(body: bytes, headers: Mapping[str, str], most: int) -> Body:
    """A body's JSON, with the tensors that follow it as bytes put where JSON has their ``data``.

    Four bytes can be an input, so a body may hold far more of them than anybody may ask: past ``most`` none is read.

    Raises:
        RefusalError: 400, it is no JSON; or 413, a tensor has more than ``most`` values.
        MalformedError: the bytes do not fit.
    """
    told = headers.get(JSON_LENGTH)
    if told is None:
        return read_json(body)
    if not told.isdecimal() or len(told) > 12 or int(told) > len(body):
        raise MalformedError("Inference-Header-Content-Length: the length of the JSON before the tensors is needed")
    value, rest = an_object(read_json(body[: int(told)])), memoryview(body)[int(told) :]
    for tensor in _tensors(value):
        size = (tensor.get("parameters") or {}).get("binary_data_size")
        if size is None:
            continue
        if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size <= len(rest):
            raise MalformedError("inputs: a binary_data_size is not that of the bytes")
        tensor["data"] = _from_bytes(tensor.get("datatype"), rest[:size], most)
        rest = rest[size:]
    return value


def _tensors(body: dict[str, Any]) -> list[dict[str, Any]]:
    tensors = body.get("inputs")
    fitting = isinstance(tensors, list) and tensors and all(isinstance(one, dict) for one in tensors)
    if not fitting or not all(isinstance(one.get("parameters") or {}, dict) for one in tensors or ()):
        raise MalformedError("inputs: a list of tensors is needed, each an object with name, shape, datatype and data")
    return list(tensors or ())


def _from_bytes(datatype: Any, data: memoryview, most: int) -> list[Any]:
    if datatype == "BYTES":
        return texts_in(data, most)
    if datatype not in TYPES or len(data) % struct.calcsize(TYPES[datatype]):
        raise MalformedError(f"inputs: datatype must be BYTES or one of {', '.join(TYPES)}, and fit the bytes")
    count = len(data) // struct.calcsize(TYPES[datatype])
    if count > most:
        raise _too_many(most)
    return list(struct.unpack(f"<{count}{TYPES[datatype]}", data))


def texts_in(data: memoryview, most: int) -> list[str]:
    """The texts of a BYTES tensor, each behind its length; of each byte only its own text is made.

    Raises:
        MalformedError: they are cut short, or no UTF-8.
        RefusalError: 413, there are more than ``most``.
    """
    values: list[str] = []
    at = 0
    while at < len(data):
        if len(values) == most:
            raise _too_many(most)
        begin = at + LENGTH
        at = begin + int.from_bytes(data[at:begin], "little")
        if begin > len(data) or at > len(data):
            raise MalformedError("inputs: the bytes of a BYTES tensor are cut short")
        values.append(_text(data[begin:at]))
    return values


def _too_many(most: int) -> RefusalError:
    return RefusalError(413, "too_many_inputs", f"inputs: more than {most} were sent; {most} are allowed")


def _text(data: memoryview) -> str:
    try:
        return str(data, "utf-8")
    except UnicodeDecodeError:
        raise MalformedError("inputs: a BYTES tensor holds what is no UTF-8 text") from None


def infer(body: Body, served: Served) -> Call:
    """One question for each row of the tensors.

    Raises:
        MalformedError: the tensors are none, or not those of the model.
    """
    parameters = an_object(body).get("parameters", {})
    if not isinstance(parameters, dict) or not isinstance(body.get("id", ""), str):
        raise MalformedError("id must be a string, parameters an object")
    if body.keys() - {"id", "parameters", "inputs", "outputs"}:
        raise MalformedError("only id, parameters, inputs and outputs may stand in the body")
    whole_characters(body.get("id"), "id")
    whole_characters(parameters, "parameters")
    wanted = _wanted(body.get("outputs", []), served)
    columns: dict[str, list[Any]] = {}
    for tensor in _tensors(body):
        _check(tensor)
        if tensor["name"] in columns:
            raise MalformedError("inputs: two tensors have one name")
        columns[tensor["name"]] = list(_flat(tensor["data"]))
    if len({len(values) for values in columns.values()}) > 1:
        raise MalformedError("inputs: every tensor must have as many values as the others")
    rows = _rows(columns, served)
    for index, row in enumerate(rows):
        whole_characters(row, f"inputs, row {index}")
    asked = whole_numbers({name: value for name, value in parameters.items() if name != "binary_data_output"})
    return Call(rows, asked or EMPTY, functools.partial(_write, served=served, given=body.get("id"), wanted=wanted))


def _wanted(outputs: Any, served: Served) -> list[str]:
    """The names of the tensors that are to come back; all where none is named.

    Raises:
        MalformedError: they are no list of tensors.
        RefusalError: 400, one is none that the model has.
    """
    if not isinstance(outputs, list) or not all(isinstance(one, dict) for one in outputs):
        raise MalformedError("outputs: a list of objects is needed")
    if not all(isinstance(one.get("parameters", {}), dict) for one in outputs):
        raise MalformedError("outputs: the parameters of a tensor must be an object")
    known = [name for name, _ in output_tensors(served)]
    names = [one.get("name") for one in outputs]
    if not all(name in known for name in names):
        raise RefusalError(400, "unknown_output", f"outputs: the tensors of this model are {', '.join(known)}")
    return names or known


def _rows(columns: Mapping[str, list[Any]], served: Served) -> list[Any]:
    """The tensors' rows; a lone tensor may have any name where one value is a whole input."""
    known = input_columns(served)
    if len(columns) == 1 and not columns.keys() & set(known) and _any_name(served):
        (values,) = columns.values()
        return [{known[0]: value} for value in values] if len(known) == 1 else values
    if unknown := columns.keys() - set(known):
        raise MalformedError(f"inputs: the tensors of this model are {', '.join(known)}, not {len(unknown)} others")
    return [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]


def _check(tensor: dict[str, Any]) -> None:
    if tensor.keys() - TENSOR:
        raise MalformedError(f"inputs: only {', '.join(sorted(TENSOR))} may stand in a tensor")
    if not isinstance(tensor.get("name"), str) or not isinstance(tensor.get("data"), list):
        raise MalformedError("inputs: each tensor needs a name and data")
    if tensor.get("datatype", "BYTES") not in ("BYTES", *TYPES):
        raise MalformedError(f"inputs: datatype must be BYTES or one of {', '.join(TYPES)}")
    if "shape" in tensor:
        _check_shape(tensor["shape"], len(tensor["data"]))
    datatype = tensor.get("datatype", "BYTES")
    if datatype != "BYTES" and not all(isinstance(value, int | float | None) for value in _flat(tensor["data"])):
        raise MalformedError(f"inputs: a tensor of datatype {datatype} holds what is no number; texts are BYTES")


def _check_shape(shape: Any, values: int) -> None:
    """That a tensor is one value of each row, as its shape says: ``[rows]``, or ``[rows, 1]``."""
    if not isinstance(shape, list) or not all(
        type(size) is int or (type(size) is float and size % 1 == 0) for size in shape
    ):
        raise MalformedError("inputs: shape must be a list of whole numbers")
    if not shape or shape[0] != values or any(size != 1 for size in shape[1:]):
        raise MalformedError(f"inputs: the shape of a tensor of {values} values must be [{values}] or [{values}, 1]")


def input_columns(served: Served) -> list[str]:
    """The columns that a model reads, one value of each for a row."""
    return list(_columns(served))


def _any_name(served: Served) -> bool:
    shape = served.predictor.bundle.info["signature"]["input"]
    return any(one.get("type") == "string" for one in shape.get("anyOf", [shape]))


def _columns(served: Served) -> dict[str, Schema]:
    shape = served.predictor.bundle.info["signature"]["input"]
    shapes = (one.get("properties") or {} for one in shape.get("anyOf", [shape]))
    single = (names for names in shapes if all(kind.get("type") not in ("array", "object") for kind in names.values()))
    return next((names for names in single if names), {})


def _flat(data: list[Any]) -> Iterator[Any]:
    """The values of a tensor of shape ``[rows]`` or ``[rows, 1]``, which clients that batch send."""
    for value in data:
        if isinstance(value, list) and len(value) != 1:
            raise MalformedError("inputs: a tensor must have the shape [rows] or [rows, 1]")
        yield value[0] if isinstance(value, list) else value


def output_tensors(served: Served) -> list[tuple[str, str]]:
    """The names and the datatypes of what a model answers in tensors."""
    one = served.predictor.signature["output"]
    item = one.get("items", {}) if one.get("type") == "array" else {}
    known = [("answer", "BYTES")]
    if {"label", "score"} <= item.get("properties", {}).keys():
        known += [("label", "BYTES"), ("score", "FP32")]
    if item.get("type") == "number":
        known += [("embedding", "FP32")]
    return known


def _write(
    answers: list[Any], tokens: Sequence[int], *, served: Served, given: str | None, wanted: Sequence[str]
) -> Body:
    best = [answer[0] if isinstance(answer, list) and answer else None for answer in answers]
    columns: dict[str, Callable[[], list[Any]]] = {
        "answer": lambda: [json.dumps(answer, ensure_ascii=False) for answer in answers],
        "label": lambda: [one["label"] if one else "" for one in best],
        "score": lambda: [one["score"] if one else 0.0 for one in best],
        "embedding": lambda: [number for answer in answers for number in answer],
    }
    outputs = []
    for name, datatype in output_tensors(served):
        if name in wanted:
            data = columns[name]()
            shape = [len(answers), len(data) // len(answers)] if name == "embedding" and answers else [len(data)]
            outputs.append({"name": name, "datatype": datatype, "shape": shape, "data": data})
    told = {"model_name": served.name, "model_version": served.version, "outputs": outputs}
    return told | ({"id": given} if given else {})


def model(served: Served, versions: Sequence[str]) -> Body:
    """The answer to ``GET /v2/models/{name}``, which answers in these versions."""
    inputs = [{"name": name, "datatype": "BYTES", "shape": [-1]} for name in input_columns(served) or ["input"]]
    return {
        "name": served.name,
        "versions": list(versions),
        "platform": "headrace",
        "inputs": inputs,
        "outputs": [
            {"name": name, "datatype": datatype, "shape": [-1, -1] if name == "embedding" else [-1]}
            for name, datatype in output_tensors(served)
        ],
    }


ERROR_NAME = "InferenceProtocolError"
ERROR: Schema = described.an_object({"error": TEXT, "code": TEXT, "request_id": TEXT})


def paths(served: Served, max_items: int) -> Paths:
    """What OpenAPI says of ``/v2/models/{name}``; a model whose inputs are no tensors is not asked there."""
    at = f"{PREFIX}models/{served.name}"
    there: Paths = {
        f"{at}/ready": {"get": described.get("Whether this model is loaded and warm.", flag("ready"), ERROR_NAME)},
        at: {"get": described.get("Its tensors.", {"type": "object"}, ERROR_NAME)},
    }
    columns = _columns(served)
    if not columns and not _any_name(served):
        return there
    one = {"type": "array", "minItems": 1, "maxItems": 1}
    cell = {"anyOf": [*columns.values()]} if columns else {}
    data = {"type": "array", "items": {"anyOf": [cell, {**one, "items": cell}]}, "maxItems": max_items}
    tensor = described.an_object(
        {"name": TEXT if _any_name(served) else {"enum": list(columns)}, "data": data},
        {"shape": {"type": "array", "items": {"type": "integer"}}, "datatype": {"enum": ["BYTES", *TYPES]}},
    )
    count = max(1, len(columns))
    tensors = {"type": "array", "items": tensor, "minItems": 1, "maxItems": count}
    parameters = served.predictor.signature["parameters"]
    named = {"name": {"enum": [name for name, _ in output_tensors(served)]}, "parameters": {"type": "object"}}
    wanted = {"type": "array", "items": {"type": "object", "properties": named, "required": ["name"]}}
    body = described.an_object({"inputs": tensors}, {"id": TEXT, "parameters": parameters, "outputs": wanted})
    answer = {"type": "object", "required": ["model_name", "model_version", "outputs"]}
    told = "Tensors named like the model's columns, one value of each row in each."
    asked = described.post(f"Ask {served.name} with tensors.", told, body, answer, ERROR_NAME)
    return {f"{at}/infer": {"post": asked}, **there}
