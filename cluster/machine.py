"""What this machine is, and which of its processes live."""

import os
import platform
from pathlib import Path

SETS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8", "asimddp", "bf16", "i8mm")


def processor() -> str:
    """The processor's name and what of its instruction sets decides the speed of matrix products."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # another system than Linux
        lines = []
    fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in reversed(lines))}
    flags = fields.get("flags", fields.get("Features", "")).split()
    name = fields.get("model name") or platform.processor() or platform.machine()
    return f"{name} ({', '.join(one for one in SETS if one in flags)})"


def alive(process: int) -> bool:
    """Whether there is a process of that number here, whoever's."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
