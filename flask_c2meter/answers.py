"""What Stripe's answers mean for a shipment: status, code, message and headers -> an outcome.

Pure: imports only :mod:`flask_c2meter.shipment`, performs no I/O and is told the time. It keeps the
promise that nothing is given up that Stripe may have, and nothing sent that it has for certain:
only a definite refusal is ``rejected``, only a definite "not processed" is ``retry``.

Source: Stripe's error codes and the messages it sends without one, as collected by its users.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from .shipment import DeadReason, Outcome, Verdict

#: Longest pause that Stripe can ask for, in seconds.
MAX_RETRY_AFTER_S = 3600.0

#: Code of answers that are not Stripe's JSON.
UNREADABLE = "unreadable"

DELIVERED = Outcome(Verdict.DELIVERED)
NO_RECEIPT = Outcome(Verdict.UNKNOWN, "200 unreadable", unhealthy=True)
SESSION_EXPIRED = Outcome(Verdict.RETRY, "session_expired")
# Stripe takes stamps up to five minutes ahead: asking once a minute loses nothing.
_IN_FUTURE = Outcome(Verdict.RETRY, "timestamp_in_future", retry_after_s=60.0)


def _rejected(dead: DeadReason, *codes: str) -> dict[str, Outcome]:
    return {code: Outcome(Verdict.REJECTED, code, dead) for code in codes}


#: Stripe's error code (or type) -> what it means for a shipment.
_BY_CODE: Mapping[str, Outcome] = {
    "duplicate_meter_event": Outcome(Verdict.DELIVERED, "duplicate_meter_event"),
    "no_meter": Outcome(Verdict.HOLD_METER, "no_meter"),
    "archived_meter": Outcome(Verdict.HOLD_METER, "archived_meter"),
    "timestamp_in_future": _IN_FUTURE,
    "temporary_session_expired": SESSION_EXPIRED,
    "billing_meter_event_session_expired": SESSION_EXPIRED,
    # Our mistake, not the shipment's: the next attempt has a new key.
    "idempotency_error": Outcome(Verdict.RETRY, "idempotency_error"),
    # A wrong base URL must not turn a whole backlog into dead letters.
    "unrecognized_url": Outcome(Verdict.HOLD_ALL, "unrecognized_url"),
    **_rejected(DeadReason.EXPIRED, "timestamp_too_far_in_past"),
    **_rejected(DeadReason.UNKNOWN_CUSTOMER, "resource_missing", "meter_event_customer_not_found"),
    **_rejected(
        DeadReason.INVALID,
        "payload_invalid_value",
        "payload_no_customer_defined",
        "payload_no_value_defined",
        "meter_event_invalid_value",
        "meter_event_no_customer_defined",
        "meter_event_value_not_found",
        "meter_event_value_too_many_digits",
    ),
}

#: v1 refuses without a code: what its message says -> the code it stands for.
_BY_MESSAGE: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern, re.IGNORECASE), code)
    for pattern, code in (
        (r"already exists with identifier", "duplicate_meter_event"),
        (r"no active meter found", "no_meter"),
        (r"in (the )?past", "timestamp_too_far_in_past"),
        (r"in (the )?future", "timestamp_in_future"),
        (r"no such customer", "meter_event_customer_not_found"),
        (r"unrecognized request url", "unrecognized_url"),
        (r"payload|value|digits", "payload_invalid_value"),
    )
)


@dataclass(frozen=True, slots=True)
class Refusal:
    """An answer that is not a success, in Stripe's words."""

    status: int
    code: str
    type: str
    message: str
    headers: Mapping[str, str]

    @classmethod
    def of(cls, status: int, body: object, headers: Mapping[str, str]) -> Refusal:
        """The refusal in an answer.

        :param body: the answer's JSON, if it was JSON.
        :param headers: with names in any case.
        """
        error = body.get("error") if isinstance(body, dict) else None
        facts = error if isinstance(error, dict) else {"code": UNREADABLE}
        code, kind, message = (str(facts.get(name) or "") for name in ("code", "type", "message"))
        return cls(status, code, kind, message, headers)

    @property
    def reason(self) -> str:
        """Status and code, short and harmless, whatever the server put there."""
        return re.sub(r"[^\w.:\- ]", "_", f"{self.status} {self.code or self.type}").strip()[:100]

    def known(self) -> Outcome | None:
        """What the code, the type or the message says, if it is one we know."""
        for word in (self.code, self.type):
            if word in _BY_CODE:
                return _BY_CODE[word]
        if self.status not in (400, 404):
            return None
        codes = (code for pattern, code in _BY_MESSAGE if pattern.search(self.message))
        return _BY_CODE.get(next(codes, ""))


