"""A model as one graph of operations, as PyTorch exports it: what engines other than PyTorch's own are made of.

A task calls its model once or several times for a batch, with tensors by their names, and reads one tensor of what
comes back. That call is what is exported; whatever the task does around it, such as picking the texts of a batch that
are there, stays in Python. The engine then stands in the model's place when the task infers.
"""

import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from serving.engines import pytorch
from serving.engines.engine import Forward, Subject, UnavailableError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Tensors = Mapping[str, torch.Tensor]
Sizes = Mapping[str, Sequence[int | None]]
"""The sizes of each input, in the order in which a graph takes them; None where they may vary."""

WHOLE = ""
"""The field that is read where what comes back is itself a tensor."""


class Graph(NamedTuple):
    """What was exported, and which inputs it takes."""

    program: torch.export.ExportedProgram
    sizes: Sizes


def exported(subject: Subject) -> Graph:
    """What a task asks of a model that lies in the processor's memory.

    Raises:
        UnavailableError: the model cannot be written as one graph.
    """
    if subject.device.type != "cpu":
        raise UnavailableError("it is measured on processors only")
    if subject.task.metrics_of_answers:
        raise UnavailableError("an answer takes more than one forward pass")
    if not subject.examples:
        raise UnavailableError("its bundle keeps no rows to write the graph with; train it again")
    one, other = _two_calls(subject)
    shapes = {name: list(zip(one[name].shape, other[name].shape, strict=True)) for name in one}
    sizes = {name: [size if size == another else None for size, another in pairs] for name, pairs in shapes.items()}
    varying = tuple(
        {place: torch.export.Dim.AUTO for place, size in enumerate(shape) if size is None} for shape in sizes.values()
    )
    asked = _Asked(subject.model, list(sizes), field_read(subject))
    try:
        with quiet(), torch.no_grad():
            program = torch.export.export(asked, tuple(one.values()), dynamic_shapes=(varying,))
    except Exception as error:  # noqa: BLE001  the exporter raises whatever a model makes it stumble over
        raise UnavailableError(f"PyTorch cannot write it as one graph ({type(error).__name__})") from None
    return Graph(program, sizes)


def standing_in(subject: Subject, sizes: Sizes, compute: Callable[[Tensors], torch.Tensor]) -> Forward:
    """The task's forward pass with ``compute`` in the place of the model, wherever it takes what the model is given.

    Args:
        sizes: of what ``compute`` takes.
    """
    return pytorch.of_task(subject.task, _StandIn(subject.model, sizes, field_read(subject), compute), subject.device)


def field_read(subject: Subject) -> str:
    """What the task reads of what its model says: a field's name, or ``WHOLE``."""
    heard = _heard(subject, subject.examples[:1])
    return heard.fields[0]


@contextmanager
def quiet() -> Iterator[None]:
    """Without what exporters, compilers and quantisers say: whole graphs, where one cannot be written."""
    nowhere = io.StringIO()
    with warnings.catch_warnings(), redirect_stdout(nowhere), redirect_stderr(nowhere):
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


class _StandIn:
    """In a task's hands it is the model: it is asked as that is, and all else of it is the model's."""

    def __init__(
        self, model: "PreTrainedModel", sizes: Sizes, field: str, compute: Callable[[Tensors], torch.Tensor]
    ) -> None:
        self._model, self._sizes, self._field, self._compute = model, sizes, field, compute

    def __call__(self, **tensors: torch.Tensor) -> Any:
        if not _fits(tensors, self._sizes):
            return self._model(**tensors)
        said = self._compute(tensors)
        return said if self._field == WHOLE else SimpleNamespace(**{self._field: said})

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


class _Asked(torch.nn.Module):
    """What a task asks of a model, as a module whose inputs are tensors in a fixed order."""

    def __init__(self, model: "PreTrainedModel", names: list[str], field: str) -> None:
        super().__init__()
        self.model, self._names, self._field = model, names, field

    def forward(self, *tensors: torch.Tensor) -> Any:
        said = self.model(**dict(zip(self._names, tensors, strict=True)))
        return said if self._field == WHOLE else getattr(said, self._field)


class _Heard:
    """Listens to what a task asks of a model.

    Attributes:
        calls: the inputs of each.
        fields: what was read of each answer.
    """

    def __init__(self, model: "PreTrainedModel") -> None:
        self._model = model
        self.calls: list[dict[str, torch.Tensor]] = []
        self.fields: list[str] = []

    def __call__(self, *others: Any, **tensors: Any) -> Any:
        if others or not all(isinstance(value, torch.Tensor) for value in tensors.values()):
            raise UnavailableError("its task asks it for more than a graph takes")
        self.calls.append(tensors)
        said = self._model(**tensors)
        if isinstance(said, torch.Tensor):
            self.fields.append(WHOLE)
            return said
        return _Read(said, self.fields)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


class _Read:
    """Tells which field of an answer is read."""

    def __init__(self, said: Any, fields: list[str]) -> None:
        self._said, self._fields = said, fields

    def __getattr__(self, name: str) -> Any:
        self._fields.append(name)
        return getattr(self._said, name)


@torch.inference_mode()
def _heard(subject: Subject, examples: Sequence[Any]) -> _Heard:
    heard = _Heard(subject.model)
    subject.task.infer(heard, subject.task.collate(examples))  # type: ignore[arg-type]
    if not heard.calls or len(set(heard.fields)) != 1:
        raise UnavailableError("its task asks it for more than a graph takes")
    return heard


def _two_calls(subject: Subject) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Inputs of other sizes, which tell the dimensions that vary from those that do not."""
    by_length = sorted(subject.examples, key=subject.task.length)
    few, many = (_heard(subject, examples).calls for examples in (by_length[:3], by_length[-5:]))
    pairs = [(one, other) for one in many for other in few]
    if any(one.keys() != other.keys() for one, other in pairs):
        raise UnavailableError("its task asks it now in one way and now in another")
    one, other = max(pairs, key=_varying)
    return {name: tensor.clone() for name, tensor in one.items()}, other  # what inference made, no exporter takes


def _varying(pair: tuple[Tensors, Tensors]) -> int:
    """In how many dimensions two calls differ, of which one that computes most is the better example."""
    one, other = pair
    return sum(a != b for name in one for a, b in zip(one[name].shape, other[name].shape, strict=True))


def _fits(tensors: Tensors, sizes: Sizes) -> bool:
    """Whether a graph that was written with these sizes takes the inputs."""
    return tensors.keys() == sizes.keys() and all(
        size == expected
        for name, shape in sizes.items()
        for size, expected in zip(tensors[name].shape, shape, strict=True)
        if expected is not None
    )
