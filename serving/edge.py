"""The edge: HTTP in, JSON out. A bare ASGI app, because what a framework does for each request costs more than ours.

The way of a question: ``Edge.__call__`` -> ``Edge.ask`` -> ``Scheduler.submit`` -> ``Predictor.answer``.
Errors are JSON with a stable ``code``, a plain ``message`` and the request's id. Nothing that a client wrote is ever
repeated in an error or a log.
"""

import asyncio
import json
import logging
import math
import re
import time
import traceback
import uuid
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from cluster.errors import UserError
from serving import openapi
from serving.keys import Keys
from serving.lineup import Served
from serving.metrics import CONTENT_TYPE as METRICS_TYPE
from serving.metrics import Metrics
from serving.protocols import huggingface
from serving.recipe import Serve
from serving.scheduler import ClosedError, ExpiredError, OverloadedError

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Headers = tuple[tuple[str, str], ...]

MODELS = "/models/"
OPEN_PATHS = {"/", "/docs", "/v2/health/live", "/v2/health/ready"}  # two pages without data, and who only asks "alive?"
SAFE_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
MODEL_READY = re.compile(r"/v2/models/([^/]+)/ready")
JSON = "application/json"
BYTES = "application/octet-stream"
HTML = "text/html; charset=utf-8"
# The pages bring their script and style along and talk to this server alone.
PAGE_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
UNKNOWN = "-"  # the metric labels of a request that names no model we have: the client's word is not a label

logger = logging.getLogger(__name__)


class Lineup(Protocol):
    """Where the edge finds the models; looked up anew for every request."""

    models: dict[str, Served]


@dataclass(frozen=True)
class Response:
    """A whole answer."""

    status: int
    body: bytes
    content_type: str = JSON
    headers: Headers = ()


class RefusalError(Exception):
    """A request that gets an error; ``code`` is stable, ``message`` is for people."""

    def __init__(self, status: int, code: str, message: str, headers: Headers = ()) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.headers = status, code, message, headers


@dataclass(frozen=True)
class Request:
    """What the edge needs of an ASGI scope."""

    method: str
    path: str
    headers: dict[str, str]
    request_id: str
    receive: Receive

    @classmethod
    def of(cls, scope: Scope, receive: Receive) -> "Request":
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        given = headers.get("x-request-id", "")
        request_id = given if SAFE_REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        path = scope["path"].removeprefix(scope.get("root_path", "").rstrip("/")) or "/"
        return cls(scope["method"], path, headers, request_id, receive)


