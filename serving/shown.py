"""What the edge shows to whoever reads: pages, health, metrics, and what the models are, in every form."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from serving import openapi
from serving.exchange import Headers, RefusalError, Response, write_json
from serving.lineup import Served
from serving.metrics import CONTENT_TYPE as METRICS_TYPE
from serving.metrics import Metrics
from serving.model import Model
from serving.protocols import huggingface, oip, openai, tei
from serving.recipe import Serve

METRICS_PATH = "/metrics"
DASHBOARD_PATH = "/dashboard.json"
ADMIN_PATHS = {METRICS_PATH, DASHBOARD_PATH}
"""For keys that administer."""

OPEN_PATHS = {"/", "/docs", "/health", "/v2/health/live", "/v2/health/ready"}
"""Two pages without data, and who only asks "alive?": no key is asked for."""

HTML = "text/html; charset=utf-8"
# The pages bring their script and style along and talk to this server alone.
PAGE_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
PAGE_HEADERS: Headers = (("content-security-policy", PAGE_POLICY), ("referrer-policy", "no-referrer"))
TEI_SHOWN = re.compile(r"/models/([^/]+)/(info|health)")
OPENAI_MODEL = re.compile(r"/v1/models/([^/]+)")


Models = Mapping[str, Model]
"""The models that whoever asks may see, by name."""


def find(models: Models, name: str) -> Model:
    """The model of that name.

    Raises:
        RefusalError: 404, there is none.
    """
    model = models.get(name)
    if model is None:
        raise RefusalError(404, "unknown_model", "there is no model of this name; GET /models lists them")
    return model


def find_version(model: Model, version: str) -> Served:
    """The version of that number.

    Raises:
        RefusalError: 404, it does not answer.
    """
    served = model.of_version(version)
    if served is None:
        there = [route.served.version for route in model.routes]
        told = f"the version that is served is {there[0]}" if len(there) == 1 else f"there are {' and '.join(there)}"
        raise RefusalError(404, "unknown_version", told)
    return served


def only(models: Models) -> str:
    """The name of the only model.

    Raises:
        RefusalError: 404, there are several, or none.
    """
    if len(models) != 1:
        raise RefusalError(404, "unknown_model", "name a model: /models/NAME/… ; GET /models lists them")
    return next(iter(models))


class Shown:
    """Everything that GET answers.

    Args:
        secured: whether keys are asked for.
    """

    def __init__(self, options: Serve, metrics: Metrics, *, secured: bool) -> None:
        self._options, self._metrics, self._secured = options, metrics, secured
        self._pages = {"/": _file("try.html"), "/docs": _file("docs.html")}

    def content(self, path: str, models: Models) -> Callable[[], Response]:
        """What is at a path, made when it is called.

        Raises:
            RefusalError: 404, there is nothing.
        """
        if path in self._pages:
            page = Response(200, self._pages[path], HTML, PAGE_HEADERS)
            return lambda: page
        fixed: dict[str, Callable[[], Response]] = {
            "/health": lambda: _ready(models),
            "/v2/health/live": lambda: _json({"live": True}),
            "/v2/health/ready": lambda: _ready(models),
            "/v2": lambda: _json({"name": "headrace", "version": "1", "extensions": []}),
            "/v1/models": lambda: _json(openai.models(_leading(models))),
            METRICS_PATH: lambda: Response(200, self._metrics.page(), METRICS_TYPE),
            DASHBOARD_PATH: lambda: Response(200, _file("dashboard.json")),
            "/models": lambda: _json([_about(model, models) for model in models.values()]),
            "/info": lambda: self._info(find(models, only(models)).leading),
            "/openapi.json": lambda: _json(openapi.document(_leading(models), self._options, self._secured)),
        }
        return fixed.get(path) or self._of_model(path, models)

    def _of_model(self, path: str, models: Models) -> Callable[[], Response]:
        if match := TEI_SHOWN.fullmatch(path):
            served = find(models, match[1]).leading
            return (lambda: self._info(served)) if match[2] == "info" else (lambda: _json({"ready": True}))
        if match := OPENAI_MODEL.fullmatch(path):
            served = find(models, match[1]).leading
            return lambda: _json(openai.model(served))
        if (match := oip.MODEL.fullmatch(path)) and match[3] != "/infer":
            model = find(models, match[1])
            served = find_version(model, match[2]) if match[2] else model.leading
            if match[3] == "/ready":
                return lambda: _json({"name": served.name, "ready": True})
            versions = [served.version] if match[2] else [route.served.version for route in model.routes]
            return lambda: _json(oip.model(served, versions))
        if huggingface.find(path):
            model = find(models, path.removeprefix(huggingface.PREFIX))
            return lambda: _json(_about(model, models), (("x-headrace-version", model.leading.version),))
        raise RefusalError(404, "not_found", "there is nothing at this path; GET /docs tells what there is")

    def _info(self, served: Served) -> Response:
        return _json(tei.info(served, self._options.max_items, self._options.max_queue))


def _about(model: Model, models: Models) -> dict[str, Any]:
    """What a model tells of itself, to one for whom there are ``models`` and no others."""
    told = model.about()
    return {**told, "shares_base_with": [name for name in told["shares_base_with"] if name in models]}


def _leading(models: Models) -> Mapping[str, Served]:
    """What each model is described by."""
    return {name: model.leading for name, model in models.items()}


def _ready(models: Models) -> Response:
    if not models:
        raise RefusalError(503, "not_ready", "no model is loaded", (("retry-after", "1"),))
    return _json({"ready": True})


def _json(value: object, headers: Headers = ()) -> Response:
    return Response(200, write_json(value), headers=headers)


def _file(name: str) -> bytes:
    return (Path(__file__).parent / name).read_bytes()
