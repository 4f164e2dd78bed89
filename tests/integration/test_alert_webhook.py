"""Alerts as signed webhooks, to real receivers; and case 32: where none may be sent to."""

from __future__ import annotations

import json
import logging
import socket
import ssl
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest
from channel_rig import (
    CANARY,
    OK,
    SECRET,
    Certificate,
    Cut,
    Hanging,
    Receiver,
    Silent,
    announcement,
    leads_to,
    listen,
    serving,
    status,
)
from standardwebhooks import Webhook

from flask_c2meter.channels.dialling import Address, Dialler
from flask_c2meter.channels.webhook import WebhookChannel
from flask_c2meter.errors import ChannelError, ConfigError
from flask_c2meter.model import utc_now

NOW = datetime(2026, 11, 23, 12, 0, 5, tzinfo=UTC)


def to_port(
    port: int, path: str = "/hook", clock: Callable[[], datetime] = utc_now, **options: Any
) -> WebhookChannel:
    dialler = Dialler(**options)
    return WebhookChannel(f"http://127.0.0.1:{port}{path}", SECRET, clock, True, dialler=dialler)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    with serving(receiver) as receiver.port:
        yield receiver


@pytest.fixture
def silent() -> Iterator[Silent]:
    with Silent() as listener:
        yield listener
        assert listener.connects() == 0


def refused(channel: WebhookChannel) -> ChannelError:
    """How *channel* fails."""
    with pytest.raises(ChannelError) as caught:
        channel.announce(announcement())
    assert CANARY not in "".join(traceback.format_exception(caught.value))
    return caught.value


