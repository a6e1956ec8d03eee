"""The only ``ray.init`` of headrace: a private local session, or the cluster that ``RAY_ADDRESS`` names.

    with session():
        ...  # Ray Train, Tune and Serve work here

*Which one.* A cluster is used when ``RAY_ADDRESS`` says so (``host:port``, or ``auto`` for the one running on this
machine), as it does inside every Ray job. Otherwise a local session starts and ends with the block, even where a
cluster runs on this machine: whose it is and who pays for it is not ours to guess.
"""

import logging
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from cluster.environment import PACKAGES, code_root, environment, local_environment, prepare_environment
from cluster.errors import RunError, UserError
from cluster.machine import alive
from cluster.probe import require_shared_storage
from cluster.threads import AWAKE_SECONDS, join
from cluster.worker_lines import send_to_stderr

logger = logging.getLogger(__name__)

JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # Ray sets it for the command of a job
GIB = 1024**3
TOKEN_CURE = (
    "put the cluster's token in ~/.ray/auth_token or RAY_AUTH_TOKEN (on its head node, `ray get-auth-token` prints it) "
    "and set RAY_AUTH_MODE=token"
)


@dataclass(frozen=True)
class Resources:
    """What a session can use, over all of its nodes."""

    cpus: int
    gpus: int
    nodes: int


@contextmanager
def session(*, local_cpus: int | None = None) -> Iterator[None]:
    """Starts Ray here for the length of the block, or connects to a cluster; inside another session it does nothing.

    Args:
        local_cpus: the cores of a local session; all that this process may use when left out. A cluster has its own.

    Raises:
        RunError: the cluster cannot be reached, wants a token, or its nodes do not share ``HEADRACE_HOME``;
            or Ray does not start here.
    """
    previous = {name: os.environ.get(name) for name in environment()}
    prepare_environment()  # before the import: several parts of Ray read their variables when imported
    import ray

    try:
        early = _early[0] if _early else None
        if early and early.over.is_set():
            early.end()
        if early and not early.asked:
            with early.taken():
                yield
        elif ray.is_initialized():
            yield
        elif on_cluster():
            _connect()
            yield
        else:
            with _local(local_cpus or usable_cores()):
                yield
    finally:
        _restore(previous)


@contextmanager
def early_session(*, unless: bool = False) -> Iterator[None]:
    """Has the block's first :func:`session`, where that is to be a local one, start while the block does other things.

    What goes wrong meanwhile is raised by that :func:`session`, and while it ends the block goes on, too: it has ended
    when the block has, or when another :func:`session` begins.

    Args:
        unless: the block will hardly ask for one: it starts when it is asked for.
    """
    if unless or on_cluster():
        yield
        return
    previous = {name: os.environ.get(name) for name in environment()}
    prepare_environment()
    early = _Early()
    _early.append(early)
    try:
        yield
    finally:
        _early.remove(early)
        early.end()
        _restore(previous)


class _Early:
    """A session in a thread of its own, which stays as long as it: Linux ends Ray's processes with the thread that
    has started them.

    Attributes:
        asked: somebody has asked for it.
        over: is set when nobody needs it any more; it has ended or is ending.
    """

    def __init__(self) -> None:
        self.asked, self.over = False, threading.Event()
        self._started: Future[None] = Future()
        self._thread = threading.Thread(target=self._hold, name="session", daemon=True)
        self._thread.start()

    def _hold(self) -> None:
        try:
            with _local(usable_cores()):
                self._started.set_result(None)
                self.over.wait()
        except BaseException as error:
            if self._started.done():
                raise
            self._started.set_exception(error)

    @contextmanager
    def taken(self) -> Iterator[None]:
        """The session, as soon as it has started; with the block it begins to end."""
        self.asked = True
        try:
            while not self._started.done():
                wait([self._started], timeout=AWAKE_SECONDS)
            self._started.result()
            yield
        finally:
            self.over.set()

    def end(self) -> None:
        """Ends it, and returns when it has ended."""
        self.over.set()
        join(self._thread)


_early: list[_Early] = []
"""The session that was started early, if there is one."""


def on_cluster() -> bool:
    """Whether work goes to a cluster (``RAY_ADDRESS`` is set) instead of a local session."""
    return cluster_address() is not None


def cluster_address() -> str | None:
    """What ``RAY_ADDRESS`` says, or None where a local session is to be started."""
    address = os.environ.get("RAY_ADDRESS", "").strip()
    return None if address in ("", "local") else address


def inside_job() -> bool:
    """Whether this process is the command of a Ray job: its code and variables were given with the job."""
    return JOB_VARIABLE in os.environ


def resources() -> Resources:
    """What the current session can use.

    Raises:
        RuntimeError: there is no session.
    """
    import ray

    if not ray.is_initialized():
        raise RuntimeError("resources() needs a session")
    total = ray.cluster_resources()
    nodes = sum(1 for node in ray.nodes() if node["Alive"])
    return Resources(cpus=int(total.get("CPU", 0)), gpus=int(total.get("GPU", 0)), nodes=nodes)