class Edge:
    """All models behind one address.

    Args:
        lineup: has the models.
        options: limits.
        metrics: is told of every question.
        keys: who may ask; everyone when None.
        echo_request_id: False where the server around us sends the ``x-request-id`` header already.
    """

    def __init__(
        self,
        lineup: Lineup,
        options: Serve,
        metrics: Metrics,
        keys: Keys | None = None,
        *,
        echo_request_id: bool = True,
    ) -> None:
        self._lineup, self._options, self._metrics, self._keys = lineup, options, metrics, keys
        self._echo_request_id = echo_request_id
        self._pages = {"/": _page("try.html"), "/docs": _page("docs.html")}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
            return
        if scope["type"] != "http":  # a WebSocket: there is none here
            await send({"type": "websocket.close", "code": 1000})
            return
        request = Request.of(scope, receive)
        try:
            if request.method == "POST" and request.path.startswith(MODELS):
                response = await self.ask(request)
            else:
                response = self.show(request)
        except RefusalError as refusal:
            response = _error(refusal, request.request_id)
        except Exception as error:  # noqa: BLE001  a defect of ours: the client gets a code, the log its place
            _log_defect(error, request.request_id)
            response = _error(RefusalError(500, "internal", "something failed inside the server"), request.request_id)
        await self._respond(send, response, request.request_id)

    async def ask(self, request: Request) -> Response:
        """``POST /models/{name}``: a question to a model, answered by the version that is current once it is whole.

        Raises:
            RefusalError: with the status that HTTP has for it.
        """
        with _Counted(self._metrics) as counted:
            self._admit(request)
            name = request.path.removeprefix(MODELS)
            media = huggingface.media(counted.answers(self._find(name)).predictor.bundle.info["signature"])
            raw = _check_content(request, media)
            body = await self._body(request)
            question = huggingface.raw(body) if raw else _question(body, self._options.max_items)
            deadline = counted.started + self._options.timeout_seconds
            while True:
                served = counted.answers(self._find(name))
                try:
                    _check_parameters(served, question.parameters)
                    cell = _cell(served, question)
                    rows = served.predictor.rows(question.inputs)
                    future = served.scheduler.submit([(row, question.parameters) for row in rows], deadline)
                    async with asyncio.timeout(deadline - time.monotonic()):
                        answers = await future
                except ClosedError:
                    if time.monotonic() > deadline:
                        raise _refusal(TimeoutError()) from None
                    await asyncio.sleep(0.01)  # it was replaced this moment; its successor is there already
                except (UserError, OverloadedError, ExpiredError, TimeoutError) as error:
                    raise _refusal(error) from None
                else:
                    version = (("x-headrace-version", served.version),)
                    alone = question.alone and served.predictor.task.lone_answer
                    return Response(200, _json(huggingface.answer(answers, alone, cell)), headers=version)

    def show(self, request: Request) -> Response:
        """Everything that is read: pages, health, metrics, what the models are.

        Raises:
            RefusalError: 401, 404 or 405.
        """
        path = request.path
        if path not in OPEN_PATHS:
            self._admit(request)
        content = self._content(path)
        if request.method not in ("GET", "HEAD"):
            allowed = "GET, HEAD, POST" if path.startswith(MODELS) else "GET, HEAD"
            raise RefusalError(405, "method_not_allowed", f"{path} takes {allowed}", (("allow", allowed),))
        return content()

    def _content(self, path: str) -> Callable[[], Response]:
        models = self._lineup.models
        fixed: dict[str, Callable[[], Response]] = {
            "/v2/health/live": lambda: Response(200, _json({"live": True})),
            "/v2/health/ready": self._ready,
            "/metrics": lambda: Response(200, self._metrics.page(), METRICS_TYPE),
            "/models": lambda: Response(200, _json([served.about() for served in models.values()])),
            "/openapi.json": lambda: Response(200, _json(openapi.document(models, self._options, bool(self._keys)))),
        }
        if path in self._pages:
            page = Response(200, self._pages[path], HTML, _PAGE_HEADERS)
            return lambda: page
        if path in fixed:
            return fixed[path]
        if path.startswith(MODELS):
            served = self._find(path.removeprefix(MODELS))
            return lambda: Response(200, _json(served.about()), headers=(("x-headrace-version", served.version),))
        if match := MODEL_READY.fullmatch(path):
            served = self._find(match[1])
            return lambda: Response(200, _json({"name": served.name, "ready": True}))
        raise RefusalError(404, "not_found", "there is nothing at this path; GET /docs tells what there is")

    def _ready(self) -> Response:
        if not self._lineup.models:
            raise RefusalError(503, "not_ready", "no model is loaded", (("retry-after", "1"),))
        return Response(200, _json({"ready": True}))

    # --- the steps of a question ----------------------------------------------------------------------------------

    def _admit(self, request: Request) -> None:
        if self._keys and self._keys.owner(request.headers.get("authorization")) is None:
            raise RefusalError(
                401,
                "unauthorized",
                "a valid key is needed: Authorization: Bearer KEY",
                (("www-authenticate", "Bearer"),),
            )

    def _find(self, name: str) -> Served:
        served = self._lineup.models.get(name)
        if served is None:
            raise RefusalError(404, "unknown_model", "there is no model of this name; GET /models lists them")
        return served

    async def _body(self, request: Request) -> bytes:
        """The whole body, refused as soon as it is too large or too slow."""
        limit = self._options.max_body_bytes
        too_large = RefusalError(
            413, "body_too_large", f"the body may have at most {limit} bytes", (("connection", "close"),)
        )
        declared = request.headers.get("content-length", "")
        if declared.isdecimal() and int(declared[:20]) > limit:
            raise too_large
        chunks, size = [], 0
        try:
            async with asyncio.timeout(self._options.timeout_seconds):
                while True:
                    message = await request.receive()
                    if message["type"] == "http.disconnect":
                        raise asyncio.CancelledError
                    chunk = message.get("body", b"")
                    size += len(chunk)
                    if size > limit:
                        raise too_large
                    chunks.append(chunk)
                    if not message.get("more_body"):
                        return b"".join(chunks)
        except TimeoutError:
            raise RefusalError(
                408, "body_too_slow", "the body did not arrive in time", (("connection", "close"),)
            ) from None

    async def _respond(self, send: Send, response: Response, request_id: str) -> None:
        headers = [
            (b"content-type", response.content_type.encode()),
            (b"content-length", str(len(response.body)).encode()),
            (b"x-content-type-options", b"nosniff"),
            (b"cache-control", b"no-store"),
            *((name.encode(), value.encode()) for name, value in response.headers),
        ]
        if self._echo_request_id:
            headers.append((b"x-request-id", request_id.encode()))
        await send({"type": "http.response.start", "status": response.status, "headers": headers})
        await send({"type": "http.response.body", "body": response.body})


