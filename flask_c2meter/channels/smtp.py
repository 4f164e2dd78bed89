"""Mails by SMTP, one connection for each.

Imports smtplib (so import it where something is sent), :mod:`~flask_c2meter.config`,
:mod:`~flask_c2meter.parsers` for the form of an address, and its neighbours in this folder. The
promise: a mail is taken or refused within ten seconds; where the configuration asks for encryption,
nothing is said to a server without a valid certificate; and only the server's word against this
very mail is final.
"""

from __future__ import annotations

import smtplib
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime

from ..config import Config
from ..errors import ChannelError
from ..parsers import mail_address
from .dialling import Dialler, reason_of
from .mail import Mail

#: TLS is spoken from the first byte there, elsewhere after STARTTLS.
_TLS_PORT = 465

#: Not every server takes eight, and smtplib does not ask.
_SEVEN_BITS = SMTP.clone(cte_type="7bit")

#: Refusals of a sender or recipient that speak of the login, not of the mail (RFC 4954).
_LOGIN_CODES = (530, 534, 535, 538)


class SmtpSender:
    """Hands mails to the server of the configuration.

    :param config: with mail server and sender.
    :param dialler: bounds the exchange.
    :param tls: whose certificates to trust; None = the system's.
    """

    def __init__(
        self, config: Config, *, dialler: Dialler | None = None, tls: ssl.SSLContext | None = None
    ) -> None:
        self._config = config
        self._sender = mail_address(config.mail_sender or "")
        self._dialler = dialler or Dialler()
        self._tls = tls

    def __call__(self, mail: Mail) -> None:
        """Return when the server has taken *mail*.

        :raises ChannelError: it has not, or that cannot be known.
        """
        host, port = self._config.mail_server or "", self._config.mail_port
        message = self._message(mail)
        try:
            self._dialler.call(host, port, lambda sock: self._hand_over(sock, message))
        except (OSError, UnicodeError) as exc:
            failure = _failure(exc)
        else:
            return
        # Not above: what it would be the context of names addresses.
        raise failure

    def knock(self) -> None:
        """Return when the server would take a mail; none is sent.

        :raises ChannelError: it would not.
        """
        host, port = self._config.mail_server or "", self._config.mail_port
        try:
            self._dialler.call(host, port, self._greet)
        except (OSError, UnicodeError) as exc:
            failure = _failure(exc)
        else:
            return
        raise failure

    def _greet(self, sock: socket.socket) -> None:
        with self._session(sock) as smtp:
            smtp.ehlo_or_helo_if_needed()

    def _message(self, mail: Mail) -> EmailMessage:
        _, domain = self._sender.split("@")
        message = EmailMessage(policy=_SEVEN_BITS)
        message["From"] = self._config.mail_sender
        message["To"] = _recipient(mail)
        message["Subject"] = mail.subject
        message["Date"] = format_datetime(self._config.clock())
        message["Message-ID"] = f"<{mail.identifier}@{domain}>"
        message["Auto-Submitted"] = "auto-generated"
        message.set_content(mail.text)
        message.add_alternative(mail.html, subtype="html")
        return message

    def _hand_over(self, sock: socket.socket, message: EmailMessage) -> None:
        with self._session(sock) as smtp:
            smtp.send_message(message, self._sender, [message["To"]])

    @contextmanager
    def _session(self, sock: socket.socket) -> Iterator[smtplib.SMTP]:
        """A conversation that has come to where a mail may be handed over."""
        config = self._config
        is_encrypted = config.mail_port == _TLS_PORT
        if is_encrypted:
            sock = self._context().wrap_socket(sock, server_hostname=config.mail_server)
        smtp = _Smtp(sock, config.mail_server or "", config.mail_port)
        try:
            if config.mail_tls and not is_encrypted:
                smtp.starttls(context=self._context())
            if config.mail_username:
                smtp.login(config.mail_username, config.mail_password or "")
            yield smtp
            # It has been taken: a server that does not say goodbye must not cause a second one.
            with suppress(OSError):
                smtp.putcmd("QUIT")
        finally:
            smtp.close()

    def _context(self) -> ssl.SSLContext:
        return self._tls or ssl.create_default_context()


class _Smtp(smtplib.SMTP):
    """Speaks over a connection that is made already."""

    def __init__(self, sock: socket.socket, host: str, port: int) -> None:
        self._given = sock
        # Otherwise smtplib looks up names of this machine, which can take any time.
        super().__init__(host, port, local_hostname=_literal(sock))

    def _get_socket(self, host: str, port: int, timeout: float) -> socket.socket:
        return self._given


def _literal(sock: socket.socket) -> str:
    """This end of *sock* as a client without a name of its own greets (RFC 5321, 4.1.3)."""
    address = sock.getsockname()[0].partition("%")[0]
    return f"[IPv6:{address}]" if ":" in address else f"[{address}]"


def _recipient(mail: Mail) -> str:
    try:
        return mail_address(mail.to)
    except ValueError:
        failure = ChannelError("bad_to", is_permanent=True)
    raise failure


def _failure(exc: OSError | UnicodeError) -> ChannelError:
    match exc:
        case smtplib.SMTPAuthenticationError() | UnicodeError():
            # Not for good, as a password can be changed; smtplib takes none beyond ASCII.
            return ChannelError("login")
        case smtplib.SMTPRecipientsRefused():
            return _refusal(next(iter(exc.recipients.values()))[0])
        case smtplib.SMTPSenderRefused() | smtplib.SMTPDataError():
            return _refusal(exc.smtp_code)
        case smtplib.SMTPResponseException():
            return ChannelError(f"smtp_{exc.smtp_code}")
        case smtplib.SMTPServerDisconnected():
            return ChannelError("disconnected")
        case smtplib.SMTPException():
            return ChannelError("not_supported")  # encryption, a login, or one of our kinds
        case _:
            return ChannelError(reason_of(exc))


def _refusal(code: int) -> ChannelError:
    is_permanent = 500 <= code < 600 and code not in _LOGIN_CODES
    return ChannelError(f"smtp_{code}", is_permanent=is_permanent)
