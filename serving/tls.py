"""The certificate that a server shows: checked before anything starts, handed to HAProxy, renewed while it runs.

HAProxy reads a certificate and its key from one file. It lies in the private folder of the server, and is written anew,
and given to the running HAProxy over its own socket, when the files that the recipe names have changed.
"""

import datetime as dt
import logging
import os
import socket
import ssl
from pathlib import Path

from cluster.errors import RunError, UserError
from serving.recipe import Tls

SOCKET_SECONDS = 10.0

logger = logging.getLogger(__name__)


class Certificate:
    """A certificate, those it was signed with, and its key."""

    def __init__(self, tls: Tls) -> None:
        """
        Raises:
            UserError: a file cannot be read, the two do not belong together, or the certificate is not good today.
        """
        self._tls = tls
        self._stamp = _stamp(tls)
        self._pem = read(tls)
        self._place: Path | None = None

    def write(self, folder: Path) -> Path:
        """Puts certificate and key into one file of a private folder, which only its owner can read."""
        self._place = folder / "certificate.pem"
        passing = self._place.with_suffix(".new")
        with os.fdopen(os.open(passing, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(self._pem)
        passing.replace(self._place)  # a HAProxy that starts this moment reads the old pair or the new one
        return self._place

    def trust(self) -> ssl.SSLContext:
        """What trusts this very certificate and no other, whatever name it is good for."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False  # the name is what clients ask at; we ask at an address of this machine
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        context.load_verify_locations(cadata=_first(self._pem))
        return context

    def follow(self, sockets: list[Path]) -> None:
        """Takes over files that have changed, without a restart. A pair that is not good leaves the present one.

        Args:
            sockets: where the running HAProxy takes commands.
        """
        stamp = _stamp(self._tls)
        if stamp == self._stamp or self._place is None:
            return
        self._stamp = stamp
        try:
            self._pem = read(self._tls)
            place = self.write(self._place.parent)
            for path in sockets:
                renew(path, place)
            logger.info("the certificate was renewed; it is good until %s", good_until(self._pem).date())
        except (UserError, RunError, OSError) as error:
            logger.error("the certificate stays as it was: %s", error)


def read(tls: Tls) -> bytes:
    """Certificate, those it was signed with, and key, as one PEM without empty lines.

    Raises:
        UserError: see :class:`Certificate`.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization

    shown, secret = _bytes("certificate", tls.certificate), _bytes("key", tls.key)
    try:
        first = x509.load_pem_x509_certificates(shown)[0]
    except ValueError:
        raise UserError(f"serve.tls.certificate: {tls.certificate}: holds no certificate as PEM") from None
    try:
        key = serialization.load_pem_private_key(secret, None)
    except TypeError:
        raise UserError(
            f"serve.tls.key: {tls.key}: is encrypted, and there is nobody to ask for its password; "
            "`openssl pkey -in KEY -out PLAIN` writes one without"
        ) from None
    except ValueError:
        raise UserError(f"serve.tls.key: {tls.key}: holds no private key as PEM") from None
    if first.public_key() != key.public_key():
        raise UserError(f"serve.tls.key: {tls.key}: does not belong to the first certificate of {tls.certificate}")
    _require_good_today(tls, first.not_valid_before_utc, first.not_valid_after_utc)
    _require_accepted(tls)
    lines = [line.rstrip() for line in (shown + b"\n" + secret).splitlines()]
    return b"\n".join(line for line in lines if line) + b"\n"


def good_until(pem: bytes) -> dt.datetime:
    """The last moment of the first certificate."""
    from cryptography import x509

    return x509.load_pem_x509_certificates(pem)[0].not_valid_after_utc


def renew(path: Path, pem: Path) -> None:
    """Has a running HAProxy show what lies in the file that it read its certificate from; no connection is lost.

    Args:
        path: the socket where it takes commands.

    Raises:
        RunError: it does not take it.
    """
    told = _command(path, f"set ssl cert {pem} <<\n{pem.read_text('ascii')}\n")
    told += _command(path, f"commit ssl cert {pem}\n")
    if "Success!" not in told:
        raise RunError(f"the proxy does not take it ({' '.join(told.split())}); start the server anew")


def _command(path: Path, text: str) -> str:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as proxy:
        proxy.settimeout(SOCKET_SECONDS)
        proxy.connect(str(path))
        proxy.sendall(text.encode())
        return b"".join(iter(lambda: proxy.recv(65536), b"")).decode()


def _bytes(name: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"serve.tls.{name}: {path}: {os.strerror(error.errno or 0)}") from None


def _require_good_today(tls: Tls, since: dt.datetime, until: dt.datetime) -> None:
    now = dt.datetime.now(dt.UTC)
    if now > until:
        raise UserError(f"serve.tls.certificate: {tls.certificate}: was good until {until:%Y-%m-%d %H:%M} UTC")
    if now < since:
        raise UserError(f"serve.tls.certificate: {tls.certificate}: is good from {since:%Y-%m-%d %H:%M} UTC on")


def _require_accepted(tls: Tls) -> None:
    """OpenSSL has reasons of its own, such as a key that is too short."""
    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(tls.certificate, tls.key)
    except ssl.SSLError as error:
        reason = (error.reason or "unknown").lower().replace("_", " ")
        raise UserError(f"serve.tls.certificate: {tls.certificate}: OpenSSL refuses it: {reason}") from None


def _first(pem: bytes) -> str:
    text, end = pem.decode("ascii"), ssl.PEM_FOOTER
    start = text.index(ssl.PEM_HEADER)
    return text[start : text.index(end, start) + len(end)]


def _stamp(tls: Tls) -> list[tuple[int, int, int] | None]:
    """What changes when a file is written anew or replaced."""
    found: list[tuple[int, int, int] | None] = []
    for path in (tls.certificate, tls.key):
        try:
            state = path.stat()
            found.append((state.st_mtime_ns, state.st_size, state.st_ino))
        except OSError:
            found.append(None)
    return found
