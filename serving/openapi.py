"""The OpenAPI document: one path for each model, with the schemas that its bundle states."""

from collections.abc import Mapping
from typing import Any

from serving.lineup import Served
from serving.protocols import huggingface
from serving.recipe import Serve

ERRORS = {
    400: "The body is not JSON.",
    401: "A valid key is needed.",
    404: "There is no such model.",
    408: "The body arrived too slowly.",
    413: "The body or the list of inputs is too large.",
    415: "The body is not sent as application/json, or as a type that the model reads.",
    422: "A field is missing or wrong; the message names it.",
    429: "Too many requests are waiting; Retry-After tells when to come back.",
    500: "Something failed inside the server.",
    503: "No model is ready.",
    504: "The answer was not ready in time.",
}
ERROR = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {
                "code": {"type": "string"},
                "message": {"type": "string"},
                "request_id": {"type": "string"},
            },
            "required": ["code", "message", "request_id"],
        }
    },
    "required": ["error"],
}


def document(models: Mapping[str, Served], options: Serve, keys: bool) -> dict[str, Any]:
    """OpenAPI 3.1 of everything that this address answers."""
    paths: dict[str, Any] = {}
    for name, served in models.items():
        paths[f"/models/{name}"] = {
            "post": _question(served, options),
            "get": _read("Version, task, signature and metrics.", {"type": "object"}),
        }
        paths[f"/v2/models/{name}/ready"] = {"get": _read("Whether this model is loaded and warm.", _flag("ready"))}
    paths |= {
        "/models": {"get": _read("The models and what they take and answer.", {"type": "array", "items": {}})},
        "/v2/health/live": {"get": _read("Whether the server is alive.", _flag("live"), secured=False)},
        "/v2/health/ready": {"get": _read("Whether every model is loaded and warm.", _flag("ready"), secured=False)},
        "/metrics": {"get": _read("Prometheus metrics.", {"type": "string"}, kind="text/plain")},
    }
    components: dict[str, Any] = {"schemas": {"Error": ERROR}}
    if keys:
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "headrace", "version": "1", "description": "Models behind one address."},
        "paths": paths,
        "components": components,
        **({"security": [{"key": []}]} if keys else {}),
    }


def _question(served: Served, options: Serve) -> dict[str, Any]:
    info = served.predictor.bundle.info
    schema = huggingface.schema(info["signature"], options.max_items, served.predictor.task.lone_answer)
    bodies: dict[str, Any] = {"application/json": {"schema": schema["body"]}}
    if media := huggingface.media(info["signature"]):
        bodies |= {kind: {"schema": {}} for kind in (f"{media}/*", "application/octet-stream")}
    return {
        "summary": info["recipe"].get("description") or f"Ask {served.name}.",
        "description": f"Hugging Face inference, {info['task']}, version {served.version}.",
        "requestBody": {"required": True, "content": bodies},
        "responses": {"200": _content("The answers, one for each input.", schema["answer"]), **_errors()},
    }


def _read(summary: str, schema: dict[str, Any], *, kind: str = "application/json", secured: bool = True) -> Any:
    operation: dict[str, Any] = {
        "summary": summary,
        "responses": {"200": _content(summary, schema, kind), **_errors(401, 404, 503)},
    }
    return operation if secured else operation | {"security": []}


def _content(description: str, schema: Any, kind: str = "application/json") -> dict[str, Any]:
    return {"description": description, "content": {kind: {"schema": schema}}}


def _errors(*statuses: int) -> dict[str, Any]:
    reference = {"$ref": "#/components/schemas/Error"}
    return {str(status): _content(ERRORS[status], reference) for status in statuses or ERRORS}


def _flag(name: str) -> dict[str, Any]:
    return {"type": "object", "properties": {name: {"type": "boolean"}}, "required": [name]}
