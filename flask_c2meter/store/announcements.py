"""The queue of alerts: what is still to be announced where, and what came of it.

Each channel of each alert has a row, an attempt counter and an end of its own. An attempt is
committed before it is made, and its outcome is accepted only for that attempt: of two processes,
one announces. If it dies meanwhile, another tries again when the lease is over. One alert is taken
at a time, so that whoever dies of it takes no other with it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Literal

from sqlalchemy import Connection, Row, func, select, text, update

from ..decimals import exactly
from ..model import Alert, JobAlert, Meter, Period, from_ms, to_ms
from .operator import OPERATOR, job_alert
from .tables import ANNOUNCEMENT_IS_OPEN, alert_deliveries, alerts, customers
from .transactions import Transactions

#: An attempt that has not ended by then belongs to a process that died.
ATTEMPT_LEASE = timedelta(seconds=60)
#: The attempt after one whose process died may end its process too: the next is not made so soon.
SECOND_LEASE = timedelta(minutes=30)
#: No wait we impose is longer: a later time was written before the clock was set back.
MAX_WAIT = timedelta(minutes=62)

_IS_DUE = (
    f"{ANNOUNCEMENT_IS_OPEN} AND (next_attempt_at <= :now OR next_attempt_at > :absurd) "
    "AND (state = 'ready' OR :may_retake)"
)
_CLAIM = text(
    "UPDATE alert_deliveries SET state = 'sending', attempts = attempts + 1, "
    "next_attempt_at = CASE WHEN state = 'sending' THEN :second_lease ELSE :lease END "
    "WHERE (alert, channel) IN (SELECT alert, channel "
    f"FROM alert_deliveries WHERE channel = :channel AND {_IS_DUE} "
    "ORDER BY next_attempt_at LIMIT 1) RETURNING alert, attempts, reason"
)
_FAILING = text(
    "SELECT channel, COUNT(*) AS number, MAX(reason) AS reason FROM alert_deliveries "
    f"WHERE {ANNOUNCEMENT_IS_OPEN} AND reason IS NOT NULL GROUP BY channel"
)
_ARE_DUE = text(f"SELECT DISTINCT channel FROM alert_deliveries WHERE {_IS_DUE}")


@dataclass(frozen=True, slots=True)
class Claim:
    """One alert to announce on one channel: an attempt that has begun."""

    #: Row number of the alert.
    number: int
    channel: str
    alert: Alert | JobAlert
    #: The customer's address, as the loader last said; None for the operator's alerts.
    email: str | None = field(repr=False)
    #: 1 for the first.
    attempt: int
    #: What the last attempt that ended has failed of; None if none has.
    failed_of: str | None


@dataclass(frozen=True, slots=True)
class Announced:
    """What became of an alert on one channel."""

    state: Literal["ready", "sending", "delivered", "dead"]
    attempts: int
    reason: str | None = None
    settled_at: datetime | None = None
    read_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Notice:
    """An alert and where it was announced."""

    alert: Alert
    channels: Mapping[str, Announced]

    @property
    def is_unread(self) -> bool:
        """Whether the customer has not seen it in the app."""
        in_app = self.channels.get("in_app")
        return in_app is not None and in_app.read_at is None


class Announcements:
    """The queue.

    :param meters: name -> meter, for the precision of quantities.
    """

    def __init__(self, transactions: Transactions, meters: Mapping[str, Meter]) -> None:
        self._transactions = transactions
        self._meters = meters

    # -- announcing ----------------------------------------------------------------------------

    def due_channels(self, now: datetime, *, may_retake: bool = True) -> set[str]:
        """The channels on which something is to be announced now."""
        with self._transactions.reading() as connection:
            due = {**_times(now), "may_retake": may_retake}
            return set(connection.execute(_ARE_DUE, due).scalars())

    def claim(self, channel: str, now: datetime, *, may_retake: bool = True) -> Claim | None:
        """Begin an attempt for the alert that is due first on *channel*; None if none is.

        :param may_retake: False leaves alone what somebody else may be about to settle.
        """
        with self._transactions.writing() as connection:
            parameters = {
                "channel": channel,
                "lease": to_ms(now + ATTEMPT_LEASE),
                "second_lease": to_ms(now + SECOND_LEASE),
                "may_retake": may_retake,
                **_times(now),
            }
            begun = connection.execute(_CLAIM, parameters).one_or_none()
            if begun is None:
                return None
            row = connection.execute(
                select(alerts, customers.c.email)
                .outerjoin(customers, customers.c.id == alerts.c.customer)
                .where(alerts.c.id == begun.alert)
            ).one()
        return Claim(row.id, channel, self._any_alert(row), row.email, begun.attempts, begun.reason)

    def delivered(self, claim: Claim, now: datetime) -> None:
        """It was announced."""
        self._settle(claim, state="delivered", settled_at=to_ms(now), reason=None)

    def try_again(self, claim: Claim, at: datetime, reason: str) -> None:
        """It was not, but may be at *at*."""
        self._settle(claim, state="ready", next_attempt_at=to_ms(at), reason=reason)

    def give_up(self, claim: Claim, now: datetime, reason: str) -> None:
        """It never will be."""
        self._settle(claim, state="dead", settled_at=to_ms(now), reason=reason)

    def _settle(self, claim: Claim, **values: Any) -> None:
        with self._transactions.writing() as connection:
            connection.execute(
                update(alert_deliveries)
                .where(
                    alert_deliveries.c.alert == claim.number,
                    alert_deliveries.c.channel == claim.channel,
                    alert_deliveries.c.state == "sending",
                    alert_deliveries.c.attempts == claim.attempt,
                )
                .values(**values)
            )

    # -- for people ----------------------------------------------------------------------------

    def notices(
        self, since: datetime, customer: str | None = None, limit: int = 100
    ) -> list[Notice]:
        """The alerts of customers raised from *since* on, newest first.

        :param customer: None = of all.
        """
        query = select(alerts).where(
            alerts.c.raised_at >= to_ms(since), alerts.c.customer != OPERATOR
        )
        if customer is not None:
            query = query.where(alerts.c.customer == customer)
        with self._transactions.reading() as connection:
            rows = connection.execute(query.order_by(alerts.c.id.desc()).limit(limit)).all()
            channels = _channels(connection, [row.id for row in rows])
        return [Notice(self._alert(row), channels[row.id]) for row in rows]

    def unread(self, customer: str) -> int:
        """How many alerts *customer* has not seen in the app."""
        with self._transactions.reading() as connection:
            query = select(func.count()).select_from(alert_deliveries.join(alerts))
            return connection.execute(query.where(_is_unread(customer))).scalar_one()

    def mark_read(
        self, customer: str, now: datetime, identifiers: Sequence[str] | None = None
    ) -> int:
        """Note that *customer* has seen alerts; return how many were new to it.

        :param identifiers: of the alerts; None = all.
        """
        mine = select(alerts.c.id).where(alerts.c.customer == customer)
        if identifiers is not None:
            mine = mine.where(alerts.c.identifier.in_(identifiers))
        with self._transactions.writing() as connection:
            changed = connection.execute(
                update(alert_deliveries)
                .where(
                    alert_deliveries.c.alert.in_(mine),
                    alert_deliveries.c.channel == "in_app",
                    alert_deliveries.c.read_at.is_(None),
                )
                .values(read_at=to_ms(now))
            )
            return changed.rowcount

    def counts(self) -> dict[str, Counter[str]]:
        """Channel -> state -> number of alerts."""
        found: defaultdict[str, Counter[str]] = defaultdict(Counter)
        key = (alert_deliveries.c.channel, alert_deliveries.c.state)
        with self._transactions.reading() as connection:
            for channel, state, number in connection.execute(
                select(*key, func.count()).group_by(*key)
            ):
                found[channel][state] = number
        return dict(found)

    def failing(self) -> dict[str, tuple[int, str]]:
        """Channel -> how many alerts have failed and are tried again, and a reason."""
        with self._transactions.reading() as connection:
            rows = connection.execute(_FAILING)
            return {row.channel: (row.number, row.reason) for row in rows}

    def _any_alert(self, row: Row[Any]) -> Alert | JobAlert:
        return job_alert(row) if row.customer == OPERATOR else self._alert(row)

    @exactly
    def _alert(self, row: Row[Any]) -> Alert:
        meter = self._meters.get(row.meter)
        value = meter.to_value if meter else Decimal
        total, included = value(row.total), value(row.included)
        return Alert(
            customer=row.customer,
            meter=row.meter,
            level=row.level,
            utilization=total / included if included else None,
            total=total,
            included=included,
            period=Period(from_ms(row.period), from_ms(row.period_end)),
            raised_at=from_ms(row.raised_at),
            identifier=row.identifier,
        )


def _times(now: datetime) -> dict[str, int]:
    return {"now": to_ms(now), "absurd": to_ms(now + MAX_WAIT)}


def _is_unread(customer: str) -> Any:
    return (
        (alerts.c.customer == customer)
        & (alert_deliveries.c.channel == "in_app")
        & alert_deliveries.c.read_at.is_(None)
    )


def _channels(
    connection: Connection, numbers: Sequence[int]
) -> defaultdict[int, dict[str, Announced]]:
    found: defaultdict[int, dict[str, Announced]] = defaultdict(dict)
    query = select(alert_deliveries).where(alert_deliveries.c.alert.in_(numbers))
    for row in connection.execute(query):
        found[row.alert][row.channel] = Announced(
            state=row.state,
            attempts=row.attempts,
            reason=row.reason,
            settled_at=None if row.settled_at is None else from_ms(row.settled_at),
            read_at=None if row.read_at is None else from_ms(row.read_at),
        )
    return found
