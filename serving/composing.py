"""Texts that are written for a caller: whole, or sent piece by piece as server-sent events."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

from serving.exchange import Response, Stream, write_json
from serving.lineup import Served
from serving.outcomes import ExpiredError
from serving.protocols import Composition
from serving.writer import Order, Piece, Writer, together


async def compose(
    call: Composition, served: Served, deadline: float, spend: Callable[[int], None]
) -> Response | Stream:
    """Texts whole, or in events as they are written.

    Args:
        spend: is told of the tokens that were read and written.

    Raises:
        UserError, OverloadedError, ExpiredError, ClosedError: there is none.
    """
    writer = served.scheduler
    assert isinstance(writer, Writer)
    rows = served.predictor.rows(call.inputs)
    writer.admit(len(rows))
    prepared = await asyncio.to_thread(served.predictor.prepare, [(row, call.parameters) for row in rows])
    orders = [replace(writer.order(example, call.parameters), sampling=call.sampling) for (example, _), _ in prepared]
    prompts = [length for _, length in prepared]
    if call.event is not None:
        spend(sum(prompts))
        return Stream(_events(call, writer, orders, sum(prompts), deadline, spend))
    texts = await together(_whole(writer, order, deadline) for order in orders)
    spend(sum(prompts) + sum(len(text.tokens) for text in texts))
    return Response(200, write_json(call.write(texts, prompts)))


async def _whole(writer: Writer, order: Order, deadline: float) -> Piece:
    text, last = "", Piece("", [], [])
    async for last in writer.write(order, deadline):
        text += last.text
    return replace(last, text=text)


async def _events(
    call: Composition,
    writer: Writer,
    orders: list[Order],
    prompts: int,
    deadline: float,
    spend: Callable[[int], None],
) -> AsyncIterator[bytes]:
    """The pieces of all texts as they come, then what closes the stream."""
    assert call.event is not None
    came: asyncio.Queue[tuple[int, Piece] | Exception | None] = asyncio.Queue()
    tasks = [asyncio.ensure_future(_into(came, index, writer, order, deadline)) for index, order in enumerate(orders)]
    written = [0] * len(orders)
    left = len(tasks)
    try:
        while left:
            told = await came.get()
            if told is None:
                left -= 1
            elif isinstance(told, Exception):
                reason = "was not ready in time" if isinstance(told, ExpiredError) else "could not be written"
                yield _event({"error": {"message": f"the text {reason}", "type": "server_error"}})
                return
            else:
                index, piece = told
                written[index] = len(piece.tokens)
                yield _event(call.event(index, piece))
        for last in call.last(prompts, sum(written)):
            yield _event(last)
    finally:
        spend(sum(written))
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _into(came: Any, index: int, writer: Writer, order: Order, deadline: float) -> None:
    try:
        async for piece in writer.write(order, deadline):
            came.put_nowait((index, piece))
        came.put_nowait(None)
    except Exception as error:  # noqa: BLE001  whoever reads the queue says it
        came.put_nowait(error)


def _event(data: Any) -> bytes:
    return b"data: " + (data.encode() if isinstance(data, str) else write_json(data)) + b"\n\n"
