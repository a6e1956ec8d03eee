"""A model as one graph of operations, as PyTorch exports it: what engines other than PyTorch's own are made of."""

import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from serving.engines.engine import Subject, UnavailableError
from training.tasks.task import Batch, Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Sizes = Mapping[str, Sequence[int | None]]
"""The sizes of each input, in the order in which a graph takes them; None where they may vary."""


class Graph(NamedTuple):
    """What was exported, and which batches it takes."""

    program: torch.export.ExportedProgram
    sizes: Sizes


def exported(subject: Subject, precision: torch.dtype | None = None) -> Graph:
    """The forward pass of a model that lies in the processor's memory.

    Args:
        precision: in which it computes; the model's own where None.

    Raises:
        UnavailableError: the model cannot be written as one graph.
    """
    if subject.device.type != "cpu":
        raise UnavailableError("it is measured on processors only")
    if subject.task.metrics_of_answers:
        raise UnavailableError("an answer takes more than one forward pass")
    if not subject.examples:
        raise UnavailableError("its bundle keeps no rows to write the graph with; train it again")
    batch, other = _two_batches(subject)
    pairs = {name: list(zip(batch[name].shape, other[name].shape, strict=True)) for name in batch}
    sizes = {name: [one if one == another else None for one, another in pairs[name]] for name in batch}
    varying = tuple(
        {place: torch.export.Dim.AUTO for place, size in enumerate(shape) if size is None} for shape in sizes.values()
    )
    try:
        with quiet(), torch.no_grad(), torch.autocast("cpu", precision) if precision else nullcontext():
            program = torch.export.export(
                _Inferring(subject.task, subject.model, list(sizes)), tuple(batch.values()), dynamic_shapes=(varying,)
            )
    except Exception as error:  # noqa: BLE001  the exporter raises whatever a model makes it stumble over
        raise UnavailableError(f"PyTorch cannot write it as one graph ({type(error).__name__})") from None
    return Graph(program, sizes)


def fits(batch: Batch, sizes: Sizes) -> bool:
    """Whether a graph that was written with these sizes takes the batch."""
    return all(
        size == expected
        for name, shape in sizes.items()
        for size, expected in zip(batch[name].shape, shape, strict=True)
        if expected is not None
    )


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


class _Inferring(torch.nn.Module):
    """The task's forward pass as a module whose inputs are tensors in a fixed order."""

    def __init__(self, task: Task, model: "PreTrainedModel", names: list[str]) -> None:
        super().__init__()
        self.model, self._task, self._names = model, task, names

    def forward(self, *tensors: torch.Tensor) -> Any:
        return self._task.infer(self.model, dict(zip(self._names, tensors, strict=True)))


def _two_batches(subject: Subject) -> tuple[Batch, Batch]:
    """Batches of other sizes, which tell the dimensions that vary from those that do not."""
    by_length = sorted(subject.examples, key=subject.task.length)
    return subject.task.collate(by_length[-5:]), subject.task.collate(by_length[:3])
