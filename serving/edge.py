"""The edge: HTTP in, JSON out. A bare ASGI app, because what a framework does for each request costs more than ours.

The way of a question: ``Edge.__call__`` -> ``Edge.ask`` -> ``Scheduler.submit`` -> ``Predictor.answer``.
Errors are JSON with a stable ``code``, a plain ``message`` and the request's id, in the form that the path belongs to.
Nothing that a client wrote is ever repeated in an error or a log.
"""

import asyncio
import functools
import logging
import math
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from cluster.errors import UserError
from serving import protocols, shedding
from serving.apart import into_items, texts_in, together
from serving.composing import compose
from serving.exchange import (
    Headers,
    LeftError,
    Receive,
    RefusalError,
    Request,
    Response,
    Scope,
    Send,
    Stream,
    UnwritableError,
    refusal,
    respond,
    stream,
    write_json,
)
from serving.explain import PARAMETER
from serving.keys import Key, Keys
from serving.lineup import Served
from serving.metrics import Metrics
from serving.model import Model
from serving.outcomes import Answered, ClosedError, ExpiredError, OverloadedError, TooManyTokensError
from serving.protocols import Call, Composition, Endpoint, MalformedError, huggingface
from serving.recipe import Serve
from serving.refusals import body_of
from serving.shown import ADMIN_PATHS, OPEN_PATHS, Models, Shown, find, find_version, only
from serving.traces import Traces
from serving.watch import Question, Watch
from training.tasks.task import Row

logger = logging.getLogger(__name__)

QUICK = 0.9
"""Of its time a request has left that was sent at once. What is too late for a slow sender is not so for others."""


class Lineup(Protocol):
    """Where the models are found; looked up anew for every request."""

    models: dict[str, Model]


