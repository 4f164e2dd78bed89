"""The wire over TLS: the deadline and the question what was sent, with real certificates.

Plain connections are covered through the gateway, in ``test_gateway.py``.
"""

from __future__ import annotations

import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import stripe
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from flask_c2meter.wire import HttpClient, Unreachable

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Key and self-signed certificate of 127.0.0.1 in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "loopback")])
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "loopback.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    path.write_bytes(private + made.public_bytes(serialization.Encoding.PEM))
    return path


@contextmanager
def server(speak: Callable[[socket.socket], object]) -> Iterator[str]:
    """A listener whose connections are handed to *speak*, one after the other."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                # A client that leaves its connection open must not hold up the end of the test.
                connection.settimeout(2)
                with connection, suppress(OSError):
                    speak(connection)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"https://127.0.0.1:{listener.getsockname()[1]}/v1/x"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def over_tls(
    certificate: Path, speak: Callable[[ssl.SSLSocket], object]
) -> Callable[[socket.socket], None]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)

    def handle(connection: socket.socket) -> None:
        with context.wrap_socket(connection, server_side=True) as tls:
            speak(tls)

    return handle


def answer_all(tls: ssl.SSLSocket) -> None:
    while tls.recv(65536):
        tls.sendall(ANSWER)


def dribble(tls: ssl.SSLSocket) -> None:
    tls.recv(65536)
    for byte in ANSWER:
        tls.sendall(bytes([byte]))
        time.sleep(0.05)


def client(ca_bundle: Path, deadline_s: float = 5.0, connect_timeout_s: float = 5.0) -> HttpClient:
    return HttpClient(
        deadline_s=deadline_s, connect_timeout_s=connect_timeout_s, ca_bundle=str(ca_bundle)
    )


def test_a_connection_is_made_once_and_kept(certificate: Path) -> None:
    peers = []

    def speak(tls: ssl.SSLSocket) -> None:
        peers.append(tls.getpeername())
        answer_all(tls)

    with server(over_tls(certificate, speak)) as url:
        http = client(certificate)
        for _ in range(3):
            body, status, _ = http.request("get", url, {})
            assert (body, status) == (b"{}", 200)
        del http
    assert len(peers) == 1


def test_a_dribbling_server_is_cut_off_at_the_deadline(certificate: Path) -> None:
    with server(over_tls(certificate, dribble)) as url:
        started = time.monotonic()
        with pytest.raises(Unreachable) as caught:
            client(certificate, deadline_s=0.3).request("get", url, {})
        assert time.monotonic() - started < 1.5
    assert (caught.value.reason, caught.value.sent) == ("timeout", True)


def test_a_handshake_that_hangs_has_sent_nothing(certificate: Path) -> None:
    with server(lambda connection: connection.recv(65536) and connection.recv(1)) as url:
        with pytest.raises(Unreachable) as caught:
            client(certificate, connect_timeout_s=0.2).request("get", url, {})
    assert (caught.value.reason, caught.value.sent) == ("timeout", False)


def test_an_untrusted_certificate_is_refused_before_anything_is_sent(certificate: Path) -> None:
    received = []
    with server(over_tls(certificate, lambda tls: received.append(tls.recv(1)))) as url:
        with pytest.raises(Unreachable) as caught:
            client(Path(stripe.ca_bundle_path)).request("get", url, {})
    assert (caught.value.reason, caught.value.sent, received) == ("tls", False, [])


def test_without_certificates_to_trust_nothing_is_sent(tmp_path: Path) -> None:
    (tmp_path / "empty.pem").touch()
    with pytest.raises(Unreachable) as caught:
        client(tmp_path / "empty.pem").request("get", "https://127.0.0.1:1/", {})
    assert (caught.value.reason, caught.value.sent) == ("tls", False)


def test_a_connection_lost_after_the_request_may_have_been_read(certificate: Path) -> None:
    with server(over_tls(certificate, lambda tls: tls.recv(65536))) as url:
        with pytest.raises(Unreachable) as caught:
            client(certificate).request("post", url, {}, "a=1")
    assert caught.value.sent
