"""The alert as a mail: worded by templates, handed to whatever sends mail.

Imports jinja2, :mod:`~flask_c2meter.model` and this folder's announcement; a host's templates come
before ours. The promise: nothing that stands in a header can begin another one, and whatever the
host's templates or its sender raise becomes a :class:`~flask_c2meter.errors.ChannelError` without a
word of theirs, as that may hold an address.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any, TypeVar

from jinja2 import (
    BaseLoader,
    ChoiceLoader,
    Environment,
    PackageLoader,
    StrictUndefined,
    select_autoescape,
)

from ..errors import ChannelError, InvalidEvent
from ..model import check_text
from . import Announcement, OperatorAnnouncement

_A = TypeVar("_A")
_T = TypeVar("_T")

#: Longest text in a header, in bytes: a line of a mail may have 998.
_MAX_HEADER_BYTES = 900

#: How the subject of a made-up alert begins.
_TEST = "[Test] "


@dataclass(frozen=True, slots=True)
class Mail:
    """One mail to one address.

    :raises ChannelError: what belongs into a header cannot stand in one.
    """

    to: str = field(repr=False)
    subject: str
    text: str = field(repr=False)
    html: str = field(repr=False)
    #: Of the alert: the same for each attempt, so that a repetition can be recognised.
    identifier: str

    def __post_init__(self) -> None:
        for name in ("to", "subject", "identifier"):
            if not _fits_a_header(getattr(self, name)):
                raise ChannelError(f"bad_{name}", is_permanent=True)


class MailChannel:
    """Sends alerts to the customer's address.

    :param render: such as :func:`mail_renderer` makes.
    :param send: returns when the mail is out of our hands, such as
        :class:`~flask_c2meter.channels.smtp.SmtpSender` or a host's own.
    """

    name = "email"

    def __init__(
        self,
        render: Callable[[Announcement | OperatorAnnouncement], Mail],
        send: Callable[[Mail], object],
    ) -> None:
        self._render = render
        self._send = send

    def announce(self, announcement: Announcement | OperatorAnnouncement) -> None:
        """Return when the sender has taken the mail.

        :raises ChannelError: it has not, or the customer has no address (for good).
        """
        if announcement.email is None:
            raise ChannelError("no_address", is_permanent=True)
        mail = _guarded("template", self._render, announcement)
        _guarded("sender", self._send, mail)


def mail_renderer(
    host_loader: BaseLoader | None, *, site_url: str | None = None
) -> Callable[[Announcement | OperatorAnnouncement], Mail]:
    """What turns an announcement into a mail.

    The templates are ``c2meter/mail/usage_warning.txt`` and ``.html``, the same for ``critical``
    and ``exceeded``, and ``c2meter/mail/layout.txt`` and ``.html``, which they extend; for the
    operator ``c2meter/mail/job_failed.txt`` and ``.html``. The first line of a text is the subject.

    :param host_loader: finds the templates that replace ours; None = there are none.
    :param site_url: where the host's pages are, for a link to the usage; None = no link.
    """
    loaders = [host_loader] if host_loader else []
    templates = Environment(
        loader=ChoiceLoader([*loaders, PackageLoader(__package__)]),
        autoescape=select_autoescape(),
        undefined=StrictUndefined,
    )
    templates.filters.update(quantity=_quantity, day=_day)
    page = site_url.rstrip("/") + Announcement.action_url if site_url else None

    def render(announcement: Announcement | OperatorAnnouncement) -> Mail:
        is_test = False
        if isinstance(announcement, OperatorAnnouncement):
            name, facts = "job_failed", _operator_facts(announcement)
        else:
            is_test = announcement.alert.is_test
            name = f"usage_{announcement.alert.level}"
            facts = {**_facts(announcement), "action_url": page}
        text, html = (
            templates.get_template(f"c2meter/mail/{name}.{kind}").render(facts)
            for kind in ("txt", "html")
        )
        subject, _, body = text.lstrip().partition("\n")
        if is_test and not subject.startswith(_TEST):
            subject = _TEST + subject  # a template of the host's need not think of it
        to = announcement.email or ""
        return Mail(to, subject.strip(), body.strip() + "\n", html, announcement.alert.identifier)

    return render


def _facts(announcement: Announcement) -> dict[str, Any]:
    """What a template of a customer's alert may say."""
    alert, percent = announcement.alert, announcement.percent
    return {
        "message": announcement.message,
        "meter": announcement.meter.display_name,
        "unit": announcement.meter.unit,
        "customer": alert.customer,
        "level": alert.level,
        "utilization": percent,
        "remaining": None if percent is None else max(100 - percent, 0),
        "total": alert.total,
        "included": alert.included,
        "left": max(alert.included - alert.total, Decimal(0)),
        "over": max(alert.total - alert.included, Decimal(0)),
        "period": alert.period,
        "is_test": alert.is_test,
    }


def _operator_facts(announcement: OperatorAnnouncement) -> dict[str, Any]:
    """What a template of the operator's alert may say."""
    alert = announcement.alert
    return {
        "message": announcement.message,
        "job": alert.job,
        "day": alert.day,
        "total": alert.total,
        "failed": alert.failed,
        "rate": alert.rate,
        "is_broken": alert.is_broken,
    }


def _guarded(what: str, call: Callable[[_A], _T], argument: _A) -> _T:
    try:
        return call(argument)
    except ChannelError:
        raise
    except Exception as exc:
        failure = ChannelError(f"{what}:{type(exc).__name__}")
    # Not above: what it would be the context of may name the address.
    raise failure


def _fits_a_header(text: str) -> bool:
    try:
        check_text("header", text, _MAX_HEADER_BYTES)
    except InvalidEvent:
        return False
    return True


def _quantity(value: Decimal) -> str:
    """*value* as people read it: 12,345.6."""
    return f"{value.normalize():,f}"


def _day(moment: datetime) -> str:
    return f"{moment.day} {moment:%B %Y}"
