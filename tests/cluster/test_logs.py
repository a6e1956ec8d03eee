"""Lines for machines: every one an object, whoever wrote it, and no secret in any."""

import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster import logs
from cluster.errors import UserError
from cluster.progress import Progress, configure_logging, relay, say
from cluster.settings import read

ROOT = Path(logs.__file__).parent.parent
SECRET = 'p"ss\\word'


@pytest.fixture
def structured(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("HEADRACE_LOG", "json")
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    configure_logging()
    yield
    logging.captureWarnings(False)
    root.handlers[:] = before
    root.setLevel(level)


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    told = capsys.readouterr()
    assert told.out == ""
    return [json.loads(line) for line in told.err.splitlines()]


@pytest.mark.usefixtures("structured")
def test_every_line_is_an_object(capsys: pytest.CaptureFixture[str]) -> None:
    say("two\nlines")
    logging.getLogger("serving.edge").info("done in %d s", 3, extra={"request_id": "r1", "seconds": 0.25, "text": "no"})
    with Progress("training", total=2, unit="rows") as bar:
        bar.update(done=2)
    relay("a line of a worker")
    relay(logs.json_line(0.25, "ERROR", "serving.lineup", "of a replica", model="intent"))
    try:
        raise RuntimeError("deep")
    except RuntimeError:
        logging.getLogger("somewhere").exception("failed")
    said, recorded, *progressed, worker, replica, failed = lines(capsys)
    assert (said["level"], said["logger"], said["message"]) == ("INFO", "headrace", "two\nlines")
    assert recorded == {
        "time": recorded["time"],
        "level": "INFO",
        "logger": "serving.edge",
        "message": "done in 3 s",
        "request_id": "r1",
        "seconds": 0.25,
    }
    assert progressed and all(line["message"].startswith("training 100 %") for line in progressed)
    assert worker["message"] == "a line of a worker"
    assert (replica["time"], replica["model"]) == ("1970-01-01T00:00:00.250Z", "intent")
    assert failed["level"] == "ERROR" and failed["traceback"].endswith("RuntimeError: deep")


@pytest.mark.usefixtures("structured")
def test_a_secret_is_masked_whatever_characters_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SHOP_PASSWORD", SECRET)
    (tmp_path / "recipe.yaml").write_text("password: ${env:SHOP_PASSWORD}\n")
    read(tmp_path / "recipe.yaml")
    say(f"connecting with {SECRET}")
    try:
        raise RuntimeError(SECRET)
    except RuntimeError:
        logging.getLogger("training").exception("failed at %s", f"db://me:{SECRET}@host")
    told = lines(capsys)
    assert len(told) == 2
    assert SECRET not in str([list(line.values()) for line in told]).encode().decode("unicode_escape")
    assert all("***" in line["message"] for line in told)
    assert "***" in told[1]["traceback"]


def test_another_form_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_LOG", "xml")
    with pytest.raises(UserError, match="HEADRACE_LOG=xml: say json, or plain"):
        configure_logging()


@pytest.mark.parametrize(("form", "status"), [("json", 2), ("xml", 2)])
def test_what_ends_a_command_is_such_a_line_too(form: str, status: int, tmp_path: Path) -> None:
    code = "import sys, headrace; sys.argv[0] = 'headrace'; headrace.main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "serve", str(tmp_path / "none.yaml")],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={"PATH": "", "HEADRACE_LOG": form, "HEADRACE_HOME": str(tmp_path)},
    )
    assert done.returncode == status, done.stderr
    if form == "json":
        line = json.loads(done.stderr)
        assert line["level"] == "ERROR" and "none.yaml: no such file" in line["message"]
    else:
        assert done.stderr == "HEADRACE_LOG=xml: say json, or plain\n"


def test_a_defect_is_such_a_line_too() -> None:
    code = (
        "import typer; from cluster.printing import carry_out\n"
        "app = typer.Typer(pretty_exceptions_enable=False)\n"
        "app.command()(lambda: 1 / 0)\n"
        "carry_out(app)"
    )
    environment = {"PATH": "", "HEADRACE_LOG": "json"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=environment)
    assert done.returncode == 1
    line = json.loads(done.stderr)
    assert line["level"] == "CRITICAL" and "ZeroDivisionError: division by zero" in line["message"]