class TestWhatIsSent:
    def test_the_documents_payload_signed(self, receiver: Receiver) -> None:
        to_port(receiver.port).announce(announcement("0.82"))
        verified = Webhook(SECRET).verify(receiver.bodies[0], receiver.headers[0])
        assert verified == {
            "customer_id": "cus_1",
            "meter": "verify_operations",
            "level": "warning",
            "utilization": 0.82,
            "timestamp": "2026-11-23T12:00:00.250Z",
        }

    @pytest.mark.parametrize(
        ("utilization", "number"),
        [("0.82", "0.82"), ("1.23455", "1.2346"), ("1", "1.0"), (None, "null")],
    )
    def test_utilization_is_a_number_of_four_places(
        self, receiver: Receiver, utilization: str | None, number: str
    ) -> None:
        to_port(receiver.port).announce(announcement(utilization, "exceeded"))
        assert f'"utilization": {number},'.encode() in receiver.bodies[0]

    def test_the_identifier_stays_and_the_time_is_that_of_the_attempt(
        self, receiver: Receiver
    ) -> None:
        receiver.answers = [status("503 Later"), OK]
        moments = iter([NOW, NOW, NOW, NOW + timedelta(minutes=5)])
        channel = to_port(receiver.port, clock=lambda: next(moments))
        refused(channel)
        next(moments)
        channel.announce(announcement())
        first, second = receiver.headers
        assert first["webhook-id"] == second["webhook-id"] == "alert_019aa-1"
        assert first["webhook-timestamp"] == str(int(NOW.timestamp()))
        assert second["webhook-timestamp"] == str(int(NOW.timestamp()) + 300)
        assert first["webhook-signature"] != second["webhook-signature"]

    def test_a_test_is_known_by_its_identifier(self, receiver: Receiver) -> None:
        to_port(receiver.port).announce(announcement(is_test=True))
        assert receiver.headers[0]["webhook-id"] == "test_019aa-1"

    @pytest.mark.parametrize(
        ("written", "asked"),
        [
            ("/a/b?c=d&e=%20f#part", "/a/b?c=d&e=%20f"),
            ("//a//b", "//a//b"),
            ("", "/"),
            ("?c=d", "/?c=d"),
        ],
    )
    def test_the_request_is_what_the_url_says(
        self, receiver: Receiver, written: str, asked: str
    ) -> None:
        to_port(receiver.port, path=written).announce(announcement())
        assert receiver.lines == [f"POST {asked} HTTP/1.1"]
        headers = receiver.headers[0]
        assert headers["Host"] == f"127.0.0.1:{receiver.port}"
        assert headers["User-Agent"].startswith("flask_c2meter/")
        assert headers["Content-Type"] == "application/json"

    def test_the_surroundings_add_nothing(
        self, receiver: Receiver, silent: Silent, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{silent.port}")
        (tmp_path / "netrc").write_text(f"default login u password {CANARY}\n")
        monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
        to_port(receiver.port).announce(announcement())
        assert {"Authorization", "Cookie", "Proxy-Authorization"} & set(
            receiver.headers[0]
        ) == set()


class TestWhatTheAnswerMeans:
    @pytest.mark.parametrize("line", ["200 OK", "201 Made", "202 Later", "204 Nothing"])
    def test_delivered(self, receiver: Receiver, line: str) -> None:
        receiver.answers = [status(line)]
        to_port(receiver.port).announce(announcement())
        assert len(receiver.lines) == 1

    @pytest.mark.parametrize(
        ("code", "is_permanent"),
        [
            *dict.fromkeys((400, 401, 403, 404, 410, 422), True).items(),
            *dict.fromkeys((408, 409, 425, 429, 500, 503, 300, 304, 599, 999), False).items(),
        ],
    )
    def test_refused(self, receiver: Receiver, code: int, is_permanent: bool) -> None:
        receiver.answers = [status(f"{code} No")]
        error = refused(to_port(receiver.port))
        assert (error.reason, error.is_permanent) == (f"http_{code}", is_permanent)
        assert error.retry_after_s is None

    @pytest.mark.parametrize(
        ("header", "wait_s"),
        [
            ("120", 120),
            (format_datetime(NOW + timedelta(minutes=2), usegmt=True), 120),
            ("86400", 3600),
            ("-5", 0),
            ("soon", None),
        ],
    )
    def test_a_receiver_may_say_when_to_come_again(
        self, receiver: Receiver, header: str, wait_s: float | None
    ) -> None:
        receiver.answers = [status("429 Slow down", f"Retry-After: {header}")]
        assert refused(to_port(receiver.port, clock=lambda: NOW)).retry_after_s == wait_s

    @pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
    def test_redirects_are_not_followed(
        self, receiver: Receiver, silent: Silent, code: int
    ) -> None:
        receiver.answers = [
            status(f"{code} Over there", f"Location: http://127.0.0.1:{silent.port}/")
        ]
        assert refused(to_port(receiver.port)).reason == f"http_{code}"
        assert len(receiver.lines) == 1

    @pytest.mark.parametrize(
        ("answer", "reason"),
        [
            (b"", "disconnected"),
            (b"SSH-2.0-OpenSSH_9.2\r\n", "unreadable"),
            (b"HTTP/1.1 two hundred\r\n\r\n", "unreadable"),
            (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok", "unreadable"),
            (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "unreadable"),
            (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n", "unreadable"),
        ],
    )
    def test_half_an_answer_is_none(self, receiver: Receiver, answer: bytes, reason: str) -> None:
        receiver.answers = [answer]
        error = refused(to_port(receiver.port))
        assert (error.reason, error.is_permanent) == (reason, False)

    def test_knocking_says_nothing(self) -> None:
        heard: SimpleQueue[bytes] = SimpleQueue()
        with serving(lambda connection: heard.put(connection.recv(1))) as port:
            to_port(port).knock()
            assert heard.get(timeout=10) == b""
        with pytest.raises(ChannelError) as caught:
            to_port(9).knock()
        assert caught.value.reason == "no_connection"

    def test_nobody_there(self) -> None:
        with serving(lambda connection: None) as port:
            pass
        assert refused(to_port(port)).reason == "no_connection"

    def test_no_such_host(self) -> None:
        def unknown(host: str, port: int) -> Sequence[Address]:
            raise socket.gaierror(socket.EAI_NONAME, f"no {CANARY}")

        channel = WebhookChannel(
            "https://hooks.example/", SECRET, utc_now, dialler=Dialler(resolve=unknown)
        )
        assert refused(channel).reason == "dns"


class TestBounds:
    """Whatever the receiver does, it is over at the deadline, with 64 KiB read at most."""

    @pytest.mark.parametrize(
        "said",
        [
            (),
            (b"HTTP/1.1 200 OK\r\nX: ",),
            (b"HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\n",),
            (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1",),
        ],
        ids=["status", "header", "body", "chunk size"],
    )
    def test_a_receiver_that_drips(self, said: tuple[bytes, ...]) -> None:
        drip = Cut(*said, piece=b"0")
        with serving(drip) as port:
            assert refused(to_port(port, deadline_s=0.4)).reason == "timeout"
            assert drip.was_cut.wait(10)

    def test_a_receiver_that_says_nothing(self) -> None:
        with serving(listen) as port:
            assert refused(to_port(port, deadline_s=0.2)).reason == "timeout"

    def test_a_handshake_that_hangs(self) -> None:
        with serving(listen) as port:
            dialler = Dialler(deadline_s=0.2, resolve=leads_to(port))
            channel = WebhookChannel(
                "https://hooks.example/", SECRET, utc_now, True, dialler=dialler
            )
            assert refused(channel).reason == "timeout"

    def test_a_name_server_that_hangs(self) -> None:
        said: list[bytes] = []
        connected = threading.Event()

        def hear(connection: socket.socket) -> None:
            said.append(connection.recv(1))
            connected.set()

        with serving(hear) as port:
            hanging = Hanging(leads_to(port)("", 0))
            assert refused(to_port(port, deadline_s=0.1, resolve=hanging)).reason == "timeout"
            hanging.released.set()
            assert connected.wait(10)
        assert said == [b""]

    @pytest.mark.parametrize("length", ["Content-Length: 1000000000", "Transfer-Encoding: chunked"])
    def test_what_comes_after_64_kib_is_not_waited_for(self, length: str) -> None:
        head = f"HTTP/1.1 200 OK\r\n{length}\r\n\r\n".encode()
        flood = Cut(head, *[b"1000\r\n" + b"x" * 4096 + b"\r\n"] * 20)
        with serving(flood) as port:
            to_port(port).announce(announcement())
            assert flood.was_cut.wait(10)

    @pytest.mark.parametrize(
        "line", [b"X-" + b"x" * 1000 + b": y\r\n", b"HTTP/1.1 100 Go on\r\n\r\n"]
    )
    def test_a_head_of_more_than_64_kib_is_no_answer(self, line: bytes) -> None:
        first = b"" if line.startswith(b"HTTP") else b"HTTP/1.1 200 OK\r\n"
        with serving(Cut(first, *[line] * 5000)) as port:
            assert refused(to_port(port)).reason == "unreadable"


HOST = "hooks.example"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return Certificate(tmp_path_factory.mktemp("tls") / "hooks.pem", HOST)


class TestTls:
    @pytest.fixture
    def secure(self, certificate: Certificate) -> Iterator[Receiver]:
        """A receiver behind TLS, which notes the names it is asked for among its lines."""
        receiver, context = Receiver(), certificate.server()
        context.sni_callback = lambda _, name, __: receiver.lines.append(f"SNI {name}")

        def speak(connection: socket.socket) -> None:
            with context.wrap_socket(connection, server_side=True) as tls:
                receiver(tls)

        with serving(speak) as receiver.port:
            yield receiver

    def channel(
        self, port: int, tls: ssl.SSLContext | None, host: str = HOST, deadline_s: float = 10.0
    ) -> WebhookChannel:
        dialler = Dialler(deadline_s=deadline_s, resolve=leads_to(port))
        url = f"https://{host}:8443/hook"
        return WebhookChannel(url, SECRET, utc_now, True, dialler=dialler, tls=tls)

    def test_the_certificate_is_that_of_the_name(
        self, secure: Receiver, certificate: Certificate
    ) -> None:
        self.channel(secure.port, certificate.client()).announce(announcement())
        assert secure.lines == [f"SNI {HOST}", "POST /hook HTTP/1.1"]
        assert secure.headers[0]["Host"] == f"{HOST}:8443"
        Webhook(SECRET).verify(secure.bodies[0], secure.headers[0])

    def test_a_receiver_that_drips(self, certificate: Certificate) -> None:
        drip, context = Cut(b"HTTP/1.1 200 OK\r\nX: "), certificate.server()

        def speak(connection: socket.socket) -> None:
            with context.wrap_socket(connection, server_side=True) as tls:
                drip(tls)

        with serving(speak) as port:
            channel = self.channel(port, certificate.client(), deadline_s=0.4)
            assert refused(channel).reason == "timeout"
            assert drip.was_cut.wait(10)

    def test_another_name_gets_nothing(self, secure: Receiver, certificate: Certificate) -> None:
        channel = self.channel(secure.port, certificate.client(), "other.example")
        error = refused(channel)
        assert (error.reason, error.is_permanent) == ("tls", False)
        assert secure.bodies == []

    def test_an_unknown_issuer_gets_nothing(self, secure: Receiver) -> None:
        assert refused(self.channel(secure.port, None)).reason == "tls"
        assert secure.bodies == []


#: URLs that lead, or try to lead, to this machine or its network; it would be heard on {port}.
HOME = [
    "https://127.0.0.1:{port}/",
    "https://127.1:{port}/",
    "https://127.0.1:{port}/",
    "https://127.255.255.254:{port}/",
    "https://2130706433:{port}/",
    "https://0x7f000001:{port}/",
    "https://0x7f.0.0.1:{port}/",
    "https://0x7F.0x0.0x0.0x1:{port}/",
    "https://017700000001:{port}/",
    "https://0177.0.0.1:{port}/",
    "https://0177.0.0.01:{port}/",
    "https://127.0.0.1.:{port}/",
    "https://0.0.0.0:{port}/",
    "https://0:{port}/",
    "https://00000000:{port}/",
    "https://localhost:{port}/",
    "https://LOCALHOST:{port}/",
    "https://localhost.:{port}/",
    "https://localhost.localdomain:{port}/",
    "https://ip6-localhost:{port}/",
    "https://127.0.0.1.nip.example:{port}/",
    "https://rebinding.example:{port}/",
    "https://[::1]:{port}/",
    "https://[0:0:0:0:0:0:0:1]:{port}/",
    "https://[::]:{port}/",
    "https://[::ffff:127.0.0.1]:{port}/",
    "https://[::ffff:7f00:1]:{port}/",
    "https://[::ffff:0:127.0.0.1]:{port}/",
    "https://[::127.0.0.1]:{port}/",
    "https://[64:ff9b::127.0.0.1]:{port}/",
    "https://[64:ff9b:1::7f00:1]:{port}/",
    "https://[2002:7f00:1::]:{port}/",
    "https://[2001:0:7f00:1::]:{port}/",
    "https://[fe80::1%25lo]:{port}/",
    "https://[fe80::1%lo]:{port}/",
    "https://[fe80::1]:{port}/",
    "https://[fd00:ec2::254]:{port}/",
    "https://[fec0::1]:{port}/",
    "https://[ff02::1]:{port}/",
    "https://169.254.169.254:{port}/latest/meta-data/",
    "https://0xA9FEA9FE:{port}/",
    "https://[::ffff:169.254.169.254]:{port}/",
    "https://100.100.100.200:{port}/",
    "https://192.0.0.192:{port}/",
    "https://168.63.129.16:{port}/",
    "https://metadata.google.internal:{port}/",
    "https://10.0.0.1:{port}/",
    "https://172.16.0.1:{port}/",
    "https://192.168.1.1:{port}/",
    "https://224.0.0.1:{port}/",
    "https://255.255.255.255:{port}/",
    "https://hooks.example@127.0.0.1:{port}/",
    "https://127.0.0.1:{port}@hooks.example:{port}/",
    "https://user:pass@127.0.0.1:{port}/",
    "https://127.0.0.1:{port}\\@hooks.example/",
    "https://hooks.example\\@127.0.0.1:{port}/",
    "https://127.0.0.1:{port}#@hooks.example/",
    "https://127.0.0.1%00.hooks.example:{port}/",
    "https://127%2e0%2e0%2e1:{port}/",
    "https://%31%32%37.0.0.1:{port}/",
    "https://①②⑦.⓪.⓪.①:{port}/",
    "https://\uff11\uff12\uff17.\uff10.\uff10.\uff11:{port}/",
    "https://127。0。0。1:{port}/",
    "https://ⓛⓞⓒⓐⓛⓗⓞⓢⓣ:{port}/",
    "https://loc\u00adalhost:{port}/",
    "https://xn--lclhost-iqa:{port}/",
    "https://127.0.0.1:{port}\r\nHost: hooks.example/",
    "https://127.0.0.1\r\n:{port}/",
    "https://\t127.0.0.1:{port}/",
    " https://127.0.0.1:{port}/",
    "https:// 127.0.0.1:{port}/",
    "https:127.0.0.1:{port}/",
    "https:/127.0.0.1:{port}/",
    "https:///127.0.0.1:{port}/",
    "https:\\\\127.0.0.1:{port}\\",
    "//127.0.0.1:{port}/",
    "127.0.0.1:{port}",
    "http://127.0.0.1:{port}/",
    "http://hooks.example:{port}/",
    "ftp://127.0.0.1:{port}/",
    "gopher://127.0.0.1:{port}/_x",
    "file:///etc/passwd",
    "https://127.0.0.1:99999/",
    "https://127.0.0.1:0/",
    "https://[127.0.0.1]:{port}/",
    "https://[::1:{port}/",
    "https://:{port}/",
    "https://",
    "",
]

#: Of these, what stays forbidden where loopback is allowed for development.
NEVER = [
    "http://0.0.0.0:{port}/",
    "http://0:{port}/",
    "http://[::]:{port}/",
    "http://[::ffff:127.0.0.1]:{port}/",
    "http://[::127.0.0.1]:{port}/",
    "http://[64:ff9b::127.0.0.1]:{port}/",
    "http://10.0.0.1:{port}/",
    "http://169.254.169.254:{port}/",
    "http://192.168.1.1:{port}/",
    "http://user@127.0.0.1:{port}/",
    "http://①②⑦.⓪.⓪.①:{port}/",
    "ftp://127.0.0.1:{port}/",
]


def worst(host: str, port: int) -> Sequence[Address]:
    """Numbers as the operating system reads them; every name is this machine's."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except (socket.gaierror, UnicodeError):
        return [(socket.AF_INET, ("127.0.0.1", port))]
    return [(family, address) for family, _, _, _, address in found]


class TestWhereItMayLead:
    def attempt(self, url: str, **options: Any) -> None:
        channel = WebhookChannel(
            url, SECRET, utc_now, dialler=Dialler(deadline_s=5, resolve=worst), **options
        )
        error = refused(channel)
        assert (error.reason, error.is_permanent) == ("forbidden_address", False)

    @pytest.mark.parametrize("url", HOME)
    def test_never_home(self, url: str, silent: Silent) -> None:
        try:
            self.attempt(url.replace("{port}", str(silent.port)))
        except ConfigError as error:
            assert "C2METER_ALERT_WEBHOOK_URL" in str(error)

    @pytest.mark.parametrize("url", NEVER)
    def test_in_development_home_is_loopback_alone(self, url: str, silent: Silent) -> None:
        try:
            self.attempt(url.replace("{port}", str(silent.port)), allow_loopback=True)
        except ConfigError as error:
            assert "C2METER_ALERT_WEBHOOK_URL" in str(error)

    @pytest.mark.parametrize(
        "address",
        ["https://10.0.0.1/", "https://[::1]/", "https://169.254.169.254/", "https://[fe80::1]/"],
    )
    def test_an_address_that_is_not_public_fails_at_start(self, address: str) -> None:
        with pytest.raises(ConfigError, match="not public"):
            WebhookChannel(address, SECRET, utc_now)

    def test_a_public_address_beside_a_private_one_is_not_spoken_to(self, silent: Silent) -> None:
        def both(host: str, port: int) -> Sequence[Address]:
            return [(socket.AF_INET, ("8.8.8.8", port)), (socket.AF_INET, ("127.0.0.1", port))]

        url = f"https://hooks.example:{silent.port}/"
        channel = WebhookChannel(url, SECRET, utc_now, dialler=Dialler(resolve=both))
        assert refused(channel).reason == "forbidden_address"

    def test_the_address_that_was_looked_at_is_the_one_spoken_to(
        self, receiver: Receiver, silent: Silent
    ) -> None:
        asked: list[str] = []

        def rebinding(host: str, port: int) -> Sequence[Address]:
            asked.append(host)
            port = receiver.port if len(asked) == 1 else silent.port
            return [(socket.AF_INET, ("127.0.0.1", port))]

        dialler = Dialler(resolve=rebinding)
        channel = WebhookChannel("http://hooks.example/", SECRET, utc_now, True, dialler=dialler)
        channel.announce(announcement())
        assert asked == ["hooks.example"]
        assert receiver.headers[0]["Host"] == "hooks.example"

    @pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="needs IPv6")
    def test_an_address_may_be_of_the_newer_kind(self) -> None:
        receiver = Receiver()
        with serving(receiver, "::1") as port:
            url = f"http://[::1]:{port}/hook"
            WebhookChannel(url, SECRET, utc_now, True).announce(announcement())
        assert receiver.headers[0]["Host"] == f"[::1]:{port}"

    def test_the_next_address_is_tried_when_one_does_not_answer(self, receiver: Receiver) -> None:
        with serving(lambda connection: None) as closed:
            pass
        ports = (closed, receiver.port)
        dialler = Dialler(
            resolve=lambda host, _: [(socket.AF_INET, ("127.0.0.1", port)) for port in ports]
        )
        channel = WebhookChannel("http://hooks.example/", SECRET, utc_now, True, dialler=dialler)
        channel.announce(announcement())
        assert len(receiver.bodies) == 1


class TestSecrets:
    @pytest.mark.parametrize(
        "secret", ["", "whsec_", "whsec_canary!", "canary-canary", "whsec_canar"]
    )
    def test_a_bad_secret_fails_at_start_and_is_not_shown(self, secret: str) -> None:
        with pytest.raises(ConfigError, match="C2METER_ALERT_WEBHOOK_SECRET") as caught:
            WebhookChannel("https://hooks.example/", secret, utc_now)
        assert CANARY not in "".join(traceback.format_exception(caught.value))

    @pytest.mark.parametrize("url", ["http://canary.example/", "https://canary:canary@x.example/"])
    def test_a_bad_url_fails_at_start_and_is_not_shown(self, url: str) -> None:
        with pytest.raises(ConfigError, match="C2METER_ALERT_WEBHOOK_URL") as caught:
            WebhookChannel(url, SECRET, utc_now)
        assert CANARY not in "".join(traceback.format_exception(caught.value))

    def test_secret_and_url_are_in_no_log(
        self, receiver: Receiver, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG)
        receiver.answers = [OK, status("404 No"), b""]
        channel = to_port(receiver.port, path=f"/{CANARY}")
        assert CANARY not in repr(channel)
        channel.announce(announcement())
        refused(channel)
        refused(channel)
        assert receiver.lines == [f"POST /{CANARY} HTTP/1.1"] * 3
        assert CANARY not in caplog.text and SECRET not in caplog.text

    def test_the_payload_names_nobody(self, receiver: Receiver) -> None:
        to_port(receiver.port).announce(announcement(email=f"{CANARY}@example.com"))
        assert set(json.loads(receiver.bodies[0])) == {
            "customer_id",
            "meter",
            "level",
            "utilization",
            "timestamp",
        }
        assert CANARY.encode() not in receiver.bodies[0]
