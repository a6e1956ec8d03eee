"""OpenAI's API, as its own client asks: models, embeddings, completions and chat, whole or streamed.

A body names its model, or the path does: clients whose base address is a model's, as those of text-generation-inference
and text-embeddings-inference, ask these paths behind it and name whatever they please. What OpenAI takes and no model
here can do is refused by name; what says only who asks (``user``) is let pass.
"""

import base64
import datetime as dt
import functools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from cluster.errors import UserError
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
    an_object,
    only_for,
    texts,
    whole_characters,
    whole_numbers,
)
from serving.protocols.written import Texts
from training.inputs.conversations import CONVERSATION, UNFIT, Message, conversation

PREFIX = "/v1/"
ASKED = re.compile(r"(?:/models/([^/]+))?/v1/(.+)")
EMBEDDINGS = {"input", "model", "encoding_format", "dimensions", "user"}


def find(path: str) -> Endpoint | None:
    """One of :data:`CALLS`, of the model that the body names; behind ``/models/{name}`` of that one."""
    asked = ASKED.fullmatch(path)
    call = CALLS.get(asked[2]) if asked else None
    return Endpoint(call, model=asked[1], named=_named) if asked and call else None


def _named(body: Body) -> str:
    name = an_object(body).get("model")
    if not isinstance(name, str):
        raise MalformedError("model: the name of a model is needed; GET /v1/models lists them")
    return name


def embeddings(body: Body, served: Served) -> Call:
    """Vectors of length 1; with ``dimensions`` their first numbers, brought to length 1 again.

    Raises:
        MalformedError: a field is wrong, or the model makes no vectors.
    """
    only_for(served, "sentence-similarity")
    if unknown := an_object(body).keys() - EMBEDDINGS:
        raise MalformedError(f"only {', '.join(sorted(EMBEDDINGS))} may stand in the body, not {len(unknown)} others")
    if "input" not in body or not isinstance(body.get("user", ""), str):
        raise MalformedError("input must be there; user, where it is, a string")
    form, dimensions = body.get("encoding_format"), _whole(body, "dimensions", None, least=1)
    if form not in (None, "float", "base64"):
        raise MalformedError("encoding_format: float or base64 is needed")
    inputs = _some(body["input"], "input")
    write = functools.partial(_write, model=served.name, compact=form == "base64", dimensions=dimensions)
    return Call(list(inputs), EMPTY, write)


def _some(value: Any, where: str) -> list[str]:
    """One text or several, as a list.

    Raises:
        MalformedError: it is something else, or none.
    """
    several = texts(value, where)
    if not several:
        raise MalformedError(f"{where}: a string or a list of strings is needed, at least one")
    return several


def _write(
    answers: list[Any], tokens: Sequence[int], *, model: str, compact: bool, dimensions: int | None
) -> dict[str, Any]:
    data = []
    for index, answer in enumerate(answers):
        vector = np.asarray(answer, dtype="<f4")
        if dimensions is not None:
            if dimensions > len(vector):
                raise MalformedError(f"dimensions: the vectors of this model have {len(vector)}")
            vector = vector[:dimensions] / max(float(np.linalg.norm(vector[:dimensions])), 1e-12)
        written = base64.b64encode(vector.tobytes()).decode() if compact else vector.tolist()
        data.append({"object": "embedding", "index": index, "embedding": written})
    usage = {"prompt_tokens": sum(tokens), "total_tokens": sum(tokens)}
    return {"object": "list", "data": data, "model": model, "usage": usage}


# --- texts ------------------------------------------------------------------------------------------------------------

COMPLETION = {
    "model",
    "max_tokens",
    "temperature",
    "top_p",
    "stop",
    "stream",
    "stream_options",
    "logprobs",
    "n",
    "seed",
    "user",
}
"""What both of the paths take that write texts."""


def completions(body: Body, served: Served) -> Composition:
    """What a model writes after a prompt, or after each of several.

    Raises:
        MalformedError: a field is wrong, or the model writes nothing.
    """
    _only_writers(served, chat=False)
    _check_fields(body, COMPLETION | {"prompt", "echo", "best_of", "suffix"})
    prompts = _some(body.get("prompt"), "prompt")
    wanted = body.get("logprobs")
    if isinstance(wanted, bool) or wanted not in (None, 0):
        raise MalformedError("logprobs: 0 is to be had, the log-probability of each token that was written")
    return _composition(body, served, list(prompts), "text_completion", told=wanted == 0)


def chat(body: Body, served: Served) -> Composition:
    """What a model writes next in a conversation.

    Raises:
        MalformedError: a field is wrong, or the model takes no conversations.
        UserError: the messages are no conversation.
    """
    _only_writers(served, chat=True)
    _check_fields(body, COMPLETION | {"messages", "max_completion_tokens", "top_logprobs", "response_format"})
    messages = _messages(body.get("messages"), served)
    if body.get("top_logprobs"):
        raise MalformedError("top_logprobs: only 0 is to be had")
    told = body.get("logprobs")
    if not isinstance(told, bool | None):
        raise MalformedError("logprobs: true or false is needed")
    return _composition(body, served, [messages], "chat.completion", told=bool(told))


