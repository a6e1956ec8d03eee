"""The environment that Serve's processes find: its switches, and in a local session ports closed to other machines."""

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from cluster.errors import UserError
from cluster.logs import VARIABLE as LOG_VARIABLE
from cluster.ports import free_port
from cluster.session import on_cluster
from serving import direct, proxy
from serving.door import Door
from serving.tls import Certificate

LOCAL_NAMES = {"127.0.0.1", "localhost", "::1"}
# In a local session these are set to what `proxy.narrowed` closes; another value would leave a port open to everyone.
OURS_ALONE = ("RAY_SERVE_HAPROXY_BINARY_PATH", "RAY_SERVE_HAPROXY_METRICS_PORT", "RAY_SERVE_HAPROXY_STATS_PORT")


class Surroundings(NamedTuple):
    """What lasts as long as Serve's processes find their environment: a private folder, and a local session's port."""

    folder: Path
    door: Door | None


@contextmanager
def environment(host: str, port: int, certificate: Certificate | None = None) -> Iterator[Surroundings]:
    """What Serve's processes must find in their environment.

    Raises:
        UserError: a cluster's endpoint cannot be bound to one machine, nor have a certificate; or a variable would
            undo what keeps a local session's ports from other machines.
        RunError: the port is taken.
    """
    with tempfile.TemporaryDirectory(prefix="headrace-edge-", ignore_cleanup_errors=True) as place:
        folder = Path(place)
        ours = (_of_cluster if on_cluster() else _of_local_session)(folder, host, port, certificate)
        door = None if on_cluster() else proxy.opened(folder, host, port)
        variables = {**ALWAYS, **ours}
        before = {name: os.environ.get(name) for name in variables}
        os.environ.update({name: value for name, value in variables.items() if before[name] is None})
        try:
            yield Surroundings(folder, door)
        finally:
            if door:
                door.close()
            for name, value in before.items():
                if value is None:
                    del os.environ[name]


def _of_cluster(folder: Path, host: str, port: int, certificate: Certificate | None) -> dict[str, str]:
    if certificate:
        raise UserError(
            "serve.tls: on a cluster each node has a proxy of Serve's, which takes no certificate; leave it out, and "
            "put a load balancer that has it in front"
        )
    if host in LOCAL_NAMES:
        raise UserError(
            "on a cluster Serve's proxies and replicas reach one another over the network, so the endpoint cannot "
            "be closed to other machines; say --host 0.0.0.0, set HEADRACE_API_KEYS, and close the nodes' ports "
            "30000-31000 to everyone else"
        )
    return {}


def _of_local_session(folder: Path, host: str, port: int, certificate: Certificate | None) -> dict[str, str]:
    _refuse_variables()
    metrics_port, stats_port = free_port(), free_port()
    pem = certificate.write(folder) if certificate else None
    return {
        **OF_REPLICAS,
        # Ray then keeps to the loopback address, as it does on macOS and Windows: no port of the session, but
        # for the token-guarded ones of its workers, can be reached from elsewhere.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics_port),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(stats_port),
        "RAY_SERVE_HAPROXY_MAXCONN": str(proxy.connections()),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(free_port()),
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(proxy.narrowed(folder, port, metrics_port, stats_port, pem)),
        "HF_HUB_OFFLINE": "1",  # a replica reads its bundle and nothing else
        # Ray has its workers step back behind whatever else runs on the machine. Somebody waits for these: beside two
        # busy processes a request would wait for seconds.
        "RAY_worker_niceness": "0",
    }


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
    # Otherwise HAProxy writes a line for each request and a Python process reads it, to count what the edge counts.
    "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
    # How often Serve's controller compares what there is with what there should be. Each time it asks Ray for the state
    # of all nodes; Serve's ten times a second keep a core busy that the model computes with.
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.5",
    # How long a leaving replica still takes requests: HAProxy hears within a second that it leaves.
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "3",
    # A killed HAProxy is replaced when it has not answered three times in a row: after 3 s, where Serve takes 30.
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1",
    # One that starts may take three times this long; Serve's 5 s have it killed and begun anew where a machine is busy.
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "20",
}


OF_REPLICAS: Mapping[str, str] = {"RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": direct.IMPORT_PATH}
"""For those alone who can import our code; on a cluster Serve's proxies need not be able to."""


def proxy_sockets() -> list[Path]:
    """Where the HAProxy of a local session takes commands: one folder for each node, of which there is one."""
    place = Path(os.environ.get("RAY_SERVE_HAPROXY_SOCKET_PATH", ""))
    return sorted(place.parent.glob(f"*/{place.name}")) if place.name else []


def sent(*, to_replicas: bool = False) -> dict[str, Any]:
    """Our variables for processes on other machines; those on this one inherit them."""
    if not on_cluster():
        return {}
    # Not the headers for a collector: they may hold a token, and what is sent along can be read at the cluster's head.
    telling = {
        name: value
        for name, value in os.environ.items()
        if name == LOG_VARIABLE or (name.startswith("OTEL_") and not name.endswith("_HEADERS"))
    }
    ours = {"RAY_SERVE_ENABLE_HA_PROXY": "1", **ALWAYS, **(OF_REPLICAS if to_replicas else {})}
    return {"runtime_env": {"env_vars": ours | telling}}


def _refuse_variables() -> None:
    set_already = [name for name in OURS_ALONE if name in os.environ]
    if set_already:
        raise UserError(
            f"{' and '.join(set_already)}: unset, please; headrace sets it for the proxy of a local session, so that "
            "its ports stay closed to other machines"
        )
