"""Ray Serve glue: one deployment whose replicas each hold every model of the edge, behind Serve's HAProxy.

The driver, which runs :func:`serve`, decides what is served: it resolves names in the registry, writes the answer to
``home()/serving/<app>.json`` and keeps it true while aliases move. Replicas follow that file (``lineup.py``), so a
promotion changes no deployment and restarts nothing.
"""

import asyncio
import logging
import os
import shutil
import signal
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cluster.errors import HeadraceError, RunError, UserError
from cluster.session import on_cluster, resources, session, usable_cores
from cluster.storage import home, write_json
from serving import keys, proxy
from serving.recipe import Replicas, Serve
from training import registry, store
from training.bundle import open_bundle

FOLLOW_SECONDS = 1.0
START_SECONDS = 300.0
HEALTH_SECONDS = 20.0
STALLED_SECONDS = 120.0  # one forward pass that takes longer will not come back
LOCAL_NAMES = {"127.0.0.1", "localhost", "::1"}

logger = logging.getLogger(__name__)


def serve(
    models: list[str], options: Serve, host: str = "127.0.0.1", port: int = 8000, *, announce: Callable[[str], None]
) -> None:
    """Hosts models until SIGINT or SIGTERM.

    Args:
        models: ``name`` or ``name@alias``, which follow the alias, ``name/3``, or a bundle folder.
        options: replicas and limits.
        host: the address to listen on.
        port: the port; 0 for any free one.
        announce: called once with the address, when a real request has been answered there.

    Raises:
        UserError: a model does not exist, cannot be opened, or is named twice; a key file is wrong.
        RunError: the port is taken, or Serve does not start.
    """
    wanted = Wanted(models)
    known_keys = keys.from_environment()
    port = port or proxy.free_port()
    address = f"http://{_reachable(host)}:{port}"
    app = f"headrace-{port}"
    with _environment(host, port) as folder, session(), _until_signal() as stop:  # Ray sets handlers of its own
        _refuse_second_app(app)
        wanted.write(home() / "serving" / f"{app}.json")
        try:
            _deploy(app, wanted.path, options, port, known_keys, folder)
            _await_answer(address, stop)
            if not stop.is_set():
                announce(address)
            while not stop.wait(FOLLOW_SECONDS):
                wanted.follow()
        finally:
            _shut_down(app, wanted.path)


class Wanted:
    """Which bundle each model name stands for, and the file that says so.

    Raises:
        UserError: a model does not exist, its bundle cannot be opened, or one name is meant twice.
    """

    def __init__(self, models: list[str]) -> None:
        self.path = Path()
        self.entries: dict[str, dict[str, Any]] = {}
        self._followed: dict[str, str] = {}
        self._complaint = ""
        self._stamp = _store_stamp()
        for model in models:
            found = registry.resolve(model)
            if found.name in self.entries:
                raise UserError(f"'{model}': a model named {found.name} is served already; name it once")
            open_bundle(found.bundle)  # says now, in plain words, what a replica would say later in its log
            self.entries[found.name] = _entry(found)
            if found.alias:
                self._followed[found.name] = f"{found.name}@{found.alias}"
        if not self.entries:
            raise UserError("name at least one model to serve; `headrace models` lists them")

    def write(self, path: Path) -> None:
        """Writes the file; a reader sees the old content or the new."""
        self.path = path
        write_json(path, self.entries)

    def follow(self) -> None:
        """Looks where the aliases point now, and rewrites the file when one has moved."""
        stamp = _store_stamp()
        if stamp is not None and stamp == self._stamp:
            return
        try:
            entries = {
                name: _entry(registry.resolve(self._followed[name])) if name in self._followed else entry
                for name, entry in self.entries.items()
            }
        except HeadraceError as error:  # a store that is away for a while must not end the serving
            if str(error) != self._complaint:
                logger.warning("aliases cannot be followed for the moment: %s", error)
            self._complaint = str(error)
            return
        self._complaint, self._stamp = "", stamp
        if entries != self.entries:
            changed = [
                f"{name} version {entries[name]['version']}" for name in entries if entries[name] != self.entries[name]
            ]
            self.entries = entries
            self.write(self.path)
            logger.info("to be served from now on: %s", ", ".join(changed))


