"""Texts written token by token for many requests at once: each begins, and ends, while others go on.

Around transformers' continuous batching, which keeps the keys and values of all texts in pages and computes the next
token of every text in one pass. What it does is held in a thread of its own; here are the limits, the deadlines, the
stops and the way back to the event loop. A request that only wants whole answers is a stream that nobody looks into.
"""

import asyncio
import logging
import threading
import time
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

import numpy as np
from transformers import ContinuousBatchingConfig, GenerationConfig

from cluster.errors import RunError, UserError
from serving.batching import Limits
from serving.drawing import UNFOLLOWED, Grammar, Grammars, processors
from serving.outcomes import (
    Answered,
    Backlog,
    Batch,
    ClosedError,
    ExpiredError,
    OverloadedError,
    Spend,
    TooManyTokensError,
    Written,
    free,
)
from serving.pace import Pace
from serving.places import Entrance, Places
from training.inputs.text import Tokens
from training.tasks.task import Example, Outputs

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

PAGE = 32  # tokens whose keys and values lie together
AT_ONCE = 32  # texts that are written side by side
PASS = 512  # tokens of prompts that one pass may read

BROKEN = "the text could not be written"
NO_ROOM = (
    f"what writes texts did not start, most likely for want of memory: there must be room for the keys and values of "
    f"{AT_ONCE} texts beside what is loaded"
)

logging.getLogger("transformers.generation.continuous_batching").setLevel(logging.ERROR)  # it warns with prompts

HALF_A_CHARACTER = "\ufffd"
T = TypeVar("T")


@dataclass(frozen=True)
class Order:
    """What one request wants written.

    Attributes:
        example: the encoded prompt, with ``input_ids``.
        parameters: of the answer, as the task takes them.
        most: tokens at most.
        stops: strings before which the text ends.
        drawn: how its tokens are chosen, as :meth:`serving.drawing.Sampling.of_text` tells the engine.
    """

    example: Mapping[str, Any]
    parameters: Mapping[str, Any]
    most: int
    stops: Sequence[str] = ()
    drawn: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Piece:
    """What came since the last piece.

    Attributes:
        text: new whole characters.
        tokens: all tokens so far.
        likelihoods: the log-probability of each token so far, as it was drawn.
        end: why the text ends, with its last piece.
    """

    text: str
    tokens: Tokens
    likelihoods: list[float]
    end: Literal["stop", "length"] | None = None


class WritingTask(Protocol):
    """What is asked of a task that ``writes_on``; :class:`training.families.generation.TextWriter` has it.

    Attributes:
        tokenizer: of the model.
        ends: tokens after which a text is over.
        max_new_tokens: tokens that it writes at most.
    """

    tokenizer: "PreTrainedTokenizerFast"
    ends: list[int]
    max_new_tokens: int

    def decode(self, outputs: Outputs, examples: Sequence[Example], parameters: Mapping[str, Any]) -> list[Any]:
        """As :meth:`training.tasks.task.Task.decode`."""