def _messages(value: Any, served: Served) -> list[Message]:
    """A conversation that the model's template takes.

    Raises:
        UserError, MalformedError: it is none, or the template takes no such; names the message.
    """
    whole_characters(value, "messages")
    messages = conversation(value, "messages")
    try:
        served.predictor.rows([messages])
    except UserError:
        raise MalformedError(f"messages: {UNFIT}") from None
    return messages


def _only_writers(served: Served, *, chat: bool) -> None:
    only_for(served, "text-generation")
    if chat and not _talks(served):
        there = "/v1/completions" if _reads_texts(served) else f"/models/{served.name}"
        raise MalformedError(f"model: '{served.name}' takes a prompt and no conversation; ask it at {there}")
    if not chat and not _reads_texts(served):
        raise MalformedError(f"model: '{served.name}' reads several columns; ask it at /models/{served.name}")


def _talks(served: Served) -> bool:
    return _reads(served, "array")


def _reads_texts(served: Served) -> bool:
    return _reads(served, "string")


def _reads(served: Served, kind: str) -> bool:
    shapes = served.predictor.bundle.info["signature"]["input"].get("anyOf", [])
    return any(shape.get("type") == kind for shape in shapes)


SCHEMA = {"name", "description", "schema", "strict"}
NEVER = {"echo": False, "best_of": 1, "suffix": None}
"""Fields that have one value that changes nothing, and are refused with another."""


def _check_fields(body: Body, known: set[str]) -> None:
    if an_object(body).keys() - known:
        raise MalformedError(f"only {', '.join(sorted(known))} may stand in the body")
    for name, value in NEVER.items():
        if body.get(name) not in (None, value):
            raise MalformedError(f"{name}: this model does not do that")
    if not isinstance(body.get("user", ""), str):
        raise MalformedError("user: a string is needed")


def _composition(body: Body, served: Served, inputs: list[Any], kind: str, *, told: bool) -> Composition:
    most = _whole(body, "max_completion_tokens" if "max_completion_tokens" in body else "max_tokens", None, least=1)
    longest = served.predictor.bundle.info["signature"]["parameters"]["properties"]["max_new_tokens"]["maximum"]
    stop = [] if body.get("stop") is None else body["stop"]
    parameters = {"max_new_tokens": min(most or longest, longest), "stop": [stop] if isinstance(stop, str) else stop}
    sampling = Sampling(
        temperature=_number(body, "temperature", 0.0, most=2.0),
        top_p=_number(body, "top_p", 1.0, most=1.0),
        seed=_whole(body, "seed", None),
        schema=_schema(body.get("response_format")),
    )
    form = Texts(kind, served, told=told)
    streamed, options = body.get("stream"), body.get("stream_options")
    if not isinstance(streamed, bool | None) or not isinstance(options, dict | None):
        raise MalformedError("stream, stream_options: true or false, and an object, are needed")
    counted = bool((options or {}).get("include_usage"))
    return Composition(
        inputs,
        parameters,
        sampling,
        _whole(body, "n", 1, least=1),
        form.whole,
        form.event if streamed else None,
        functools.partial(form.last, counted=counted),
    )


def _number(body: Body, name: str, default: float, *, most: float) -> float:
    value = body.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
        raise MalformedError(f"{name}: a number from 0 to {most:g} is needed")
    return float(value)


def _whole(body: Body, name: str, default: Any, *, least: int | None = None) -> Any:
    value = whole_numbers({name: body.get(name)})[name]
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or (least is not None and value < least):
        raise MalformedError(f"{name}: a whole number{'' if least is None else f' from {least} up'} is needed")
    return value


def _schema(wanted: Any) -> str | None:
    """The JSON schema that a text is to keep to, as JSON; None where it may be any text."""
    if wanted is None or wanted == {"type": "text"}:
        return None
    if wanted == {"type": "json_object"}:
        return json.dumps({"type": "object"})
    named = wanted.get("json_schema") if isinstance(wanted, dict) else None
    schema = named.get("schema") if isinstance(named, dict) and named.keys() <= SCHEMA else None
    if not isinstance(schema, dict) or wanted != {"type": "json_schema", "json_schema": named}:
        raise MalformedError(
            "response_format: an object with the type text, json_object or json_schema is needed, the last with a "
            f"json_schema that has a schema, and may have {', '.join(sorted(SCHEMA - {'schema'}))}"
        )
    whole_characters(schema, "response_format")
    return json.dumps(schema)


CALLS: dict[str, Callable[[Body, Served], Call | Composition]] = {
    "embeddings": embeddings,
    "completions": completions,
    "chat/completions": chat,
}


# --- what there is ----------------------------------------------------------------------------------------------------


