"""Ray Serve glue: one deployment whose replicas each hold every model of the edge, behind Serve's HAProxy.

The driver, which runs :func:`serve`, decides what is served: it resolves names in the registry, writes the answer to
``home()/serving/<app>.json`` and keeps it true while aliases move (``wanted.py``). Replicas follow that file
(``lineup.py``), so a promotion changes no deployment and restarts nothing.
"""

import asyncio
import logging
import os
import platform
import signal
import ssl
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from cluster.errors import RunError, UserError, reason
from cluster.imports import importing
from cluster.ports import free_port
from cluster.progress import say
from cluster.session import Resources, on_cluster, resources, session, usable_cores
from cluster.storage import fingerprint, home, only_one
from serving import direct, keys, proxy, traces
from serving.door import Door
from serving.recipe import Hosted, Replicas, Serve, hosted
from serving.scaling import Policy
from serving.surroundings import environment, proxy_sockets, sent
from serving.tls import Certificate
from serving.wanted import Wanted

FOLLOW_SECONDS = 1.0
START_SECONDS = 300.0  # for each model: the first start with a fast engine makes and measures several
HEALTH_SECONDS = 20.0
UP_AFTER_SECONDS = 2.0  # a rush that one replica is done with sooner needs no second one
STALLED_SECONDS = 120.0  # one forward pass that takes longer will not come back

logger = logging.getLogger(__name__)


def serve(
    models: Sequence[str | Hosted],
    options: Serve,
    host: str = "127.0.0.1",
    port: int = 8000,
    *,
    announce: Callable[[str], None],
    without_keys: bool = False,
) -> None:
    """Hosts models until SIGINT or SIGTERM.

    Args:
        models: ``name`` or ``name@alias``, which follow the alias, ``name/3``, or a bundle folder; or with a traffic
            and a shadow.
        options: replicas and limits; the traffic and the shadow of the only model.
        host: the address to listen on.
        port: the port; 0 for any free one.
        announce: called once with the address, when a real request has been answered there.
        without_keys: whoever reaches an address that other machines reach may ask.

    Raises:
        UserError: a model does not exist, cannot be opened, or is named twice; a key file is wrong, or there is none
            and other machines could ask; a certificate is not good; traces cannot be sent.
        RunError: the port is taken, another server runs already, or Serve does not start.
    """
    wanted = Wanted(hosted(models, options))
    certificate = Certificate(options.tls) if options.tls else None
    known_keys = keys.of_address(host, port, without_keys=without_keys, encrypted=certificate is not None)
    traces.wanted()  # said here what a replica would say in its log
    port = port or free_port()
    address = f"{'https' if certificate else 'http'}://{_reachable(host)}:{port}"
    app = app_name(port)
    with environment(host, port, certificate) as around, _only_server(app, port), session(), _until_signal() as stop:
        require_room(options.replicas, resources())
        _refuse_second_app(app)
        wanted.write(home() / "serving" / f"{app}.json")
        answered = False
        try:
            _deploy(app, wanted.path, options, port, known_keys, around.folder)
            trust, seconds = certificate.trust() if certificate else None, START_SECONDS * len(wanted.entries)
            answered = _await_answer(app, address, around.folder, stop, trust, seconds)
            if answered:
                announce(address)
            while not stop.wait(FOLLOW_SECONDS):
                wanted.follow()
                if certificate:
                    certificate.follow(proxy_sockets())
        finally:
            _shut_down(app, wanted, answered, around.door)


def app_name(port: int) -> str:
    """What Serve calls the server at ``port``: another home, or another machine's own session, gives another name."""
    place = "cluster" if on_cluster() else platform.node()
    return f"headrace-{port}-{fingerprint([str(home()), place])[:8]}"


