"""Alerts as mails, over real SMTP: a server that takes them, and servers of every other kind."""

from __future__ import annotations

import base64
import logging
import socket
import ssl
import traceback
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from channel_rig import (
    CANARY,
    MAIL_PASSWORD,
    Certificate,
    Cut,
    Hanging,
    Mailbox,
    announcement,
    leads_to,
    listen,
    served,
    serving,
)

from flask_c2meter.channels.dialling import Address, Dialler, Resolver
from flask_c2meter.channels.mail import Mail, MailChannel, mail_renderer
from flask_c2meter.channels.smtp import SmtpSender
from flask_c2meter.config import Config
from flask_c2meter.errors import ChannelError

HOST = "mail.example"
NOW = datetime(2026, 11, 23, 12, 0, 5, tzinfo=UTC)
LOGIN = {"MAIL_USERNAME": "acme", "MAIL_PASSWORD": MAIL_PASSWORD}


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return Certificate(tmp_path_factory.mktemp("tls") / "mail.pem", HOST)


@pytest.fixture
def mailbox() -> Mailbox:
    return Mailbox()


@pytest.fixture
def plain(mailbox: Mailbox) -> Iterator[int]:
    with served(mailbox) as port:
        yield port


def sender(
    port: int,
    *,
    tls: ssl.SSLContext | None = None,
    deadline_s: float = 10.0,
    resolve: Resolver | None = None,
    **keys: Any,
) -> SmtpSender:
    """Whose server is at *port*; without encryption unless *keys* ask for it."""
    keys = {
        "MAIL_SERVER": HOST,
        "MAIL_SENDER": "Acme Inc. <billing@acme.example>",
        "MAIL_TLS": False,
        "CLOCK": lambda: NOW,
        **keys,
    }
    settings = {f"C2METER_{name}": value for name, value in keys.items()}
    config = Config.load(settings, environ={}, instance_path="/nowhere")
    dialler = Dialler(deadline_s=deadline_s, resolve=resolve or leads_to(port))
    return SmtpSender(config, dialler=dialler, tls=tls)


def channel(port: int, *, render: Callable[..., Mail] | None = None, **keys: Any) -> MailChannel:
    """A channel of that :func:`sender`."""
    return MailChannel(render or mail_renderer(None), sender(port, **keys))


def refused(by: MailChannel, to: str = f"{CANARY}@example.com") -> ChannelError:
    """How *by* fails; neither password nor address are in what it says."""
    with pytest.raises(ChannelError) as caught:
        by.announce(announcement(email=to))
    assert CANARY not in "".join(traceback.format_exception(caught.value))
    assert CANARY not in repr(caught.value)
    return caught.value


def script(*answers: str, then: Callable[[socket.socket], object] = listen) -> Any:
    """A server that says one of *answers* per line it gets, whatever that says, and *then* more."""

    def speak(connection: socket.socket) -> None:
        with connection.makefile("rb") as lines:
            connection.sendall(f"{answers[0]}\r\n".encode())
            for answer in answers[1:]:
                lines.readline()
                connection.sendall(f"{answer}\r\n".encode())
            then(connection)

    return speak


class TestKnocking:
    def test_it_comes_to_where_a_mail_would_be_handed_over(
        self, plain: int, mailbox: Mailbox
    ) -> None:
        sender(plain).knock()
        assert (len(mailbox.greetings), mailbox.envelopes) == (1, [])

    def test_a_server_that_refuses_the_login(self) -> None:
        with serving(script("220 hello", "250-hello\r\n250 AUTH PLAIN", "535 no")) as port:
            with pytest.raises(ChannelError) as caught:
                sender(port, **LOGIN).knock()
        assert caught.value.reason == "login"
        assert MAIL_PASSWORD not in "".join(traceback.format_exception(caught.value))

    def test_nobody_there(self) -> None:
        with pytest.raises(ChannelError) as caught:
            sender(9).knock()
        assert caught.value.reason == "no_connection"


