"""What a model and its engine take in memory, as well as can be known from outside."""

import torch

from serving.engines import onnx, openvino
from serving.engines.engine import Subject
from serving.recipe import EngineName


def weight_bytes(model: torch.nn.Module) -> int:
    """Bytes of parameters and buffers; what is shared within the model counts once."""
    return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))


def own_bytes(engine: EngineName, subject: Subject) -> int:
    """Bytes that an engine holds beside the model: its copy of the weights, or its graphs, which lie in files."""
    if engine == "torch-bf16":
        return weight_bytes(subject.model) // 2
    if engine == "torch-int8":
        linear = [module for module in subject.model.modules() if isinstance(module, torch.nn.Linear)]
        return weight_bytes(subject.model) - sum(3 * module.weight.numel() for module in linear)
    if engine.startswith("onnx"):
        folder = subject.folder / engine.removeprefix("onnx-")
        return len(onnx.thread_counts(subject)) * sum(path.stat().st_size for path in folder.iterdir())
    if engine.startswith("openvino"):
        weights = (subject.folder / openvino.FOLDER / openvino.MODEL).with_suffix(".bin").stat().st_size
        return len(openvino.stream_counts(subject)) * (weights // 2 if engine == "openvino-bf16" else weights)
    return 0
