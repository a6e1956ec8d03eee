"""API keys: a file of hashes, so that who reads it can let nobody in.

    # who may ask, one a line: name:SHA-256 of the key in hex
    support-desk:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08

``python -m serving.keys support-desk`` makes a key, shows it once, and prints its line. The file that
``HEADRACE_API_KEYS`` names is read again whenever it changes: keys come and go without a restart.
"""

import hashlib
import hmac
import logging
import os
import re
import secrets
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

from cluster.errors import UserError

VARIABLE = "HEADRACE_API_KEYS"
LINE = re.compile(r"(?P<name>[A-Za-z0-9._-]{1,64}):(?P<digest>[0-9a-f]{64})")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Key:
    """Who a key belongs to, and its SHA-256. A key is 256 random bits, so a plain hash cannot be searched."""

    name: str
    digest: str


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

    def owner(self, authorization: str | None) -> str | None:
        """The name of the key in an ``Authorization: Bearer …`` header; None when it is missing or unknown.

        Every key is compared, each in constant time, so that the time taken tells nothing about any of them.
        """
        self._read_again_if_changed()
        scheme, _, token = (authorization or "").partition(" ")
        digest = hashlib.sha256(token.strip().encode("utf-8", "replace")).hexdigest()
        found = None
        for key in self._keys:
            if hmac.compare_digest(key.digest, digest):
                found = key.name
        return found if scheme.lower() == "bearer" else None

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
        keys.append(Key(match["name"], match["digest"]))
    return keys


def make(name: str) -> tuple[str, str]:
    """A new key, and the line that lets it in.

    Raises:
        UserError: the name cannot stand in a line.
    """
    token = f"hr_{secrets.token_urlsafe(32)}"
    line = f"{name}:{hashlib.sha256(token.encode()).hexdigest()}"
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
    if len(arguments) != 1 or arguments[0].startswith("-"):
        sys.stderr.write("usage: python -m serving.keys NAME\n")
        return 2
    try:
        token, line = make(arguments[0])
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    sys.stderr.write(f"the key, shown this once:\n  {token}\nthe line for the file that {VARIABLE} names:\n")
    sys.stdout.write(f"{line}\n")
    return 0


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
