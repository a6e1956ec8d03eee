"""Streams are counted by how they end, and room for texts is kept from the moment they are taken."""

import asyncio
import gc
import json
import logging
import time
import weakref
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from transformers.generation.continuous_batching.requests import GenerationOutput

from cluster.errors import RunError, UserError
from serving.batching import Limits
from serving.composing import compose
from serving.edge import Edge
from serving.exchange import Stream
from serving.lineup import Served
from serving.outcomes import Answered, ExpiredError, OverloadedError
from serving.protocols.openai import completions
from serving.recipe import Serve
from serving.writer import AT_ONCE, Writer
from tests.serving.conftest import Running, entry
from tests.serving.test_completions import PROMPTS, writers
from tests.serving.test_watch import records
from training.bundle import Bundle

ROOM = 4
ASKED = {"model": "prompt", "prompt": PROMPTS[:2], "stream": True, "stream_options": {"include_usage": True}}
Sent = Callable[[dict[str, Any]], Awaitable[None]]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return writers(tmp_path_factory.mktemp("streams"), {"prompt": "prompt"})["prompt"]


@pytest.fixture
def running(bundle: Bundle, edge_of: Callable[..., Any]) -> Iterator[Running]:
    with edge_of({"prompt": entry(bundle)}, Serve(max_queue=ROOM)) as one:
        yield one


def streamed(running: Running, hear: Callable[[dict[str, Any], asyncio.Event], Awaitable[None]]) -> None:
    """Has the edge answer a client that says itself what it does with each message, and when it leaves."""
    edge = Edge(running.lineup, Serve(max_queue=ROOM, access_log=True), running.metrics)

    async def exchange() -> None:
        left, body = asyncio.Event(), [json.dumps(ASKED).encode()]

        async def receive() -> dict[str, Any]:
            if body:
                return {"type": "http.request", "body": body.pop()}
            await left.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            await hear(message, left)

        headers = [(b"content-type", b"application/json")]
        scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": headers}
        await asyncio.wait_for(edge(scope, receive, send), 60)

    asyncio.run(exchange())


def heard(running: Running) -> list[dict[str, Any]]:
    """All that a patient client gets."""
    messages: list[dict[str, Any]] = []

    async def hear(message: dict[str, Any], left: asyncio.Event) -> None:
        messages.append(message)

    streamed(running, hear)
    assert [one["type"] for one in messages] == ["http.response.start", *["http.response.body"] * (len(messages) - 1)]
    assert [bool(one.get("more_body")) for one in messages[1:]] == [True] * (len(messages) - 2) + [False]
    return messages


def counted(running: Running) -> tuple[int, int]:
    """The requests that the version answered, and those of them that failed inside it."""
    figures = running.lineup.models["prompt"].leading.record.figures()
    return figures.answers, figures.failed


def test_a_stream_is_an_answer_when_it_has_ended(running: Running, caplog: pytest.LogCaptureFixture) -> None:
    before = []

    async def hear(message: dict[str, Any], left: asyncio.Event) -> None:
        before.append((counted(running), len(records(caplog)), message.get("body", b"")))

    with caplog.at_level(logging.INFO, "serving"):
        streamed(running, hear)
    assert {(figures, lines) for figures, lines, _ in before} == {((0, 0), 0)}, "it was counted before it had ended"
    usage = json.loads(before[-3][2].removeprefix(b"data: "))["usage"]
    (told,) = records(caplog)
    assert (told["outcome"], told["status"], told["tokens"]) == ("ok", 200, usage["total_tokens"])
    assert counted(running) == (1, 0)


class Mute:
    """A tokenizer that reads, and at the end of a text fails."""

    def __init__(self, tokenizer: Any, error: Exception) -> None:
        self._tokenizer, self._error, self._said = tokenizer, error, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def decode(self, *args: Any, **options: Any) -> Any:
        self._said += 1
        if self._said > 3:
            raise self._error
        return self._tokenizer.decode(*args, **options)


@pytest.mark.parametrize(
    ("error", "said", "outcome", "status", "blamed"),
    [
        (RunError("the engine is gone"), "could not be written", "internal", 500, (1, 1)),
        (ZeroDivisionError(), "could not be written", "internal", 500, (1, 1)),
        (ExpiredError(), "was not ready in time", "deadline_exceeded", 504, (0, 0)),
    ],
)
def test_a_stream_that_breaks_off_is_told_as_what_it_was(
    running: Running,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
    said: str,
    outcome: str,
    status: int,
    blamed: tuple[int, int],
) -> None:
    task: Any = running.lineup.models["prompt"].leading.predictor.task
    monkeypatch.setattr(task, "tokenizer", Mute(task.tokenizer, error))
    with caplog.at_level(logging.INFO, "serving"):
        *_, last, _ = heard(running)
    assert said in json.loads(last["body"].removeprefix(b"data: "))["error"]["message"]
    (told,) = records(caplog)
    assert (told["outcome"], told["status"], told["tokens"] > 0) == (outcome, status, True)
    assert counted(running) == blamed
    assert not running.lineup.models["prompt"].leading.scheduler.busy()


@pytest.mark.parametrize("leaves_at", ["http.response.start", "http.response.body"])
@pytest.mark.parametrize("how", ["is heard to leave", "is written to"])
def test_whoever_leaves_a_stream_blames_nobody(
    running: Running, caplog: pytest.LogCaptureFixture, leaves_at: str, how: str
) -> None:
    async def hear(message: dict[str, Any], left: asyncio.Event) -> None:
        if message["type"] == leaves_at:
            left.set()
            if how == "is written to":  # and is gone, which ASGI says so
                raise OSError
            if leaves_at == "http.response.body":
                await asyncio.Event().wait()  # nobody takes what comes

    with caplog.at_level(logging.INFO, "serving"):
        streamed(running, hear)
    (told,) = records(caplog)
    assert (told["outcome"], told["status"]) == ("client_gone", 499)
    assert counted(running) == (0, 0)
    scheduler = running.lineup.models["prompt"].leading.scheduler
    assert isinstance(scheduler, Writer)
    assert not scheduler.busy()
    scheduler.admit(ROOM, time.monotonic() + 60, None).close()


