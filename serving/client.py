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
        inputs: texts, or rows as JSON objects or lists; what begins like one and is none is a text.

    Raises:
        UserError: the server refuses; says why.
        RunError: nobody answers there, or the server failed.
    """
    answers = _call("POST", url, model, {"inputs": [_read(place, one) for place, one in enumerate(inputs, 1)]})
    return answers if isinstance(answers, list) else [answers]


def about(url: str, model: str) -> dict[str, Any]:
    """What a served model is: its version, task and signature.

    Raises:
        UserError, RunError: as :func:`ask`.
    """
    found = _call("GET", url, model)
    if not isinstance(found, dict) or "signature" not in found:
        raise RunError(f"{address_of(url, model)}: no headrace server answers there (it describes no model)")
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


def _read(place: int, word: str) -> Any:
    """A word of the command line: a JSON object or list where it is one, else a text."""
    if word.lstrip()[:1] not in ("{", "["):
        return word
    try:
        value = json.loads(word)
    except ValueError:  # texts begin with a bracket, too
        return word
    except RecursionError:
        raise UserError(f"TEXT {place}: no JSON: it is nested too deeply") from None
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:  # Python reads what JSON has not, and what is too large as an infinity
        raise UserError(
            f"TEXT {place}: no JSON: NaN and infinities are no numbers there; say null, or a text"
        ) from None
    return value


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
    except (requests.exceptions.InvalidURL, requests.exceptions.InvalidSchema, requests.exceptions.MissingSchema):
        raise UserError(f"{url}: no address of a server; one looks like http://127.0.0.1:8000") from None
    except (requests.exceptions.InvalidHeader, UnicodeEncodeError):
        raise UserError(f"{KEY}: holds what no key has; set it to the key alone, as `serving.keys` shows it") from None
    except (requests.RequestException, ValueError) as error:
        raise RunError(f"{address}: no headrace server answers there ({type(error).__name__})") from None
    if answer.ok:
        return told
    message = f"{answer.status_code} {_refusal(told) or answer.reason}"
    if answer.status_code == 401:
        message += f"; {KEY} holds the key that is sent"
    raise RunError(message) if answer.status_code >= 500 else UserError(message)


def refusal(body: bytes) -> str | None:
    """Why a server refuses, as the body of its answer says it; None where it says nothing."""
    try:
        return _refusal(json.loads(body))
    except (ValueError, RecursionError):
        return None


def _refusal(told: Any) -> str | None:
    """What a server says of an error, ours or another's: whatever answers at the address may have any shape."""
    error = told.get("error") if isinstance(told, dict) else None
    message = error.get("message") if isinstance(error, dict) else error
    return message if isinstance(message, str) else None
