"""What clients of text-embeddings-inference ask: ``/predict``, ``/embed``, ``/similarity``, ``/rerank`` and ``/info``.

Such a server has one model. Here the paths stand behind ``/models/{name}``, which is then the client's base address; at
the root they ask the only model that is served.
"""

import functools
from collections.abc import Sequence
from typing import Any

from serving.lineup import Served
from serving.predictor import EMPTY
from serving.protocols import described
from serving.protocols.described import NUMBERS, TEXT, Paths, Schema, flag
from serving.protocols.form import Body, Call, Endpoint, MalformedError, an_object, only_for, texts, whole_characters
from serving.refusals import TEI_CALLS

PREFIX = "/models/"


def find(path: str) -> Endpoint | None:
    """One of :data:`CALLS`, at the root or behind ``/models/{name}``."""
    asked = TEI_CALLS.fullmatch(path)
    return Endpoint(CALLS[asked[2]], model=asked[1]) if asked else None


def predict(body: Body, served: Served) -> Call:
    """Labels and their probabilities of a text, a pair of texts, or a list that holds lists of one or two.

    Raises:
        MalformedError: a field is wrong, or the model knows no labels.
    """
    only_for(served, "text-classification")
    _check_options(body, raw_scores=False, truncate=None)
    inputs = body.get("inputs")
    several = isinstance(inputs, list) and bool(inputs) and all(isinstance(one, list) for one in inputs)
    asked = inputs if several else [inputs]
    rows = [_row(one, f"inputs[{index}]" if several else "inputs", served) for index, one in enumerate(asked)]
    every = {"top_k": len(served.predictor.task.labels)} if served.predictor.task.labels else EMPTY
    return Call(rows, every, lambda answers, tokens: answers if several else answers[0])


def _row(value: Any, where: str, served: Served) -> Any:
    """A sequence of one or two texts as the model's one or two columns."""
    parts = texts(value, where)
    columns = _columns(served)
    if len(columns) != len(parts):
        raise MalformedError(f"{where}: this model reads {len(columns)} texts, not {len(parts)}")
    return dict(zip(columns, parts, strict=True))


def _columns(served: Served) -> list[str]:
    shape = served.predictor.bundle.info["signature"]["input"]
    return next(list(one["properties"]) for one in shape.get("anyOf", [shape]) if "properties" in one)


def embed(body: Body, served: Served) -> Call:
    """A vector of length 1 for each text.

    Raises:
        MalformedError: a field is wrong, or the model makes no vectors.
    """
    only_for(served, "sentence-similarity")
    _check_options(body, normalize=True, truncate=None, prompt_name=None, dimensions=None)
    return Call(list(texts(body.get("inputs"), "inputs")), EMPTY, lambda answers, tokens: answers)


def similarity(body: Body, served: Served) -> Call:
    """How near each of some sentences is to one.

    Raises:
        MalformedError: a field is wrong, or the model makes no vectors.
    """
    only_for(served, "sentence-similarity")
    _check_options(body)
    inputs = body.get("inputs")
    if not isinstance(inputs, dict) or not inputs.get("sentences") or inputs.keys() - {"source_sentence", "sentences"}:
        raise MalformedError("inputs: an object with source_sentence and sentences is needed")
    whole_characters(inputs, "inputs")
    return Call([inputs], EMPTY, lambda answers, tokens: answers[0])


def rerank(body: Body, served: Served) -> Call:
    """The texts by how well they answer the query, best first.

    Raises:
        MalformedError: a field is wrong, or the model ranks nothing.
    """
    only_for(served, "text-ranking")
    raw, returned = an_object(body).get("raw_scores", False), body.get("return_text", False)
    _check_options(body, truncate=None, raw_scores=raw, return_text=returned)
    if not isinstance(raw, bool) or not isinstance(returned, bool):
        raise MalformedError("raw_scores, return_text: true or false is needed")
    asked = {"query": body.get("query"), "texts": body.get("texts")}
    whole_characters(asked, "query, texts")
    write = functools.partial(_ranked, texts=asked["texts"] if returned else None)
    return Call([asked], {"raw_scores": raw}, write)


def _ranked(answers: list[Any], tokens: Sequence[int], *, texts: list[str] | None) -> Body:
    return answers[0] if texts is None else [one | {"text": texts[one["index"]]} for one in answers[0]]


CALLS = {"predict": predict, "embed": embed, "similarity": similarity, "rerank": rerank}


