"""Handing shipments to Stripe: one event per call, or a hundred on the stream.

Both speak through the :mod:`~flask_c2meter.gateway`; what came of each shipment is an
:class:`~flask_c2meter.shipment.Outcome`, and nothing Stripe does raises.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal, Protocol

from . import answers
from .gateway import Gateway, Refused
from .shipment import Outcome, Shipment
from .stripe_objects import CUSTOMER_KEY, VALUE_KEY

if TYPE_CHECKING:
    from stripe import StripeClient

#: A stream session is renewed this long before it expires.
SESSION_MARGIN = timedelta(seconds=60)


class Transport(Protocol):
    """A way to hand shipments to Stripe."""

    #: Most shipments one call of :meth:`send` takes.
    batch_size: int

    def send(self, shipments: Sequence[Shipment]) -> Sequence[Outcome]:
        """Try once to deliver *shipments*.

        :return: one outcome for each, in the same order; nothing Stripe does raises.
        """


def transport(kind: Literal["v1", "stream"], gateway: Gateway) -> Transport:
    """The transport that ``C2METER_TRANSPORT`` names."""
    return V1Transport(gateway) if kind == "v1" else StreamTransport(gateway)


class V1Transport:
    """One meter event per request. Works everywhere, sandboxes included."""

    batch_size = 1

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def send(self, shipments: Sequence[Shipment]) -> list[Outcome]:
        """Deliver each of *shipments* with a request of its own."""
        return [self._post(shipment) for shipment in shipments]

    def _post(self, shipment: Shipment) -> Outcome:
        event: Any = {**_event(shipment), "timestamp": int(shipment.timestamp.timestamp())}
        return self._gateway.deliver(
            lambda client: client.v1.billing.meter_events.create(
                event, {"idempotency_key": shipment.attempt_key}
            ),
            lambda answer: getattr(answer, "object", None) == "billing.meter_event",
        )


@dataclass(frozen=True, slots=True)
class _Session:
    """Permission to use the stream for a while."""

    token: str = field(repr=False)
    renew_at: datetime


class StreamTransport:
    """Up to a hundred meter events per request, live mode only.

    Stripe refuses such a request as a whole. A refusal that may concern a single event is answered
    by sending each half again, so that one bad event among a hundred costs fifteen requests and
    takes no other with it.
    """

    batch_size = 100

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        # No lock, for the sake of forks: two threads may both open a session, which is harmless.
        self._session: _Session | None = None

    def send(self, shipments: Sequence[Shipment]) -> list[Outcome]:
        """Deliver *shipments* together, or as many of them as Stripe takes."""
        outcome = self._post(shipments)
        if len(shipments) == 1 or not answers.may_blame_one(outcome):
            return [outcome] * len(shipments)
        middle = len(shipments) // 2
        outcomes = self.send(shipments[:middle])
        if answers.ends_all(outcomes[-1]):
            return outcomes + [answers.unsent(outcomes[-1])] * (len(shipments) - middle)
        return outcomes + self.send(shipments[middle:])

    def _post(self, shipments: Sequence[Shipment]) -> Outcome:
        # The first identifier leads back to the row, the count tells the halves of a batch apart.
        key = f"{shipments[0].attempt_key}+{len(shipments)}"
        try:
            outcome = self._post_as(self._current_session(), shipments, key)
            if outcome.reason == answers.SESSION_EXPIRED.reason:
                outcome = self._post_as(self._open_session(), shipments, f"{key}r")
        except Refused as failed:
            return answers.without_session(failed.outcome)
        return outcome

    def _post_as(self, session: _Session, shipments: Sequence[Shipment], key: str) -> Outcome:
        events: Any = [{**_event(each), "timestamp": _rfc3339(each)} for each in shipments]
        return self._gateway.deliver(
            lambda client: client.v2.billing.meter_event_stream.create(
                {"events": events}, {"api_key": session.token, "idempotency_key": key}
            ),
            lambda answer: True,
        )

    def _current_session(self) -> _Session:
        session = self._session
        if session is None or self._gateway.clock() >= session.renew_at:
            return self._open_session()
        return session

    def _open_session(self) -> _Session:
        opened = self._gateway.clock()

        def create(client: StripeClient) -> _Session:
            answer = client.v2.billing.meter_event_session.create()
            # The difference of Stripe's own times, so that our clock may be wrong.
            lifetime = _moment(answer.expires_at) - _moment(answer.created)
            token = _header_text(answer.authentication_token)
            return _Session(token, opened + lifetime - SESSION_MARGIN)

        self._session = self._gateway.ask(create)
        return self._session


def _event(shipment: Shipment) -> dict[str, object]:
    return {
        "event_name": shipment.meter,
        "identifier": shipment.identifier,
        "payload": {CUSTOMER_KEY: shipment.customer, VALUE_KEY: str(shipment.value)},
    }


def _rfc3339(shipment: Shipment) -> str:
    return shipment.timestamp.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


def _header_text(text: str) -> str:
    if not re.fullmatch(r"[!-~]+", text):
        raise ValueError("not fit for an HTTP header")
    return text