def judge(refusal: Refusal, now: datetime) -> Outcome:
    """What *refusal* means for what was sent; dates in it are compared with *now*."""
    outcome = _verdict(refusal)
    # The header wins over a refusal, but only this way round: "false" on a 5xx speaks of the old
    # Idempotency-Key, whose answer would be replayed. The next attempt has a new one, and giving
    # up on a shipment that Stripe may or may not have would lose it.
    if refusal.headers.get("Stripe-Should-Retry") == "true" and is_final(outcome):
        outcome = Outcome(Verdict.RETRY, refusal.reason)
    wait_s = retry_after_s(refusal.headers.get("Retry-After"), now)
    return outcome if wait_s is None else replace(outcome, retry_after_s=wait_s)


def is_final(outcome: Outcome) -> bool:
    """True if sending the same again would be refused again."""
    return outcome.verdict in (Verdict.REJECTED, Verdict.HOLD_METER)


def _verdict(refusal: Refusal) -> Outcome:
    status, reason = refusal.status, refusal.reason
    if status == 429 or refusal.code == "rate_limit":
        return _throttled(refusal)
    if status == 409:
        return Outcome(Verdict.UNKNOWN, reason)
    if not 400 <= status < 500 or status == 408:
        return Outcome(Verdict.UNKNOWN, reason, unhealthy=True)
    if (known := refusal.known()) is not None:
        return known
    if status in (401, 403):
        return Outcome(Verdict.HOLD_ALL, reason)
    if refusal.code == UNREADABLE:
        # Not Stripe's words: something in between answered, and may have forwarded it.
        return Outcome(Verdict.UNKNOWN, reason, unhealthy=True)
    return Outcome(Verdict.REJECTED, reason, DeadReason.OTHER)


def _throttled(refusal: Refusal) -> Outcome:
    limit = refusal.headers.get("Stripe-Rate-Limited-Reason", "")
    return Outcome(
        Verdict.RETRY,
        refusal.reason,
        throttled=True,
        account_wide=limit.startswith("global"),
    )


def retry_after_s(text: str | None, now: datetime) -> float | None:
    """Seconds from ``Retry-After``: a number or an HTTP date, 0 to one hour; garbage is None."""
    if text is None:
        return None
    if re.fullmatch(r"\s*[+-]?[0-9]+(\.[0-9]+)?\s*", text):
        seconds = float(text)
    else:
        try:
            moment = parsedate_to_datetime(text)
        except (ValueError, OverflowError):
            return None
        seconds = (moment.replace(tzinfo=moment.tzinfo or UTC) - now).total_seconds()
    return min(max(seconds, 0.0), MAX_RETRY_AFTER_S)


def lost(reason: str, sent: bool) -> Outcome:
    """What an exchange without an answer means.

    :param reason: such as ``timeout``.
    :param sent: False if it is certain that nothing of the request left.
    """
    return Outcome(Verdict.UNKNOWN if sent else Verdict.RETRY, reason, unhealthy=True)


def may_blame_one(outcome: Outcome) -> bool:
    """True if a request for many shipments may have been refused for the sake of one."""
    is_duplicate = outcome.verdict is Verdict.DELIVERED and outcome != DELIVERED
    return is_duplicate or is_final(outcome) or outcome.reason == _IN_FUTURE.reason


def ends_all(outcome: Outcome) -> bool:
    """True if more requests would fare alike, so that sending them helps nobody."""
    return outcome.unhealthy or outcome.throttled or outcome.verdict is Verdict.HOLD_ALL


def unsent(outcome: Outcome) -> Outcome:
    """*outcome* for a shipment that was never sent."""
    unknown = outcome.verdict is Verdict.UNKNOWN
    return replace(outcome, verdict=Verdict.RETRY) if unknown else outcome


def without_session(outcome: Outcome) -> Outcome:
    """*outcome* of opening a session, for the shipments that were to go through it."""
    if outcome.verdict in (Verdict.RETRY, Verdict.UNKNOWN):
        return unsent(outcome)
    # The account may not use the stream; no shipment is to blame.
    return replace(outcome, verdict=Verdict.HOLD_ALL, dead=None)