# --- room for texts -------------------------------------------------------------------------------------------------


def test_a_burst_does_not_pass_the_queue_while_its_prompts_are_read(running: Running) -> None:
    served = running.lineup.models["prompt"].leading
    question, deadline = served.predictor.blank(), time.monotonic() + 60

    async def burst() -> list[Any]:
        return await asyncio.gather(
            *(composed({"prompt": PROMPTS[:2], "model": "prompt"}, running, deadline) for _ in range(5)),
            return_exceptions=True,
        )

    told = asyncio.run(burst())
    assert [isinstance(one, OverloadedError) for one in told] == [False] * (ROOM // 2) + [True] * (5 - ROOM // 2)

    async def submitted() -> None:
        taken = [served.scheduler.submit([question] * 2, deadline) for _ in range(ROOM // 2)]
        with pytest.raises(OverloadedError):
            served.scheduler.submit([question], deadline)
        assert served.scheduler.busy()
        assert all(len(one.answers) == 2 for one in await asyncio.gather(*taken))

    asyncio.run(submitted())
    assert not served.scheduler.busy()


async def composed(body: Any, running: Running, deadline: float) -> Any:
    served = running.lineup.models["prompt"].leading
    with ExitStack() as held:
        return await compose(completions(body, served), served, deadline, None, lambda tokens: None, held)


def test_room_is_given_back_where_nothing_is_written(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    served = running.lineup.models["prompt"].leading
    writer, deadline = served.scheduler, time.monotonic() + 60
    assert isinstance(writer, Writer)
    body = {"model": "prompt", "prompt": PROMPTS[:ROOM]}

    async def left() -> None:
        """Clients that go while their prompts are read."""
        for asked in (
            lambda: writer.submit([served.predictor.blank()] * ROOM, deadline),
            lambda: asyncio.ensure_future(composed(body, running, deadline)),
        ):
            future = asked()
            await asyncio.sleep(0)
            assert writer.busy()
            future.cancel()
            with pytest.raises(asyncio.CancelledError):
                await future
            assert not writer.busy()

    async def never_begun() -> None:
        writer.submit([served.predictor.blank()] * ROOM, deadline).cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not writer.busy()

    async def unread() -> None:
        with pytest.raises(UserError):
            await writer.submit([served.predictor.blank()] * ROOM, deadline)
        with pytest.raises(UserError):
            await composed(body, running, deadline)
        assert not writer.busy()

    async def unsent() -> None:
        """A stream of which not even the head could be sent."""
        with ExitStack() as held:
            answer = await compose(
                completions(body | {"stream": True}, served), served, deadline, None, lambda tokens: None, held
            )
            assert isinstance(answer, Stream)
            assert writer.busy()
        assert not writer.busy()

    asyncio.run(left())
    asyncio.run(never_begun())
    asyncio.run(unsent())

    def refuse(rows: Any) -> Any:
        raise UserError("it cannot be read")

    monkeypatch.setattr(served.predictor.task, "encode_asked", refuse)
    asyncio.run(unread())


def test_a_text_that_would_come_too_late_is_refused(running: Running) -> None:
    """As soon as it is known how long a text takes: all of one that breaks off in the end is in vain."""
    writer = running.lineup.models["prompt"].leading.scheduler
    assert isinstance(writer, Writer)
    writer._limits = Limits(waiting=1000)
    writer._pace.learn(1, 10.0, 1)
    places = writer.admit(2 * AT_ONCE, time.monotonic() + 60, None)
    with pytest.raises(OverloadedError) as refused:
        writer.admit(AT_ONCE, time.monotonic() + 40, None)
    assert refused.value.retry_after == pytest.approx(30.0)
    writer.admit(AT_ONCE, time.monotonic() + 60, None).close()
    places.close()
    writer.admit(AT_ONCE, time.monotonic(), None).close()


def test_what_the_engine_says_of_a_text_that_was_given_up_is_not_kept(running: Running) -> None:
    """It goes on for a token or two, which nobody takes."""
    router = running.lineup.models["prompt"].leading.scheduler._manager.output_router  # type: ignore[union-attr]
    output = GenerationOutput(request_id="given up", prompt_ids=[1, 2, 3])
    seen = weakref.ref(output)
    router.deliver_batch([output])
    del output
    gc.collect()
    assert seen() is None


def test_a_version_whose_engine_has_no_room_is_no_version(bundle: Bundle, edge_of: Callable[..., Any]) -> None:
    """It is known before anything is asked, so that the one before it stays."""
    with edge_of({"prompt": entry(bundle)}) as running:
        served = running.lineup.models["prompt"].leading
        predictor: Any = served.predictor
        predictor.task.tokenizer.model_max_length = 10**9  # tokens whose keys and values no machine has room for
        with pytest.raises(RunError, match="for want of memory"):
            Writer(predictor.task, predictor.model, predictor.prepare, Limits())
        assert served.scheduler.alive()


def test_whether_a_writer_is_well_takes_a_token(running: Running) -> None:
    served = running.lineup.models["prompt"].leading
    answered = asyncio.run(asked(served, served.predictor.blank()))
    assert answered.written == [1]


async def asked(served: Served, question: Any) -> Answered:
    return await served.scheduler.submit([question], time.monotonic() + 60)
