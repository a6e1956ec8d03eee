"""A question to a server that runs, for those at a terminal; programs ask as ``docs/serving.md`` shows."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import requests

from cluster.errors import RunError, UserError

KEY = "HEADRACE_API_KEY"
"""The variable that holds the key to be sent."""

SECONDS = 120.0


def ask(url: str, model: str, inputs: Sequence[str]) -> list[Any]:
    """The answers of a served model.

    Args:
        inputs: texts, or rows as JSON objects or lists.

    Raises:
        UserError: the server refuses; says why.
        RunError: nobody answers there, or the server failed.
    """
    answers = _call("POST", url, model, {"inputs": [_read(one) for one in inputs]})
    return answers if isinstance(answers, list) else [answers]


def about(url: str, model: str) -> dict[str, Any]:
    """What a served model is: its version, task and signature.

    Raises:
        UserError, RunError: as :func:`ask`.
    """
    found: dict[str, Any] = _call("GET", url, model)
    return found


def address_of(url: str, model: str) -> str:
    """Where a model is asked."""
    return f"{url.rstrip('/')}/models/{quote(model, safe='')}"


def headers() -> dict[str, str]:
    """What every request carries: the key, where the environment has one."""
    key = os.environ.get(KEY, "").strip()
    return {"Authorization": f"Bearer {key}"} if key else {}


def authorities() -> str | None:
    """The file of those whose certificates are trusted, where the environment names one; else the usual ones are.

    Raises:
        UserError: it names a file that does not exist.
    """
    for name in ("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"):
        place = os.environ.get(name, "")
        if place and not Path(place).is_file():
            raise UserError(f"{name}={place}: no such file")
        if place:
            return place
    return None


def _read(word: str) -> Any:
    """A word of the command line: JSON where it looks like an object or a list, else a text."""
    if word.lstrip()[:1] in ("{", "["):
        try:
            return json.loads(word)
        except ValueError as error:
            raise UserError(f"{word[:40]!r}: no JSON: {error}") from None
    return word


def _call(method: str, url: str, model: str, body: Any = None) -> Any:
    address, trusted = address_of(url, model), authorities() or True
    try:
        answer = requests.request(method, address, json=body, headers=headers(), timeout=SECONDS, verify=trusted)
        told = answer.json()
    except requests.exceptions.SSLError:
        raise RunError(
            f"{url}: its certificate is not trusted here, or is for another name; SSL_CERT_FILE names a file of those "
            "to trust"
        ) from None
    except (requests.ConnectionError, requests.Timeout):
        raise RunError(f"nobody answers at {url}; `headrace serve {model}` starts a server") from None
    except (requests.RequestException, ValueError) as error:
        raise RunError(f"{address}: no headrace server answers there ({type(error).__name__})") from None
    if answer.ok:
        return told
    refusal = told.get("error", {}) if isinstance(told, dict) else {}
    message = f"{answer.status_code} {refusal.get('message', answer.reason)}"
    if answer.status_code == 401:
        message += f"; {KEY} holds the key that is sent"
    raise RunError(message) if answer.status_code >= 500 else UserError(message)
