"""Every error this package raises on purpose; imports nothing.

::

    C2MeterError
    ├── ConfigError           (ValueError)    a C2METER_ key is wrong; fails init_app
    ├── SetupError            (RuntimeError)  the app lacks what it is asked for; fails its start
    ├── CatalogueError        (ValueError)    the catalogue is wrong; fails init_app
    │   ├── CatalogueTypeError  (TypeError)   ... because a value has the wrong type
    │   └── UnknownMeter        (LookupError) no meter has that name
    ├── InvalidEvent          (ValueError)    refused before it was recorded
    │   └── KeyConflict                       known key, other request
    ├── UnknownEvent          (LookupError)   no event has that key
    ├── StoreUnavailable      (OSError)       the store cannot be written or read now
    ├── GatewayError          (OSError)       Stripe could not be read
    ├── ProvisioningError                     Stripe is not as the catalogue says, and stays so
    ├── LeaseLost                             another process has taken a job over
    ├── ChannelError          (OSError)       an alert could not be announced on a channel
    └── CorruptStore                          the store is damaged; nothing was changed

Each also inherits the built-in a caller would expect. :func:`show` and :func:`did_you_mean` word
their messages.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from difflib import get_close_matches


def show(value: object, width: int = 80) -> str:
    """*value* as an error message shows it: its repr, shortened to *width* characters."""
    try:
        text = repr(value)
    except ValueError:  # Python writes no integers of more than 4,300 digits
        text = f"a huge {type(value).__name__}"
    return text if len(text) <= width else f"{text[: width - 1]}…"


def did_you_mean(word: object, known: Collection[str], prefix: str = "") -> str:
    """A hint to the one of *known* that *word* looks like, to append; empty if there is none.

    :param prefix: of them all, left out of both.
    """
    close = get_close_matches(str(word)[:100], known, n=1)
    return f" (did you mean '{prefix}{close[0]}'?)" if close else ""


class C2MeterError(Exception):
    """Base of all errors of this package."""


class ConfigError(C2MeterError, ValueError):
    """A configuration key has a bad value; the message names key, value and cure."""


class SetupError(C2MeterError, RuntimeError):
    """The app was put together wrongly; the message names what is missing and the cure."""


class CatalogueError(C2MeterError, ValueError):
    """The catalogue is wrong; the message names the key, the value and the cure."""


class CatalogueTypeError(CatalogueError, TypeError):
    """A catalogue value has the wrong type, such as a float where money is meant."""


class UnknownMeter(CatalogueError, LookupError):
    """The catalogue has no meter of that name; the message lists those it has."""


class InvalidEvent(C2MeterError, ValueError):
    """A usage event was refused before anything was written.

    :param messages: field name -> what is wrong with it and what would be right.
    """

    def __init__(self, messages: Mapping[str, str]) -> None:
        self.messages: dict[str, str] = dict(messages)
        super().__init__("; ".join(f"{field}: {text}" for field, text in self.messages.items()))


class KeyConflict(InvalidEvent):
    """The idempotency key is known, but for another request (HTTP 409)."""


class UnknownEvent(C2MeterError, LookupError):
    """No event of this customer and meter has that key."""


class StoreUnavailable(C2MeterError, OSError):
    """The store is locked, full, read-only or failing; try again later."""


class GatewayError(C2MeterError, OSError):
    """Stripe could not be asked, or its answer decides nothing.

    :param reason: machine-readable cause, such as ``timeout`` or ``no_meter``; never a secret.
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(f"Stripe could not be read: {reason}")


class ProvisioningError(C2MeterError):
    """Stripe could not be brought to what the catalogue says; the message says how far it came."""


class ChannelError(C2MeterError, OSError):
    """A channel could not announce an alert, or cannot know that it has.

    :param reason: machine-readable cause, such as ``timeout`` or ``http_404``; never a secret or
        an address.
    :param is_permanent: True if the other side would refuse a repetition too.
    :param retry_after_s: how long the other side wants to be left alone; None = it did not say.
    """

    def __init__(
        self, reason: str, *, is_permanent: bool = False, retry_after_s: float | None = None
    ) -> None:
        self.reason = reason
        self.is_permanent = is_permanent
        self.retry_after_s = retry_after_s
        super().__init__(f"the alert could not be announced: {reason}")


class LeaseLost(C2MeterError):
    """Another process has taken the job over; nothing more was written."""


class CorruptStore(C2MeterError):
    """The store file is damaged. It was left as it is: restore it from a backup."""
