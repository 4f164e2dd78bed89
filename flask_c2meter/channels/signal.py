"""The alert as a blinker signal, for receivers in the worker's own process.

Imports only :mod:`~flask_c2meter.signals` and :mod:`~flask_c2meter.errors` below this folder. A
receiver that raises stops neither the others nor the other channels. It is told again later, and
only it, in whatever process that is: the reason of the failure names it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..errors import ChannelError
from ..signals import tell, usage_alert
from . import Announcement, OperatorAnnouncement

_RAISED = "raised: "


class SignalChannel:
    """Sends ``usage_alert``.

    :param sender: the app, as receivers know it.
    """

    name = "signal"

    def __init__(self, sender: object) -> None:
        self._sender = sender

    def announce(self, announcement: Announcement | OperatorAnnouncement) -> None:
        """Let every receiver have the alert, or those that have raised before.

        Of a job, ``job_finished`` has told.

        :raises ChannelError: some have raised.
        """
        if isinstance(announcement, OperatorAnnouncement):
            return
        again = _names(announcement.failed_of)
        raised = [
            _name(receiver)
            for receiver in usage_alert.receivers_for(self._sender)
            if again is None or _name(receiver) in again
            if not tell(receiver, usage_alert, self._sender, {"alert": announcement.alert})
        ]
        if raised:
            raise ChannelError(_RAISED + ", ".join(sorted(set(raised))))


def _name(receiver: Callable[..., Any]) -> str:
    """The same in each process: where *receiver* is defined."""
    named = receiver if hasattr(receiver, "__qualname__") else type(receiver)
    return f"{named.__module__}.{named.__qualname__}"


def _names(failed_of: str | None) -> set[str] | None:
    if failed_of is None or not failed_of.startswith(_RAISED):
        return None
    return set(failed_of.removeprefix(_RAISED).split(", "))
