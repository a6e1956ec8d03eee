"""API keys: a file of hashes, so that who reads it can let nobody in.

    # who may ask, one a line: name:SHA-256 of the key in hex, and what the key is good for
    support-desk:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08 models=intent,reply until=2027-01-31
    prometheus:60303ae22b998861bce3b28f33eec1be758a213c86c93c076dbe9f558c11c752 actions=admin

``python -m serving.keys support-desk models=intent,reply`` makes a key, shows it once, and prints its line. The file
that ``HEADRACE_API_KEYS`` names is read again whenever it changes: keys come and go without a restart. Two lines of one
name are two keys of one owner, so that a new one can take the place of an old one while both are good.
"""

import datetime as dt
import hashlib
import hmac
import logging
import os
import re
import secrets
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.errors import UserError
from cluster.progress import say
from serving.surroundings import LOCAL_NAMES
from training.recipe import NAME

VARIABLE = "HEADRACE_API_KEYS"
LINE = re.compile(r"(?P<name>[A-Za-z0-9._-]{1,64}):(?P<digest>[0-9a-f]{64})(?P<scope>(\s+[a-z_]+=\S*)*)")
ACTIONS = ("predict", "admin")
"""To ask models and read what they are; to read the metrics."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Key:
    """Who a key belongs to, its SHA-256, and what it is good for.

    A key is 256 random bits, so a plain hash cannot be searched.

    Attributes:
        models: the names of those it may ask; None for all.
        actions: of :data:`ACTIONS`.
        tokens_per_minute: what its owner may have computed, in each replica; None for any amount.
        until: the last day, in UTC, on which it is good.
    """

    name: str
    digest: str
    models: frozenset[str] | None = None
    actions: frozenset[str] = frozenset(ACTIONS)
    tokens_per_minute: float | None = None
    until: dt.date | None = None

    def sees(self, model: str) -> bool:
        """Whether there is such a model for it."""
        return self.models is None or model in self.models


class Purse:
    """Tokens that come at an even pace, up to those of a minute; what a request took is known when it is answered.

    So who has any left may ask, and waits afterwards until what was taken too much has come.
    """

    def __init__(self, per_minute: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._most, self._clock = per_minute, clock
        self._held, self._since = per_minute, clock()

    def wait(self) -> float:
        """Seconds until there is a token; 0 when there is one."""
        now = self._clock()
        self._held = min(self._most, self._held + (now - self._since) * self._most / 60)
        self._since = now
        return max(0.0, -self._held * 60 / self._most) if self._held <= 0 else 0.0

    def take(self, tokens: int) -> None:
        """These were computed."""
        self._held -= tokens


class Keys:
    """The keys of one file."""

    def __init__(self, path: Path) -> None:
        """
        Raises:
            UserError: the file cannot be read, or a line of it is no key.
        """
        self.path = path
        self._lock = threading.Lock()
        self._stamp = _stamp(path)
        self._keys = read(path)
        self._purses: dict[tuple[str, float], Purse] = {}

    def known(self, authorization: str | None) -> Key | None:
        """The key in an ``Authorization: Bearer …`` header; None when it is missing, unknown or past its last day.

        Every key is compared, each in constant time, so that the time taken tells nothing about any of them.
        """
        self._read_again_if_changed()
        scheme, _, token = (authorization or "").partition(" ")
        digest = hashlib.sha256(token.strip().encode("utf-8", "replace")).hexdigest()
        found = None
        for key in self._keys:
            if hmac.compare_digest(key.digest, digest):
                found = key
        good = found and (found.until is None or dt.datetime.now(dt.UTC).date() <= found.until)
        return found if good and scheme.lower() == "bearer" else None

    def purse(self, key: Key) -> Purse | None:
        """What an owner may still have computed; all keys of one owner with one limit share it."""
        if key.tokens_per_minute is None:
            return None
        return self._purses.setdefault((key.name, key.tokens_per_minute), Purse(key.tokens_per_minute))

    def _read_again_if_changed(self) -> None:
        stamp = _stamp(self.path)
        if stamp == self._stamp:
            return
        with self._lock:
            self._stamp = stamp
            try:
                self._keys = read(self.path)
                logger.info("read %d API keys again", len(self._keys))
            except UserError as error:  # half-edited: those who could ask can go on, nobody new gets in
                logger.error("API keys stay as they were: %s", error)


def from_environment() -> Keys | None:
    """The keys of the file that ``HEADRACE_API_KEYS`` names; None where it is not set.

    Raises:
        UserError: the file cannot be read, holds no key, or a line of it is none.
    """
    place = os.environ.get(VARIABLE, "").strip()
    if not place:
        return None
    keys = Keys(Path(place).expanduser().resolve())
    if not read(keys.path):
        raise UserError(f"{keys.path}: holds no key; make one with `python -m serving.keys NAME`")
    return keys


def of_address(host: str, port: int, *, without_keys: bool, encrypted: bool) -> Keys | None:
    """The keys that an address asks for; warns where it lets in more than it may seem to.

    Raises:
        UserError: as :func:`from_environment`; or other machines could ask without keys, and nobody says that they may.
    """
    known, closed = from_environment(), host in LOCAL_NAMES
    if known is None and not closed and not without_keys:
        raise UserError(
            f"whoever reaches {host}:{port} could ask these models; set {VARIABLE} to ask for a key "
            "(`python -m serving.keys NAME` makes one), or say --without-keys"
        )
    if known is None and without_keys:
        say(f"warning: whoever reaches {host}:{port} may ask these models")
    if known and not closed and not encrypted:
        say("warning: keys travel in plain text to this address; serve.tls takes a certificate")
    return known


def read(path: Path) -> list[Key]:
    """The keys of a file.

    Raises:
        UserError: it cannot be read, or a line is no key; the line's content is never shown.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{VARIABLE}: {path} cannot be read ({type(error).__name__})") from None
    keys = []
    for number, line in enumerate(lines, 1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        match = LINE.fullmatch(text)
        if match is None:
            raise UserError(f"{path}:{number}: no key; a line is NAME:SHA-256 in 64 lower-case hex digits")
        try:
            keys.append(Key(match["name"], match["digest"], **scope_of(match["scope"].split())))
        except UserError as error:
            raise UserError(f"{path}:{number}: {error}") from None
    return keys


def scope_of(words: Sequence[str]) -> dict[str, Any]:
    """What words such as ``models=intent,reply`` say of a key.

    Raises:
        UserError: one says nothing that is known.
    """
    scope: dict[str, Any] = {}
    for word in words:
        name, _, value = word.partition("=")
        if name not in SCOPES or name in scope:
            raise UserError(f"'{name}' cannot stand behind a key, or not twice; {', '.join(SCOPES)} can")
        try:
            scope[name] = SCOPES[name](value)
        except ValueError as error:
            raise UserError(f"{name}: {error}") from None
    return scope


def _actions(value: str) -> frozenset[str]:
    actions = frozenset(value.split(","))
    if not actions <= set(ACTIONS):
        raise ValueError(f"a list of {', '.join(ACTIONS)} is needed")
    return actions


def _models(value: str) -> frozenset[str]:
    models = frozenset(value.split(","))
    if not all(NAME.fullmatch(model) for model in models):
        raise ValueError("a list of models' names is needed")
    return models


def _tokens(value: str) -> float:
    if not value.isdecimal() or not 0 < len(value) <= 12 or not int(value):
        raise ValueError("a whole number from 1 up is needed")
    return float(value)


SCOPES: Mapping[str, Callable[[str], Any]] = {
    "models": _models,
    "actions": _actions,
    "tokens_per_minute": _tokens,
    "until": dt.date.fromisoformat,
}


def make(name: str, scope: Sequence[str] = ()) -> tuple[str, str]:
    """A new key, and the line that lets it in.

    Raises:
        UserError: the name cannot stand in a line, or a word of its scope says nothing that is known.
    """
    token = f"hr_{secrets.token_urlsafe(32)}"
    line = " ".join([f"{name}:{hashlib.sha256(token.encode()).hexdigest()}", *scope])
    scope_of(scope)
    if not LINE.fullmatch(line):
        raise UserError(f"a key's name has letters, digits, '.', '_' and '-', at most 64: not {name!r}")
    return token, line


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _main(arguments: list[str]) -> int:
    if not arguments or arguments[0].startswith("-"):
        sys.stderr.write(f"usage: python -m serving.keys NAME [{'=…] ['.join(SCOPES)}=…]\n")
        return 2
    try:
        token, line = make(arguments[0], arguments[1:])
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    sys.stderr.write(f"the key, shown this once:\n  {token}\nthe line for the file that {VARIABLE} names:\n")
    sys.stdout.write(f"{line}\n")
    return 0


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
