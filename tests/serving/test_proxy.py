"""The script that becomes HAProxy, run with HAProxy itself as the judge of what it makes of a configuration."""

import contextlib
import json
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from serving import proxy
from tests.serving.proxied import CONFIGURATION, proxied


def run(folder: Path, configuration: str) -> tuple[int, str, str]:
    """Exit status, stderr and the edited configuration; ``-c`` has HAProxy check it and listen nowhere."""
    script = proxy.narrowed(folder, 8000, 9101, 8404)
    path = folder / "haproxy.cfg"
    path.write_text(configuration)
    with contextlib.closing(proxy.opened(folder, "127.0.0.1", 0)):
        done = subprocess.run([script, "-c", "-f", path], capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stderr, path.read_text()


def test_the_ports_are_bound_to_what_was_asked_for(tmp_path: Path) -> None:
    status, told, edited = run(tmp_path, CONFIGURATION)
    assert status == 0, told
    binds = [line.strip() for line in edited.splitlines() if line.strip().startswith("bind ")]
    assert binds == ["bind 127.0.0.1:9101", "bind fd@10", "bind 127.0.0.1:8404"]
    assert "del-header x-session-id" in edited
    assert "/nowhere/" not in edited
    assert edited.count("no strict-limits") == 1
    assert proxy.complaint(tmp_path) == ""


def test_a_proxy_that_knows_no_application_listens_for_nobody(tmp_path: Path) -> None:
    unknowing = CONFIGURATION.replace("    use_backend app if { path_beg / }\n", "")
    status, told, edited = run(tmp_path, unknowing)
    assert status == 0, told
    binds = [line.strip() for line in edited.splitlines() if line.strip().startswith("bind ")]
    assert binds == ["bind 127.0.0.1:9101", "bind 127.0.0.1:8404"]


@pytest.mark.parametrize(
    ("line", "reworded"),
    [
        ("bind :9101", "bind 0.0.0.0:9101"),
        ("bind :9101", "bind [::]:9101 v4v6"),
        ("bind *:8404", "bind *:8404 name stats"),
        ("bind 127.0.0.1:8000", "bind 127.0.0.1:8000 alpn h2"),
        ("bind *:8404", ""),
        ("bind *:8404", "bind *:8404\n  bind *:8405"),
        ("bind :9101", "bind\t:9101"),
    ],
)
def test_a_port_that_is_written_in_another_way_keeps_the_proxy_from_starting(
    tmp_path: Path, line: str, reworded: str
) -> None:
    status, told, _ = run(tmp_path, CONFIGURATION.replace(line, reworded))
    assert status == 1
    assert "these ports are not bound as they should be" in told
    assert proxy.complaint(tmp_path).startswith("the proxy was not started: these ports are not bound")


class Serves(BaseHTTPRequestHandler):
    """Answers as Serve's own proxy, or as a replica, does."""

    def do_GET(self) -> None:
        status, kind = self.path.removeprefix("/").split("/")
        self.send_response(int(status))
        self.send_header("content-type", {"text": "text/plain; charset=utf-8", "json": "application/json"}[kind])
        self.end_headers()
        self.wfile.write(kind.encode())

    def log_message(self, format: str, *words: object) -> None:
        """Nothing."""


def asked_for(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}", timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_what_serve_itself_refuses_is_worded_as_all_else(tmp_path: Path, wait_until: Callable[..., None]) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Serves) as upstream:
        threading.Thread(target=upstream.serve_forever, daemon=True).start()
        with proxied(tmp_path, wait_until, upstream.server_address[1]) as port:
            for path, status, code in (("404/text", 503, "not_ready"), ("429/text", 429, "overloaded")):
                found, body = asked_for(port, path)
                assert (found, json.loads(body)["error"]["code"]) == (status, code)
            for path, status, body in (("404/json", 404, "json"), ("429/json", 429, "json"), ("200/text", 200, "text")):
                assert asked_for(port, path) == (status, body)
        upstream.shutdown()
