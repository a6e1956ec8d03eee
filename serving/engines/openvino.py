"""OpenVINO, for tasks whose answer is one forward pass: `pip install 'headrace[openvino]'`.

A forward pass runs wholly outside Python, of which one thread at a time may run: batches that run side by side, and
whoever reads requests meanwhile, do not wait for each other.
"""

import sys
import threading
from pathlib import Path
from typing import Any

import torch

from cluster.storage import building
from serving.engines import pytorch
from serving.engines.engine import Forward, Subject, UnavailableError
from serving.engines.graph import Tensors, exported, quiet, standing_in

FOLDER, MODEL = "openvino", "model.xml"


def fp32(subject: Subject) -> Forward:
    """The model as it was trained.

    Raises:
        UnavailableError: OpenVINO is not installed, or the model is none that can be written as one graph.
    """
    return _forward(subject, "f32")


def bf16(subject: Subject) -> Forward:
    """With multiplications in bf16.

    Raises:
        UnavailableError: as :func:`fp32`, or the processor does not multiply in bf16.
    """
    pytorch.require_bf16(subject.device)
    return _forward(subject, "bf16")


def _forward(subject: Subject, precision: str) -> Forward:
    library, file = _library(), subject.folder / FOLDER / MODEL
    if not file.exists():
        _convert(subject, library, file)
    graph = library.Core().read_model(file)
    sizes = {one.get_any_name(): _sizes(one.get_partial_shape()) for one in graph.inputs}
    cores = torch.get_num_threads()
    compiled = {streams: _compiled(library, graph, precision, cores, streams) for streams in stream_counts(subject)}
    here = threading.local()

    def compute(tensors: Tensors) -> torch.Tensor:
        streams = 1 if torch.get_num_threads() == cores else max(compiled)
        own = here.__dict__.setdefault("requests", {})  # no two threads may infer through the same one
        if streams not in own:
            own[streams] = compiled[streams].create_infer_request()
        said = own[streams].infer({name: tensors[name].contiguous().numpy() for name in sizes}, share_inputs=True)
        return torch.from_numpy(said[0]).float()

    return standing_in(subject, sizes, compute)


def stream_counts(subject: Subject) -> set[int]:
    """How many batches the cores may be shared among; for each there is a compiled model, with the weights."""
    return {1, subject.lanes}


def _library() -> Any:
    """Raises :class:`UnavailableError` where it is not installed."""
    # Importing OpenVINO, and each conversion, is told to its makers, unless what tells them is not there.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    try:
        import openvino
    except ImportError:
        raise UnavailableError("not installed: pip install 'headrace[openvino]'") from None
    return openvino


def _convert(subject: Subject, library: Any, file: Path) -> None:
    graph = exported(subject)
    try:
        with quiet():
            model = library.convert_model(graph.program)
    except Exception as error:  # noqa: BLE001  as it stumbles over whatever a model computes
        raise UnavailableError(f"OpenVINO cannot take its graph ({type(error).__name__})") from None
    for one, name in zip(model.inputs, graph.sizes, strict=True):
        one.get_tensor().set_names({name})
    with building(file.parent) as unfinished:
        library.save_model(model, unfinished / file.name, compress_to_fp16=False)


def _compiled(library: Any, graph: Any, precision: str, cores: int, streams: int) -> Any:
    wanted = {
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": cores,
        "NUM_STREAMS": streams,
        "ENABLE_CPU_PINNING": False,  # of the cores that there are, other processes need some for a moment
    }
    return library.Core().compile_model(graph, "CPU", wanted)


def _sizes(shape: Any) -> list[int | None]:
    return [None if size.is_dynamic else size.get_length() for size in shape]
