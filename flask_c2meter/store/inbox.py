"""The inbox: events that Stripe has sent, each taken in once.

The row of an event is written in the transaction of its effect: if that fails, the event is not
known and takes effect when it is sent again. What a web request cannot decide, because Stripe has
to be asked, waits here for the worker.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any, Literal

from sqlalchemy import Connection, delete, select, text, update

from ..model import to_ms
from .tables import WEBHOOK_IS_OPEN, webhook_events
from .transactions import Transactions

#: An event that a worker has begun to look into is left to it for this long.
LOOK_LEASE = timedelta(seconds=60)

#: ``pending``: a worker has to look into it; ``dead``: it cannot be understood.
State = Literal["applied", "ignored", "pending", "dead"]

_TAKE = text(
    "UPDATE webhook_events SET attempts = attempts + 1, next_attempt_at = :lease WHERE id IN "
    f"(SELECT id FROM webhook_events WHERE {WEBHOOK_IS_OPEN} AND next_attempt_at <= :now "
    "ORDER BY next_attempt_at LIMIT :limit) RETURNING id, attempts"
)


class Inbox:
    """The events that have arrived."""

    def __init__(self, transactions: Transactions) -> None:
        self._transactions = transactions

    def receive(
        self,
        event_id: str,
        kind: str,
        now: datetime,
        effect: Callable[[Connection], State],
        reason: str | None = None,
    ) -> bool:
        """Take an event in; False if it is known.

        :param effect: what follows, in the same transaction; returns the event's state by it.
        """
        with self._transactions.writing() as connection:
            known = select(webhook_events.c.id).where(webhook_events.c.id == event_id)
            if connection.execute(known).first() is not None:
                return False
            connection.execute(
                webhook_events.insert(),
                {
                    "id": event_id,
                    "type": kind,
                    "received_at": to_ms(now),
                    "state": effect(connection),
                    "attempts": 0,
                    "next_attempt_at": to_ms(now),
                    "reason": reason,
                },
            )
            return True

    def is_pending(self, now: datetime) -> bool:
        """Whether an event waits to be looked into."""
        query = select(webhook_events.c.id).where(
            text(WEBHOOK_IS_OPEN), webhook_events.c.next_attempt_at <= to_ms(now)
        )
        with self._transactions.reading() as connection:
            return connection.execute(query.limit(1)).first() is not None

    def take(self, now: datetime, limit: int) -> Sequence[tuple[str, int]]:
        """The events to look into now, and the number of the attempt."""
        parameters = {"now": to_ms(now), "lease": to_ms(now + LOOK_LEASE), "limit": limit}
        with self._transactions.writing() as connection:
            return [(row.id, row.attempts) for row in connection.execute(_TAKE, parameters)]

    def settle(
        self,
        event_id: str,
        state: State,
        *,
        again_at: datetime | None = None,
        reason: str | None = None,
        apply: Callable[[Connection], Any] = lambda connection: None,
    ) -> None:
        """What came of looking into an event.

        :param again_at: when to look again, for ``pending``.
        :param apply: its effect, in the same transaction; skipped if another worker was faster.
        """
        values: dict[str, Any] = {"state": state, "reason": reason}
        if again_at is not None:
            values["next_attempt_at"] = to_ms(again_at)
        with self._transactions.writing() as connection:
            changed = connection.execute(
                update(webhook_events)
                .where(webhook_events.c.id == event_id, text(WEBHOOK_IS_OPEN))
                .values(**values)
            )
            if changed.rowcount:
                apply(connection)

    def forget(self, before: datetime, limit: int) -> int:
        """Forget events that came *before* and are dealt with; return how many, up to *limit*.

        What waits or is dead stays: for the worker, and for an operator.
        """
        query = select(webhook_events.c.id).where(
            webhook_events.c.state.in_(("applied", "ignored")),
            webhook_events.c.received_at < to_ms(before),
        )
        # Not within the writing transaction: it looks at all of them, and usage is not to wait.
        with self._transactions.reading() as connection:
            ids = connection.execute(query.limit(limit)).scalars().all()
        if ids:
            with self._transactions.writing() as connection:
                connection.execute(delete(webhook_events).where(webhook_events.c.id.in_(ids)))
        return len(ids)

    def dead(self) -> list[tuple[str, str, str | None]]:
        """Id, type and reason of the events that could not be looked into."""
        query = select(webhook_events.c.id, webhook_events.c.type, webhook_events.c.reason)
        with self._transactions.reading() as connection:
            rows = connection.execute(query.where(webhook_events.c.state == "dead")).all()
        return [(row[0], row[1], row[2]) for row in rows]