class Replica:
    """One process with every model. Serve makes it, asks for its ASGI app, and asks whether it is well."""

    _traces: traces.Traces | None = None

    def __init__(
        self, wanted: str, options: dict[str, Any], key_file: str | None, threads: int, counts: str, sheds: bool
    ) -> None:
        # Before anything imports prometheus_client, which looks for it once.
        Path(counts).mkdir(parents=True, exist_ok=True)
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = counts
        with importing():
            import torch
            import transformers.modeling_utils  # noqa: F401  what every model of it begins with

            import serving.edge  # noqa: F401
            from cluster.progress import configure_logging
            from serving.lineup import Lineup
            from serving.metrics import Metrics
            from serving.workload import Traffic

        configure_logging(stream=sys.__stderr__)  # Serve puts its own log, which nobody sees, in the place of stderr
        torch.set_num_threads(threads)
        self._options, self._sheds = Serve(**options), sheds
        self._metrics = Metrics()
        self._keys = keys.Keys(Path(key_file)) if key_file else None
        self._traces = traces.Traces() if traces.wanted() else None
        self._lineup = Lineup(Path(wanted), self._options, self._metrics)
        self._traffic = Traffic()

    def __serve_build_asgi_app__(self) -> Any:
        from serving.edge import Edge

        parts: tuple[Any, ...] = (self._lineup, self._options, self._metrics, self._keys)
        direct.open_way(self._traffic.through(Edge(*parts, traces=self._traces, sheds=self._sheds)))
        # On the long way Serve itself sends the request id back.
        return self._traffic.through(Edge(*parts, traces=self._traces, echo_request_id=False))

    def __del__(self) -> None:
        """Serve calls it when the replica has answered its last request."""
        if self._traces:
            self._traces.close()

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """What Serve hands on to :class:`serving.scaling.Policy`, about once a second."""
        return self._metrics.workload.report(self._lineup.served(), self._traffic.idle_seconds())._asdict()

    async def check_health(self) -> None:
        """Has every idle model compute an answer; one that is busy is well as long as its batches end.

        One that sleeps is left asleep, and one that is being loaded is busy.

        Raises:
            RuntimeError: a model is stuck; Serve then replaces this replica.
        """
        for served in self._lineup.served():
            scheduler = served.scheduler
            if not scheduler.alive() or scheduler.running_for() > STALLED_SECONDS:
                raise RuntimeError(f"{served.name} version {served.version} is stuck")
            if served.predictor.loaded and not scheduler.busy():
                deadline = time.monotonic() + HEALTH_SECONDS
                await asyncio.wait_for(scheduler.submit([served.predictor.blank()], deadline), HEALTH_SECONDS)


def _deploy(app: str, wanted: Path, options: Serve, port: int, known_keys: keys.Keys | None, folder: Path) -> None:
    from ray import serve as ray_serve
    from ray.serve.config import BackpressureConfig, HTTPOptions, ProxyLocation

    cpus, threads = replica_cores(options.replicas)
    deployment = ray_serve.deployment(ray_serve.ingress()(Replica), name="models").options(
        **_replicas(options.replicas),
        ray_actor_options={"num_cpus": cpus, "num_gpus": 1 if resources().gpus else 0, **sent(to_replicas=True)},
        max_ongoing_requests=max(4096, 2 * options.max_queue),  # the edge refuses earlier, and in JSON
        max_queued_requests=options.max_queue,  # of those that wait for the first replica to start
        backpressure_config=BackpressureConfig(status_code=429, retry_after_s=10),
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
        not on_cluster(),  # whose proxies are Serve's as it makes them
    )
    try:
        ray_serve.start(
            proxy_location=ProxyLocation.EveryNode if on_cluster() else ProxyLocation.HeadOnly,
            http_options=HTTPOptions(host=_replica_host(), port=port),
            controller_options=sent() or None,
        )
        # Without waiting: `_await_answer` does that, with a time limit and an ear for Ctrl-C.
        ray_serve.run_many(
            [ray_serve.RunTarget(target=bound, name=app, route_prefix="/")],
            wait_for_ingress_deployment_creation=False,
            wait_for_applications_running=False,
        )
    except (RuntimeError, TimeoutError) as error:
        raise RunError(proxy.complaint(folder) or f"Serve did not start: {reason(error)}") from error


def require_room(replicas: Replicas, there: Resources) -> None:
    """Makes sure that the replicas that are always there can ever be placed; Serve would wait for them without end.

    Raises:
        UserError: they need more GPUs, or on a cluster more cores, than there are.
    """
    if there.gpus and replicas.min > there.gpus:
        raise UserError(
            f"serve.replicas.min is {replicas.min} and each replica takes a GPU, of which there are {there.gpus}; "
            f"set serve.replicas.min to {there.gpus} or less"
        )
    if on_cluster() and replicas.min > there.cpus:
        raise UserError(
            f"serve.replicas.min is {replicas.min} and each replica takes a core, of which the cluster has "
            f"{there.cpus}; set serve.replicas.min to {there.cpus} or less"
        )


