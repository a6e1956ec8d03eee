"""A real server behind TLS, seen from outside: its certificate, its log as objects, its spans at a collector."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import requests

from serving import host
from tests.serving.conftest import MakeBundle
from tests.serving.test_tls import make
from tests.serving.test_traces import collector

ROOT = Path(host.__file__).parent.parent
SECRET = "my-very-private-text"


def test_a_server_behind_tls_tells_what_it_does_and_no_text(
    make_bundle: MakeBundle, tmp_path: Path, free_port: int, wait_until: Callable[..., None]
) -> None:
    made, pair = make_bundle(tmp_path / "home" / "models" / "intent" / "a"), make(tmp_path)
    (tmp_path / "serve.yaml").write_text(
        f"models: [{made.folder}]\nserve: {{access_log: true, tls: {{certificate: server.crt, key: server.key}}}}\n"
    )
    code = "import sys, headrace; sys.argv[0] = 'headrace'; headrace.main()"
    command = [sys.executable, "-c", code, "serve", str(tmp_path / "serve.yaml"), "--port", str(free_port), "--json"]
    log = tmp_path / "log"
    with collector() as got, log.open("w") as file:
        unset = ("RAY_ADDRESS", "MLFLOW_TRACKING_URI", "HEADRACE_API_KEYS")
        environment = {name: value for name, value in os.environ.items() if name not in unset}
        environment |= {
            "HEADRACE_HOME": str(tmp_path / "home"),
            "HEADRACE_LOG": "json",
            "OTEL_EXPORTER_OTLP_ENDPOINT": got.address,
        }
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=file, text=True)
        try:
            assert process.stdout is not None
            announced = process.stdout.readline()
            assert announced, log.read_text()
            assert json.loads(announced)["address"] == f"https://127.0.0.1:{free_port}"
            address = f"https://localhost:{free_port}/models/intent"

            def ask(request_id: str) -> requests.Response:
                headers = {"x-request-id": request_id}
                body = {"inputs": SECRET}
                return requests.post(address, json=body, headers=headers, timeout=60, verify=str(pair.certificate))

            assert len(ask("r-1").json()[0]) == 5
            with pytest.raises(requests.exceptions.SSLError):
                requests.get(address, timeout=60)
            with socket.create_connection(("127.0.0.1", free_port), timeout=10) as connection:
                connection.sendall(b"GET /v2/health/ready HTTP/1.1\r\nHost: localhost\r\n\r\n")
                assert b"HTTP/" not in connection.recv(65536)
            newer = make(tmp_path, "newer")
            newer.key.replace(pair.key)
            newer.certificate.replace(pair.certificate)
            wait_until(lambda: "the certificate was renewed" in log.read_text())
            assert ask("r-2").status_code == 200
            wait_until(lambda: '"request_id": "r-2"' in log.read_text())
            process.send_signal(signal.SIGTERM)
            assert process.wait(90) == 0, log.read_text()
        finally:
            process.kill()
        spans = got.spans()
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    access = [line for line in lines if line["logger"] == "serving.watch"]
    assert [(line["request_id"], line["status"], line["model"]) for line in access] == [
        ("r-1", 200, "intent"),
        ("r-2", 200, "intent"),
    ]
    assert [span["headrace.request_id"] for span in spans if span["name"] == "ask"] == ["r-1", "r-2"]
    assert SECRET not in log.read_text() and SECRET.encode() not in b"".join(got.bodies)