class Edge:
    """All models behind one address.

    Args:
        lineup: has the models.
        options: limits.
        metrics: is told of every question.
        keys: who may ask; everyone when None.
        echo_request_id: False where the server around us sends the ``x-request-id`` header already.
        traces: sends spans of the questions.
        sheds: whether the HAProxy before us is ours, and refuses by itself while a model is full.
    """

    def __init__(
        self,
        lineup: Lineup,
        options: Serve,
        metrics: Metrics,
        keys: Keys | None = None,
        *,
        echo_request_id: bool = True,
        traces: Traces | None = None,
        sheds: bool = False,
    ) -> None:
        self._lineup, self._options, self._metrics, self._keys = lineup, options, metrics, keys
        self._echo_request_id, self._sheds = echo_request_id, sheds
        self._shown = Shown(options, metrics, secured=keys is not None)
        self._watch = Watch(metrics, access_log=options.access_log, traces=traces)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
            return
        if scope["type"] != "http":  # a WebSocket: there is none here
            await send({"type": "websocket.close", "code": 1000})
            return
        request = Request.of(scope, receive)
        if self._sheds:
            self._watch.shed(shedding.refused(request))
        try:
            endpoint = protocols.endpoint_of(request.path) if request.method == "POST" else None
            response = await self.ask(request, endpoint) if endpoint else self.show(request)
            if isinstance(response, Stream):
                await self._stream(send, request, response)
                return
        except LeftError:
            return
        except RefusalError as refused:
            response = _error(refused, request)
        except Exception as error:  # noqa: BLE001  a defect of ours: the client gets a code, the log its place
            _log_defect(error, request.request_id)
            response = _error(RefusalError(500, "internal", "something failed inside the server"), request)
        await respond(send, response, request.request_id if self._echo_request_id else None)

    async def _stream(self, send: Send, request: Request, answer: Stream) -> None:
        """Sends a stream. Once its head is sent no other answer can be: an event tells of errors, as does the watch."""
        try:
            await stream(send, request.receive, answer, request.request_id if self._echo_request_id else None)
        except (LeftError, RefusalError):
            return
        except Exception as error:  # noqa: BLE001  as in `__call__`
            _log_defect(error, request.request_id)

    async def ask(self, request: Request, endpoint: Endpoint) -> Response | Stream:
        """A question to a model, answered by the version that is current once the body is whole.

        Raises:
            RefusalError: with the status that HTTP has for it.
        """
        held: ExitStack[bool | None] = ExitStack()
        with held:  # or, for a stream, whoever sends it: its question has ended when it has
            watched = held.enter_context(self._watch.question(request))
            held.enter_context(_refusing())
            key = self._admit(request, "predict")
            owner = key.name if key else None
            self._require_tokens(key)
            value = await self._read(request, endpoint, watched, key)
            deadline = watched.started + self._options.timeout_seconds
            spend = functools.partial(self._spend, key, watched)
            name = endpoint.model or endpoint.named(value) or only(self._models(key))
            while True:
                model = find(self._models(key), name)
                served = watched.answers(find_version(model, endpoint.version) if endpoint.version else model.pick())
                try:
                    call = endpoint.call(value, served)
                    self._check(call, served)
                    if isinstance(call, Composition):
                        texts = asyncio.ensure_future(compose(call, served, deadline, owner, spend, held))
                        return _composed(await request.unless_left(texts, _left(deadline)), served, held)
                    asked = time.monotonic()
                    items, counts = self._items(call, served)
                    questions = [(item, call.parameters) for item in items]
                    answers = served.scheduler.submit(questions, deadline, owner, spend)
                    answered = await request.unless_left(answers, _left(deadline))
                    watched.runs = answered.runs
                    whole = together(served.predictor.task, answered, counts, call.parameters)
                    return _written(call, model, served, whole, time.monotonic() - asked)
                except OverloadedError as error:
                    quick = _left(deadline) > QUICK * self._options.timeout_seconds
                    raise refusal(error, self._said(error, model, endpoint, key) if quick else ()) from None
                except ClosedError:
                    if time.monotonic() > deadline:
                        raise TimeoutError from None
                    await asyncio.sleep(0.01)  # it was replaced this moment; its successor is there already

    async def _read(self, request: Request, endpoint: Endpoint, watched: Question, key: Key | None) -> Any:
        """What a body says: bytes where a picture or a sound is the whole of it, else a JSON value."""
        media = None
        if endpoint.model is not None:
            known = find(self._models(key), endpoint.model)
            found = watched.answers(find_version(known, endpoint.version) if endpoint.version else known.leading)
            media = huggingface.media(found.predictor.bundle.info["signature"]) if endpoint.media else None
        raw = request.carries(media, loose=endpoint.loose)
        body = await request.body(self._options.max_body_bytes, self._options.timeout_seconds)
        return body if raw else endpoint.read(body, request.headers, self._options.max_items)

    def _items(self, call: Call, served: Served) -> tuple[list[Row], list[int]]:
        """The inputs of a call as the scheduler's items, and of how many each input is."""
        rows = served.predictor.rows(call.inputs)
        self._refuse_more(texts_in(served.predictor.task, rows))
        return into_items(served.predictor.task, rows)

    def _check(self, call: Call | Composition, served: Served) -> None:
        self._refuse_more(call.items)
        _check_parameters(served, call.parameters)

    def _refuse_more(self, asked: int) -> None:
        """Than a request may carry: inputs, or texts where an input may hold many."""
        if asked > (most := self._options.max_items):
            raise RefusalError(413, "too_many_inputs", f"inputs: {asked} were sent; {most} are allowed")

    def _said(self, error: OverloadedError, model: Model, endpoint: Endpoint, key: Key | None) -> Headers:
        """What HAProxy is told of a full model: something only where all who ask at this path wait in one queue."""
        named = endpoint.model is not None or len(self._models(key)) == 1
        return shedding.said(error) if self._sheds and named and len(model.routes) == 1 else ()

    def show(self, request: Request) -> Response:
        """Everything that is read: pages, health, metrics, what the models are.

        Raises:
            RefusalError: 401, 403, 404 or 405.
        """
        key = None
        if request.path not in OPEN_PATHS:
            key = self._admit(request, "admin" if request.path in ADMIN_PATHS else "predict")
        asked, both = protocols.endpoint_of(request.path) is not None, huggingface.find(request.path) is not None
        content = self._shown.content(request.path, self._models(key)) if both or not asked else None
        if content is None or request.method not in ("GET", "HEAD"):
            allowed = "GET, HEAD, POST" if both else "POST" if asked else "GET, HEAD"
            raise RefusalError(405, "method_not_allowed", f"this path takes {allowed}", (("allow", allowed),))
        return content()

    # --- who asks -------------------------------------------------------------------------------------------------

    def _admit(self, request: Request, action: str) -> Key | None:
        """The key that a request carries; None where no key is asked for."""
        if self._keys is None:
            return None
        key = self._keys.known(request.headers.get("authorization"))
        if key is None:
            told = "a valid key is needed: Authorization: Bearer KEY"
            raise RefusalError(401, "unauthorized", told, (("www-authenticate", "Bearer"),))
        if action not in key.actions:
            raise RefusalError(403, "forbidden", f"this key is not good for that; it lacks actions={action}")
        return key

    def _models(self, key: Key | None) -> Models:
        """The models that there are for a key."""
        models = self._lineup.models
        if key is None or key.models is None:
            return models
        return {name: model for name, model in models.items() if key.sees(name)}

    def _require_tokens(self, key: Key | None) -> None:
        purse = self._keys.purse(key) if self._keys and key else None
        wait = purse.wait() if purse else 0.0
        if wait > 0:
            seconds = str(math.ceil(wait))
            told = f"this key's tokens of a minute are used up; try again in {seconds} s"
            raise RefusalError(429, "rate_limited", told, (("retry-after", seconds),))

    def _spend(self, key: Key | None, watched: Question, tokens: int) -> None:
        watched.tokens += tokens
        purse = self._keys.purse(key) if self._keys and key else None
        if purse:
            purse.take(tokens)


