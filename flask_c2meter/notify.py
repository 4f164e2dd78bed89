"""Announcing alerts: one duty of the clerk for each channel, so that none waits for another.

The store keeps the queue; a channel knows how to announce one alert. Between them: who tries when,
and when to give up. What has been announced is not announced again because the store would not take
note of it: the outcome is kept until it does.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime, timedelta
from random import Random
from typing import TYPE_CHECKING

from . import logs
from .channels import Announcement, Channel, OperatorAnnouncement
from .errors import ChannelError, StoreUnavailable
from .model import Clock, JobAlert, Meter
from .pacing import backoff_s

if TYPE_CHECKING:
    from .store import Store
    from .store.announcements import Claim

logger: logs.Log = logs.logger(__name__)

#: An outcome is offered to a store out of order so many times, then again at each turn.
TRIES = 3
#: After the store was out of order, those who have announced meanwhile get this long to say so.
SETTLING_S = 15.0
#: An alert that could not be announced for so long is of no use any more.
PATIENCE = timedelta(hours=24)


class Announcer:
    """Announces on one channel: a duty of the clerk.

    :param meters: name -> meter, to word an alert.
    :param operator_email: receives the alerts that are no customer's.
    """

    def __init__(
        self,
        store: Store,
        channel: Channel,
        meters: Mapping[str, Meter],
        clock: Clock,
        random: Random | None = None,
        operator_email: str | None = None,
    ) -> None:
        self._announcements = store.announcements
        self._channel = channel
        self._meters = meters
        self._clock = clock
        self._random = random or Random()
        self._operator_email = operator_email
        self.name: str = f"{channel.name}-alerts"
        #: Notes an outcome that the store has not taken yet.
        self._unsettled: Callable[[], None] | None = None
        #: When the store was last out of order, by the monotonic clock.
        self._troubled_s = float("-inf")

    def is_due(self) -> bool:
        """Whether an alert is to be announced now, or an outcome to be noted."""
        if self._unsettled is not None:
            return True
        due = self._announcements.due_channels(self._clock(), may_retake=self._may_retake)
        return self._channel.name in due

    def work(self) -> None:
        """Announce one alert."""
        if self._unsettled is not None:
            self._settle(self._unsettled)
        try:
            claim = self._announcements.claim(
                self._channel.name, self._clock(), may_retake=self._may_retake
            )
        except StoreUnavailable:
            self._troubled_s = time.monotonic()
            raise
        if claim is not None:
            self._announce(claim)

    @property
    def _may_retake(self) -> bool:
        # Whoever announced while nobody could write has let its lease run out, but is not dead.
        return time.monotonic() - self._troubled_s >= SETTLING_S

    def _announce(self, claim: Claim) -> None:
        announcement, now = self._word(claim), self._clock()
        if announcement is None:
            self._give_up(claim, now, "unknown_meter")
            return
        if claim.attempt > 1 and now - claim.alert.raised_at >= PATIENCE:
            # Not only when one has failed: an attempt that ends its process never does.
            self._give_up(claim, now, claim.failed_of or "interrupted")
            return
        try:
            self._channel.announce(announcement)
        except ChannelError as exc:
            self._failed(claim, exc)
        else:
            now = self._clock()
            self._settle(lambda: self._announcements.delivered(claim, now))

    def _word(self, claim: Claim) -> Announcement | OperatorAnnouncement | None:
        if isinstance(claim.alert, JobAlert):
            return OperatorAnnouncement(claim.alert, self._operator_email)
        meter = self._meters.get(claim.alert.meter)
        if meter is None:
            return None
        return Announcement(claim.alert, meter, claim.email, failed_of=claim.failed_of)

    def _failed(self, claim: Claim, exc: ChannelError) -> None:
        now = self._clock()
        if exc.is_permanent or now - claim.alert.raised_at >= PATIENCE:
            self._give_up(claim, now, exc.reason)
            return
        wait_s = exc.retry_after_s
        if wait_s is None:
            wait_s = backoff_s(claim.attempt, self._random)
        logger.warning(
            "alert_waits",
            alert=claim.alert.identifier,
            channel=self._channel.name,
            reason=exc.reason,
        )
        at, reason = now + timedelta(seconds=wait_s), exc.reason
        self._settle(lambda: self._announcements.try_again(claim, at, reason))

    def _give_up(self, claim: Claim, now: datetime, reason: str) -> None:
        logger.error(
            "alert_dead",
            alert=claim.alert.identifier,
            channel=self._channel.name,
            reason=reason,
        )
        self._settle(lambda: self._announcements.give_up(claim, now, reason))

    def _settle(self, settle: Callable[[], None]) -> None:
        """Have an outcome noted; it stays with us for as long as the store does not take it."""
        self._unsettled = settle
        for _ in range(TRIES - 1):
            with suppress(StoreUnavailable):  # each of which has waited for the store
                settle()
                self._unsettled = None
                return
        settle()
        self._unsettled = None
