"""Alerts from the crossing to whoever hears of it: real app, real worker, real far ends."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal, localcontext
from pathlib import Path
from typing import Any

import pytest
from channel_rig import SECRET, Mailbox, Receiver, served, serving, status
from flask import Flask
from flask_host import Host, wait_until
from standardwebhooks import Webhook

from flask_c2meter import Alert, Customer, Period, Subscription, usage_alert
from flask_c2meter.channels.signal import SignalChannel
from flask_c2meter.errors import StoreUnavailable
from flask_c2meter.notify import Announcer
from flask_c2meter.store.announcements import ATTEMPT_LEASE, Announced
from flask_c2meter.testing import FrozenClock

ANN = Customer("cus_ann", plan="starter", email="ann@example.com")
VERIFY = "verify_operations"
#: What leads to each level, one after the other, of the 2,000 that "starter" includes.
STEPS = {"warning": 1600, "critical": 300, "exceeded": 100}
CHANNELS = ("email", "in_app", "signal", "webhook")
HOUR = timedelta(hours=1)


@dataclass
class FarEnds:
    """Whoever hears of alerts, but for the page in the app itself."""

    mailbox: Mailbox
    receiver: Receiver
    mail_port: int
    told: list[Alert] = field(default_factory=list)
    #: The receiver of the signal raises.
    is_deaf: bool = False

    @property
    def config(self) -> dict[str, Any]:
        return {
            "C2METER_MAIL_SERVER": "127.0.0.1",
            "C2METER_MAIL_PORT": self.mail_port,
            "C2METER_MAIL_TLS": False,
            "C2METER_MAIL_SENDER": "billing@acme.example",
            "C2METER_ALERT_WEBHOOK_URL": f"http://127.0.0.1:{self.receiver.port}/hook",
            "C2METER_ALERT_WEBHOOK_SECRET": SECRET,
            "C2METER_ALERT_WEBHOOK_ALLOW_LOOPBACK": True,
        }

    def hear(self, sender: Flask, alert: Alert, **extra: Any) -> None:
        if self.is_deaf:
            raise LookupError("deaf")
        self.told.append(alert)

    def mailed(self) -> list[str]:
        """The identifier of the alert in each mail, in the order of their arrival."""
        return [
            message["Message-ID"].strip("<>").partition("@")[0]
            for message in self.mailbox.messages()
        ]

    def posted(self) -> list[str]:
        """The same of each webhook, whose signature is right."""
        # The last one's body may still be on its way.
        whole = list(zip(self.receiver.headers, self.receiver.bodies, strict=False))
        for headers, body in whole:
            at = datetime.fromtimestamp(int(headers["webhook-timestamp"]), UTC)
            signed = Webhook(SECRET).sign(headers["webhook-id"], at, body.decode())
            assert headers["webhook-signature"] == signed
        return [headers["webhook-id"].removeprefix("alert_") for headers, _ in whole]

    def signalled(self) -> list[str]:
        return [alert.identifier for alert in self.told]


@pytest.fixture
def ends() -> Iterator[FarEnds]:
    mailbox, receiver = Mailbox(), Receiver()
    with served(mailbox) as mail_port, serving(receiver) as receiver.port:
        ends = FarEnds(mailbox, receiver, mail_port)
        with usage_alert.connected_to(ends.hear):
            yield ends


@pytest.fixture
def new_service(
    new_host: Callable[..., Host], ends: FarEnds, c2meter_clock: FrozenClock
) -> Callable[..., Host]:
    """Makes apps that announce to *ends*, when told to, on a clock that is told the time."""

    def make(**config: Any) -> Host:
        defaults = {"C2METER_WORKER": "off", "C2METER_CLOCK": c2meter_clock}
        return new_host(**ends.config, **(defaults | config))

    return make


@pytest.fixture
def service(new_service: Callable[..., Host]) -> Host:
    return new_service()


def use(host: Host, value: int, customer: Customer = ANN, meter: str = VERIFY) -> None:
    host.metering.record(meter, customer, value=value, manifest_id="m")


def work(host: Host) -> None:
    """Announce what is due."""
    assert host.metering.worker is not None
    host.metering.worker.run_once()


def notices(host: Host, customer: str = ANN.id) -> list[Any]:
    """The alerts raised, oldest first."""
    since = host.metering.config.clock() - timedelta(days=60)
    return host.metering.store.announcements.notices(since, customer)[::-1]


def raised(host: Host, customer: str = ANN.id) -> list[tuple[str, int]]:
    """Level and included quantity of each."""
    return [(n.alert.level, int(n.alert.included)) for n in notices(host, customer)]


def states(host: Host) -> list[dict[str, str]]:
    """What became of each alert on each channel."""
    return [{name: found.state for name, found in n.channels.items()} for n in notices(host)]


def announced(host: Host, channel: str) -> Announced:
    """What became of the only alert on *channel*."""
    (notice,) = notices(host)
    found: Announced = notice.channels[channel]
    return found


def check_all_heard_once(host: Host, ends: FarEnds) -> None:
    expected = [notice.alert.identifier for notice in notices(host)]
    assert [state for each in states(host) for state in each.values()] == (
        ["delivered"] * len(CHANNELS) * len(expected)
    )
    assert ends.mailed() == ends.posted() == ends.signalled() == expected


def ask(host: Host, *arguments: str) -> Any:
    return host.app.test_cli_runner().invoke(args=["c2meter", *arguments])


def test_how_much_is_used_is_said_exactly_whatever_the_hosts_decimal_context(
    service: Host,
) -> None:
    use(service, 1700)
    with localcontext(prec=1):
        (notice,) = notices(service)
    assert notice.alert.utilization == Decimal("0.85")


class TestFromTheCrossing:
    """With a worker thread in the app and real time."""

    @pytest.fixture
    def live(self, new_host: Callable[..., Host], ends: FarEnds) -> Host:
        return new_host(**ends.config)

    def heard(self, ends: FarEnds) -> list[int]:
        return [len(ends.mailed()), len(ends.posted()), len(ends.signalled())]

    def test_each_level_reaches_each_channel_once_within_5_s(
        self, live: Host, ends: FarEnds
    ) -> None:
        for number, value in enumerate(STEPS.values(), start=1):
            use(live, value)
            crossed = time.monotonic()
            wait_until(lambda number=number: self.heard(ends) == [number] * 3)
            assert time.monotonic() - crossed < 5
            wait_until(
                lambda: all(s == "delivered" for each in states(live) for s in each.values())
            )
        assert raised(live) == [(level, 2000) for level in STEPS]
        assert sorted(states(live)[0]) == list(CHANNELS)
        assert live.metering.store.announcements.unread(ANN.id) == 3

        use(live, 1)
        work(live)
        check_all_heard_once(live, ends)
        seconds = Decimal(live.metering.status()["targets"]["alert_timeliness_s"]["p99"])
        assert seconds < 5

    def test_what_each_channel_is_told(self, live: Host, ends: FarEnds) -> None:
        use(live, 1640)
        wait_until(lambda: self.heard(ends) == [1, 1, 1])
        (alert,) = ends.told
        assert (alert.customer, alert.meter, alert.level) == (ANN.id, VERIFY, "warning")
        assert (alert.total, alert.included, alert.utilization) == (1640, 2000, Decimal("0.82"))
        assert alert.period.start <= alert.raised_at < alert.period.end
        assert not alert.is_test
        message = ends.mailbox.message()
        assert message["To"] == ANN.email
        assert message["Subject"] == "Verify Operations usage at 82%"
        body = Webhook(SECRET).verify(ends.receiver.bodies[0], ends.receiver.headers[0])
        assert body.pop("timestamp").endswith("Z")
        assert body == {
            "customer_id": ANN.id,
            "meter": VERIFY,
            "level": "warning",
            "utilization": 0.82,
        }


class TestOncePerLevel:
    def test_a_jump_announces_only_the_highest(self, service: Host, ends: FarEnds) -> None:
        use(service, 2500)
        work(service)
        assert raised(service) == [("exceeded", 2000)]
        check_all_heard_once(service, ends)

    def test_after_a_jump_no_lower_level_follows(self, service: Host, ends: FarEnds) -> None:
        use(service, 1950)
        service.metering.record(VERIFY, ANN, value=1, key="k", manifest_id="m")
        service.metering.adjust(ANN, VERIFY, "k", "a mistake")
        use(service, 1)
        work(service)
        assert raised(service) == [("critical", 2000)]
        check_all_heard_once(service, ends)

    def test_a_restart_repeats_nothing(
        self, service: Host, new_service: Callable[..., Host], ends: FarEnds
    ) -> None:
        use(service, 1600)
        work(service)
        service.close()
        again = new_service(C2METER_DATABASE_URL=service.metering.config.database_url)
        use(again, 1)
        work(again)
        assert raised(again) == [("warning", 2000)]
        check_all_heard_once(again, ends)

    def test_what_was_not_announced_before_a_restart_is_after_it(
        self, service: Host, new_service: Callable[..., Host], ends: FarEnds
    ) -> None:
        use(service, 1600)
        service.close()
        again = new_service(C2METER_DATABASE_URL=service.metering.config.database_url)
        work(again)
        check_all_heard_once(again, ends)

    def test_a_rebuild_repeats_nothing(
        self, service: Host, ends: FarEnds, c2meter_clock: FrozenClock
    ) -> None:
        @service.meter.subscription_loader
        def load(customer: str) -> Subscription:
            start = datetime(2026, 1, 10, tzinfo=UTC)
            return Subscription("starter", Period(start, datetime(2026, 2, 10, tzinfo=UTC)))

        use(service, 1600)
        before = notices(service)[0].alert.period
        work(service)
        assert service.metering.usage(ANN)[0].period != before, "the true period is known"
        use(service, 1)
        work(service)
        assert raised(service) == [("warning", 2000)]
        check_all_heard_once(service, ends)

    def test_an_upgrade_can_alert_anew(self, service: Host, ends: FarEnds) -> None:
        use(service, 2000)
        upgraded = Customer(ANN.id, plan="growth", email=ANN.email)
        use(service, 9999, upgraded)
        assert raised(service) == [("exceeded", 2000)]
        use(service, 1, upgraded)
        work(service)
        assert raised(service) == [("exceeded", 2000), ("warning", 15000)]
        check_all_heard_once(service, ends)

    def test_the_next_period_alerts_anew(
        self, service: Host, ends: FarEnds, c2meter_clock: FrozenClock
    ) -> None:
        use(service, 1600)
        c2meter_clock.advance(timedelta(days=30))
        use(service, 1600)
        work(service)
        assert raised(service) == [("warning", 2000)] * 2
        check_all_heard_once(service, ends)

    def test_what_nothing_is_included_of_or_all_of(
        self, new_service: Callable[..., Host], ends: FarEnds
    ) -> None:
        meter = {"event_type": "x", "unit": "call", "aggregation": "sum"}
        catalogue = {
            "plans": {"starter": {}},
            "meters": {
                "unlimited": meter | {"included": {"starter": "unlimited"}},
                "unsaid": meter | {"included": {}},
                "none": meter | {"included": {"starter": 0}},
            },
        }
        service = new_service(C2METER_CATALOGUE=catalogue)
        for name in ("unlimited", "unsaid"):
            service.metering.record(name, ANN, value=10**12)
        assert raised(service) == []
        service.metering.record("none", ANN)
        service.metering.record("none", ANN)
        work(service)
        assert raised(service) == [("exceeded", 0)]
        check_all_heard_once(service, ends)

    def test_a_customer_without_an_address_gets_no_mail_and_nothing_fails(
        self, service: Host, ends: FarEnds
    ) -> None:
        use(service, 2000, Customer(ANN.id, plan="starter"))
        work(service)
        assert states(service) == [dict.fromkeys(("in_app", "signal", "webhook"), "delivered")]
        assert ends.mailed() == []


class TestABrokenChannel:
    """It stops no other, is tried again for 24 hours, and then given up, which ``status`` says."""

    @pytest.fixture(params=["email", "webhook", "signal"])
    def broken(self, request: pytest.FixtureRequest, ends: FarEnds) -> str:
        channel: str = request.param
        if channel == "email":
            ends.mailbox.refusals["RCPT"] = "451 Not now"
        elif channel == "webhook":
            ends.receiver.answers = [status("500 No")]
        else:
            ends.is_deaf = True
        return channel

    def mend(self, ends: FarEnds) -> None:
        ends.mailbox.refusals.clear()
        ends.mailbox.envelopes.clear()
        ends.receiver.answers = [status("204 Taken")]
        ends.is_deaf = False

    def due_at(self, host: Host, channel: str) -> int:
        with closing(sqlite3.connect(f"{host.app.instance_path}/c2meter.sqlite")) as ledger:
            (found,) = ledger.execute(
                "SELECT next_attempt_at FROM alert_deliveries WHERE channel = ?", [channel]
            ).fetchone()
        return int(found)

    def test_the_others_go_on_and_it_follows_when_it_works_again(
        self, service: Host, ends: FarEnds, broken: str, c2meter_clock: FrozenClock
    ) -> None:
        use(service, 1600)
        work(service)
        assert states(service) == [
            {channel: "ready" if channel == broken else "delivered" for channel in CHANNELS}
        ]
        for attempt in range(1, 12):
            failed = announced(service, broken)
            assert failed.attempts == attempt and failed.reason
            wait_s = self.due_at(service, broken) / 1000 - c2meter_clock().timestamp()
            assert 0 <= wait_s <= min(300, 2 ** (attempt - 1))
            c2meter_clock.advance(timedelta(seconds=wait_s))
            if attempt == 11:
                self.mend(ends)
            work(service)
        report = service.metering.status()
        assert report["healthy"] and report["notes"] == []
        assert announced(service, broken).attempts == 12
        (only,) = (notice.alert.identifier for notice in notices(service))
        heard = {"email": ends.mailed(), "webhook": ends.posted(), "signal": ends.signalled()}
        assert heard["signal"] == [only]
        assert heard["webhook"] == [only] * (12 if broken == "webhook" else 1), "the same id"

    def test_status_and_alerts_say_what_is_wrong_while_it_is_tried_again(
        self, service: Host, broken: str
    ) -> None:
        use(service, 1600)
        work(service)
        reason = announced(service, broken).reason
        report = service.metering.status()
        assert report["alerts"]["waiting"] == 1
        assert report["notes"] == [f"1 alerts are tried again by {broken}: {reason}"]
        assert f"waiting ({reason})" in ask(service, "alerts").output

    def test_after_24_hours_it_is_given_up_and_the_next_alert_is_not(
        self, service: Host, ends: FarEnds, broken: str, c2meter_clock: FrozenClock
    ) -> None:
        use(service, 1600)
        work(service)
        reason = announced(service, broken).reason
        c2meter_clock.advance(23 * HOUR + timedelta(minutes=50))
        work(service)
        assert announced(service, broken).state == "ready"
        c2meter_clock.advance(timedelta(minutes=10))
        work(service)
        given_up = announced(service, broken)
        assert (given_up.state, given_up.reason) == ("dead", reason)

        result = ask(service, "status")
        assert result.exit_code == 1
        assert f"! 1 alerts could not be announced by {broken}" in result.output
        assert f"dead ({reason})" in ask(service, "alerts").output
        c2meter_clock.advance(HOUR)
        work(service)
        assert announced(service, broken).attempts == given_up.attempts

        self.mend(ends)
        use(service, 300)
        work(service)
        assert [each[broken] for each in states(service)] == ["dead", "delivered"]

    def test_a_receiver_that_works_is_not_told_again_because_another_raises(
        self, service: Host, ends: FarEnds, c2meter_clock: FrozenClock
    ) -> None:
        calls: list[str] = []

        def fails(sender: Flask, **extra: Any) -> None:
            calls.append("fails")
            raise LookupError

        with usage_alert.connected_to(fails):
            use(service, 1600)
            for _ in range(3):
                work(service)
                c2meter_clock.advance(timedelta(minutes=6))
        assert len(calls) == 3
        assert len(ends.told) == 1

    def test_what_can_never_succeed_is_given_up_at_once(self, service: Host, ends: FarEnds) -> None:
        ends.receiver.answers = [status("410 Gone")]
        use(service, 1600)
        work(service)
        gone = announced(service, "webhook")
        assert (gone.state, gone.reason, gone.attempts) == ("dead", "http_410", 1)


class TestTheStoreIsBusy:
    def test_what_was_sent_is_not_sent_again_because_it_could_not_be_noted(
        self, new_service: Callable[..., Host], ends: FarEnds, c2meter_clock: FrozenClock
    ) -> None:
        one = new_service(C2METER_WORKER="thread")
        one.metering.store.counts()  # makes the file
        other = new_service(C2METER_DATABASE_URL=one.metering.config.database_url)
        path = Path(one.app.instance_path, "c2meter.sqlite")
        with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as lock:

            def lock_before_answering(body: bytes) -> None:
                ends.receiver.on_request = len
                lock.execute("BEGIN IMMEDIATE")

            ends.receiver.on_request = lock_before_answering
            use(one, 1600, Customer(ANN.id, plan="starter"))
            wait_until(lambda: ends.receiver.answered == 1)
            # For everybody else the attempt has been abandoned; none of them can know better now.
            c2meter_clock.advance(ATTEMPT_LEASE)
            work(other)
            lock.rollback()
            work(other)
            wait_until(lambda: announced(one, "webhook").state == "delivered", timeout_s=30)
        work(other)

        assert len(ends.posted()) == 1
        assert announced(one, "webhook").attempts == 1

    def test_after_trouble_those_who_have_announced_come_first(
        self, service: Host, c2meter_clock: FrozenClock
    ) -> None:
        def announcer() -> Announcer:
            channel, meters = SignalChannel(service.app), service.metering.catalogue.meters
            return Announcer(service.metering.store, channel, meters, c2meter_clock)

        use(service, 1600)
        queue, patient = service.metering.store.announcements, announcer()
        claim = queue.claim("signal", c2meter_clock())
        assert claim is not None and not patient.is_due()
        c2meter_clock.advance(ATTEMPT_LEASE)
        path = Path(service.app.instance_path, "c2meter.sqlite")
        with closing(sqlite3.connect(path, isolation_level=None)) as lock:
            lock.execute("BEGIN IMMEDIATE")
            assert patient.is_due()
            with pytest.raises(StoreUnavailable):
                patient.work()
            lock.rollback()
        assert not patient.is_due()
        assert announcer().is_due(), "without trouble, an abandoned attempt is repeated"
        queue.delivered(claim, c2meter_clock())
        assert announced(service, "signal").state == "delivered"


class TestCommands:
    def test_alerts_lists_what_was_raised_and_what_became_of_it(
        self, service: Host, ends: FarEnds
    ) -> None:
        assert ask(service, "alerts").output == "no alert was raised in the last 30 days\n"
        use(service, 1650)
        work(service)
        result = ask(service, "alerts")
        assert result.exit_code == 0
        head, line = result.output.splitlines()
        assert head.split()[-4:] == list(CHANNELS)
        assert line.split()[2:6] == [ANN.id, VERIFY, "warning", "1650/2000"]
        assert line.split()[6:] == ["delivered"] * 4
        assert ANN.email not in result.output

        (found,) = json.loads(ask(service, "alerts", "--json").output)
        assert (found["level"], found["total"]) == ("warning", "1650")
        assert {c["state"] for c in found["channels"].values()} == {"delivered"}
        assert json.loads(ask(service, "alerts", "--json", "--customer", "cus_bob").output) == []

    def test_alerts_looks_back_as_far_as_it_is_told(
        self, service: Host, c2meter_clock: FrozenClock
    ) -> None:
        use(service, 1650)
        c2meter_clock.advance(timedelta(days=31))
        assert ANN.id not in ask(service, "alerts").output
        assert ANN.id in ask(service, "alerts", "--days", "40").output

    def test_a_test_goes_out_marked_on_every_channel_and_is_no_alert(
        self, service: Host, ends: FarEnds
    ) -> None:
        use(service, 1)  # so that the address is known
        result = ask(service, "alerts", "--test", ANN.id)
        assert result.exit_code == 0
        assert sorted(result.output.splitlines()) == [
            "email: delivered",
            "signal: delivered",
            "webhook: delivered",
        ]
        message = ends.mailbox.message()
        assert message["Subject"].startswith("[Test] ")
        assert message["To"] == ANN.email
        (headers,) = ends.receiver.headers
        assert headers["webhook-id"].startswith("test_")
        assert ends.posted() and [alert.is_test for alert in ends.told] == [True]

        assert notices(service) == []
        assert service.metering.store.announcements.unread(ANN.id) == 0
        work(service)
        assert len(ends.told) == len(ends.receiver.bodies) == len(ends.mailbox.envelopes) == 1

    def test_a_test_says_which_channel_failed_and_why_and_tries_the_others(
        self, service: Host, ends: FarEnds
    ) -> None:
        ends.receiver.answers = [status("503 Later")]
        ends.is_deaf = True
        result = ask(service, "alerts", "--test", "cus_nobody")
        assert result.exit_code == 1
        signal, email, webhook = result.output.splitlines()
        assert signal.startswith("signal: raised: ") and signal.endswith("FarEnds.hear")
        assert (email, webhook) == ("email: no_address", "webhook: http_503")
        assert service.metering.status()["healthy"]

    @pytest.mark.parametrize("customer", ["", "cus_\n1", "x" * 300])
    def test_a_test_for_what_cannot_be_a_customer_is_refused(
        self, service: Host, ends: FarEnds, customer: str
    ) -> None:
        result = ask(service, "alerts", "--test", customer)
        assert result.exit_code == 2
        assert "Traceback" not in result.output
        assert ends.told == []

    def test_without_a_store_it_says_so_in_one_line(self, service: Host) -> None:
        Path(service.app.instance_path).mkdir(parents=True)
        Path(service.app.instance_path, "c2meter.sqlite").write_bytes(b"no database " * 400)
        for arguments in ((), ("--test", ANN.id)):
            result = ask(service, "alerts", *arguments)
            assert result.exit_code == 2
            assert len(result.output.splitlines()) == 1