class TestTheMail:
    def test_it_arrives_in_text_and_html(self, plain: int, mailbox: Mailbox) -> None:
        channel(plain).announce(announcement(email="ann@example.com"))
        message = mailbox.message()
        assert message["From"].addresses[0].display_name == "Acme Inc."
        assert message["To"] == "ann@example.com"
        assert message["Subject"] == "Verify Operations usage at 82%"
        assert message["Date"].datetime == NOW
        assert message["Auto-Submitted"] == "auto-generated"
        assert message.get_content_type() == "multipart/alternative"
        text, html = message.get_body(("plain",)), message.get_body(("html",))
        assert text and "1,640 of the 2,000" in text.get_content()
        assert html and html.get_content().startswith("<!doctype html>")
        assert mailbox.envelopes[0].mail_from == "billing@acme.example"
        assert mailbox.envelopes[0].rcpt_tos == ["ann@example.com"]

    def test_a_repetition_has_the_same_message_id(self, plain: int, mailbox: Mailbox) -> None:
        mailbox.refusals["DATA"] = "451 later"
        mails = channel(plain)
        refused(mails)
        refused(mails)
        contents = [envelope.original_content or b"" for envelope in mailbox.envelopes]
        assert len(contents) == 2
        for content in contents:
            assert b"Message-ID: <019aa-1@acme.example>\r\n" in content

    @pytest.mark.parametrize(
        ("email", "address"),
        [
            ("Ann Müller <ann@example.com>", "ann@example.com"),
            ("ann@müller.example", "ann@xn--mller-kva.example"),
        ],
    )
    def test_the_address_is_as_servers_take_it(
        self, plain: int, mailbox: Mailbox, email: str, address: str
    ) -> None:
        channel(plain).announce(announcement(email=email))
        assert mailbox.envelopes[0].rcpt_tos == [address]

    def test_all_of_it_is_seven_bits(self, plain: int, mailbox: Mailbox) -> None:
        def render(said: Any) -> Mail:
            return Mail(said.email, "Größe: 82 %", "Größe\n.\nx" * 300, "<p>Größe</p>", "019aa-1")

        sender = '"Müller, Söhne" <billing@acme.example>'
        channel(plain, render=render, MAIL_SENDER=sender).announce(announcement())
        assert (mailbox.envelopes[0].original_content or b"").isascii()
        message = mailbox.message()
        assert message["Subject"] == "Größe: 82 %"
        assert message["From"].addresses[0].display_name == "Müller, Söhne"
        text = message.get_body(("plain",))
        assert text and text.get_content().splitlines()[:3] == ["Größe", ".", "xGröße"]

    @pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="needs IPv6")
    def test_the_greeting_names_an_address_and_asks_no_name_server(self) -> None:
        heard: list[bytes] = []

        def greet(connection: socket.socket) -> None:
            connection.sendall(b"220 hi\r\n")
            heard.append(connection.recv(1000))

        with serving(greet, "::1") as port:
            address: Address = (socket.AF_INET6, ("::1", port))
            refused(channel(port, resolve=lambda host, _: [address]))
        assert heard == [b"ehlo [IPv6:::1]\r\n"]

    @pytest.mark.parametrize(
        "email",
        [
            "ann",
            "ann@",
            "@example.com",
            "ann@example.com, bob@example.com",
            "ann@example.com;bob@example.com",
            "ann@example.com bob@example.com",
            "<ann@example.com><bob@example.com>",
            "Group: ann@example.com, bob@example.com;",
            '"ann bob"@example.com',
            "ann@example..com\u00a0",
            "ann@ü..example",
        ],
    )
    def test_what_is_not_one_address_is_refused_for_good(
        self, plain: int, mailbox: Mailbox, email: str
    ) -> None:
        error = refused(channel(plain), email)
        assert (error.reason, error.is_permanent) == ("bad_to", True)
        assert mailbox.envelopes == mailbox.greetings == []


