"""One exchange over HTTP: what came, what goes back, what is refused. Knows ASGI; knows no model."""

import asyncio
import json
import math
import random
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, MutableMapping
from contextlib import AbstractContextManager, aclosing, nullcontext
from dataclasses import dataclass, field
from typing import Any, TypeVar

from cluster.errors import LongPromptError, UserError
from serving.outcomes import ExpiredError, OverloadedError, TooManyTokensError

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Headers = tuple[tuple[str, str], ...]

SAFE_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
JSON = "application/json"
OVERLOADED = "overloaded"
BYTES = "application/octet-stream"
EVENTS = "text/event-stream"
LOOK_OUT_SECONDS = 0.25

T = TypeVar("T")


@dataclass(frozen=True)
class Response:
    """A whole answer.

    Attributes:
        afterwards: called when it has been sent.
    """

    status: int
    body: bytes
    content_type: str = JSON
    headers: Headers = ()
    afterwards: Callable[[], None] | None = None


@dataclass(frozen=True)
class Stream:
    """An answer that comes in events, as ``text/event-stream``.

    Attributes:
        events: where it raises, its last event has said so.
        held: is left when all is sent, or nothing more can be; it sees why.
    """

    events: AsyncGenerator[bytes, None]
    headers: Headers = ()
    held: AbstractContextManager[object, bool | None] = field(default_factory=nullcontext)


class LeftError(Exception):
    """The client is gone, and nobody waits for an answer."""


class UnwritableError(ValueError):
    """An answer holds half a character, which UTF-8 cannot spell: it repeats what the client sent."""


class RefusalError(Exception):
    """A request that gets an error; ``code`` is stable, ``message`` is for people and repeats nothing of what came."""

    def __init__(self, status: int, code: str, message: str, headers: Headers = ()) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.headers = status, code, message, headers


