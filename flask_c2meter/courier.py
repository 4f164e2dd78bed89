"""The courier: ships what the store holds.

It visits the store, where one transaction settles what was sent and claims what to send next, and
hands the claimed shipments to sender threads; what comes back is settled on the next visit. A
shipment, its lease and the number of its attempt are committed before the attempt, so whatever
happens to this process, another one (or this one's successor) goes on with the same identifier.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING

from . import failpoints, logs
from .errors import StoreUnavailable
from .model import Clock, to_ms
from .owners import is_gone, new_owner
from .pacing import Breaker, Pace, backoff_s
from .senders import MAX_SENDERS, RELEASED, Senders, Sent, take
from .shipment import DeadReason, Outcome, Shipment, ShipmentState, Verdict
from .store import (
    ALL,
    UNAVAILABLE,
    Claimant,
    Hold,
    LaneTour,
    Settlement,
    Spill,
    probe_after_ms,
)
from .transports import Transport

if TYPE_CHECKING:
    from .store import Store

logger: logs.Log = logs.logger(__name__)

#: What other processes recorded is found within this time.
POLL_S = 1.0
#: While events are spilled the store is tried this often: it is healthy within a second (P14).
SPILL_POLL_S = 0.3
#: Visits to the store are at least this far apart while there is work: outcomes gather meanwhile.
GATHER_S = 0.01
#: In a web process, also at least this many times as long as the last one took: under load events
#: are bundled instead, and its requests keep the processor.
REST = 2.0
#: Shipments claimed ahead for each sender.
AHEAD = 8
#: Most shipments claimed in one visit, or one request's if those are more. A visit costs a fifth of
#: a millisecond for each, and whoever records waits for its end (case 22: 20 ms).
MAX_CLAIM = 32
#: Waiting shipments are looked at this often, to see whether another sender is needed.
STAFF_S = 0.02
#: Leases of dead processes on this host are looked for this often.
RETAKE_S = 5.0
#: A fault that lasts is logged this often.
COMPLAIN_S = 60.0
#: A stopping worker waits this long for requests in flight.
STOP_S = 6.0

#: Stripe knows the meter of a shipment that it took or refused.
_ANSWERED = (Verdict.DELIVERED, Verdict.REJECTED)


@dataclass(slots=True)
class _Findings:
    """What the outcomes since the last visit mean."""

    settlements: list[Settlement] = field(default_factory=list)
    holds: dict[str, Hold] = field(default_factory=dict)
    lifted: set[str] = field(default_factory=set)


class Courier:
    """Ships until stopped; runs in a thread of its own, or in the caller's.

    :param account: names the Stripe account and mode; another one than the store remembers is
        refused.
    :param meters: names of the billable meters.
    :param rate_cap: requests per second to Stripe.
    :param on_settled: called for each settled shipment with its state, after the commit.
    """

    def __init__(
        self,
        store: Store,
        spill: Spill,
        transport: Transport,
        *,
        account: str,
        meters: Sequence[str],
        clock: Clock,
        rate_cap: float,
        lease_s: float = 60.0,
        on_settled: Callable[[Settlement], None] = lambda settlement: None,
        random: Random | None = None,
    ) -> None:
        self._store = store
        self._spill = spill
        self._transport = transport
        self._account = account
        self._account_is_ours = False
        self._meters = tuple(meters)
        self._clock = clock
        self._lease_ms = int(lease_s * 1000)
        self._on_settled = on_settled
        self._random = random or Random(os.urandom(8))
        self.owner: str = new_owner()

        self._inbox: queue.SimpleQueue[Sent | None] = queue.SimpleQueue()
        self._senders = Senders(transport.send, self._inbox)
        self._thread: threading.Thread | None = None
        self._is_woken = False
        self._is_stopping = False

        self._tour = LaneTour()
        self._pace = Pace(rate_cap)
        self._breaker = Breaker()
        self._in_flight = 0
        #: The last visit found as much as one may: there is more to claim, if there is room.
        self._has_more = False
        #: Lanes we hold: what is in flight, and what came back but is not settled yet.
        self._leased: set[tuple[str, str]] = set()
        self._settled = 0
        self._findings = _Findings()
        self._holds: Sequence[Hold] = ()
        #: When the next visit may begin, by the monotonic clock.
        self._rested_s = float("-inf")
        self._chores: dict[str, float] = {}

    # -- life ------------------------------------------------------------------------------------

    def start(self) -> None:
        """Run as a daemon thread of this process, unless it does already."""
        if not self.is_running:
            self._thread = threading.Thread(
                target=self._run_guarded, name="c2meter-courier", daemon=True
            )
            self._thread.start()

    @property
    def is_running(self) -> bool:
        """Whether its thread lives."""
        return self._thread is not None and self._thread.is_alive()

    def wake(self) -> None:
        """Something was recorded: look now."""
        if not self._is_woken:
            self._is_woken = True
            self._inbox.put(None)

    def stop(self) -> None:
        """Ask :meth:`run` to end; safe in a signal handler."""
        self._is_stopping = True
        self._inbox.put(None)

    def run(self) -> None:
        """Ship until :meth:`stop`, then finish what is in flight and give the rest back."""
        while not self._is_stopping:
            self._wait(POLL_S if self._spill.is_empty else SPILL_POLL_S)
            self._turn()
        self._finish()

    def run_once(
        self, patience_s: float = 0.0, progress: Callable[[int], None] = lambda settled: None
    ) -> None:
        """Ship until nothing is due, then return.

        :param patience_s: also wait for retries due within this time, unless all is held.
        :param progress: told now and then how many shipments have been settled.
        :raises StoreUnavailable: the store was out of order to the last.
        """
        ends_s, settled = time.monotonic() + patience_s, 0
        trouble: StoreUnavailable | None = None
        while not self._is_stopping:
            trouble = self._turn()
            progress(self._settled)
            if self._in_flight:
                self._wait(POLL_S)
                continue
            if settled < self._settled:
                ends_s, settled = time.monotonic() + patience_s, self._settled
            is_late = time.monotonic() > ends_s  # also where the injected clock stands still
            if trouble is not None:
                if is_late:
                    break
                self._wait(SPILL_POLL_S)
                continue
            if not self._account_is_ours:
                break
            wait_s = self._next_due_s()
            if wait_s is None or wait_s > patience_s or (wait_s and is_late) or self._is_held():
                break
            self._wait(max(wait_s, GATHER_S))
        self._finish()
        if trouble is not None and not self._is_stopping:
            raise trouble

    def _run_guarded(self) -> None:
        while not self._is_stopping:
            try:
                self.run()
            except Exception:  # the host lives on, and so does the delivery
                if self._is_time("complain", COMPLAIN_S):
                    logger.exception("courier_failed", again_after_s=POLL_S)
                time.sleep(POLL_S)

    def _finish(self) -> None:
        """Give unsent shipments back, wait for those in flight, settle all."""
        deadline = time.monotonic() + STOP_S
        self._take_back()
        while self._in_flight and (left := deadline - time.monotonic()) > 0:
            self._wait(left)
        self._senders.dismiss()
        try:
            self._visit(want=0)
            self._store.retake(lambda owner: owner == self.owner, self._now_ms(), self._lease_ms)
            self._store.note(f"worker:{self.owner}", None)
        except StoreUnavailable as exc:
            logger.warning("leases_not_returned", error=exc)

    # -- one turn of the loop --------------------------------------------------------------------

    def _turn(self) -> StoreUnavailable | None:
        """Visit the store and do the chores.

        :return: why the store could not be used; it is to be tried again later.
        """
        trouble = self._replay_spill()
        try:
            if self._may_deliver():
                self._visit(self._capacity())
            self._do_chores()
        except StoreUnavailable as exc:
            logger.warning("delivery_waits_for_store", error=exc)
            return exc
        return trouble

    def _wait(self, longest_s: float) -> None:
        """Wait for outcomes, a wake-up or the time to send more; gather what comes close."""
        limit_s = min(longest_s, self._pace.wait_s) if self._pace.wait_s else longest_s
        if self._has_more and not self._pace.wait_s:
            limit_s = 0.0
        while self._senders.are_busy and limit_s > STAFF_S and self._inbox.empty():
            self._receive(STAFF_S)
            self._senders.hire()
            limit_s -= STAFF_S
        self._receive(limit_s)
        if self._in_flight or self._findings.settlements:
            while (left := self._rested_s - time.monotonic()) > 0:
                self._receive(left)
        self._is_woken = False
        while not self._inbox.empty():
            self._receive(0.0)

    def _receive(self, timeout_s: float) -> None:
        try:
            sent = take(self._inbox, timeout_s)
        except queue.Empty:
            return
        if sent is None:
            self._is_woken = False
            return
        self._in_flight -= len(sent.shipments)
        for shipment, outcome in zip(sent.shipments, sent.outcomes, strict=True):
            self._settle(shipment, outcome)
        self._note_health(sent.outcomes)

    def _capacity(self) -> int:
        size = self._transport.batch_size
        room = MAX_SENDERS * size * AHEAD - self._in_flight
        most = max(MAX_CLAIM, size)
        return max(0, min(room, most, self._pace.available(time.monotonic()) * size))

    def _visit(self, want: int) -> None:
        """One transaction: settle, hold, claim. On failure the findings wait for the next visit."""
        began_s = time.monotonic()
        now_ms = self._now_ms()
        findings = self._findings
        if findings.settlements:
            failpoints.reach("before_ack")
        claimant = Claimant(self.owner, now_ms + self._lease_ms, self._meters, want)
        exchange = self._store.exchange(
            claimant,
            self._tour,
            now_ms,
            settlements=findings.settlements,
            new_holds=tuple(findings.holds.values()),
            lifted=findings.lifted,
        )
        self._findings = _Findings()
        self._settled += len(exchange.settled)
        found = len(exchange.claimed) + len(exchange.set_aside)
        self._has_more = found >= max(MAX_CLAIM, self._transport.batch_size)
        self._leased.difference_update(
            (settlement.shipment.customer, settlement.shipment.meter)
            for settlement in findings.settlements
        )
        ended_s = time.monotonic()
        rest_s = REST * (ended_s - began_s) if self._thread is not None else 0.0
        self._rested_s = ended_s + max(GATHER_S, rest_s)
        self._holds = exchange.holds
        if findings.settlements:
            failpoints.reach("after_ack")
        if exchange.claimed:
            failpoints.reach("after_claim")
            self._send(exchange.claimed)
        for settlement in exchange.settled:
            self._report(settlement)
        for shipment in exchange.set_aside:
            logger.error(
                "shipment_set_aside",
                shipment=shipment.identifier,
                meter=shipment.meter,
                reason=shipment.reason or shipment.state,
            )

    def _report(self, settlement: Settlement) -> None:
        if settlement.state is ShipmentState.DEAD:
            logger.error(
                "shipment_dead",
                shipment=settlement.shipment.identifier,
                meter=settlement.shipment.meter,
                reason=settlement.reason,
            )
        self._on_settled(settlement)

    # -- sending ---------------------------------------------------------------------------------

    def _send(self, shipments: Sequence[Shipment]) -> None:
        size = self._transport.batch_size
        batches = [shipments[start : start + size] for start in range(0, len(shipments), size)]
        self._pace.spend(len(batches))
        self._in_flight += len(shipments)
        self._leased.update((shipment.customer, shipment.meter) for shipment in shipments)
        self._senders.put(batches)

    def _take_back(self) -> None:
        """Release what no sender has begun to send."""
        for shipment in self._senders.take_back():
            self._in_flight -= 1
            self._settle(shipment, RELEASED)

    def _settle(self, shipment: Shipment, outcome: Outcome) -> None:
        """Decide what *outcome* means for the shipment, its meter and everything."""
        now_ms = self._now_ms()
        self._findings.settlements.append(self._decide(shipment, outcome, now_ms))
        if outcome.throttled:
            self._pace.slow_down(time.monotonic())
        held = {hold.meter for hold in self._holds}
        if outcome.verdict is Verdict.HOLD_ALL:
            self._hold(ALL, outcome.reason, now_ms)
        elif outcome.verdict is Verdict.HOLD_METER:
            self._hold(shipment.meter, outcome.reason, now_ms)
        elif outcome.account_wide:
            self._hold(ALL, "rate_limited", now_ms, outcome.retry_after_s)
        elif shipment.meter in held and outcome.verdict in _ANSWERED:
            self._findings.lifted.add(shipment.meter)

    def _note_health(self, outcomes: Sequence[Outcome]) -> None:
        """Open or close the breaker after one batch, which counts once, however large."""
        if all(outcome is RELEASED for outcome in outcomes):
            return
        is_healthy = not any(outcome.unhealthy for outcome in outcomes)
        if self._breaker.note(healthy=is_healthy):
            self._hold(ALL, UNAVAILABLE, self._now_ms())
        elif is_healthy and self._is_held() and ALL not in self._findings.holds:
            self._findings.lifted.add(ALL)
            self._pace.ramp_up()

    def _decide(self, shipment: Shipment, outcome: Outcome, now_ms: int) -> Settlement:
        if outcome.verdict is Verdict.DELIVERED:
            return Settlement(shipment, ShipmentState.DELIVERED)
        if outcome.verdict is Verdict.REJECTED:
            dead = outcome.dead or DeadReason.OTHER
            reason = f"{dead.value}: {outcome.reason}" if outcome.reason else dead.value
            return Settlement(shipment, ShipmentState.DEAD, reason)
        wait_s = outcome.retry_after_s
        # No pause at all names none: a worker that ends when nothing is due would never end.
        if wait_s is None or (not wait_s and outcome is not RELEASED):
            held = outcome.verdict in (Verdict.HOLD_ALL, Verdict.HOLD_METER)
            wait_s = 0.0 if held else backoff_s(shipment.attempts, self._random)
        return Settlement(
            shipment,
            ShipmentState.READY,
            outcome.reason,
            next_attempt_ms=now_ms + int(wait_s * 1000),
            may_have_arrived=outcome.verdict is Verdict.UNKNOWN,
        )

    def _hold(self, meter: str, reason: str, now_ms: int, wait_s: float | None = None) -> None:
        if meter not in {hold.meter for hold in self._holds} | self._findings.holds.keys():
            logger.error("deliveries_held", meter=meter, reason=reason)
        wait_ms = int(wait_s * 1000) if wait_s else probe_after_ms(reason)
        self._findings.holds[meter] = Hold(meter, reason, now_ms, now_ms + wait_ms)
        self._findings.lifted.discard(meter)
        if meter == ALL:
            self._take_back()

    # -- chores ----------------------------------------------------------------------------------

    def _may_deliver(self) -> bool:
        """Whether the store delivers to our Stripe account.

        The first one is remembered when there is something to deliver, and before it is.
        """
        if not self._account_is_ours:
            if "account" not in self._store.facts() and self._next_due_s() is None:
                return False
            known = self._store.note_once("account", self._account)
            self._account_is_ours = known == self._account
            if not self._account_is_ours and self._is_time("account", COMPLAIN_S):
                logger.error(
                    "account_differs",
                    account=known,
                    configured=self._account,
                    cure="nothing is sent; after thought: flask c2meter worker --adopt",
                )
        return self._account_is_ours

    def _do_chores(self) -> None:
        if self._is_time("retake", RETAKE_S):
            self._store.retake(is_gone, self._now_ms(), self._lease_ms)
        if self._leased and self._is_time("heartbeat", self._lease_ms / 3000):
            until_ms = self._now_ms() + self._lease_ms
            self._store.extend_leases(self.owner, self._leased, until_ms)
        if self._is_time("sign on", self._lease_ms / 2000):
            self._store.note(
                f"worker:{self.owner}", {"pid": os.getpid(), "seen_ms": self._now_ms()}
            )

    def _is_time(self, chore: str, every_s: float) -> bool:
        now_s = time.monotonic()
        if now_s - self._chores.get(chore, float("-inf")) < every_s:
            return False
        self._chores[chore] = now_s
        return True

    def _replay_spill(self) -> StoreUnavailable | None:
        """Record what was spilled; why it could not be, which need not keep deliveries waiting."""
        if self._spill.is_empty:
            return None
        try:
            recorded = self._spill.replay(self._store.append_replayed)
        except StoreUnavailable as exc:
            if self._is_time("spill", COMPLAIN_S):
                logger.warning("spilled_events_wait", error=exc)
            return exc
        if recorded:
            logger.warning("spilled_events_recorded", events=recorded)
        return None

    def _is_held(self) -> bool:
        return any(hold.meter == ALL for hold in self._holds)

    def _next_due_s(self) -> float | None:
        now_ms = self._now_ms()
        held = {hold.meter for hold in self._holds}
        due = self._store.next_due_ms([m for m in self._meters if m not in held], now_ms)
        return None if due is None else max(0.0, (due - now_ms) / 1000)

    def _now_ms(self) -> int:
        return to_ms(self._clock())