@contextmanager
def _refusing() -> Iterator[None]:
    """Has what goes wrong with a question told as HTTP tells it.

    Raises:
        RefusalError: in place of each error that is not a defect.
    """
    try:
        yield
    except MalformedError as error:
        raise RefusalError(422, "invalid_request", str(error)) from None
    except UnwritableError:  # no model makes half a character, and the version must not be blamed for one that was sent
        told = "the answer would repeat half a character (a lone surrogate); send whole Unicode text"
        raise RefusalError(422, "invalid_request", told) from None
    except RecursionError:
        raise RefusalError(400, "malformed_json", "the body is nested too deeply") from None
    except (UserError, TooManyTokensError, OverloadedError, ExpiredError, TimeoutError) as error:
        raise refusal(error) from None


def _written(call: Call, model: Model, served: Served, answered: Answered, seconds: float) -> Response:
    body = write_json(call.write(answered.answers, answered.lengths))
    served.record.answered(answered.answers)
    after = model.afterwards(served, call, answered.answers, seconds)
    return Response(200, body, headers=(("x-headrace-version", served.version),), afterwards=after)


def _composed(composed: Response | Stream, served: Served, held: ExitStack[bool | None]) -> Response | Stream:
    """Texts of a version, which has answered when ``held`` is left without an error."""
    held.enter_context(_answering(served))
    headers = (("x-headrace-version", served.version),)
    if isinstance(composed, Stream):
        return replace(composed, headers=headers, held=held.pop_all())
    return replace(composed, headers=headers)


@contextmanager
def _answering(served: Served) -> Iterator[None]:
    yield
    served.record.answered(())


def _left(deadline: float) -> float:
    return max(0.0, deadline - time.monotonic())


def _check_parameters(served: Served, parameters: Mapping[str, Any]) -> None:
    if not parameters:
        return
    known = served.predictor.signature["parameters"]["properties"]
    if not parameters.keys() <= known.keys() | {PARAMETER}:
        raise RefusalError(422, "invalid_parameters", f"parameters: this model takes {', '.join(known) or 'none'}")
    try:
        served.predictor.check(parameters)
    except UserError as error:
        raise RefusalError(422, "invalid_parameters", str(error)) from None


def _error(refused: RefusalError, request: Request) -> Response:
    headers = refused.headers
    # Where huggingface_hub looks first for what to show. HAProxy drops an answer whose headers hold a line break.
    if refused.message.isascii() and refused.message.isprintable():
        headers = (*headers, ("x-error-message", refused.message))
    content = body_of(request.path, refused, request.request_id)
    return Response(refused.status, write_json(content), headers=headers)


def _log_defect(error: Exception, request_id: str) -> None:
    """Where it broke, and not the exception's message: that may quote the text."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "?"
    known = {"request_id": request_id}
    logger.error("request %s failed: %s at %s", request_id, type(error).__name__, place, extra=known)


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