def replica_cores(replicas: Replicas) -> tuple[float, int]:
    """The cores that Ray reserves for a replica, and the threads that it computes with.

    On one machine the cores are shared out so that ``max`` replicas fit, while each may use as many as there would be
    for it at ``min``: a machine with few replicas is not left idle. On a cluster a replica uses what it reserves.
    """
    cores = usable_cores() if not on_cluster() else max(1, resources().cpus // max(1, resources().nodes))
    if on_cluster():
        threads = max(1, cores // max(1, replicas.max))
        return threads, threads
    return cores / max(cores, replicas.max), max(1, cores // max(1, replicas.min))


def _replicas(replicas: Replicas) -> dict[str, Any]:
    if replicas.min == replicas.max:
        return {"num_replicas": replicas.min}
    scaling = {
        "min_replicas": replicas.min,
        "initial_replicas": max(1, replicas.min),  # whether a model can be served is known when one has started
        "max_replicas": replicas.max,
        "upscale_delay_s": UP_AFTER_SECONDS,
        "downscale_delay_s": replicas.down_after_seconds,
        "downscale_to_zero_delay_s": 0,  # the policy has waited already
        # How often replicas report. Serve calls this field outdated, and reads none of the variables that it names
        # in its place; with the default of 10 s nobody would come within seconds.
        "metrics_interval_s": 1,
        "look_back_period_s": 5,
        "policy": {
            "policy_function": f"{Policy.__module__}:{Policy.__name__}",
            "policy_kwargs": {
                "target_wait_seconds": replicas.target_wait_seconds,
                "idle_seconds": replicas.idle_seconds,
            },
        },
    }
    return {"autoscaling_config": scaling}


@contextmanager
def _only_server(app: str, port: int) -> Iterator[None]:
    """Holds the lock of the server's name, under which its file of wanted models lies, while it runs.

    Raises:
        RunError: another process holds it.
    """
    with ExitStack() as held:
        try:
            held.enter_context(only_one(home() / "serving" / app))
        except RunError as error:
            if error.__cause__ is not None:  # the lock could not be made
                raise
            raise RunError(
                f"a server of {home()} runs already at port {port}; stop that first, add the model there, or choose "
                "another port with --port"
            ) from None
        yield


def _refuse_second_app(app: str) -> None:
    """One cluster has one HTTP port and one root. What has our own name was left by a killed server and is replaced."""
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


def _await_answer(
    app: str, address: str, folder: Path, stop: threading.Event, trust: ssl.SSLContext | None, seconds: float
) -> bool:
    """Returns when all replicas run and the address answers; each model has answered for itself by then.

    Returns:
        False where ``stop`` came first.

    Raises:
        RunError: a replica or the proxy failed to start, or it takes too long.
    """
    deadline = time.monotonic() + seconds
    while not stop.is_set():
        running, told = _state(app)
        refused = proxy.complaint(folder)
        if refused:
            raise RunError(refused)
        if running and _answers(address, trust):
            return True
        if time.monotonic() > deadline:
            raise RunError(f"no answer from {address} after {seconds:.0f} s{told and f' ({told})'}")
        stop.wait(0.1)
    return False


def _state(app: str) -> tuple[bool, str]:
    """Whether all replicas run, and what Serve says of those that do not.

    Raises:
        RunError: they failed to start.
    """
    from ray import serve as ray_serve

    found = ray_serve.status().applications.get(app)
    if found is None:
        return False, ""
    told = " ".join(deployment.message for deployment in found.deployments.values()) or found.message
    if found.status == "DEPLOY_FAILED":
        raise RunError(f"the replicas did not start: {reason(told)}")
    return found.status == "RUNNING", " ".join(told.split())


def _answers(address: str, trust: ssl.SSLContext | None) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/v2/health/ready", timeout=5, context=trust):
            return True
    except (urllib.error.URLError, OSError):
        return False


def _shut_down(app: str, wanted: Wanted, answered: bool, door: Door | None) -> None:
    """Lets the replicas finish what they have. A local session ends with all of Serve; a cluster is left as it was."""
    from ray import serve as ray_serve

    try:
        if answered or on_cluster():
            ray_serve.delete(app)
    except TimeoutError:
        say("the replicas have not ended within a minute; Serve goes on ending them")
    finally:
        if door:
            door.close()  # until now each HAProxy that hears of a replica that has ended asks for the port
        if on_cluster() and not ray_serve.status().applications.keys() - {app}:  # nobody else's server came meanwhile
            ray_serve.shutdown()
        wanted.remove()


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


def _reachable(host: str) -> str:
    return {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
