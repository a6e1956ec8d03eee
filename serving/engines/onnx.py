"""ONNX Runtime, for tasks whose answer is one forward pass: `pip install 'headrace[onnx]'`."""

import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from cluster.storage import building
from serving.engines import pytorch
from serving.engines.engine import Forward, Subject, UnavailableError
from training.tasks.task import Batch, Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel

EXACT, QUANTISED = "fp32", "int8"
"""Folders of graphs; each appears whole, so that a start that was killed leaves none that is cut short."""

MODEL = "model.onnx"
OUTPUTS = "outputs"


def fp32(subject: Subject) -> Forward:
    """The model's graph as it was trained.

    Raises:
        UnavailableError: ONNX Runtime is not installed, or the model is none that can be written as one graph.
    """
    if not (subject.folder / EXACT).exists():
        _export(subject)
    return _session(subject.folder / EXACT / MODEL, subject)


def int8(subject: Subject) -> Forward:
    """The graph with its multiplications in int8: weights beforehand, column by column, the rest as it comes.

    Raises:
        UnavailableError: as :func:`fp32`.
    """
    folder = subject.folder
    if not (folder / EXACT).exists():
        _export(subject)
    if not (folder / QUANTISED).exists():
        import onnx
        from onnxruntime.quantization import QuantType, quantize_dynamic

        graph = onnx.load(folder / EXACT / MODEL)
        del graph.graph.value_info[:]  # what the exporter said of shapes in between, which the quantiser derives itself
        with _quiet(), building(folder / QUANTISED) as unfinished:
            quantize_dynamic(graph, unfinished / MODEL, weight_type=QuantType.QInt8, per_channel=True)
    return _session(folder / QUANTISED / MODEL, subject)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter and the quantiser say: whole graphs, where one cannot be written."""
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

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        return self._task.infer(self.model, dict(zip(self._names, tensors, strict=True)))


def _export(subject: Subject) -> None:
    task, model = subject.task, subject.model
    if subject.device.type != "cpu":
        raise UnavailableError("it is measured on processors only")
    if task.metrics_of_answers:
        raise UnavailableError("an answer takes more than one forward pass")
    if not subject.examples:
        raise UnavailableError("its bundle keeps no rows to write the graph with; train it again")
    try:
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError:
        raise UnavailableError("not installed: pip install 'headrace[onnx]'") from None
    batch, other = _two_batches(subject)
    names = list(batch)
    sizes = [list(zip(batch[name].shape, other[name].shape, strict=True)) for name in names]
    shapes = tuple(
        {place: torch.export.Dim.AUTO for place, (one, another) in enumerate(pairs) if one != another}
        for pairs in sizes
    )
    try:
        with _quiet(), torch.inference_mode():
            program = torch.onnx.export(
                _Inferring(task, model, names),
                tuple(batch[name] for name in names),
                dynamo=True,
                dynamic_shapes=(shapes,),
                input_names=names,
                output_names=[OUTPUTS],
                verbose=False,
            )
    except Exception as error:  # noqa: BLE001  the exporter raises whatever a model makes it stumble over
        raise UnavailableError(f"PyTorch cannot write it as one graph ({type(error).__name__})") from None
    assert program is not None
    with building(subject.folder / EXACT) as unfinished:
        program.save(unfinished / MODEL)


def _two_batches(subject: Subject) -> tuple[Batch, Batch]:
    """Batches of other sizes, which tell the dimensions that vary from those that do not."""
    by_length = sorted(subject.examples, key=subject.task.length)
    return subject.task.collate(by_length[-5:]), subject.task.collate(by_length[:3])


def _session(file: Path, subject: Subject) -> Forward:
    """Computes with as many cores as the calling thread may, for each number of which there is a session."""
    sessions = {threads: _opened(file, threads) for threads in thread_counts(subject)}
    shapes = {one.name: one.shape for one in sessions[max(sessions)].get_inputs()}
    otherwise = pytorch.fp32(subject)

    def forward(batch: Batch) -> torch.Tensor:
        if not all(_fits(batch[name].shape, shape) for name, shape in shapes.items()):
            return otherwise(batch)
        session = sessions.get(torch.get_num_threads()) or sessions[min(sessions)]
        said = session.run([OUTPUTS], {name: batch[name].numpy() for name in shapes})
        return torch.from_numpy(np.asarray(said[0], dtype=np.float32))

    return forward


def thread_counts(subject: Subject) -> set[int]:
    """The numbers of cores for which there is a session, each with the weights."""
    cores = torch.get_num_threads()
    return {cores, max(1, cores // subject.lanes)}


def _opened(file: Path, threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # threads that wait leave the cores alone
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])


def _fits(shape: Sequence[int], wanted: Sequence[Any]) -> bool:
    """Whether a tensor has the sizes that the graph was written with; those that may vary have names there."""
    return all(size == expected for size, expected in zip(shape, wanted, strict=True) if isinstance(expected, int))
