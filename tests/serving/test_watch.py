"""What is left of a question when it ends: a line in the log, spans at a collector; and nothing of its text."""

import json
import logging
from collections.abc import Callable
from typing import Any

import pytest

from cluster.logs import KNOWN
from serving.recipe import Serve
from tests.serving.conftest import entry
from tests.serving.test_edge import ask
from training.bundle import Bundle

SECRET = "my-very-private-text"


def records(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    found = [record for record in caplog.records if record.name == "serving.watch"]
    return [{name: getattr(record, name) for name in KNOWN} for record in found]


def test_each_question_leaves_one_line_without_its_text(
    edge_of: Callable[..., Any], bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    headers = {"Content-Type": "application/json", "x-request-id": "r-1"}
    with (
        caplog.at_level(logging.INFO, "serving"),
        edge_of({"intent": entry(bundle, 3)}, Serve(access_log=True, max_items=2)) as running,
    ):
        assert ask(running, {"inputs": f"where is {SECRET}"}, headers=headers)[0] == 200
        assert ask(running, {"inputs": SECRET, "parameters": {SECRET: 1}})[0] == 422
        assert ask(running, {"inputs": [SECRET] * 3})[0] == 413
        assert ask(running, {"inputs": SECRET}, f"/models/{SECRET}")[0] == 404
        assert ask(running, None, "/metrics", "GET")[0] == 200
    answered, *refused = records(caplog)
    assert answered | {"seconds": 0} == {
        "request_id": "r-1",
        "model": "intent",
        "version": "3",
        "status": 200,
        "outcome": "ok",
        "seconds": 0,
        "tokens": len(bundle_tokens(bundle, f"where is {SECRET}")),
    }
    assert answered["seconds"] > 0
    assert [(one["status"], one["outcome"], one["model"], one["tokens"]) for one in refused] == [
        (422, "invalid_parameters", "intent", 0),
        (413, "too_many_inputs", "intent", 0),
        (404, "unknown_model", "-", 0),
    ]
    assert SECRET not in caplog.text + json.dumps(records(caplog))


def bundle_tokens(bundle: Bundle, text: str) -> list[int]:
    from transformers import AutoTokenizer

    return list(AutoTokenizer.from_pretrained(bundle.folder)(text)["input_ids"])


def test_without_being_asked_for_there_is_no_line(
    edge_of: Callable[..., Any], bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, "serving"), edge_of({"intent": entry(bundle)}) as running:
        assert ask(running, {"inputs": "ok"})[0] == 200
    assert records(caplog) == []
