"""HAProxy itself, started by our script with a configuration as Serve writes it, before servers of a test's own."""

import contextlib
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

from cluster.ports import free_port
from serving import proxy

# The lines that Serve writes, as far as the ports and what lies around them are concerned.
CONFIGURATION = """
global
    maxconn 4096
defaults
    mode http
    timeout connect 5s
    timeout client 5s
    timeout server 5s
    errorfile 503 /nowhere/500.http
frontend prometheus
    bind :9101
    http-request use-service prometheus-exporter if { path /metrics }
frontend http_frontend
    bind 127.0.0.1:8000
    use_backend app if { path_beg / }
    default_backend default_backend
backend app
    server replica 127.0.0.1:9
backend default_backend
    http-request return status 404 content-type text/plain lf-string "Path \\'%[path]\\' not found."
listen stats
  bind *:8404
  stats enable
  stats uri /stats
"""


@contextlib.contextmanager
def proxied(folder: Path, wait_until: Callable[..., None], *upstreams: int) -> Iterator[int]:
    """HAProxy before servers on this machine; its port, when it listens."""
    ports = public, metrics, stats = free_port(), free_port(), free_port()
    script, path = proxy.narrowed(folder, public, metrics, stats), folder / "haproxy.cfg"
    servers = (f"server replica{number} 127.0.0.1:{upstream}" for number, upstream in enumerate(upstreams))
    asked = CONFIGURATION.replace("server replica 127.0.0.1:9", "\n    ".join(servers))
    for usual, own in zip(("8000", "9101", "8404"), ports, strict=True):
        asked = asked.replace(f":{usual}", f":{own}")
    path.write_text(asked)
    with (
        contextlib.closing(proxy.opened(folder, "127.0.0.1", public)),
        subprocess.Popen([script, "-db", "-f", path], stderr=subprocess.PIPE, text=True) as process,
    ):
        try:
            wait_until(lambda: _listens(public))
            yield public
        finally:
            process.kill()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
