"""Secrets: what is masked in everything that is stored, printed or logged.

Two kinds are known. A value that came from the environment is masked wherever it turns up, however it is quoted. What
is written into an address itself (``postgresql://me:…@host``, ``?password=…``) is found by where it stands; of it only
``${env:NAME}`` may be stored, since that names a secret and is none.
"""

import json
import re
import shlex
from collections.abc import Iterable, Iterator
from typing import Any
from urllib.parse import quote, quote_plus, unquote_plus, urlsplit

ENVIRONMENT = re.compile(r"\$\{env:([A-Za-z_][A-Za-z0-9_]*)\}")
MASK = "***"
SHORTEST = 4  # masking one or two characters would garble every message and hide nothing
LONGEST_SHOWN = 300

SECRET_KEYS = {"auth", "jwt", "key", "pass", "pw", "pwd", "sas", "sig"}
SECRET_PARTS = (
    *("passcode", "passphrase", "passwd", "password", "secret", "token", "credential", "signature", "authorization"),
    *("accesskey", "accountkey", "apikey", "privatekey", "sessionkey", "sharedkey"),
)
"""Parts of the names under which drivers and object stores take secrets, without what separates words."""

ADDRESS = re.compile(r"\s*[\w+.-]+://")
QUERY = re.compile(r"\?(?=[\w.%+-]+=)")
ENDS_SENTENCE = "'\"`>)],."

# An ODBC string within an address, as it is or percent-encoded once or twice: `UID=me;PWD={a;b};Server=host`.
INNER_KEY = re.compile(
    r"(?:(?<![\w%])|(?<=%3B)|(?<=%3D)|(?<=%26)|(?<=%20)|(?<=%253B)|(?<=%253D))"
    r"(?P<key>[\w.-]+)(?:\s|\+|%20)*(?:=|%3D|%253D)",
    re.IGNORECASE,
)
INNER_VALUE = re.compile(
    r"(?:\{|%7B|%257B)(?:\}\}|%7D%7D|(?!\}|%7D|%257D).)*(?:\}|%7D|%257D|$)|.*?(?=;|%3B|%253B|$)",
    re.IGNORECASE | re.DOTALL,
)

Span = tuple[int, int]

_forms: set[str] = set()  # of every value that came from the environment: how it may be written
_known: re.Pattern[str] | None = None


def learn(value: str) -> None:
    """Has ``redact`` mask ``value`` from now on."""
    global _known
    if len(value) < SHORTEST:
        return
    _forms.update(_written(value))
    _known = re.compile("|".join(map(re.escape, sorted(_forms, key=len, reverse=True))))


def redact(text: str) -> str:
    """``text`` with every value read from ``${env:…}`` and every secret in an address masked."""
    return masked(_known.sub(MASK, text) if _known else text)


def masked(text: str) -> str:
    """``text`` with the secrets that are written into addresses masked; ``${env:NAME}`` stays."""
    parts, end = [], 0
    for first, last in _spans(text):
        parts += [text[end:first], _names(text[first:last]) or MASK]
        end = last
    return "".join([*parts, text[end:]])


def holds_secret(text: str) -> bool:
    """Whether a secret is written into an address in ``text``."""
    return any(ENVIRONMENT.sub("", text[first:last]) not in ("", MASK) for first, last in _spans(text))


def shown(value: Any) -> str:
    """``value`` as a message quotes it: without secrets, and not longer than one reads."""
    try:
        text = repr(_redacted(value))
    except ValueError:  # Python writes no whole number of more than 4,300 digits
        return f"a number of {value.bit_length():,} bits" if isinstance(value, int) else "what holds such a number"
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}…"