def models(served: Mapping[str, Served]) -> Body:
    """The answer to ``GET /v1/models``."""
    return {"object": "list", "data": [model(one) for one in served.values()]}


def model(served: Served) -> Body:
    """The answer to ``GET /v1/models/{name}``."""
    created = dt.datetime.fromisoformat(served.predictor.bundle.info["created"])
    return {"id": served.name, "object": "model", "created": int(created.timestamp()), "owned_by": "headrace"}


ERROR_NAME = "OpenAIError"
_told = {"message": TEXT, "type": TEXT, "param": {"type": ["string", "null"]}, "code": TEXT, "request_id": TEXT}
ERROR: Schema = {"type": "object", "properties": {"error": described.an_object(_told)}, "required": ["error"]}


def paths(models: Mapping[str, Served], max_items: int) -> Paths:
    """What OpenAPI says of ``/v1``."""
    there: Paths = {f"{PREFIX}models": {"get": described.get("The models.", {"type": "object"}, ERROR_NAME)}}
    for name in models:
        there[f"{PREFIX}models/{name}"] = {"get": described.get("One model.", {"type": "object"}, ERROR_NAME)}
    for path, (task, body, answered) in _asked(list(models.values()), max_items):
        there[f"{PREFIX}{path}"] = {"post": _described(task, body, answered)}
    for name, one in models.items():
        for path, (task, body, answered) in _asked([one], max_items):
            anyone = {**body, "properties": body["properties"] | {"model": {}}}
            unnamed = {**anyone, "required": [field for field in body["required"] if field != "model"]}
            there[f"/models/{name}{PREFIX}{path}"] = {"post": _described(task, unnamed, answered)}
    return there


def _asked(models: Sequence[Served], max_items: int) -> Iterator[tuple[str, tuple[str, Schema, str]]]:
    """Which of :data:`CALLS` some models take; of each the task, the body, and where the answers stand."""
    many = {"anyOf": [TEXT, {"type": "array", "items": TEXT, "minItems": 1, "maxItems": max_items}]}
    makers, writers = ([one for one in models if one.predictor.task.name == task] for task in SUMMARIES)
    if makers:
        yield "embeddings", ("sentence-similarity", _embedding_body(makers, many), "data")
    if talking := list(filter(_talks, writers)):
        more = {"logprobs": {"type": ["boolean", "null"]}, "response_format": FORMAT}
        body = _text_body(talking, {"messages": CONVERSATION}, more, max_items)
        yield "chat/completions", ("text-generation", body, "choices")
    if prompted := list(filter(_reads_texts, writers)):
        body = _text_body(prompted, {"prompt": many}, {"logprobs": {"enum": [None, 0]}}, max_items)
        yield "completions", ("text-generation", body, "choices")


SUMMARIES = {
    "sentence-similarity": "A vector of length 1 for each input, as OpenAI's embeddings.",
    "text-generation": "What a model writes, whole or as server-sent events, as OpenAI's completions.",
}


_one_kind = {"type": "object", "properties": {"type": {"enum": ["text", "json_object"]}}, "required": ["type"]}
FORMAT: Schema = {"anyOf": [{"type": "null"}, {**_one_kind, "additionalProperties": False}]}
"""What may be described of ``response_format``: which schemas a text can be held to is not to be said in one."""


def _described(task: str, body: Schema, answered: str) -> Any:
    answer = {"type": "object", "properties": {answered: {"type": "array"}}, "required": [answered, "model", "usage"]}
    return described.post(SUMMARIES[task], "", body, answer, ERROR_NAME)


def _embedding_body(makers: Sequence[Served], many: Schema) -> Schema:
    widest = min(served.predictor.model.config.hidden_size for served in makers)
    return described.an_object(
        {"model": {"enum": [served.name for served in makers]}, "input": many},
        {
            "encoding_format": {"enum": ["float", "base64", None]},
            "dimensions": {"type": ["integer", "null"], "minimum": 1, "maximum": widest},
            "user": TEXT,
        },
    )


def _text_body(
    writers: Sequence[Served], asked: Mapping[str, Schema], more: Mapping[str, Schema], max_items: int
) -> Schema:
    stops = writers[0].predictor.bundle.info["signature"]["parameters"]["properties"]["stop"]
    return described.an_object(
        {"model": {"enum": [served.name for served in writers]}, **asked},
        {
            "max_tokens": {"type": ["integer", "null"], "minimum": 1},
            "stop": {"anyOf": [stops["items"], stops, {"type": "null"}]},
            "temperature": {"type": ["number", "null"], "minimum": 0, "maximum": 2},
            "top_p": {"type": ["number", "null"], "minimum": 0, "maximum": 1},
            "stream": {"enum": [False, None]},
            "n": {"type": ["integer", "null"], "minimum": 1, "maximum": max_items},
            "seed": {"type": ["integer", "null"]},
            "user": TEXT,
            **more,
        },
    )