CUT_AT = ("Right", "right", None)
"""How the form says that a text keeps its beginning, which is its default."""


def _check_options(body: Body, **had: Any) -> None:
    """Refuses what would change the answer in a way that is not to be had; ``None`` lets anything pass that is null,
    false or true without changing it."""
    for name, value in an_object(body).items():
        if name == "truncation_direction" and value not in CUT_AT:
            raise MalformedError("truncation_direction: this model reads the beginning of a text that is too long")
        if name in ("inputs", "query", "texts", "truncation_direction"):
            continue
        if name not in had:
            raise MalformedError(f"only {', '.join(sorted(had)) or 'nothing'} may stand beside the texts")
        wanted = had[name]
        if value is not None and (value != wanted if wanted is not None else not isinstance(value, bool)):
            raise MalformedError(f"{name}: this model does not do that")


def info(served: Served, max_items: int, max_queue: int) -> Body:
    """The answer to ``GET /info``."""
    about, task = served.predictor.bundle.info, served.predictor.task
    labels = dict(enumerate(task.labels))
    kinds: dict[str, Any] = {
        "sentence-similarity": {"embedding": {"pooling": getattr(task, "pooling", "mean")}},
        "text-ranking": {"reranker": {"id2label": {"0": "relevance"}, "label2id": {"relevance": 0}}},
    }
    classifier = {"classifier": {"id2label": labels, "label2id": {name: index for index, name in labels.items()}}}
    return {
        "model_id": served.name,
        "model_sha": served.version,
        "model_dtype": "float32",
        "model_type": kinds.get(task.name, classifier),
        "max_concurrent_requests": max_queue,
        "max_input_length": _longest(task),
        "max_batch_tokens": served.predictor.budget,
        "max_client_batch_size": max_items,
        "auto_truncate": True,
        "version": about["versions"].get("headrace", ""),
    }


def _longest(task: Any) -> int | None:
    reader = getattr(task, "reader", None) or getattr(getattr(task, "pairs", None), "query", None)
    return getattr(reader, "max_length", None)


ERROR_NAME = "EmbeddingsError"
ERROR: Schema = described.an_object({"error": TEXT, "error_type": TEXT, "code": TEXT, "request_id": TEXT})
YES_OR_NO: Schema = {"type": ["boolean", "null"]}
RANK: Schema = {"type": "array", "items": {"type": "object", "required": ["index", "score"]}}
LABELS: Schema = {"type": "array", "items": {"type": "object", "required": ["label", "score"]}}


def paths(served: Served, max_items: int) -> Paths:
    """What OpenAPI says of the paths behind ``/models/{name}``."""
    many = {"type": "array", "items": TEXT, "maxItems": max_items}
    compared = described.an_object({"source_sentence": TEXT, "sentences": many | {"minItems": 1}})
    bodies: dict[str, dict[str, tuple[Schema, Schema]]] = {
        "sentence-similarity": {
            "embed": (
                described.an_object({"inputs": {"anyOf": [TEXT, many]}}, {"normalize": {"enum": [True, None]}}),
                {"type": "array", "items": NUMBERS},
            ),
            "similarity": (described.an_object({"inputs": compared}), NUMBERS),
        },
        "text-ranking": {
            "rerank": (
                described.an_object(
                    {"query": TEXT, "texts": many | {"minItems": 1}},
                    {"raw_scores": {"type": "boolean"}, "return_text": {"type": "boolean"}, "truncate": YES_OR_NO},
                ),
                RANK,
            )
        },
        "text-classification": {
            "predict": (
                described.an_object({"inputs": _sequence(served)}, {"truncate": YES_OR_NO}),
                LABELS,
            )
        },
    }
    behind = f"{PREFIX}{served.name}/"
    there = {
        f"{behind}info": {"get": described.get("What the model is.", {"type": "object"}, ERROR_NAME)},
        f"{behind}health": {"get": described.get("Whether the model is served.", flag("ready"), ERROR_NAME)},
    }
    for name, (body, answer) in bodies.get(served.predictor.task.name, {}).items():
        summary = f"{name} as text-embeddings-inference has it."
        there[behind + name] = {"post": described.post(summary, "", body, answer, ERROR_NAME)}
    return there


def _sequence(served: Served) -> Schema:
    """One text, or as many as the model reads."""
    count = len(_columns(served))
    several = {"type": "array", "items": TEXT, "minItems": count, "maxItems": count}
    return {"anyOf": [TEXT, several]} if count == 1 else several
