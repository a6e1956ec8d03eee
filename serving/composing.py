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
from serving.writer import Piece, Writer, together

Text = Callable[[], AsyncIterator[Piece]]
"""Begins a text, which comes in pieces."""


async def compose(
    call: Composition,
    served: Served,
    deadline: float,
    owner: str | None,
    spend: Callable[[int], None],
    held: ExitStack,
) -> Response | Stream:
    """Texts whole, or in events as they are written.

    Args:
        owner: who asks, as the scheduler is told.
        spend: is told of the tokens that were read and written.
        held: is given what must be done at the end: when the texts are whole, or when their stream is sent.

    Raises:
        UserError, OverloadedError, ExpiredError, ClosedError: there is none.
    """
    writer = served.scheduler
    assert isinstance(writer, Writer)
    rows = served.predictor.rows(call.inputs)
    places = writer.admit(call.items, deadline, owner)
    held.callback(places.close)
    prepared = await asyncio.to_thread(served.predictor.prepare, [(row, call.parameters) for row in rows])
    schema = call.sampling.schema
    grammar = await writer.grammar(schema) if schema is not None else None
    examples = (example for (example, _), _ in prepared for _ in range(call.choices))
    orders = [
        writer.order(example, call.parameters, call.sampling.of_text(index, grammar and grammar.copy()))
        for index, example in enumerate(examples)
    ]
    writer.check(orders)
    prompts = [length for _, length in prepared]
    spend(sum(prompts))
    texts = [partial(writer.write, order, deadline, places) for order in orders]
    if call.event is not None:
        return Stream(_events(call, texts, sum(prompts), spend))
    return Response(200, write_json(call.write(await _whole(texts, spend), prompts)))


async def _whole(texts: Sequence[Text], spend: Callable[[int], None]) -> list[Piece]:
    """Each text as one piece. Also who does not wait for them pays for what was written till then."""
    written = [0] * len(texts)

    async def read(index: int, text: Text) -> Piece:
        said, last = "", Piece("", [], [])
        async for last in text():
            said += last.text
            written[index] = len(last.tokens)
        return replace(last, text=said)

    try:
        return await together(read(index, text) for index, text in enumerate(texts))
    finally:
        spend(sum(written))


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
