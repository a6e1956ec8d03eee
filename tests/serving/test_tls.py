"""TLS as HAProxy itself speaks it on a real port, and what is said of certificates that are not good."""

import datetime as dt
import logging
import re
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

import headrace
from cluster.errors import RunError, UserError
from cluster.ports import free_port
from serving import client, host, proxy
from serving.bench import bench
from serving.recipe import Hosting, Serve, Tls
from serving.surroundings import environment
from serving.tls import Certificate, renew
from tests.serving.conftest import MakeBundle

NOW = dt.datetime.now(dt.UTC)
DAY = dt.timedelta(days=1)
ABOUT = '{"signature": {"input": {"type": "string"}}}'
# The lines that Serve writes, as far as the ports are concerned, and an answer in place of replicas.
CONFIGURATION = """
global
    stats socket {socket} mode 600 level admin expose-fd listeners
defaults
    mode http
    timeout connect 5s
    timeout client 5s
    timeout server 5s
frontend prometheus
    bind :{metrics}
frontend http_frontend
    bind 127.0.0.1:{port}
    http-request return status 200 content-type application/json string '{about}' if METH_GET
    http-request return status 200 content-type application/json string '["answered"]'
    use_backend app if {{ path_beg / }}
backend app
    server replica 127.0.0.1:9
listen stats
  bind *:{stats}
  stats enable
"""


@dataclass
class Pair:
    """A certificate for this machine, and its key, as files."""

    certificate: Path
    key: Path

    @property
    def tls(self) -> Tls:
        return Tls(certificate=self.certificate, key=self.key)


def make(folder: Path, name: str = "server", since: dt.datetime = NOW - DAY, until: dt.datetime = NOW + DAY) -> Pair:
    """A pair signed by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    names = x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(ip_address("127.0.0.1"))])
    certificate = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number(), since, until)
        .add_extension(names, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pair = Pair(folder / f"{name}.crt", folder / f"{name}.key")
    pair.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    pair.key.write_bytes(plain(key))
    return pair


def plain(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey, password: bytes | None = None) -> bytes:
    lock = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, lock)


@dataclass
class Proxy:
    """A HAProxy that listens with a certificate."""

    port: int
    certificate: Certificate
    socket: Path

    def shown(self, trusted: Path, **limits: ssl.TLSVersion) -> tuple[bytes, str]:
        """The certificate that it shows to who trusts one, and the protocol's version."""
        context = ssl.create_default_context(cafile=trusted)
        for limit, version in limits.items():
            setattr(context, limit, version)
        with (
            socket.create_connection(("127.0.0.1", self.port), timeout=10) as plain_socket,
            context.wrap_socket(plain_socket, server_hostname="localhost") as secured,
        ):
            return secured.getpeercert(binary_form=True) or b"", secured.version() or ""


