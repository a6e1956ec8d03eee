"""Which arithmetic a worker computes in, and what narrow numbers need so that nothing is lost in them."""

import contextlib
from typing import Any

import torch


def choose_precision(precision: str, device: torch.device) -> torch.dtype:
    """bf16 only where this very device computes it in hardware: emulated, it is many times slower than fp32."""
    if precision == "auto":
        return torch.bfloat16 if computes_bf16(device) else torch.float32
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


def computes_bf16(device: torch.device) -> bool:
    """Whether ``device`` multiplies bf16 matrices in hardware."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()


def autocast(device: torch.device, precision: torch.dtype) -> contextlib.AbstractContextManager[Any]:
    """Narrow arithmetic where it was chosen, and where it does no harm; weights stay in fp32."""
    if precision is torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(device.type, precision)


def make_scaler(device: torch.device, precision: torch.dtype) -> torch.amp.GradScaler:
    """Scales losses so that small gradients are not nothing in fp16 (Micikevicius et al., 2018); else does nothing.

    Its scale falls where a gradient overflows, in a step that then changes no weight, and rises again after many
    steps that went well. Other arithmetic reaches as far as fp32 does and needs none.
    """
    return torch.amp.GradScaler(device.type, enabled=precision is torch.float16)
