"""A bundle that answers: rows in, answers out, through the task that training used."""

import ctypes
import gc
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from transformers import PreTrainedModel

from cluster.errors import RunError, UserError
from cluster.storage import home
from cluster.threads import apart
from serving.engines.choice import REFERENCE, Choice, choose
from serving.engines.engine import Subject
from serving.engines.size import weight_bytes
from serving.explain import COST, Explainer, asked, others
from serving.outcomes import Written
from serving.recipe import Wanted
from training.bundle import Bundle, open_bundle
from training.tasks.task import Batch, Example, Outputs, Row, Task

EMPTY: Mapping[str, Any] = {}
"""The parameters of a request that has none; one object, so that such requests are decoded together."""


class Nobody(dict[str, Any]):
    """The parameters of a question that nobody asked: to answer it is no use of the model."""


NOBODY = Nobody()
A_TOKEN = Nobody(max_new_tokens=1)

_reading = threading.Lock()  # transformers changes torch as a whole while it reads weights: one model at a time

CPU_BUDGET = 1024  # padded tokens a batch; on two cores larger ones answer no more texts a second, only later
GPU_BUDGET = 16_384
LONGEST_BATCH = 128
MOST_LANES = 4
"""Each issues its operations from Python, where one thread runs at a time; a lane then has several cores."""

Weights = Callable[[Task], torch.nn.Module]
"""Takes a model's weights into memory: the network, which may be asked as a ``PreTrainedModel`` is."""

Question = tuple[Any, Mapping[str, Any]]
"""What the scheduler carries: a row and the request's parameters, then the example and the parameters."""


_here = threading.local()
"""The cores with which a thread computes, so that it tells PyTorch only of changes."""