class Replica:
    """One process with every model. Serve makes it, asks for its ASGI app, and asks whether it is well."""

    def __init__(self, wanted: str, options: dict[str, Any], key_file: str | None, threads: int, counts: str) -> None:
        # Before anything imports prometheus_client, which looks for it once.
        Path(counts).mkdir(parents=True, exist_ok=True)
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = counts
        import torch

        from cluster.progress import configure_logging
        from serving.lineup import Lineup
        from serving.metrics import Metrics

        configure_logging()
        torch.set_num_threads(threads)
        self._options = Serve(**options)
        self._metrics = Metrics()
        self._keys = keys.Keys(Path(key_file)) if key_file else None
        self._lineup = Lineup(Path(wanted), self._options, self._metrics)

    def __serve_build_asgi_app__(self) -> Any:
        from serving.edge import Edge

        # Serve itself sends the request id back.
        return Edge(self._lineup, self._options, self._metrics, self._keys, echo_request_id=False)

    async def check_health(self) -> None:
        """Has every idle model compute an answer; one that is busy is well as long as its batches end.

        Raises:
            RuntimeError: a model is stuck; Serve then replaces this replica.
        """
        for served in list(self._lineup.models.values()):
            scheduler = served.scheduler
            if not scheduler.alive() or scheduler.running_for() > STALLED_SECONDS:
                raise RuntimeError(f"{served.name} version {served.version} is stuck")
            if not scheduler.busy():
                deadline = time.monotonic() + HEALTH_SECONDS
                await asyncio.wait_for(scheduler.submit([served.predictor.blank()], deadline), HEALTH_SECONDS)


def _deploy(app: str, wanted: Path, options: Serve, port: int, known_keys: keys.Keys | None, folder: Path) -> None:
    from ray import serve as ray_serve
    from ray.serve.config import HTTPOptions, ProxyLocation

    cpus, threads = replica_cores(options.replicas)
    deployment = ray_serve.deployment(ray_serve.ingress()(Replica), name="models").options(
        **_replicas(options.replicas),
        ray_actor_options={"num_cpus": cpus, "num_gpus": 1 if resources().gpus else 0, **_sent()},
        max_ongoing_requests=max(4096, 2 * options.max_queue),  # the edge refuses earlier, and in JSON
        graceful_shutdown_wait_loop_s=0.5,
        graceful_shutdown_timeout_s=options.timeout_seconds + 5,
        health_check_period_s=5,
        health_check_timeout_s=HEALTH_SECONDS + 10,
        max_constructor_retry_count=2,
        logging_config={"enable_access_log": False, "log_level": "WARNING"},
    )
    bound = deployment.bind(
        str(wanted),
        options.model_dump(),
        str(known_keys.path) if known_keys else None,
        threads,
        str(folder / "counts"),
    )
    ray_serve.start(
        proxy_location=ProxyLocation.EveryNode if on_cluster() else ProxyLocation.HeadOnly,
        http_options=HTTPOptions(host=_replica_host(), port=port),
        controller_options=_sent() or None,
    )
    try:
        ray_serve.run(bound, name=app, route_prefix="/")
    except RuntimeError as error:
        raise RunError(f"the replicas did not start: {_last_line(error)}") from error


