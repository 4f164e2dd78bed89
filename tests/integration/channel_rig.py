"""Alerts to announce, and the far ends to announce them to: real sockets, real certificates."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default
from http.client import parse_headers
from pathlib import Path
from typing import Any

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from flask_c2meter.channels import Announcement
from flask_c2meter.channels.dialling import Address, Resolver
from flask_c2meter.model import Aggregation, Alert, Level, Meter, Period

#: In what must never be seen.
CANARY = "canary"
MAIL_PASSWORD = f"{CANARY}-password"
SECRET = "whsec_" + "Y2FuYXJ5" * 4  # "canary", four times
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
METER = Meter("verify_operations", "Verify Operations", "v.done", "verify", Aggregation.SUM)
PERIOD = Period(datetime(2026, 11, 1, tzinfo=UTC), datetime(2026, 12, 1, tzinfo=UTC))
RAISED = datetime(2026, 11, 23, 12, 0, 0, 250_000, tzinfo=UTC)


def announcement(
    utilization: str | None = "0.82",
    level: Level = "warning",
    email: str | None = f"{CANARY}@example.com",
    is_test: bool = False,
) -> Announcement:
    share = None if utilization is None else Decimal(utilization)
    included = Decimal(0 if share is None else 2000)
    total = Decimal(1) if share is None else share * 2000
    alert = Alert(
        "cus_1", METER.name, level, share, total, included, PERIOD, RAISED, "019aa-1", is_test
    )  # fmt: skip
    return Announcement(alert, METER, email)


class Certificate:
    """A self-signed certificate of one host, with the contexts of both ends."""

    def __init__(self, path: Path, host: str) -> None:
        self._path = path
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
        now = datetime.now(UTC)
        made = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(1)
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(hours=1))
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .sign(key, hashes.SHA256())
        )
        private = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        path.write_bytes(private + made.public_bytes(serialization.Encoding.PEM))

    def server(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self._path)
        return context

    def client(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self._path))


def leads_to(port: int) -> Resolver:
    """A resolver for which every name and port is *port* of this machine."""
    return lambda host, _: [(socket.AF_INET, ("127.0.0.1", port))]


@contextmanager
def serving(speak: Callable[[socket.socket], object], address: str = "127.0.0.1") -> Iterator[int]:
    """The port of a listener that hands its connections to *speak*, one after the other."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.create_server((address, 0), family=family)

    def serve() -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                connection.settimeout(10)
                with connection, suppress(OSError):
                    speak(connection)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def listen(connection: socket.socket) -> None:
    """Say nothing until the other side has gone."""
    while connection.recv(65536):
        pass


@dataclass
class Receiver:
    """Answers each request with the next of *answers*; the last one stays."""

    answers: list[bytes] = field(default_factory=lambda: [OK])
    port: int = 0
    lines: list[str] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    #: Called with each body before the answer.
    on_request: Callable[[bytes], object] = len
    answered: int = 0

    def __call__(self, connection: socket.socket) -> None:
        with connection.makefile("rb") as stream:
            self.lines.append(stream.readline().decode().strip())
            headers = parse_headers(stream)
            self.headers.append(dict(headers))
            self.bodies.append(stream.read(int(headers["Content-Length"])))
        self.on_request(self.bodies[-1])
        connection.sendall(self.answers[0])
        self.answered += 1
        if len(self.answers) > 1:
            del self.answers[0]


def status(line: str, *headers: str) -> bytes:
    return "\r\n".join((f"HTTP/1.1 {line}", *headers, "Content-Length: 0", "", "")).encode()


@dataclass
class Mailbox:
    """What arrives at a server, and what it answers instead of taking it."""

    refusals: dict[str, str] = field(default_factory=dict)
    envelopes: list[Envelope] = field(default_factory=list)
    greetings: list[str] = field(default_factory=list)
    logins: list[tuple[bytes, bytes]] = field(default_factory=list)
    were_encrypted: list[bool] = field(default_factory=list)

    async def handle_EHLO(
        self, server: SMTP, session: Session, envelope: Envelope, name: str, answers: list[str]
    ) -> list[str]:
        session.host_name = name
        self.greetings.append(name)
        return answers

    async def handle_MAIL(
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        envelope.mail_from = address
        envelope.mail_options.extend(options)
        return self.refusals.get("MAIL", "250 OK")

    async def handle_RCPT(
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        envelope.rcpt_tos.append(address)
        return self.refusals.get("RCPT", "250 OK")

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        self.were_encrypted.append(server.transport.get_extra_info("sslcontext") is not None)
        self.envelopes.append(envelope)
        return self.refusals.get("DATA", "250 OK")

    def authenticate(
        self, server: SMTP, session: Session, envelope: Envelope, mechanism: str, data: Any
    ) -> AuthResult:
        assert isinstance(data, LoginPassword)
        self.logins.append((data.login, data.password))
        return AuthResult(success=data.password == MAIL_PASSWORD.encode(), handled=False)

    def messages(self) -> list[EmailMessage]:
        """What has been taken, in the order of its arrival."""
        return [
            message_from_bytes(envelope.original_content or b"", EmailMessage, policy=default)
            for envelope in self.envelopes
        ]

    def message(self) -> EmailMessage:
        """The only one."""
        (message,) = self.messages()
        return message


class Server(Controller):
    """An SMTP server on a port that the system has chosen."""

    def __init__(self, mailbox: Mailbox, **options: Any) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        super().__init__(mailbox, "127.0.0.1", self._listener.getsockname()[1], **options)

    def _create_server(self) -> Any:
        return self.loop.create_server(
            self._factory_invoker, sock=self._listener, ssl=self.ssl_context
        )


@contextmanager
def served(mailbox: Mailbox, **options: Any) -> Iterator[int]:
    """The port of a server that delivers to *mailbox*."""
    server = Server(mailbox, **options)
    server.start()
    try:
        yield server.port
    finally:
        server.stop()


class Silent:
    """A listener on all addresses of this machine to which nobody may connect."""

    def __init__(self) -> None:
        is_dual = socket.has_dualstack_ipv6()
        family, host = (socket.AF_INET6, "::") if is_dual else (socket.AF_INET, "0.0.0.0")
        self._listener = socket.create_server((host, 0), family=family, dualstack_ipv6=is_dual)
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]

    def __enter__(self) -> Silent:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def connects(self) -> int:
        """How many connections there have been since the last look."""
        count = 0
        with suppress(BlockingIOError):
            while True:
                self._listener.accept()[0].close()
                count += 1
        return count


class Cut:
    """Says a text for ever, a piece every twentieth of a second, until the line is cut."""

    def __init__(self, *before: bytes, piece: bytes = b"x") -> None:
        self._before = before
        self._piece = piece
        self.was_cut = threading.Event()

    def __call__(self, connection: socket.socket) -> None:
        never = threading.Event()
        try:
            for text in self._before:
                connection.sendall(text)
            while not never.wait(0.05):
                connection.sendall(self._piece)
        except OSError:
            self.was_cut.set()
            raise


class Hanging:
    """A resolver that answers only when it is let go."""

    def __init__(self, answer: Sequence[Address]) -> None:
        self._answer = answer
        self.released = threading.Event()

    def __call__(self, host: str, port: int) -> Sequence[Address]:
        self.released.wait(10)
        return self._answer