class _Counted:
    """Tells the metrics of one question, however it ends."""

    def __init__(self, metrics: Metrics) -> None:
        self.started = time.monotonic()
        self._metrics, self._labels = metrics, (UNKNOWN, UNKNOWN)

    def answers(self, served: Served) -> Served:
        """Says who the question is for."""
        self._labels = (served.name, served.version)
        return served

    def __enter__(self) -> "_Counted":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._metrics.request(*self._labels, "ok", time.monotonic() - self.started)
        elif isinstance(error, RefusalError):
            self._metrics.request(*self._labels, error.code, None)
        else:
            gone = isinstance(error, asyncio.CancelledError)
            self._metrics.request(*self._labels, "client_gone" if gone else "internal", None)


def _refusal(error: Exception) -> RefusalError:
    """What HTTP says of a question that could not be answered."""
    if isinstance(error, UserError):
        return RefusalError(422, "invalid_input", str(error))
    if isinstance(error, OverloadedError):
        wait = str(max(1, math.ceil(error.retry_after)))
        return RefusalError(
            429, "overloaded", f"too many requests are waiting; try again in {wait} s", (("retry-after", wait),)
        )
    return RefusalError(504, "deadline_exceeded", "the answer was not ready in time")


_PAGE_HEADERS: Headers = (("content-security-policy", PAGE_POLICY), ("referrer-policy", "no-referrer"))


def _check_content(request: Request, media: str | None) -> bool:
    """JSON, or the bytes of a picture or sound where the model takes such; whether it is the latter.

    A browser cannot be talked into sending any of these types to us from a foreign page. Bytes without a type are taken
    from a client that does not say which page asks, as every browser does.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    untyped = not kind and "origin" not in request.headers
    raw = media is not None and (kind == BYTES or kind.startswith(f"{media}/") or untyped)
    if kind != JSON and not raw:
        taken = f"{JSON}, {media}/… or {BYTES}" if media else JSON
        raise RefusalError(415, "unsupported_media_type", f"the body must be sent as content-type: {taken}")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise RefusalError(415, "unsupported_encoding", "the body must be sent uncompressed")
    return raw


def _question(body: bytes, max_items: int) -> huggingface.Question:
    try:
        question = huggingface.parse(json.loads(body, parse_constant=_no_constant))
    except huggingface.MalformedError as error:
        raise RefusalError(422, "invalid_request", str(error)) from None
    except (ValueError, RecursionError):  # a ValueError also for half a character and for numbers of 5,000 digits
        raise RefusalError(400, "malformed_json", "the body is not valid JSON") from None
    if len(question.inputs) > max_items:
        raise RefusalError(413, "too_many_inputs", f"inputs: {len(question.inputs)} were sent; {max_items} are allowed")
    return question


def _cell(served: Served, question: huggingface.Question) -> str | None:
    """What of an answer a row of a table gets; None where the question is no table."""
    cell = served.predictor.task.table_answer
    if question.table and cell is None:
        raise RefusalError(422, "invalid_request", "table: this model reads no tables; ask it with inputs")
    return cell if question.table else None


def _check_parameters(served: Served, parameters: Mapping[str, Any]) -> None:
    if not parameters:
        return
    known = served.predictor.bundle.info["signature"]["parameters"]["properties"]
    if not parameters.keys() <= known.keys():
        raise RefusalError(422, "invalid_parameters", f"parameters: this model takes {', '.join(known) or 'none'}")
    try:
        served.predictor.check(parameters)
    except UserError as error:
        raise RefusalError(422, "invalid_parameters", str(error)) from None


def _error(refusal: RefusalError, request_id: str) -> Response:
    content = {"error": {"code": refusal.code, "message": refusal.message, "request_id": request_id}}
    headers = refusal.headers
    if refusal.message.isascii():  # where huggingface_hub looks first for what to show
        headers = (*headers, ("x-error-message", refusal.message))
    return Response(refusal.status, _json(content), headers=headers)


def _log_defect(error: Exception, request_id: str) -> None:
    """Where it broke, and not the exception's message: that may quote the text."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "?"
    logger.error("request %s failed: %s at %s", request_id, type(error).__name__, place)


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _page(name: str) -> bytes:
    return (Path(__file__).parent / name).read_bytes()


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