class Writer:
    """Has a model write for many requests at once.

    Args:
        task: of the model.
        model: in evaluation mode; nobody else computes with it meanwhile.
        prepare: rows with parameters to examples with parameters, and the length of each prompt.
        limits: how many texts may wait or run before :class:`OverloadedError`, and the tokens of one request.
        observe: told of every text that was written, on the event loop.
    """

    def __init__(
        self,
        task: WritingTask,
        model: "PreTrainedModel",
        prepare: Callable[[list[Any]], Sequence[tuple[Any, int]]],
        limits: Limits,
        observe: Callable[[Batch], None] | None = None,
    ) -> None:
        self._task, self._model, self._prepare = task, model, prepare
        self._limits, self._observe = limits, observe
        self._open: dict[str, float] = {}  # request to when something last came of it
        self._kept = 0  # places of texts that were taken, and have not begun
        self._room = threading.RLock()  # a replica's two ways in have an event loop each
        self._entrance, self._pace = Entrance(AT_ONCE), Pace()
        self._closed = False
        # A thread of their own, one after the other: what takes long keeps nothing waiting but other schemas.
        self._of_grammars = ThreadPoolExecutor(1, "grammars")
        self._grammars = Grammars(task.tokenizer, model.config.get_text_config().vocab_size, task.ends)
        self._manager = self._started()

    # --- for the event loop ---------------------------------------------------------------------------------------

    def submit(
        self, values: Sequence[Any], deadline: float, owner: str | None = None, spend: Spend = free
    ) -> "asyncio.Future[Answered]":
        """Whole answers to the values of one request, as :meth:`serving.scheduler.Scheduler.submit` gives them.

        Raises:
            OverloadedError: there are too many.
            ClosedError: after :meth:`close`.
        """
        places = self.admit(len(values), deadline, owner)
        answer = asyncio.ensure_future(self._answer(list(values), deadline, places, spend))
        answer.add_done_callback(lambda done: places.close())  # also where it was cancelled before it began
        return answer

    def admit(self, more: int, deadline: float, owner: str | None) -> Places:
        """Keeps room for more texts, which is theirs while their prompts are read; whoever asked gives the rest back.

        Raises:
            OverloadedError: there is none, or they would not be written before their deadline.
            ClosedError: after :meth:`close`.
        """
        with self._room:
            if self._closed:
                raise ClosedError
            all_of_them = self._taken() + more
            wait = all_of_them / AT_ONCE * self._pace.seconds_per_run if all_of_them > AT_ONCE else 0.0
            if all_of_them > self._limits.waiting or self._pace.late(wait, deadline - time.monotonic()):
                raise OverloadedError(wait or self._pace.seconds_per_run)
            return Places(more, owner, self._keep)

    def _keep(self, more: int) -> None:
        with self._room:
            self._kept += more

    def _taken(self) -> int:
        return len(self._open) + self._kept

    async def _answer(self, values: list[Any], deadline: float, places: Places, spend: Spend) -> Answered:
        prepared = await asyncio.to_thread(self._prepare, values)
        orders = [self.order(example, parameters) for (example, parameters), _ in prepared]
        self.check(orders)
        lengths = [length for _, length in prepared]
        spend(sum(lengths))
        texts = await together(self._whole(order, deadline, places, spend) for order in orders)
        return Answered([text.answer for text in texts], lengths, [text.tokens for text in texts], [])

    def order(
        self, example: Mapping[str, Any], parameters: Mapping[str, Any], drawn: Mapping[str, Any] | None = None
    ) -> Order:
        """What a request with these parameters wants."""
        most, stops = parameters.get("max_new_tokens", self._task.max_new_tokens), parameters.get("stop", ())
        return Order(example, parameters, most, stops, drawn or {})

    def check(self, orders: Sequence[Order]) -> None:
        """Refuses a request whose texts, prompts and all, may have more tokens than one may.

        Raises:
            TooManyTokensError: it is one.
        """
        if sum(len(order.example["input_ids"]) + order.most for order in orders) > self._limits.tokens:
            raise TooManyTokensError(self._limits.tokens)

    async def grammar(self, schema: str) -> Grammar:
        """What a text of this model may go on with that keeps to a JSON schema.

        Raises:
            UserError: none can be made.
        """
        if self._model.device.type != "cpu":  # where what may come next is asked for before it is known what came
            raise UserError("response_format: a schema is kept to by models that compute on a CPU alone")
        return await asyncio.get_running_loop().run_in_executor(self._of_grammars, self._grammars.of, schema)

    async def _whole(self, order: Order, deadline: float, places: Places, spend: Spend) -> Written:
        tokens: Tokens = []
        try:
            async for piece in self.write(order, deadline, places):
                tokens = piece.tokens
        finally:
            spend(len(tokens))
        output = np.array([0, 0, *tokens], dtype=np.float32)
        return Written(self._task.decode([output], [dict(order.example)], order.parameters)[0], len(tokens))

    async def write(self, order: Order, deadline: float, places: Places) -> AsyncIterator[Piece]:
        """The text piece by piece; whoever stops listening stops the writing.

        Args:
            places: of which it takes one.

        Raises:
            ExpiredError: it was not begun, or not written, in time.
            UserError: it could not be held to its schema.
            RunError: the engine failed.
        """
        manager = self._manager
        name, came = uuid.uuid4().hex, asyncio.Queue[Any]()
        asked = time.monotonic()
        await self._entrance.enter(places.owner, deadline)
        manager.register_result_handler(name, came.put_nowait)
        began = self._open[name] = time.monotonic()
        places.begin()
        shown, finished = "", False
        try:
            taken = manager.add_request(
                list(order.example["input_ids"]),
                request_id=name,
                max_new_tokens=order.most,
                streaming=True,
                eos_token_id=self._task.ends,
                **order.drawn,
            )
            if taken is None:
                raise RunError(BROKEN)
            while not finished:
                told = await _come(came, order, deadline)
                finished = told.is_finished()
                self._open[name] = time.monotonic()
                text, end = self._so_far(told.generated_tokens, order, finished=finished)
                if text != shown or end:
                    yield Piece(text[len(shown) :], list(told.generated_tokens), list(told.logprobs), end)
                    shown = text
                if end:
                    break
            self._remember(len(told.generated_tokens), len(order.example["input_ids"]), asked, began)
        finally:
            del self._open[name]
            self._entrance.leave()
            if not finished:
                manager.cancel_request(name)
                manager.output_router.result_handlers.pop(name, None)  # what is cancelled never says that it ended

    def _so_far(self, tokens: Tokens, order: Order, *, finished: bool) -> tuple[str, Literal["stop", "length"] | None]:
        """The text that is sure by now, and why it ends, if it does."""
        text: str = self._task.tokenizer.decode(tokens, skip_special_tokens=True)
        places = [place for place in map(text.find, order.stops) if place >= 0]
        if places:
            return text[: min(places)], "stop"
        if finished:
            return text, "stop" if tokens and tokens[-1] in self._task.ends else "length"
        if text.endswith(HALF_A_CHARACTER):
            text = text.rstrip(HALF_A_CHARACTER)
        held = max((_begun(text, stop) for stop in order.stops), default=0)
        return text[: len(text) - held], None

    def _remember(self, tokens: int, prompt: int, asked: float, began: float) -> None:
        seconds = time.monotonic() - began
        with self._room:
            self._pace.learn(1, seconds, 1)
        if self._observe:
            self._observe(Batch(1, prompt + tokens, prompt + tokens, seconds, began - asked, AT_ONCE))

    # --- for those who ask how it is, and for the end -----------------------------------------------------------------

    def busy(self) -> bool:
        """Whether anything is being written, or was taken to be."""
        with self._room:
            return self._taken() > 0

    def backlog(self) -> Backlog:
        """The texts that nobody has begun to write; how long each will be is not known."""
        with self._room:
            return Backlog(0, max(0, self._taken() - AT_ONCE))

    def running_for(self) -> float:
        """Seconds since something last came of the request that waits longest for it; 0 when there is none."""
        return time.monotonic() - min(self._open.values(), default=time.monotonic())

    def alive(self) -> bool:
        """Whether the engine's threads run."""
        return bool(self._manager.is_running())

    def close(self) -> None:
        """Takes no more requests; what was taken is written, then the threads end. Returns at once."""
        self._closed = True
        threading.Thread(target=self._end, name="writer-end", daemon=True).start()

    def join(self, seconds: float) -> bool:
        """Waits for the threads after :meth:`close`; False when they still run."""
        until = time.monotonic() + seconds
        while self._manager.is_running() and time.monotonic() < until:
            time.sleep(0.01)
        return not self._manager.is_running()

    def _end(self) -> None:
        while self.busy():
            time.sleep(0.05)
        self._manager.stop(block=True)
        self._of_grammars.shutdown(wait=False)

    def _started(self) -> Any:
        settings = GenerationConfig(
            max_new_tokens=self._task.max_new_tokens,
            eos_token_id=self._task.ends,
            pad_token_id=self._task.tokenizer.pad_token_id,
            do_sample=False,  # what is drawn, `drawing` draws
        )
        model: Any = self._model
        manager = model.init_continuous_batching(
            generation_config=settings,
            continuous_batching_config=ContinuousBatchingConfig(
                page_size=PAGE,
                num_blocks=AT_ONCE * (self._task.tokenizer.model_max_length // PAGE + 2),  # none ever waits for a page
                max_batch_tokens=max(PASS, AT_ONCE),
                max_requests_per_batch=AT_ONCE,
                return_logprobs=True,
                use_async_batching=False if model.device.type == "cpu" else None,
                use_cuda_graph=False if model.device.type == "cpu" else None,
            ),
        )
        manager.logit_processor = processors()
        manager.output_router.output_queue = SimpleNamespace(put=_forgotten)
        manager.start()
        while getattr(manager, "batch_processor", None) is None:  # it is made in the engine's thread, if there is room
            if not manager.is_running():
                raise RunError(NO_ROOM)
            time.sleep(0.01)
        return manager


def _forgotten(output: Any) -> None:
    """Takes what the engine says of texts that were given up, which it else keeps for somebody who never asks."""


async def _come(came: "asyncio.Queue[Any]", order: Order, deadline: float) -> Any:
    try:
        async with asyncio.timeout(deadline - time.monotonic()):
            told = await came.get()
    except TimeoutError:
        raise ExpiredError from None
    if told.error:
        raise RunError(BROKEN)
    if (grammar := order.drawn.get("grammar")) and grammar.failed:
        raise UserError(UNFOLLOWED)
    return told


async def together(texts: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """What all of them come to; where one fails, its error, and the others are given up."""
    tasks = [asyncio.ensure_future(one) for one in texts]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


def _begun(text: str, stop: str) -> int:
    """How many characters at the end of ``text`` may be the beginning of ``stop``."""
    return next((size for size in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:size])), 0)