def usable_cores() -> int:
    """The cores this process may use: its affinity, cut by the container's quota (cgroup v2 or v1); at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _core_quota(Path("/sys/fs/cgroup"))
    return max(1, min(cores, int(quota) if quota else cores))


@contextmanager
def _local(cpus: int) -> Iterator[None]:
    """A private cluster of one node that ends with the block; its folder is kept only when the block fails."""
    import ray

    folder = _session_folder()
    variables = local_environment(folder)
    previous = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        with _plain_errors("Ray did not start on this machine"):
            ray.init(
                address="local",  # never the cluster that /tmp/ray/ray_current_cluster happens to name
                num_cpus=cpus,
                object_store_memory=_object_store_bytes(),
                include_dashboard=False,
                logging_level=logging.ERROR,
                _node_ip_address="127.0.0.1",  # its ports are for this machine, and stay when the network changes
                _temp_dir=str(folder),
            )
        send_to_stderr()
        place = Path(ray._private.worker._global_node.get_session_dir_path())
        try:
            yield
        finally:
            ray.shutdown(wait_for_processes=True)
        shutil.rmtree(place, ignore_errors=True)
    finally:
        _restore(previous)


def _connect() -> None:
    """Connects to the cluster of ``RAY_ADDRESS`` until this process ends; outside a job our code is sent along.

    A second connection would be another driver to Ray, and what Daft keeps on the cluster would be lost to it.
    """
    import ray

    address = _checked_address()
    sent = None if inside_job() else {"py_modules": [str(code_root() / name) for name in PACKAGES], **_sent_variables()}
    with _plain_errors(f"no connection to the Ray cluster at RAY_ADDRESS={address}"):
        use_token_if_there_is_one()
        ray.init(address=address, runtime_env=sent, logging_level=logging.ERROR)
    send_to_stderr()
    try:
        require_shared_storage()
    except BaseException:
        ray.shutdown()
        raise


def _checked_address() -> str:
    address = cluster_address() or "auto"
    if address.startswith(("http://", "https://")):
        raise UserError(
            f"RAY_ADDRESS={address} is the address of a job server; use `headrace submit --address {address} …`"
        )
    if "://" in address:
        raise UserError(
            f"RAY_ADDRESS={address}: Ray Client is not supported, since Train and Tune need a driver on the cluster; "
            "use `headrace submit --address http://HEAD:8265 …`"
        )
    return address


def _sent_variables() -> dict[str, dict[str, str]]:
    return {"env_vars": {name: os.environ[name] for name in environment()}}


def use_token_if_there_is_one() -> None:
    """Turns token authentication on where a token lies ready.

    Ray looks for a token by itself only with RAY_ADDRESS=auto; with host:port, and for a
    job server, it would come without one and be refused.
    """
    from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available

    ray_logger = logging.getLogger("ray")
    level = ray_logger.level
    ray_logger.setLevel(logging.ERROR)  # it warns that authentication is on, which is how it should be
    try:
        maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
    finally:
        ray_logger.setLevel(level)


@contextmanager
def _plain_errors(what: str) -> Iterator[None]:
    """Turns what Ray raises while it starts or connects into one sentence with a cure."""
    from ray.exceptions import AuthenticationError, RayError

    try:
        yield
    except AuthenticationError as error:
        raise RunError(f"{what}: it asks for a token and none was found, or a wrong one; {TOKEN_CURE}") from error
    except (ConnectionError, RuntimeError, TimeoutError, ValueError, OSError, RayError) as error:
        told = " ".join(str(error).split())
        if "authenticat" in told.lower() or "token" in told.lower():
            raise RunError(f"{what}: it did not accept this token; {TOKEN_CURE}") from error
        if isinstance(error, ConnectionError):
            cure = f"check that it runs and the address is right; where it asks for a token, {TOKEN_CURE}"
            raise RunError(f"{what}; {cure}") from error
        raise RunError(f"{what}: {told}") from error


def _session_folder() -> Path:
    """Where local sessions keep sockets and logs: private, and short, for a socket's path has at most 107 bytes."""
    folder = Path(tempfile.gettempdir()).resolve() / f"headrace-{os.getuid()}"
    if len(str(folder)) > 30:
        folder = Path("/tmp") / folder.name
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise RunError(f"{folder} belongs to another user; set TMPDIR to a folder of your own")
    _forget_old_sessions(folder)
    return folder


def _forget_old_sessions(folder: Path) -> None:
    """Removes what killed sessions left, a day later; their logs may be wanted until then."""
    for place in folder.iterdir():
        pid = place.name.rpartition("_")[2].rpartition("-")[2]
        with suppress(OSError):  # another process may be removing the same one
            old = time.time() - place.lstat().st_mtime > 24 * 3600
            if old and pid.isdigit() and not alive(int(pid)):
                shutil.rmtree(place, ignore_errors=True)


def _object_store_bytes() -> int:
    """A tenth of the memory, at most 1 GiB: rows travel through memory-mapped files here, not the object store."""
    from ray._common.utils import get_system_memory

    return int(max(100 * 1024**2, min(GIB, get_system_memory() // 10)))


def _core_quota(root: Path) -> float | None:
    """The cores that the container's CPU quota grants; None without one."""
    with suppress(OSError, ValueError):
        quota, period = (root / "cpu.max").read_text(encoding="ascii").split()
        return None if quota == "max" else float(quota) / float(period)
    with suppress(OSError, ValueError):
        quota = (root / "cpu" / "cpu.cfs_quota_us").read_text(encoding="ascii")
        period = (root / "cpu" / "cpu.cfs_period_us").read_text(encoding="ascii")
        return float(quota) / float(period) if float(quota) > 0 else None
    return None


def _restore(previous: dict[str, str | None]) -> None:
    for name, value in previous.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
