"""Texts that are written for a caller: whole, or sent piece by piece as server-sent events."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any

from serving.exchange import Response, Stream, write_json
from serving.lineup import Served
from serving.outcomes import ExpiredError
from serving.protocols import Composition
from serving.writer import Order, Piece, Places, Writer, together

Text = Callable[[], AsyncIterator[Piece]]
"""Begins a text, which comes in pieces."""


async def compose(
    call: Composition, served: Served, deadline: float, spend: Callable[[int], None], held: ExitStack
) -> Response | Stream:
    """Texts whole, or in events as they are written.

    Args:
        spend: is told of the tokens that were read and written.
        held: is given what must be done at the end: when the texts are whole, or when their stream is sent.

    Raises:
        UserError, OverloadedError, ExpiredError, ClosedError: there is none.
    """
    writer = served.scheduler
    assert isinstance(writer, Writer)
    rows = served.predictor.rows(call.inputs)
    places = writer.admit(len(rows))
    held.callback(places.close)
    prepared = await asyncio.to_thread(served.predictor.prepare, [(row, call.parameters) for row in rows])
    orders = [replace(writer.order(example, call.parameters), sampling=call.sampling) for (example, _), _ in prepared]
    prompts = [length for _, length in prepared]
    if call.event is not None:
        spend(sum(prompts))
        texts = [partial(writer.write, order, deadline, places) for order in orders]
        return Stream(_events(call, texts, sum(prompts), spend))
    pieces = await together(_whole(writer, order, deadline, places) for order in orders)
    spend(sum(prompts) + sum(len(piece.tokens) for piece in pieces))
    return Response(200, write_json(call.write(pieces, prompts)))


async def _whole(writer: Writer, order: Order, deadline: float, places: Places) -> Piece:
    text, last = "", Piece("", [], [])
    async for last in writer.write(order, deadline, places):
        text += last.text
    return replace(last, text=text)


async def _events(
    call: Composition, texts: Sequence[Text], prompts: int, spend: Callable[[int], None]
) -> AsyncGenerator[bytes, None]:
    """The pieces of all texts as they come, then what closes the stream.

    Raises:
        ExpiredError, RunError: a text broke off, which the last event says: the head of the answer is sent by then.
    """
    assert call.event is not None
    came: asyncio.Queue[tuple[int, Piece] | Exception | None] = asyncio.Queue()
    tasks = [asyncio.ensure_future(_into(came, index, text)) for index, text in enumerate(texts)]
    written = [0] * len(texts)
    left = len(tasks)
    try:
        while left:
            told = await came.get()
            if told is None:
                left -= 1
                continue
            if isinstance(told, Exception):
                raise told
            index, piece = told
            written[index] = len(piece.tokens)
            yield _event(call.event(index, piece))
        for last in call.last(prompts, sum(written)):
            yield _event(last)
    except Exception as error:
        reason = "was not ready in time" if isinstance(error, ExpiredError) else "could not be written"
        yield _event({"error": {"message": f"the text {reason}", "type": "server_error"}})
        raise
    finally:
        spend(sum(written))
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _into(came: Any, index: int, text: Text) -> None:
    try:
        async for piece in text():
            came.put_nowait((index, piece))
        came.put_nowait(None)
    except Exception as error:  # noqa: BLE001  whoever reads the queue raises it
        came.put_nowait(error)


def _event(data: Any) -> bytes:
    return b"data: " + (data.encode() if isinstance(data, str) else write_json(data)) + b"\n\n"