class TestEncryption:
    @pytest.fixture
    def starttls(self, mailbox: Mailbox, certificate: Certificate) -> Iterator[int]:
        with served(mailbox, tls_context=certificate.server(), require_starttls=True) as port:
            yield port

    def test_starttls(self, starttls: int, mailbox: Mailbox, certificate: Certificate) -> None:
        channel(starttls, MAIL_TLS=True, tls=certificate.client()).announce(announcement())
        assert mailbox.were_encrypted == [True]

    def test_tls_from_the_first_byte_on_465(
        self, mailbox: Mailbox, certificate: Certificate
    ) -> None:
        with served(mailbox, ssl_context=certificate.server()) as port:
            mails = channel(port, MAIL_PORT=465, MAIL_TLS=True, tls=certificate.client())
            mails.announce(announcement())
        assert mailbox.were_encrypted == [True]

    def test_a_certificate_of_an_unknown_issuer(self, starttls: int, mailbox: Mailbox) -> None:
        error = refused(channel(starttls, MAIL_TLS=True, **LOGIN))
        assert (error.reason, error.is_permanent) == ("tls", False)
        assert mailbox.logins == mailbox.envelopes == []

    def test_a_certificate_of_another_name(
        self, starttls: int, mailbox: Mailbox, certificate: Certificate
    ) -> None:
        tls = certificate.client()
        error = refused(channel(starttls, MAIL_SERVER="other.example", MAIL_TLS=True, tls=tls))
        assert error.reason == "tls"
        assert mailbox.envelopes == []

    def test_a_server_without_it_learns_neither_password_nor_mail(
        self, plain: int, mailbox: Mailbox
    ) -> None:
        error = refused(channel(plain, MAIL_TLS=True, **LOGIN))
        assert (error.reason, error.is_permanent) == ("not_supported", False)
        assert mailbox.logins == mailbox.envelopes == []


class TestLogin:
    @pytest.fixture
    def guarded(self, mailbox: Mailbox, certificate: Certificate) -> Iterator[int]:
        options = {"authenticator": mailbox.authenticate, "auth_required": True}
        with served(mailbox, tls_context=certificate.server(), **options) as port:
            yield port

    def test_name_and_password(
        self, guarded: int, mailbox: Mailbox, certificate: Certificate
    ) -> None:
        channel(guarded, MAIL_TLS=True, tls=certificate.client(), **LOGIN).announce(announcement())
        assert mailbox.logins == [(b"acme", LOGIN["MAIL_PASSWORD"].encode())]
        assert len(mailbox.envelopes) == 1

    @pytest.mark.parametrize("password", [f"{CANARY}-old", f"{CANARY}-pässword", ""])
    def test_a_wrong_password_is_tried_again(
        self, guarded: int, mailbox: Mailbox, certificate: Certificate, password: str
    ) -> None:
        keys = {**LOGIN, "MAIL_PASSWORD": password}
        error = refused(channel(guarded, MAIL_TLS=True, tls=certificate.client(), **keys))
        assert (error.reason, error.is_permanent) == ("login", False)
        assert mailbox.envelopes == []

    def test_a_login_that_is_missing_is_tried_again(
        self, guarded: int, certificate: Certificate
    ) -> None:
        error = refused(channel(guarded, MAIL_TLS=True, tls=certificate.client()))
        assert (error.reason, error.is_permanent) == ("smtp_530", False)

    def test_what_a_server_repeats_of_the_login_is_not_repeated(self) -> None:
        said = base64.b64encode(LOGIN["MAIL_PASSWORD"].encode()).decode()
        answers = ("220 hi", "250-hi\r\n250 AUTH PLAIN", f"535 {CANARY} {said}")
        with serving(script(*answers)) as port:
            error = refused(channel(port, **LOGIN))
        assert said not in str(error) and error.reason == "login"


class TestRefusals:
    @pytest.mark.parametrize("command", ["MAIL", "RCPT", "DATA"])
    @pytest.mark.parametrize(
        ("code", "is_permanent"),
        [(550, True), (552, True), (554, True), (421, False), (450, False), (452, False)],
    )
    def test_a_5xx_is_for_good_a_4xx_is_not(
        self, plain: int, mailbox: Mailbox, command: str, code: int, is_permanent: bool
    ) -> None:
        mailbox.refusals[command] = f"{code} <{CANARY}@example.com> no"
        error = refused(channel(plain))
        assert (error.reason, error.is_permanent) == (f"smtp_{code}", is_permanent)

    @pytest.mark.parametrize(
        ("answers", "reason"),
        [
            (("554 go away",), "smtp_554"),
            (("421 busy",), "smtp_421"),
            (("220 hi", "550 not you", "550 not you"), "smtp_550"),
            (("SSH-2.0-OpenSSH_9.2",), "smtp_-1"),
            (("220 hi", "250 hi", "250 sender", "250 recipient", "554 data"), "smtp_554"),
        ],
        ids=["greeting", "busy", "hello", "no mail server", "data"],
    )
    def test_only_what_is_said_of_the_mail_is_for_good(
        self, answers: tuple[str, ...], reason: str
    ) -> None:
        with serving(script(*answers)) as port:
            error = refused(channel(port))
        assert (error.reason, error.is_permanent) == (reason, len(answers) == 5)

    def test_a_server_that_hangs_up(self) -> None:
        with serving(script("220 hi", "250 hi", then=lambda connection: None)) as port:
            error = refused(channel(port))
        assert (error.reason, error.is_permanent) == ("disconnected", False)

    def test_nobody_there(self) -> None:
        with serving(listen) as port:
            pass
        error = refused(channel(port))
        assert (error.reason, error.is_permanent) == ("no_connection", False)


