"""The OpenAPI document: the paths of each form, with the schemas that the bundles state."""

from collections.abc import Mapping
from typing import Any

from serving.lineup import Served
from serving.protocols import huggingface, oip, openai, tei
from serving.protocols.described import TEXT, flag, get
from serving.recipe import Serve


def document(models: Mapping[str, Served], options: Serve, keys: bool) -> dict[str, Any]:
    """OpenAPI 3.1 of everything that this address answers."""
    paths: dict[str, Any] = {}
    for form in (huggingface, tei, oip):
        for served in models.values():
            paths |= form.paths(served, options.max_items)
    paths |= openai.paths(models, options.max_items)
    paths |= {
        "/models": {"get": get("The models and what they take and answer.", {"type": "array", "items": {}})},
        "/health": {"get": get("Whether a model is loaded.", flag("ready"), secured=False)},
        "/v2": {"get": get("What this server is.", {"type": "object"}, "InferenceProtocolError")},
        "/v2/health/live": {"get": get("Whether the server is alive.", flag("live"), secured=False)},
        "/v2/health/ready": {"get": get("Whether every model is loaded and warm.", flag("ready"), secured=False)},
        "/metrics": {"get": get("Prometheus metrics.", TEXT, kind="text/plain")},
        "/dashboard.json": {"get": get("A Grafana dashboard of these metrics.", {"type": "object"})},
    }
    components: dict[str, Any] = {"schemas": {form.ERROR_NAME: form.ERROR for form in (huggingface, tei, oip, openai)}}
    if keys:
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "headrace", "version": "1", "description": "Models behind one address."},
        "paths": paths,
        "components": components,
        **({"security": [{"key": []}]} if keys else {}),
    }