def _redacted(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _redacted(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_redacted(inner) for inner in value]
    return redact(value) if isinstance(value, str) else value


def _written(value: str) -> Iterator[str]:
    """The ways in which Python, JSON, a shell and an address write a value."""
    once = {value, *_escaped(value), json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1]}
    yield from once
    for form in once:  # a message that quotes a message
        yield from _escaped(form)
    yield shlex.quote(value).strip("'")
    for encoded in (quote(value), quote(value, safe=""), quote_plus(value)):
        yield encoded
        yield re.sub("%..", lambda found: found[0].lower(), encoded)


def _escaped(value: str) -> Iterator[str]:
    """What ``repr`` makes of it, which depends on the quotes that stand beside it."""
    for text in (repr(value)[1:-1], ascii(value)[1:-1]):
        yield text
        yield re.sub(r"(?<!\\)'", r"\'", text)


def _spans(text: str) -> list[Span]:
    """Where secrets stand in the addresses of a text, in order and apart from each other."""
    if "://" not in text:
        return []
    plain = ENVIRONMENT.sub(lambda found: "x" * len(found[0]), text)  # whose colon and braces are no address's
    found: list[Span] = []
    for first, last in sorted(_found(plain)):
        if found and first <= found[-1][1]:
            first, last = found[-1][0], max(last, found.pop()[1])
        found.append((first, last))
    return found


def _found(text: str) -> Iterator[Span]:
    whole = ADDRESS.match(text) is not None  # a value that is an address may hold blanks
    for mark in re.finditer("://", text):
        start = mark.end()
        rest = text[start:] if whole else text[start:].split(maxsplit=1)[0] if text[start : start + 1].strip() else ""
        rest = rest if whole else rest.rstrip(ENDS_SENTENCE)
        scheme = re.split(r"[^A-Za-z0-9]", text[max(0, start - 20) : mark.start()])[-1].lower()
        for first, last in _without_empty([*_userinfo(rest, scheme in ("http", "https")), *_parameters(rest)]):
            yield start + first, start + last


def _without_empty(spans: Iterable[Span]) -> Iterator[Span]:
    return ((first, last) for first, last in spans if first < last)


def _userinfo(rest: str, web: bool) -> Iterator[Span]:
    """The password before a host: up to the last ``@``, for one that is not encoded may hold any sign.

    SQLAlchemy takes a password with ``/`` and ends it at the first ``@``, a browser takes neither; whoever reads the
    address, this covers it. A ``:`` and an ``@`` after the host of a web address are no password.
    """
    at = rest.find("@")
    if at < 0 or (web and _plain_host(rest)):
        return
    query = QUERY.search(rest, at)
    last = rest.rfind("@", 0, query.start() if query else len(rest))
    colon = rest.find(":", 0, last)
    if colon >= 0:
        yield colon + 1, last
    elif web:  # a token alone, as code hosts take it
        yield 0, last


def _plain_host(rest: str) -> bool:
    """Whether a web address begins with a host, or a host and a port."""
    try:
        parts = urlsplit(f"//{rest}")
        return "@" not in parts.netloc and (parts.port is None or parts.port > 0)
    except ValueError:
        return False


def _parameters(rest: str) -> Iterator[Span]:
    """The values of secret keys after ``?``, ``#`` or ``;``, also those of a string that is such a value itself."""
    begin = re.search("[?#;]", rest)
    start = begin.end() if begin else len(rest)
    for part in rest[start:].split("&"):
        key, equals, _ = part.partition("=")
        if equals and _is_secret(key):
            yield start + len(key) + 1, start + len(part)
        else:
            for inner in INNER_KEY.finditer(part):
                value = INNER_VALUE.match(part, inner.end())
                if value and _is_secret(inner["key"]):
                    yield start + value.start(), start + value.end()
        start += len(part) + 1


def _is_secret(key: str) -> bool:
    name = re.sub("[^a-z0-9]", "", unquote_plus(key).lower())
    return name in SECRET_KEYS or any(part in name for part in SECRET_PARTS)


def _names(text: str) -> str:
    """Every ``${env:NAME}`` of a text, and nothing else."""
    return "".join(found[0] for found in ENVIRONMENT.finditer(text))
