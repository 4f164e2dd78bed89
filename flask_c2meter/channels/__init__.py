"""Channels: what announces one alert to somebody outside, and says what became of it.

Here are the announcement and what a channel is; each kind has a module of its own: mail
(:mod:`~flask_c2meter.channels.mail`, :mod:`~flask_c2meter.channels.smtp`), signed webhook
(:mod:`~flask_c2meter.channels.webhook`), blinker signal (:mod:`~flask_c2meter.channels.signal`).
Beside the store and the gateway: no Flask, no SQL, no retries; the worker calls, outside any
request, and repeats what failed. The promise: an announcement ends within seconds, and its error
carries neither a secret nor an address.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import ROUND_HALF_UP, Decimal
from typing import ClassVar, Protocol

from ..model import Alert, JobAlert, Meter


@dataclass(frozen=True, slots=True)
class Announcement:
    """An alert, and what is needed to word it."""

    #: The page that the document's notification leads to.
    action_url: ClassVar[str] = "/billing/usage"

    alert: Alert
    meter: Meter
    #: Of the customer; None = it has given none.
    email: str | None = field(default=None, repr=False)
    #: What the last attempt on this channel has failed of; None if none has.
    failed_of: str | None = None

    @property
    def percent(self) -> int | None:
        """How much of the included quantity is used, rounded, but 100 only when it is reached.

        None if nothing is included.
        """
        utilization = self.alert.utilization
        if utilization is None:
            return None
        whole = int(rounded(utilization * 100, 0))
        return min(whole, 99) if utilization < 1 else whole

    @property
    def message(self) -> str:
        """The alert in one line, in the document's words."""
        if self.percent is None:
            return f"{self.meter.display_name} usage exceeds the plan, which includes none"
        return f"{self.meter.display_name} usage at {self.percent}%"


@dataclass(frozen=True, slots=True)
class OperatorAnnouncement:
    """An alert for the operator, and where its mail goes."""

    alert: JobAlert
    #: Of the operator; None = no mail.
    email: str | None = field(default=None, repr=False)

    @property
    def message(self) -> str:
        """The alert in one line, in the document's words."""
        job = self.alert.job.capitalize()
        if self.alert.is_broken:
            return f"{job} measurement could not be completed"
        return f"{job} measurement failure rate too high"


class Channel(Protocol):
    """One way to announce an alert."""

    #: ``email``, ``webhook`` or ``signal``.
    name: str

    def announce(self, announcement: Announcement | OperatorAnnouncement) -> None:
        """Return when the other side has it.

        :raises ChannelError: it has not, or that cannot be known.
        """
        ...


def rounded(value: Decimal, places: int) -> Decimal:
    """*value* with so many decimal *places*, half up, as the document rounds."""
    return value.quantize(Decimal(1).scaleb(-places), ROUND_HALF_UP)
