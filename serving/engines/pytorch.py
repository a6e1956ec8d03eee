"""PyTorch's own forward pass, in the model's precision or a lower one."""

import copy
import warnings
from contextlib import nullcontext
from typing import Any

import torch

from serving.engines.engine import Forward, Subject, UnavailableError
from training.tasks.task import Batch, Task


def fp32(subject: Subject) -> Forward:
    """The model as it was trained."""
    return of_task(subject.task, subject.model, subject.device)


def bf16(subject: Subject) -> Forward:
    """Weights in bf16, where the processor multiplies such: AVX-512 with bf16, AMX, or a GPU that has it.

    Raises:
        UnavailableError: it does not, and would compute in a slow emulation.
    """
    require_bf16(subject.device)
    return of_task(subject.task, copy.deepcopy(subject.model).bfloat16(), subject.device, torch.bfloat16)


def require_bf16(device: torch.device) -> None:
    """Whether the device multiplies in bf16 by itself.

    Raises:
        UnavailableError: it does not.
    """
    there = torch.cuda.is_bf16_supported() if device.type == "cuda" else torch.cpu._is_avx512_bf16_supported()
    if not there:
        raise UnavailableError("this processor does not multiply in bf16")


def int8(subject: Subject) -> Forward:
    """Linear layers in int8: weights beforehand, what flows into them as it comes.

    Raises:
        UnavailableError: on a GPU, for which PyTorch has no such layers.
    """
    if subject.device.type != "cpu":
        raise UnavailableError("PyTorch has these layers for processors only")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.ao.quantization import quantize_dynamic

        quantised = quantize_dynamic(copy.deepcopy(subject.model), {torch.nn.Linear}, dtype=torch.qint8)  # type: ignore[no-untyped-call]
    return of_task(subject.task, quantised, subject.device)


def of_task(task: Task, model: Any, device: torch.device, precision: torch.dtype | None = None) -> Forward:
    """What a task infers with a model, or with what stands in its place."""

    @torch.inference_mode()
    def forward(batch: Batch) -> torch.Tensor:
        on_device = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
        # weights of that precision are not cast again; what comes in another one, as pixels do, is
        with torch.autocast(device.type, precision) if precision else nullcontext():
            outputs = task.infer(model, on_device)
        return outputs.float().cpu()

    return forward
