"""The doctor, on this machine and on machines with something wrong."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from cluster import doctor
from cluster.doctor import Check, examine

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def found(name: str) -> Check:
    """The first finding of that name."""
    return next(check for check in examine() if check.name == name)


def test_a_sound_machine_has_nothing_that_fails(home: Path) -> None:
    checks = examine()
    assert [check for check in checks if check.status == "fail"] == []
    assert {"python", "versions", "names", "cpu", "haproxy", "storage", "cluster", "token", "registry"} <= {
        check.name for check in checks
    }
    assert all(check.cure for check in checks if check.status != "ok")
    assert set(checks[0].as_json()) == {"name", "status", "what", "cure"}
    assert not home.exists()  # looking leaves nothing behind


def test_a_home_that_cannot_be_used_is_said(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_HOME", "s3://bucket/state")
    check = found("storage")
    assert (check.status, check.cure) == ("fail", "export HEADRACE_HOME=/a/folder")
    monkeypatch.setenv("HEADRACE_HOME", f"{__file__}/below-a-file")
    assert found("storage").status == "fail"


def test_a_registry_that_does_not_answer_is_said_without_its_password(
    home: Path, monkeypatch: pytest.MonkeyPatch, free_port: int
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:hunter22@127.0.0.1:{free_port}")
    check = found("registry")
    assert check.status == "fail"
    assert f"http://me:***@127.0.0.1:{free_port} does not answer (ConnectionError)" in check.as_json()["what"]


def test_a_taken_port_is_said(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        monkeypatch.setattr(doctor, "SERVE_PORT", taken.getsockname()[1])
        assert found("port").status == "warn"


def test_a_token_that_was_switched_off_is_said(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert found("token") == Check(
        "token",
        "fail",
        "RAY_AUTH_MODE=disabled: whoever reaches the cluster's ports can run code on it",
        "unset RAY_AUTH_MODE",
    )


def test_a_cluster_that_is_not_there_is_said(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://10.0.0.1:8265")
    check = found("cluster")
    assert check.status == "fail"
    assert "is the address of a job server; use `headrace submit --address http://10.0.0.1:8265" in check.what


def test_a_stranger_that_ships_a_package_of_our_name_is_said(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stranger = home.parent / "elsewhere" / "training"
    stranger.mkdir(parents=True)
    (stranger / "__init__.py").write_text("")
    monkeypatch.setattr(doctor, "code_root", lambda: stranger.parent)
    check = found("names")
    assert check.status == "fail"
    assert "is imported from" in check.what


@pytest.mark.parametrize("home", [None, "s3://bucket/state"])
def test_the_command_looks_at_what_the_user_has_set_and_shows_no_password(tmp_path: Path, home: str | None) -> None:
    """As a process: what the command line prepares for other commands would hide what is examined."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "HEADRACE_", "HF_"))}
    set_by_user = {"HF_ENDPOINT": "http://me:hunter22@127.0.0.1:1", **({"HEADRACE_HOME": home} if home else {})}
    run = subprocess.run(
        [sys.executable, str(ROOT / "headrace.py"), "doctor", "--json"],
        cwd=tmp_path,
        env=kept | set_by_user,
        capture_output=True,
        text=True,
        check=False,
    )
    checks = {check["name"]: check for check in json.loads(run.stdout)["checks"]}
    assert "http://me:***@127.0.0.1:1 cannot be reached" in checks["model hub"]["what"]
    if home:
        assert (run.returncode, checks["storage"]["status"]) == (1, "fail")
    else:
        assert checks["shared storage"]["what"].startswith("HEADRACE_HOME is not set")