def replica_cores(replicas: Replicas) -> tuple[float, int]:
    """The cores that Ray reserves for a replica, and the threads that it computes with.

    On one machine the cores are shared out so that ``max`` replicas fit, while each may use as many as there would be
    for it at ``min``: a machine with few replicas is not left idle. On a cluster a replica uses what it reserves.
    """
    cores = usable_cores() if not on_cluster() else max(1, resources().cpus // max(1, resources().nodes))
    if on_cluster():
        threads = max(1, cores // max(1, replicas.max))
        return threads, threads
    return cores / max(cores, replicas.max), max(1, cores // replicas.min)


def _replicas(replicas: Replicas) -> dict[str, Any]:
    if replicas.min == replicas.max:
        return {"num_replicas": replicas.min}
    scaling = {
        "min_replicas": replicas.min,
        "max_replicas": replicas.max,
        "target_ongoing_requests": 32,  # what fills one batch while another runs
        "upscale_delay_s": 3,
        "downscale_delay_s": 60,
        "look_back_period_s": 11,  # Serve wants more than 10…
        "aggregation_function": "max",  # …and the highest load in it, so that a rush is seen at once
    }
    return {"autoscaling_config": scaling}


@contextmanager
def _environment(host: str, port: int) -> Iterator[Path]:
    """What Serve's processes must find in their environment. Yields a private folder that lasts as long.

    Raises:
        UserError: a cluster's endpoint cannot be bound to one machine.
        RunError: the port is taken.
    """
    folder = Path(tempfile.mkdtemp(prefix="headrace-edge-"))
    variables = dict(ALWAYS)
    if on_cluster():
        if host in LOCAL_NAMES:
            raise UserError(
                "on a cluster Serve's proxies and replicas reach one another over the network, so the endpoint cannot "
                "be closed to other machines; say --host 0.0.0.0, set HEADRACE_API_KEYS, and close the nodes' ports "
                "30000-31000 to everyone else"
            )
    else:
        proxy.require_free(host, port)
        metrics_port, stats_port = proxy.free_port(), proxy.free_port()
        variables |= {
            # Ray then keeps to the loopback address, as it does on macOS and Windows: no port of the session, but
            # for the token-guarded ones of its workers, can be reached from elsewhere.
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
            "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics_port),
            "RAY_SERVE_HAPROXY_STATS_PORT": str(stats_port),
            "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(proxy.free_port()),
            "RAY_SERVE_HAPROXY_BINARY_PATH": str(proxy.narrowed(folder, host, port, metrics_port, stats_port)),
            "HF_HUB_OFFLINE": "1",  # a replica reads its bundle and nothing else
        }
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update({name: value for name, value in variables.items() if before[name] is None})
    try:
        yield folder
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
        shutil.rmtree(folder, ignore_errors=True)


ALWAYS: Mapping[str, str] = {
    # The replica's loop does nothing but the edge, since the model has its own threads: no second loop is needed.
    # (RAY_SERVE_THROUGHPUT_OPTIMIZED sets these and tells of it in ten lines.)
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
    "RAY_SERVE_FREEZE_GC_ON_STARTUP": "1",
    "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "1000",
    "RAY_SERVE_LOG_TO_STDERR": "0",
    # A prediction can be asked for twice: when a replica dies, HAProxy hands its requests to another one.
    "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response",
    "RAY_SERVE_HAPROXY_RETRIES": "2",
    "RAY_SERVE_HAPROXY_NBTHREAD": "1",
    # How long a leaving replica still takes requests: HAProxy hears within a second that it leaves.
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "3",
    "RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "1",
}


def _sent() -> dict[str, Any]:
    """Our variables for processes on other machines; those on this one inherit them."""
    if not on_cluster():
        return {}
    return {"runtime_env": {"env_vars": {"RAY_SERVE_ENABLE_HA_PROXY": "1", **ALWAYS}}}


def _refuse_second_app(app: str) -> None:
    """One cluster has one HTTP port and one root: a second server would silently replace the first."""
    from ray import serve as ray_serve

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    if not on_cluster():
        return
    others = [name for name in ray_serve.status().applications if name != app]
    if others:
        raise RunError(f"this cluster serves {', '.join(others)} already; stop that first, or add the model there")


def _replica_host() -> str:
    """The interface of Serve's own sockets: loopback wherever Ray itself keeps to it."""
    import ray

    return proxy.LOOPBACK if ray.util.get_node_ip_address() == proxy.LOOPBACK else "0.0.0.0"


def _await_answer(address: str, stop: threading.Event) -> None:
    """Returns when every model answers, which each has done once for itself before its replica says so.

    Raises:
        RunError: none did within the time.
    """
    deadline = time.monotonic() + START_SECONDS
    while not stop.is_set():
        try:
            with urllib.request.urlopen(f"{address}/v2/health/ready", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            if time.monotonic() > deadline:
                raise RunError(f"no answer from {address} after {START_SECONDS:.0f} s") from None
            stop.wait(0.1)


def _shut_down(app: str, wanted: Path) -> None:
    """Lets the replicas finish what they have. A local session ends with all of Serve; a cluster is left as it was."""
    from ray import serve as ray_serve

    ray_serve.delete(app)
    if on_cluster():
        ray_serve.shutdown()
    wanted.unlink(missing_ok=True)


@contextmanager
def _until_signal() -> Iterator[threading.Event]:
    """An event that the first SIGINT or SIGTERM sets; the second acts as it did before."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def end(number: int, frame: object) -> None:
        stop.set()
        signal.signal(number, before[signal.Signals(number)])

    for number in before:
        signal.signal(number, end)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _store_stamp() -> tuple[int, int] | None:
    """What changes with every write to the registry's own file, to spare the questions in between; None elsewhere."""
    place = store.uri()
    try:
        found = Path(place.removeprefix("sqlite:///")).stat() if place.startswith("sqlite:///") else None
    except OSError:
        return None
    return (found.st_mtime_ns, found.st_size) if found else None


def _entry(found: registry.ModelVersion) -> dict[str, Any]:
    return {"version": found.version, "bundle": str(found.bundle)}


def _reachable(host: str) -> str:
    return {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