@contextmanager
def proxy_with(folder: Path, pair: Pair) -> Iterator[Proxy]:
    """HAProxy started by the very script that Serve is given."""
    (place := folder / "private").mkdir(mode=0o700)
    certificate = Certificate(pair.tls)
    ports = {"port": free_port(), "metrics": free_port(), "stats": free_port()}
    pem = certificate.write(place)
    script = proxy.narrowed(place, ports["port"], ports["metrics"], ports["stats"], pem)
    door = proxy.opened(place, "127.0.0.1", ports["port"])
    admin = place / "admin.sock"
    (place / "haproxy.cfg").write_text(CONFIGURATION.format(socket=admin, about=ABOUT, **ports))
    process = subprocess.Popen([script, "-db", "-f", place / "haproxy.cfg"], stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 30
        while not host._answers(f"https://127.0.0.1:{ports['port']}", certificate.trust()):
            assert process.poll() is None, process.stderr and process.stderr.read()
            assert time.monotonic() < deadline
        yield Proxy(ports["port"], certificate, admin)
    finally:
        process.terminate()
        process.communicate(timeout=30)
        door.close()


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return make(tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="module")
def secured(pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    with proxy_with(tmp_path_factory.mktemp("secured"), pair) as running:
        yield running


def test_the_port_speaks_tls_of_two_versions(secured: Proxy, pair: Pair) -> None:
    shown, version = secured.shown(pair.certificate)
    assert ssl.DER_cert_to_PEM_cert(shown) == pair.certificate.read_text()
    assert version == "TLSv1.3"
    assert secured.shown(pair.certificate, maximum_version=ssl.TLSVersion.TLSv1_2)[1] == "TLSv1.2"


def test_an_older_version_is_refused(secured: Proxy) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_ciphers("ALL:@SECLEVEL=0")  # without it OpenSSL here would not even ask
    with pytest.warns(DeprecationWarning):
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    with (
        socket.create_connection(("127.0.0.1", secured.port), timeout=10) as plain_socket,
        pytest.raises(ssl.SSLError, match=r"(?i)protocol.version"),
    ):
        context.wrap_socket(plain_socket)


def test_plain_http_gets_no_answer(secured: Proxy) -> None:
    with socket.create_connection(("127.0.0.1", secured.port), timeout=10) as connection:
        connection.sendall(b"GET /v2/health/ready HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b"HTTP/" not in connection.recv(65536)


def test_the_file_of_both_is_for_its_owner_alone(secured: Proxy) -> None:
    place = secured.socket.with_name("certificate.pem")
    assert place.stat().st_mode & 0o777 == 0o600


def test_another_certificate_is_not_taken_for_ours(secured: Proxy, tmp_path: Path) -> None:
    other = Certificate(make(tmp_path, "other").tls)
    assert host._answers(f"https://127.0.0.1:{secured.port}", secured.certificate.trust())
    assert not host._answers(f"https://127.0.0.1:{secured.port}", other.trust())


def test_our_commands_trust_whom_the_environment_names(
    secured: Proxy, pair: Pair, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    address = f"https://localhost:{secured.port}"
    for name in ("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(RunError, match=r"its certificate is not trusted here.*SSL_CERT_FILE names"):
        client.ask(address, "intent", ["where is it"])
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none"))
    with pytest.raises(UserError, match=r"SSL_CERT_FILE=.*none: no such file"):
        client.ask(address, "intent", ["where is it"])
    monkeypatch.setenv("SSL_CERT_FILE", str(pair.certificate))
    assert client.ask(address, "intent", ["where is it"]) == ["answered"]
    monkeypatch.delenv("SSL_CERT_FILE")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(pair.certificate))
    assert client.ask(address, "intent", ["where is it"]) == ["answered"]
    assert bench(address, "intent", 50, 0.2)["outcomes"].keys() == {"200"}


def test_a_certificate_that_was_renewed_is_shown_without_a_restart(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pair = make(tmp_path)
    with proxy_with(tmp_path, pair) as running:
        held = socket.create_connection(("127.0.0.1", running.port), timeout=10)
        before = ssl.create_default_context(cafile=pair.certificate).wrap_socket(held, server_hostname="localhost")
        newer = make(tmp_path, "newer")
        newer.certificate.replace(pair.certificate)  # half of it: the key is still the old one
        running.certificate.follow([running.socket])
        assert "does not belong to" in caplog.text
        newer.key.replace(pair.key)
        with caplog.at_level(logging.INFO):
            running.certificate.follow([running.socket])
        assert "the certificate was renewed" in caplog.text
        shown, _ = running.shown(pair.certificate)
        assert ssl.DER_cert_to_PEM_cert(shown) == pair.certificate.read_text()
        before.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert before.recv(65536).startswith(b"HTTP/1.1 200")
        before.close()
        with pytest.raises(RunError, match="the proxy does not take it"):
            renew(running.socket, make_unknown(tmp_path))


def make_unknown(folder: Path) -> Path:
    """A file that HAProxy was not started with."""
    unknown = folder / "unknown.pem"
    pair = make(folder, "unknown")
    unknown.write_bytes(pair.certificate.read_bytes() + pair.key.read_bytes())
    return unknown


def spoil(kind: str, folder: Path) -> Pair:
    """A pair with one thing wrong."""
    if kind == "past":
        return make(folder, until=NOW - DAY / 2)
    if kind == "future":
        return make(folder, since=NOW + DAY / 2)
    pair = make(folder)
    if kind == "no certificate":
        pair.certificate.unlink()
    elif kind == "no key":
        pair.key.unlink()
    elif kind == "another key":
        pair.key.write_bytes(plain(ec.generate_private_key(ec.SECP256R1())))
    elif kind == "locked key":
        pair.key.write_bytes(plain(ec.generate_private_key(ec.SECP256R1()), b"secret"))
    elif kind == "text as key":
        pair.key.write_text("a key")
    elif kind == "text as certificate":
        pair.certificate.write_text("a certificate")
    return pair


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("no certificate", r"serve\.tls\.certificate: .*server\.crt: No such file or directory"),
        ("no key", r"serve\.tls\.key: .*server\.key: No such file or directory"),
        ("another key", r"serve\.tls\.key: .*server\.key: does not belong to the first certificate of .*server\.crt"),
        ("locked key", r"serve\.tls\.key: .*server\.key: is encrypted.*`openssl pkey -in KEY -out PLAIN`"),
        ("text as key", r"serve\.tls\.key: .*server\.key: holds no private key as PEM"),
        ("text as certificate", r"serve\.tls\.certificate: .*server\.crt: holds no certificate as PEM"),
        ("past", rf"server\.crt: was good until {NOW - DAY / 2:%Y-%m-%d %H:%M} UTC"),
        ("future", rf"server\.crt: is good from {NOW + DAY / 2:%Y-%m-%d %H:%M} UTC on"),
    ],
)
def test_what_is_wrong_with_a_certificate_is_said_in_one_line(kind: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=told) as raised:
        Certificate(spoil(kind, tmp_path).tls)
    assert "\n" not in str(raised.value)


def test_it_is_said_before_ray_starts(home: Path, make_bundle: MakeBundle, tmp_path: Path) -> None:
    made = make_bundle(home / "models" / "intent" / "a")
    options = Serve(tls=spoil("past", tmp_path).tls)
    with pytest.raises(UserError, match="was good until"):
        host.serve([str(made.folder)], options, announce=lambda address: None)


def test_a_cluster_takes_no_certificate(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    with (
        pytest.raises(UserError, match=r"serve\.tls: on a cluster .* load balancer"),
        environment("0.0.0.0", 8000, Certificate(pair.tls)),
    ):
        pass


def test_paths_are_relative_to_the_file_that_names_them(tmp_path: Path) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text("models: [intent]\nserve: {tls: {certificate: certs/a.crt, key: /etc/a.key}}\n")
    _, options = headrace.served([str(file)])
    assert options.tls == Tls(certificate=tmp_path / "certs" / "a.crt", key=Path("/etc/a.key"))
    replica = Serve(**options.model_dump())  # as it reaches a replica, wherever that runs
    assert replica == options


def test_half_a_certificate_is_an_error_of_the_recipe() -> None:
    with pytest.raises(ValueError, match=re.compile("key.*missing|Field required", re.DOTALL)):
        Hosting.model_validate({"models": ["intent"], "serve": {"tls": {"certificate": "a.crt"}}})
