"""The alert as a webhook: the document's payload, signed as Standard Webhooks has it.

Imports :mod:`~flask_c2meter.answers` for a date, :mod:`~flask_c2meter.parsers` for the form of the
secret, and its neighbours in this folder. The receiver may be anybody, so a request promises: https
to a public address that was looked at and is the one connected to; over within ten seconds; no
redirect followed; 64 KiB of an answer read; no proxy, login or cookie from the surroundings; the
URL, which may be a secret, in no log.

Neither requests nor urllib3 speaks here: both log the path of a URL at DEBUG, and what is needed of
them is one POST over a socket that is connected already.
"""

from __future__ import annotations

import io
import json
import socket
import ssl
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from http.client import HTTPConnection, HTTPException, HTTPResponse
from importlib.metadata import version
from typing import Any

from standardwebhooks import Webhook

from ..answers import retry_after_s
from ..errors import ChannelError, ConfigError
from ..model import Alert, Clock
from ..parsers import signing_key
from . import Announcement, OperatorAnnouncement, rounded
from .dialling import Dialler, reason_of
from .target import Target

#: Most that is read of an answer, head and body. What comes after is not waited for.
MAX_ANSWER_BYTES = 64 * 1024

#: Refusals that do not speak of the alert, so that a repetition may succeed.
_PASSING = (408, 409, 425, 429)


class WebhookChannel:
    """Posts alerts to one URL.

    :param url: absolute, ``https``, without credentials.
    :param secret: base64, with ``whsec_`` before it or without.
    :param clock: for the time that is signed.
    :param allow_loopback: for development: ``http`` and this machine's addresses pass too.
    :param dialler: bounds the exchange.
    :param tls: whose certificates to trust; None = the system's.
    :raises ConfigError: URL or secret cannot be one; they are not shown.
    """

    name = "webhook"

    def __init__(
        self,
        url: str,
        secret: str,
        clock: Clock,
        allow_loopback: bool = False,
        *,
        dialler: Dialler | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._clock = clock
        self._dialler = dialler or Dialler()
        self._tls = tls
        self._signer = _signer(secret)
        self._target = Target.of(url, allow_loopback)

    def announce(self, announcement: Announcement | OperatorAnnouncement) -> None:
        """Return when the receiver has answered with success.

        :raises ChannelError: it has not.
        """
        if isinstance(announcement, OperatorAnnouncement):
            body, kind = _operator_payload(announcement), "alert"
        else:
            body = _payload(announcement.alert)
            kind = "test" if announcement.alert.is_test else "alert"
        # The same for each attempt: what the receiver knows a repetition by.
        headers = self._headers(f"{kind}_{announcement.alert.identifier}", body)
        try:
            status, retry_after = self._dialler.call(
                self._target.host,
                self._target.port,
                lambda sock: self._post(sock, body, headers),
                admits=self._target.admits,
            )
        except OSError as exc:
            failure = ChannelError(reason_of(exc))
        except HTTPException:
            failure = ChannelError("unreadable")
        else:
            if 200 <= status < 300:
                return
            failure = _refusal(status, retry_after_s(retry_after, self._clock()))
        # Not above: what it would be the context of names addresses.
        raise failure

    def knock(self) -> None:
        """Return when the receiver has taken a connection; nothing is said over it.

        :raises ChannelError: it has not.
        """
        target = self._target
        try:
            self._dialler.call(target.host, target.port, self._greet, admits=target.admits)
        except OSError as exc:
            failure = ChannelError(reason_of(exc))
        else:
            return
        raise failure

    def _greet(self, sock: socket.socket) -> None:
        self._encrypted(sock).close()

    def _encrypted(self, sock: socket.socket) -> socket.socket:
        if not self._target.is_encrypted:
            return sock
        tls = self._tls or ssl.create_default_context()
        return tls.wrap_socket(sock, server_hostname=self._target.host)

    def _headers(self, identifier: str, body: str) -> Mapping[str, str]:
        now = self._clock().astimezone(UTC)
        return {
            "Host": self._target.authority,
            "User-Agent": f"flask_c2meter/{version('flask_c2meter')}",
            "Content-Type": "application/json",
            "Connection": "close",
            "webhook-id": identifier,
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": self._signer.sign(identifier, now, body),
        }

    def _post(
        self, sock: socket.socket, body: str, headers: Mapping[str, str]
    ) -> tuple[int, str | None]:
        """Status and ``Retry-After`` of the answer."""
        target = self._target
        sock = self._encrypted(sock)
        answer: Any = _Answer(sock)
        with sock, HTTPResponse(answer, method="POST") as response:
            connection = HTTPConnection(target.host, target.port)
            # It must not connect by itself, to an address that nobody has looked at.
            connection.auto_open = 0
            connection.sock = sock
            connection.request("POST", target.path, body.encode(), dict(headers))
            response.begin()
            with suppress(_TooLong):  # then only the status counts
                response.read()
            return response.status, response.getheader("Retry-After")


class _TooLong(HTTPException):
    """More was sent than is read."""


class _Answer(io.RawIOBase):
    """What a socket receives, of which no more is read than an answer may have."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._left = MAX_ANSWER_BYTES

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(self)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._left:
            raise _TooLong
        count = self._sock.recv_into(memoryview(buffer)[: self._left])
        self._left -= count
        return count


def _signer(secret: str) -> Webhook:
    try:
        return Webhook(signing_key(secret))
    except ValueError:
        failure = ConfigError(
            "C2METER_ALERT_WEBHOOK_SECRET (a secret, not shown) is wrong: write a Standard "
            "Webhooks secret, 'whsec_' and base64"
        )
    raise failure


def _payload(alert: Alert) -> str:
    utilization = alert.utilization
    fields = {
        "customer_id": alert.customer,
        "meter": alert.meter,
        "level": alert.level,
        # JSON has no decimals: its readers make a float of it.
        "utilization": None if utilization is None else float(rounded(utilization, 4)),
        "timestamp": _timestamp(alert.raised_at),
    }
    return json.dumps(fields)


def _operator_payload(announcement: OperatorAnnouncement) -> str:
    """The document's ``sendAlert``: its text and its three fields, and which day of what it was."""
    alert = announcement.alert
    fields = {
        "message": announcement.message,
        "total": alert.total,
        "failed": alert.failed,
        "rate": alert.rate,
        "job": alert.job,
        "day": alert.day.isoformat(),
        "timestamp": _timestamp(alert.raised_at),
    }
    return json.dumps(fields)


def _timestamp(moment: datetime) -> str:
    # As the document's toISOString() writes it.
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _refusal(status: int, wait_s: float | None) -> ChannelError:
    is_permanent = 400 <= status < 500 and status not in _PASSING
    return ChannelError(f"http_{status}", is_permanent=is_permanent, retry_after_s=wait_s)