def new_request_id() -> str:
    """32 hexadecimal digits that no other request has; they are no secret.

    Drawn without asking the system, for which the event loop would let go of Python's lock: it gets it back only when
    the threads that compute let go of it.
    """
    return f"{random.getrandbits(128):032x}"


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
        request_id = given if SAFE_REQUEST_ID.fullmatch(given) else new_request_id()
        path = scope["path"].removeprefix(scope.get("root_path", "").rstrip("/")) or "/"
        return cls(scope["method"], path, headers, request_id, receive)

    def carries(self, media: str | None, *, loose: bool = False) -> bool:
        """Whether the body is the bytes of a picture or a sound; otherwise it is JSON.

        A browser cannot be talked into sending any of these types to us from a foreign page. Bytes without a type are
        taken from a client that does not say which page asks, as every browser does.

        Args:
            media: ``image`` or ``audio`` where the model takes such.
            loose: take JSON also without a type, and with bytes behind it.

        Raises:
            RefusalError: 415, it is something else.
        """
        kind = self.headers.get("content-type", "").partition(";")[0].strip().lower()
        untyped = not kind and "origin" not in self.headers
        raw = media is not None and (kind == BYTES or kind.startswith(f"{media}/") or untyped)
        if kind != JSON and not raw and not (loose and (untyped or kind == BYTES)):
            taken = f"{JSON}, {media}/… or {BYTES}" if media else JSON
            raise RefusalError(415, "unsupported_media_type", f"the body must be sent as content-type: {taken}")
        if self.headers.get("content-encoding", "identity").lower() != "identity":
            raise RefusalError(415, "unsupported_encoding", "the body must be sent uncompressed")
        return raw

    async def body(self, most: int, seconds: float) -> bytes:
        """The whole body, refused as soon as it has more than ``most`` bytes or takes longer than ``seconds``.

        Raises:
            RefusalError: 408 or 413.
            LeftError: the client went away before its end.
        """
        too_large = RefusalError(
            413, "body_too_large", f"the body may have at most {most} bytes", (("connection", "close"),)
        )
        declared = self.headers.get("content-length", "")
        if declared.isdecimal() and int(declared[:20]) > most:
            raise too_large
        chunks, size = [], 0
        try:
            async with asyncio.timeout(seconds):
                while True:
                    message = await self.receive()
                    if message["type"] == "http.disconnect":
                        raise LeftError
                    chunk = message.get("body", b"")
                    size += len(chunk)
                    if size > most:
                        raise too_large
                    chunks.append(chunk)
                    if not message.get("more_body"):
                        return b"".join(chunks)
        except TimeoutError:
            raise RefusalError(
                408, "body_too_slow", "the body did not arrive in time", (("connection", "close"),)
            ) from None

    async def unless_left(self, answer: "asyncio.Future[T]", seconds: float) -> T:
        """What an answer comes to, after the whole body has come; it is given up where nobody waits for it any more.

        A look-out for clients that leave is a task of its own, which only answers that take long are worth.

        Raises:
            LeftError: the client went away.
            TimeoutError: the answer takes more than ``seconds``.
        """
        leaving = None
        try:
            await asyncio.wait([answer], timeout=min(seconds, LOOK_OUT_SECONDS))
            if not answer.done() and seconds > LOOK_OUT_SECONDS:
                leaving = asyncio.ensure_future(_until_left(self.receive))
                either: list[asyncio.Future[Any]] = [answer, leaving]
                left = seconds - LOOK_OUT_SECONDS
                await asyncio.wait(either, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            if answer.done():
                return answer.result()
            raise LeftError if leaving and leaving.done() else TimeoutError
        finally:
            if leaving:
                leaving.cancel()
            if not answer.done():
                answer.cancel()
                await asyncio.wait([answer])  # it says what it has cost before whoever asked is done with it


def read_json(body: bytes) -> Any:
    """The JSON value of a body.

    Raises:
        RefusalError: 400, it is none.
    """
    try:
        return _DECODER.decode(body.decode(json.detect_encoding(body)))
    except (ValueError, RecursionError):  # a ValueError also for numbers of 5,000 digits
        raise RefusalError(400, "malformed_json", "the body is not valid JSON") from None


def write_json(value: Any) -> bytes:
    """A value as JSON.

    Raises:
        ValueError: it holds a NaN or an infinity, which Python would write and no other client could read.
        UnwritableError: it holds a lone surrogate.
    """
    try:
        return _ENCODER.encode(value).encode()
    except UnicodeEncodeError:
        raise UnwritableError("half a character cannot be written") from None


def refusal(error: Exception, headers: Headers = ()) -> RefusalError:
    """What HTTP says of a question that could not be answered, and in which other headers."""
    if isinstance(error, LongPromptError):
        return RefusalError(400, "context_length_exceeded", str(error))
    if isinstance(error, UserError):
        return RefusalError(422, "invalid_input", str(error))
    if isinstance(error, TooManyTokensError):
        told = f"the inputs, and what may be written, are more than the {error.most} tokens that one request may have"
        return RefusalError(413, "too_many_tokens", told)
    if isinstance(error, OverloadedError):
        wait = str(max(1, math.ceil(error.retry_after)))
        told = f"too many requests are waiting; try again in {wait} s"
        return RefusalError(429, OVERLOADED, told, (("retry-after", wait), *headers))
    assert isinstance(error, TimeoutError | ExpiredError)
    return RefusalError(504, "deadline_exceeded", "the answer was not ready in time")


async def respond(send: Send, response: Response, request_id: str | None) -> None:
    """Sends a whole answer.

    Args:
        request_id: sent as ``x-request-id``; None where the server around us does.
    """
    own = (("content-type", response.content_type), ("content-length", str(len(response.body))))
    headers = _headers((*own, *response.headers), request_id)
    await send({"type": "http.response.start", "status": response.status, "headers": headers})
    await send({"type": "http.response.body", "body": response.body})
    if response.afterwards:
        response.afterwards()


async def stream(send: Send, receive: Receive, answer: Stream, request_id: str | None) -> None:
    """Sends events as they come; where the client goes away, nothing more is made for it.

    Raises:
        LeftError: it did.
        Exception: what the events raised, when the client has all that came before.
    """
    with answer.held:
        headers = _headers((("content-type", EVENTS), *answer.headers), request_id)
        await _sent(send, {"type": "http.response.start", "status": 200, "headers": headers})
        await _unless_left(receive, _send_all(send, answer.events))


async def _unless_left(receive: Receive, all_of_it: Coroutine[Any, Any, None]) -> None:
    sending = asyncio.ensure_future(all_of_it)
    leaving = asyncio.ensure_future(_until_left(receive))
    try:
        await asyncio.wait([sending, leaving], return_when=asyncio.FIRST_COMPLETED)
    finally:
        left = not sending.done()
        for task in (sending, leaving):
            task.cancel()
        await asyncio.gather(sending, leaving, return_exceptions=True)
    if left:
        raise LeftError
    sending.result()


async def _send_all(send: Send, events: AsyncGenerator[bytes, None]) -> None:
    try:
        async with aclosing(events):  # by now, and not when somebody collects what is left of it
            async for event in events:
                await _sent(send, {"type": "http.response.body", "body": event, "more_body": True})
    except LeftError:
        raise
    except Exception:
        await _sent(send, {"type": "http.response.body", "body": b""})
        raise
    await _sent(send, {"type": "http.response.body", "body": b""})


async def _sent(send: Send, message: dict[str, Any]) -> None:
    try:
        await send(message)
    except OSError:  # how ASGI says that nobody is there any more
        raise LeftError from None


async def _until_left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _headers(named: Headers, request_id: str | None) -> list[tuple[bytes, bytes]]:
    always = (("x-content-type-options", "nosniff"), ("cache-control", "no-store"))
    every = (*named, *always, *((("x-request-id", request_id),) if request_id else ()))
    return [(name.encode(), value.encode()) for name, value in every]


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


# Made once: `json.loads` and `json.dumps` make one for each call that has any wish.
_DECODER = json.JSONDecoder(parse_constant=_no_constant)
_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False)