class Predictor:
    """One model, ready to answer; its weights may be let go and taken again, all else stays.

    Attributes:
        bundle: what it was opened from.
        task: encodes and decodes.
        model: computes.
        budget: padded tokens that one forward pass should take on this device.
        engine: what computes a batch, and why that one.
        lanes: how many batches may be computed at once.
        explainer: says what answers rest on.
        signature: of the task, and what this model can be asked besides.
        loaded: whether it holds its weights.
        bytes: what they take, those of the engine with them.
        used: when it last answered what somebody asked, in monotonic seconds.
    """

    engine: Choice

    def __init__(
        self,
        bundle: Bundle,
        device: str | None = None,
        engine: Wanted = REFERENCE,
        weights: Weights | None = None,
    ) -> None:
        """Loads the weights and computes one answer, so that the first request finds the model warm.

        Args:
            device: as PyTorch names it; by default the GPU where there is one.
            engine: what computes a batch; see :class:`serving.recipe.Serve`.
            weights: where they come from; by default out of the bundle.

        Raises:
            UserError: the bundle's base has changed, or the engine cannot compute this model here.
            RunError: its answers are not numbers.
        """
        self.bundle = bundle
        self.task: Task = bundle.task()
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.budget = GPU_BUDGET if self.device.type == "cuda" else CPU_BUDGET
        self._threads = torch.get_num_threads()
        self.lanes = 1 if self.device.type == "cuda" else min(MOST_LANES, self._threads)
        self._wanted: Wanted = engine
        self._weights: Weights = weights or bundle.model
        self._stamps = bundle.stamps()
        apart(self._take_weights)
        self.signature = self.explainer.describe(bundle.info["signature"])
        self._warm = self.task.encode([blank_row(self.task)])
        try:
            self._warm_outputs = apart(lambda: self.forward(self._warm))
        except UserError as error:  # nobody has asked anything yet: it is the model that is at fault
            raise RunError(f"{bundle.folder}: the model does not answer the smallest input: {error}") from None

    @property
    def name(self) -> str:
        """The model's name."""
        return self.bundle.name

    # --- its weights ----------------------------------------------------------------------------------------------

    def load(self) -> None:
        """Takes the weights again after :meth:`sleep`; where it holds them, nothing happens.

        Raises:
            RunError: the bundle is no longer what it was when it was opened.
        """
        if self.loaded:
            return
        stamps = self.bundle.stamps()
        if stamps != self._stamps and not self._as_it_was():
            raise RunError(f"{self.bundle.folder} was changed while the model slept; it is not loaded")
        self._stamps = stamps
        apart(self._take_weights)

    def sleep(self) -> None:
        """Lets the weights go. Whoever calls it knows that nobody computes."""
        self.loaded = False
        self.engine = replace(self.engine, forward=_asleep)
        self.model.to("meta")
        if self.engine.bytes:  # what an engine copied refers to itself
            gc.collect()
        _give_back(self.device)

    def _as_it_was(self) -> bool:
        try:
            return open_bundle(self.bundle.folder).fingerprint == self.bundle.fingerprint
        except UserError:
            return False

    def _take_weights(self) -> None:
        self.share(1)  # engines are made for all cores, however few the last batch had
        with _reading:
            model = cast(PreTrainedModel, self._weights(self.task))
        self.model: PreTrainedModel = model.to(self.device).eval()
        self.engine = self._chosen(self._wanted)
        self.explainer = Explainer(self.task, self.model, self.device, self.budget)
        self.bytes = weight_bytes(self.model) + self.engine.bytes
        self.used = time.monotonic()
        self.loaded = True

    def _chosen(self, wanted: Wanted) -> Choice:
        """A model that writes on is computed by whoever writes, and needs no other engine."""
        examples = [] if wanted == REFERENCE or self.task.writes_on else self.bundle.held_out()
        subject = Subject(self.task, self.model, self.device, examples, home() / "engines", self.lanes)
        batches = by_length([self.task.length(example) for example in examples], self.budget)
        return choose(REFERENCE if self.task.writes_on else wanted, subject, batches, [self.bundle.fingerprint])

    # --- the two stages of the scheduler --------------------------------------------------------------------------

    def prepare(self, questions: Sequence[Question]) -> list[tuple[Question, int]]:
        """Rows with parameters to examples with parameters, and the length of each in tokens.

        What is to be explained counts as often as it is computed, so that limits and rates hold for it too.

        Raises:
            UserError: a row cannot be read, or not whole where only its end would be answered.
        """
        return self._prepare(questions, self.task.encode_asked([row for row, _ in questions]))

    def _prepare(self, questions: Sequence[Question], examples: Sequence[Example]) -> list[tuple[Question, int]]:
        return [self._prepared(*question, example) for question, example in zip(questions, examples, strict=True)]

    def _prepared(self, row: Row, parameters: Mapping[str, Any], example: Example) -> tuple[Question, int]:
        length = self.task.length(example)
        if asked(parameters):
            return (self.explainer.prepare(row, example), parameters), length * (1 + COST)
        return (example, parameters), length

    def answer(self, questions: Sequence[Question]) -> list[Any]:
        """Examples with parameters to answers, in one forward pass and those that explain.

        Of a model that writes each is :class:`Written`: what it wrote costs as what it read does.
        """
        outputs = self.forward([example for example, _ in questions])
        lengths, answers = map(self.task.written_length, outputs), self.decode(questions, outputs)
        return [Written(one, length) if length else one for one, length in zip(answers, lengths, strict=True)]

    def decode(self, questions: Sequence[Question], outputs: Outputs) -> list[Any]:
        """Answers to examples with parameters, of what the model said of each."""
        if not all(isinstance(parameters, Nobody) for _, parameters in questions):
            self.used = time.monotonic()
        examples = [example for example, _ in questions]
        answers: list[Any] = [None] * len(questions)
        groups: dict[int, list[int]] = {}
        for index, (_, parameters) in enumerate(questions):
            groups.setdefault(id(parameters), []).append(index)
        for indices in groups.values():
            parameters = questions[indices[0]][1]
            own, read = [outputs[index] for index in indices], [examples[index] for index in indices]
            decoded = self.task.decode(own, read, others(parameters))
            if asked(parameters):
                decoded = list(map(self.explainer.explain, decoded, read, own))
            for index, one in zip(indices, decoded, strict=True):
                answers[index] = one
        return answers

    def share(self, lanes: int) -> None:
        """Has the calling thread compute with its share of the cores where so many lanes compute at once."""
        threads = max(1, self._threads // lanes)
        if getattr(_here, "threads", 0) != threads:
            _here.threads = threads
            torch.set_num_threads(threads)

    # --- without a scheduler --------------------------------------------------------------------------------------

    def rows(self, inputs: Sequence[Any]) -> list[Row]:
        """Request inputs as rows.

        Raises:
            UserError: names the input's index and the column, never its content.
        """
        return self.task.rows(inputs)

    def check(self, parameters: Mapping[str, Any]) -> None:
        """Whether the model takes these parameters.

        Raises:
            UserError: one is unknown or has a wrong value.
        """
        self.explainer.check(parameters)
        self.task.decode(self._warm_outputs, self._warm, others(parameters))

    def forward(self, examples: Sequence[Example]) -> Outputs:
        """The model's outputs for examples that fit one batch, in fp32 on the CPU."""
        return self.task.keep(self.engine.forward(self.task.collate(examples)), examples)

    def predict(
        self,
        inputs: Sequence[Any],
        parameters: Mapping[str, Any] = EMPTY,
        progress: Callable[[int], None] | None = None,
    ) -> list[Any]:
        """The answers to many inputs, in order, computed in batches of equal lengths, cut as training cuts them.

        Args:
            progress: told how many inputs each batch has answered.

        Raises:
            UserError: an input or a parameter is wrong.
        """
        self.check(parameters)
        rows = self.rows(inputs)
        prepared = self._prepare([(row, parameters) for row in rows], self.task.encode(rows))
        answers: list[Any] = [None] * len(prepared)
        for indices in by_length([length for _, length in prepared], self.budget):
            for index, answer in zip(indices, self.answer([prepared[index][0] for index in indices]), strict=True):
                answers[index] = answer.answer if isinstance(answer, Written) else answer
            if progress:
                progress(len(indices))
        return answers

    def blank(self) -> Question:
        """The smallest question there is, for those who ask only whether the model still answers."""
        writes = "max_new_tokens" in self.signature["parameters"]["properties"]
        return (blank_row(self.task), A_TOKEN if writes else NOBODY)


def blank_row(task: Task) -> Row:
    """The smallest row that a task reads."""
    schema = task.signature()["input"]
    shapes = schema.get("anyOf", [schema])
    return next((dict.fromkeys(shape["properties"], "") for shape in shapes if shape.get("type") == "object"), {})


def _asleep(batch: Batch) -> torch.Tensor:
    raise RunError("the model's weights are not loaded")


def _give_back(device: torch.device) -> None:
    """Has whoever hands out memory return what is free to the machine, which else sees none of it."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's; other libraries keep less
    if trim is not None:
        trim(0)


def by_length(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Indices in batches of similar lengths, longest first, each within ``budget`` padded tokens."""
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda one: -lengths[one]):
        longest = lengths[batches[-1][0]] if batches else 0
        room = batches and len(batches[-1]) < LONGEST_BATCH and (len(batches[-1]) + 1) * longest <= budget
        if room:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches
