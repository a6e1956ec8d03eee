"""ONNX Runtime, for tasks whose answer is one forward pass: `pip install 'headrace[onnx]'`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cluster.storage import building
from serving.engines.engine import Forward, Subject, UnavailableError
from serving.engines.graph import Tensors, exported, quiet, standing_in

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
        with quiet(), building(folder / QUANTISED) as unfinished:
            quantize_dynamic(graph, unfinished / MODEL, weight_type=QuantType.QInt8, per_channel=True)
    return _session(folder / QUANTISED / MODEL, subject)


def _export(subject: Subject) -> None:
    try:
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError:
        raise UnavailableError("not installed: pip install 'headrace[onnx]'") from None
    graph = exported(subject)
    try:
        with quiet():
            program = torch.onnx.export(
                graph.program, dynamo=True, input_names=list(graph.sizes), output_names=[OUTPUTS], verbose=False
            )
    except Exception as error:  # noqa: BLE001  as it stumbles over whatever a model computes
        raise UnavailableError(f"PyTorch cannot write it as an ONNX graph ({type(error).__name__})") from None
    assert program is not None
    with building(subject.folder / EXACT) as unfinished:
        program.save(unfinished / MODEL)


def _session(file: Path, subject: Subject) -> Forward:
    """Computes with as many cores as the calling thread may, for each number of which there is a session."""
    sessions = {threads: _opened(file, threads) for threads in thread_counts(subject)}
    sizes = {one.name: _sizes(one.shape) for one in sessions[max(sessions)].get_inputs()}

    def compute(tensors: Tensors) -> torch.Tensor:
        session = sessions.get(torch.get_num_threads()) or sessions[min(sessions)]
        said = session.run([OUTPUTS], {name: tensors[name].numpy() for name in sizes})
        return torch.from_numpy(np.asarray(said[0], dtype=np.float32))

    return standing_in(subject, sizes, compute)


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


def _sizes(shape: Sequence[int | str]) -> list[int | None]:
    """What may vary has a name in a graph."""
    return [size if isinstance(size, int) else None for size in shape]
