"""What all rooms of the account share: its ids, its seconds, its amounts, its "no".

Free of HTTP; imports the standard library only.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from datetime import datetime
from decimal import Decimal
from typing import Any

#: Of an amount.
MAX_PLACES = 12

#: Told of what happened: Stripe's event type, the object as it is now, and when.
Tell = Callable[[str, Any, datetime], None]


class Rejection(ValueError):
    """A rule of Stripe is broken.

    Each endpoint translates it into its own dialect; a lever lets it through as the ``ValueError``
    that it is.

    :param code: Stripe's error code; for meter events, the one of v2.
    :param param: the parameter at fault, if one is.
    """

    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.param = param


def new_id(prefix: str) -> str:
    """A fresh id in Stripe's form, such as ``mtr_...``."""
    return f"{prefix}_{secrets.token_hex(12)}"


def whole_second(moment: datetime) -> datetime:
    """*moment* as Stripe keeps it."""
    return moment.replace(microsecond=0)


def decimal_amount(value: str) -> Decimal:
    """An amount in minor units as Stripe takes it: plain digits, at most 12 places.

    :raises Rejection: it is something else.
    """
    whole, _, places = value.partition(".")
    if not (whole + places).isdigit() or not value.isascii() or len(places) > MAX_PLACES:
        raise Rejection(
            "parameter_invalid_decimal",
            f"Invalid decimal: {value}; use minor units with at most {MAX_PLACES} decimal places",
        )
    return Decimal(value)