class TestBounds:
    """Whatever the server does, it is over at the deadline."""

    @pytest.mark.parametrize(
        "answers",
        [
            (),
            ("220 hi",),
            ("220 hi", "250-hi"),
            ("220 hi", "250 hi", "250 sender"),
            ("220 hi", "250 hi", "250 sender", "250 recipient", "354 go on"),
        ],
        ids=["greeting", "hello", "features", "recipient", "data"],
    )
    def test_a_server_that_drips(self, answers: tuple[str, ...]) -> None:
        drip = Cut(piece=b"2")
        with serving(script(*answers, then=drip) if answers else drip) as port:
            error = refused(channel(port, deadline_s=0.4))
            assert drip.was_cut.wait(10)
        assert (error.reason, error.is_permanent) == ("timeout", False)

    def test_a_server_that_says_nothing(self) -> None:
        with serving(listen) as port:
            assert refused(channel(port, deadline_s=0.2)).reason == "timeout"

    @pytest.mark.parametrize("port_of_server", [465, 587])
    def test_a_handshake_that_drips(self, port_of_server: int, certificate: Certificate) -> None:
        # The head of a record of 16 KiB, of which a byte comes now and then.
        drip = Cut(b"\x16\x03\x03\x40\x00", piece=b"\x02")
        hello = script("220 hi", "250-hi\r\n250 STARTTLS", "220 go on", then=drip)
        with serving(drip if port_of_server == 465 else hello) as port:
            mails = channel(port, MAIL_PORT=port_of_server, MAIL_TLS=True, deadline_s=0.4)
            assert refused(mails).reason == "timeout"
            assert drip.was_cut.wait(10)

    def test_a_name_server_that_hangs(self) -> None:
        hanging = Hanging([])
        mails = channel(0, deadline_s=0.1, resolve=hanging)
        assert refused(mails).reason == "timeout"
        hanging.released.set()

    def test_a_server_that_has_taken_it_need_not_say_goodbye(self) -> None:
        answers = ("220 hi", "250 hi", "250 sender", "250 recipient", "354 go on")

        def take(connection: socket.socket) -> None:
            content = b""
            while not content.endswith(b"\r\n.\r\n"):
                content += connection.recv(65536)
            connection.sendall(b"250 taken\r\n")
            listen(connection)

        with serving(script(*answers, then=take)) as port:
            channel(port).announce(announcement())


def test_password_and_addresses_are_in_no_log(
    mailbox: Mailbox,
    certificate: Certificate,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The server in this process logs what it hears; all the rest is ours.
    monkeypatch.setattr(logging.getLogger("mail.log"), "propagate", False)
    caplog.set_level(logging.DEBUG)
    options = {"authenticator": mailbox.authenticate, "tls_context": certificate.server()}
    with served(mailbox, **options) as port:
        for keys in (LOGIN, {**LOGIN, "MAIL_PASSWORD": f"{CANARY}-old"}):
            keys = {**keys, "MAIL_TLS": True, "MAIL_SENDER": f"{CANARY}@acme.example"}
            mails = channel(port, tls=certificate.client(), **keys)
            assert CANARY not in repr(mails)
            mailbox.refusals["RCPT"] = "550 no"
            refused(mails)
    assert len(mailbox.logins) >= 2
    assert CANARY not in caplog.text
