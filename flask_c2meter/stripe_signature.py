"""Whether a webhook is from Stripe, and of now. Pure; imports the standard library only.

Not the SDK's check: that one takes a single secret and accepts times in the future, and loading it
would cost a request half a second.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from hashlib import sha256

#: A signature may be this old, or this far ahead.
TOLERANCE = timedelta(seconds=300)

#: More signatures than Stripe would ever send while secrets are being rolled.
_MAX_SIGNATURES = 20


class BadSignature(ValueError):
    """The request is not from Stripe, or not of now."""


def check(header: str, body: bytes, secrets: Sequence[str], now: datetime) -> None:
    """Check the ``Stripe-Signature`` *header* of a request.

    :param body: the raw bytes as they arrived.
    :param secrets: any of them may have signed it, while one is being rolled.
    :raises BadSignature: no signature of the scheme v1 is right, or the time is not about *now*.

    Source: docs.stripe.com/webhooks, verify manually.
    """
    pairs = [item.strip().partition("=") for item in header.split(",")]
    times = [text for name, _, text in pairs if name == "t"]
    signatures = [text for name, _, text in pairs if name == "v1"][:_MAX_SIGNATURES]
    if len(times) != 1 or not (times[0].isascii() and times[0].isdigit()) or len(times[0]) > 12:
        raise BadSignature("the signature has no time")
    if not signatures:
        raise BadSignature("there is no signature of the scheme v1")
    signed = times[0].encode() + b"." + body
    expected = [hmac.new(secret.encode(), signed, sha256).hexdigest() for secret in secrets]
    # Each is compared with each, whatever was found: the answer's timing says nothing.
    matches = [
        hmac.compare_digest(wanted.encode(), given.encode(errors="replace"))
        for wanted in expected
        for given in signatures
    ]
    if not any(matches):
        raise BadSignature("no signature is right")
    try:
        sent = datetime.fromtimestamp(int(times[0]), UTC)
    except (OverflowError, ValueError):
        raise BadSignature("the time is beyond the calendar") from None
    if abs(now - sent) > TOLERANCE:
        raise BadSignature("the time is too far from now")
