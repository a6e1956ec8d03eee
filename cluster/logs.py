"""Log lines for machines: with ``HEADRACE_LOG=json`` each line on stderr is one JSON object.

    {"time": "2026-01-31T09:30:00.125Z", "level": "INFO", "logger": "serving.lineup", "message": "…", "model": "intent"}

What a record knows beyond its message stands in ``extra`` under the names of :data:`KNOWN`, and nothing else of it is
ever written: never a text, a key or an address.
"""

import datetime as dt
import json
import logging
import os
from typing import Any

from cluster.errors import UserError
from cluster.masking import redact

VARIABLE = "HEADRACE_LOG"
KNOWN = ("request_id", "model", "version", "status", "outcome", "seconds", "tokens")
START = '{"time": '  # by which a line of another process is known to be such an object


def as_json() -> bool:
    """Whether lines are for machines."""
    return os.environ.get(VARIABLE, "").strip() == "json"


def require_known_form() -> None:
    """
    Raises:
        UserError: the variable names a form that there is not.
    """
    wanted = os.environ.get(VARIABLE, "").strip()
    if wanted not in ("", "plain", "json"):
        raise UserError(f"{VARIABLE}={wanted}: say json, or plain")


def json_line(at: float, level: str, logger: str, message: str, **known: Any) -> str:
    """One line.

    Args:
        at: seconds since 1970.
        known: what is known beyond the message.
    """
    moment = dt.datetime.fromtimestamp(at, dt.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    line = {"time": moment, "level": level, "logger": logger, "message": redact(message), **known}
    return json.dumps(line, ensure_ascii=False, default=str)


class Structured(logging.Formatter):
    """Makes a line of a record; a traceback stands under ``traceback``."""

    def format(self, record: logging.LogRecord) -> str:
        known = {name: getattr(record, name) for name in KNOWN if hasattr(record, name)}
        if record.exc_info:
            known["traceback"] = redact(self.formatException(record.exc_info))
        return json_line(record.created, record.levelname, record.name, record.getMessage(), **known)
