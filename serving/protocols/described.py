"""Pieces of an OpenAPI document, of which each form describes its own paths."""

from collections.abc import Mapping
from typing import Any

Schema = dict[str, Any]
Paths = dict[str, Any]

ERRORS = {
    400: "The body is not JSON, or a prompt has more tokens than the model reads.",
    401: "A valid key is needed.",
    403: "The key is not good for that.",
    404: "There is no such model.",
    408: "The body arrived too slowly.",
    413: "The body or the list of inputs is too large.",
    415: "The body is not sent as application/json, or as a type that the model reads.",
    422: "A field is missing or wrong; the message names it.",
    429: "Too many requests are waiting, or the key's tokens are used up; Retry-After tells when to come back.",
    500: "Something failed inside the server.",
    503: "No model is ready.",
    504: "The answer was not ready in time.",
}
TEXT: Schema = {"type": "string"}
NUMBERS: Schema = {"type": "array", "items": {"type": "number"}}


def an_object(required: Mapping[str, Schema], optional: Mapping[str, Schema] | None = None) -> Schema:
    """An object with these properties and no others."""
    properties = {**required, **(optional or {})}
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


def post(summary: str, description: str, body: Schema, answer: Schema, error: str, **more: Schema) -> Any:
    """A ``post`` that takes JSON and answers with JSON.

    Args:
        error: the name of the form's error among the document's schemas.
        more: schemas of bodies of other types.
    """
    content = {"application/json": {"schema": body}} | {kind: {"schema": schema} for kind, schema in more.items()}
    return {
        "summary": summary,
        "description": description,
        "requestBody": {"required": True, "content": content},
        "responses": {"200": _content(summary, answer), **_errors(error, *ERRORS)},
    }


def get(
    summary: str, schema: Schema, error: str = "Error", *, kind: str = "application/json", secured: bool = True
) -> Any:
    """A ``get``."""
    operation: dict[str, Any] = {
        "summary": summary,
        "responses": {"200": _content(summary, schema, kind), **_errors(error, 401, 403, 404, 503)},
    }
    return operation if secured else operation | {"security": []}


def flag(name: str) -> Schema:
    """An object that says one thing is so."""
    return {"type": "object", "properties": {name: {"type": "boolean"}}, "required": [name]}


def _content(description: str, schema: Any, kind: str = "application/json") -> dict[str, Any]:
    return {"description": description, "content": {kind: {"schema": schema}}}


def _errors(name: str, *statuses: int) -> dict[str, Any]:
    reference = {"$ref": f"#/components/schemas/{name}"}
    return {str(status): _content(ERRORS[status], reference) for status in statuses}
