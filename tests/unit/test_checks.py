"""What each check of the doctor says of given facts: its level, its words, its cure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flask_c2meter.catalogue import load
from flask_c2meter.checks import CHECKS, DatabaseFacts, Facts, Finding, HostFacts, Level, Place
from flask_c2meter.checks.database import FULL_BYTES, LOW_BYTES, MAX_WAL_BYTES
from flask_c2meter.config import Config
from flask_c2meter.headers import STANDARD, STRICT
from flask_c2meter.provisioning import Action, Plan, Step
from flask_c2meter.store import DatabaseSettings
from flask_c2meter.survey import METERS, SUBSCRIPTIONS, Destination, Survey

DATABASE = Path("/srv/app/ledger.db")
SNAPSHOTS = ("customer.subscription.updated", "invoice.created")
THIN = ("v1.billing.meter.no_meter_found",)
HOOK = "https://app.example.com/stripe/webhook"

#: Nothing in it is wrong: every check says ok, or nothing.
SURVEY = Survey(
    account="api.stripe.com test",
    skew_s=0.4,
    plan=Plan(
        [
            Step(Action.KEEP, "product", "c2meter_verify", "Verify"),
            Step(Action.KEEP, "meter", "verify", "sum of value"),
            Step(Action.KEEP, "price", "starter_verify", "free"),
        ],
        [],
        {"verify": "mtr_1"},
    ),
    snapshots=[Destination(HOOK, False, True, ["customer.subscription.*", "invoice.created"])],
    thin=[Destination(HOOK, True, True, ["*"])],
)
STORED = DatabaseFacts(
    settings=DatabaseSettings("full", "wal", DATABASE),
    place=Place(str(DATABASE), "ext4", 100 * LOW_BYTES),
    files={str(DATABASE): (5, 0o600), f"{DATABASE}-wal": (4096, 0o600)},
    spill=Place("/srv/app/c2meter.spill", "ext4", 90 * LOW_BYTES),
)
HOST = HostFacts(
    headers=tuple(STRICT.items()),
    shares_limits=True,
    processes=4,
    webhook_path="/stripe/webhook",
    channels=["email"],
)
STATUS: Mapping[str, Any] = {
    "account": "api.stripe.com test",
    "workers": [],
    "oldest_unshipped_age_s": None,
    "spill": {"pending": 0, "corrupt": 0},
    "meters": {},
    "problems": [],
    "storage": None,
}
FREE: Mapping[str, Any] = {"event_type": "v", "unit": "v", "aggregation": "sum"}
METER = {**FREE, "price": {"mode": "flat", "currency": "usd", "unit_amount": "4"}}


def config(**settings: Any) -> Config:
    settings = {"STRIPE_WEBHOOK_SECRET": "whsec_a1, whsec_b2"} | settings
    prefixed = {f"C2METER_{name}": value for name, value in settings.items()}
    return Config.load(prefixed, environ={}, instance_path="/srv/app")


def facts(settings: Mapping[str, Any] | None = None, **more: Any) -> Facts:
    meters = more.pop("meters", {"verify": METER})
    host = replace(HOST, **more.pop("host", {}))
    status = {**STATUS, **more.pop("status", {})}
    stored = replace(STORED, **more.pop("database", {}))
    survey = replace(SURVEY, **more.pop("stripe", {}))
    assert not more
    return Facts(
        config=config(**settings or {}),
        catalogue=load({"plans": {"starter": {}}, "meters": meters}),
        stripe=survey,
        database=stored,
        status=status,
        host=host,
        snapshot_events=SNAPSHOTS,
        thin_events=THIN,
    )


def check(name: str, settings: Mapping[str, Any] | None = None, **more: Any) -> list[Finding]:
    return [*CHECKS[name](facts(settings, **more))]


def only(name: str, settings: Mapping[str, Any] | None = None, **more: Any) -> Finding:
    (found,) = check(name, settings, **more)
    return found


def test_where_all_is_well_every_check_says_so() -> None:
    found = [each for name in CHECKS for each in check(name)]
    assert {each.level for each in found} == {Level.OK}
    assert len(found) >= len(CHECKS) - 2  # no canary and no storage, so nothing of them


def test_the_page_names_every_check() -> None:
    page = (Path(__file__).parents[2] / "docs" / "doctor.md").read_text()
    assert re.findall(r"^\| `(\w+)` \|", page, re.M) == [*CHECKS]


def test_what_is_wrong_comes_with_a_cure() -> None:
    wrong = facts(
        {"TRANSPORT": "stream", "WORKER": "off"},
        stripe={"failure": "timeout", "missing": [METERS], "skew_s": 90.0},
        database={"failure": "locked"},
        host={"shares_limits": False, "headers": tuple(STANDARD.items()), "channels": []},
        meters={"verify": FREE},
    )
    found = [each for check in CHECKS.values() for each in check(wrong)]
    assert len([each for each in found if each.level is not Level.OK]) >= 9
    assert all(bool(each.cure) is (each.level is not Level.OK) for each in found)


class TestStripe:
    def test_no_key(self) -> None:
        without = replace(facts(), stripe=None)
        (found,) = CHECKS["key"](without)
        assert (found.level, "no Stripe key" in found.what) == (Level.WARNING, True)
        for name in ("connection", "permissions", "clock", "account", "meters", "prices"):
            assert [*CHECKS[name](without)] == []

    def test_a_refused_key_is_one_finding(self) -> None:
        failed = {"failure": "401 api_key_invalid", "plan": None, "snapshots": None}
        assert only("key", stripe=failed).level is Level.ERROR
        assert check("connection", stripe=failed) == []
        assert check("meters", stripe=failed) == []

    def test_a_live_key_must_not_go_anywhere_else(self) -> None:
        found = only("key", stripe={"livemode": True, "is_diverted": True})
        assert (found.level, "roll the key" in found.cure) == (Level.ERROR, True)
        assert only("key", stripe={"livemode": True}).level is Level.OK

    def test_the_stream_takes_live_mode(self) -> None:
        assert only("key", {"TRANSPORT": "stream"}).level is Level.ERROR
        assert only("key", {"TRANSPORT": "stream"}, stripe={"livemode": True}).level is Level.OK

    @pytest.mark.parametrize("reason", ["no_connection", "dns", "tls", "500 unreadable"])
    def test_stripe_out_of_reach(self, reason: str) -> None:
        found = only("connection", stripe={"failure": reason})
        assert (found.level, reason in found.what) == (Level.ERROR, True)

    def test_what_a_restricted_key_lacks_is_named(self) -> None:
        vital, spared = check("permissions", stripe={"missing": [METERS, SUBSCRIPTIONS]})
        assert vital.what.startswith("the key lacks Billing Meters: Read")
        assert {vital.level, spared.level} == {Level.ERROR}
        missing = {"missing": [SUBSCRIPTIONS]}
        spared = only("permissions", stripe=missing, host={"has_subscription_loader": True})
        assert spared.level is Level.WARNING

    @pytest.mark.parametrize(
        ("skew_s", "level", "words"),
        [
            (60.0, Level.OK, "within 60 s"),
            (60.5, Level.ERROR, "60 s behind Stripe's"),
            (-3600.0, Level.ERROR, "3,600 s ahead of Stripe's"),
        ],
    )
    def test_clock(self, skew_s: float, level: Level, words: str) -> None:
        found = only("clock", stripe={"skew_s": skew_s})
        assert (found.level, words in found.what) == (level, True)

    def test_the_moved_clock_of_an_emulator_is_no_fault_of_this_host(self) -> None:
        found = only("clock", stripe={"skew_s": 2_764_800.0, "is_diverted": True})
        assert (found.level, "start the emulator anew" in found.cure) == (Level.ERROR, True)
        assert "NTP" in only("clock", stripe={"skew_s": 90.0}).cure

    def test_another_account(self) -> None:
        found = only("account", status={"account": "api.stripe.com live"})
        assert (found.level, "--adopt" in found.cure) == (Level.ERROR, True)
        assert only("account", status={"account": None}).level is Level.OK


class TestCatalogue:
    def plan(self, *steps: Step) -> dict[str, Any]:
        return {"plan": Plan(steps, [], {})}

    @pytest.mark.parametrize(
        ("check_name", "step", "level", "words"),
        [
            ("meters", Step(Action.CREATE, "meter", "m", ""), Level.ERROR, "not at Stripe"),
            ("meters", Step(Action.REACTIVATE, "meter", "m", ""), Level.ERROR, "deactivated"),
            ("meters", Step(Action.RENAME, "meter", "m", ""), Level.WARNING, "named otherwise"),
            ("meters", Step(Action.DEACTIVATE, "meter", "m", ""), Level.WARNING, "no more"),
            ("meters", Step(Action.CANNOT_CHANGE, "meter", "m", "count"), Level.ERROR, "count"),
            ("prices", Step(Action.CREATE, "price", "m", ""), Level.ERROR, "billed nowhere"),
            (
                "prices",
                Step(Action.CREATE, "price", "m", "", replaces="price_1"),
                Level.ERROR,
                "another unit, tier or amount",
            ),
            ("prices", Step(Action.CANNOT_CHANGE, "product", "m", "x"), Level.ERROR, "in the way"),
            ("prices", Step(Action.RENAME, "product", "m", ""), Level.WARNING, "on invoices"),
        ],
    )
    def test_what_differs(self, check_name: str, step: Step, level: Level, words: str) -> None:
        step = replace(step, note="the cure") if step.action is Action.CANNOT_CHANGE else step
        found = only(check_name, stripe=self.plan(step))
        assert (found.level, words in found.what, "m" in found.what) == (level, True, True)
        assert found.cure

    def test_a_price_that_is_replaced_is_one_finding(self) -> None:
        steps = [
            Step(Action.CREATE, "price", "starter_verify", "", replaces="price_1"),
            Step(Action.DEACTIVATE, "price", "starter_verify", "price_1"),
            Step(Action.DEACTIVATE, "price", "starter_other", "price_2"),
        ]
        drifted, gone = check("prices", stripe=self.plan(*steps))
        assert drifted.what.endswith("than the catalogue: starter_verify")
        assert gone.what.endswith("in the catalogue: starter_other")

    def test_many_of_a_kind_are_one_finding(self) -> None:
        steps = [Step(Action.CREATE, "price", f"p{n}", "") for n in range(20)]
        assert only("prices", stripe=self.plan(*steps)).what.endswith("p0, p1, p2, p3 and 16 more")

    def test_a_meter_without_a_price(self) -> None:
        hidden = {**FREE, "billable": False}
        found = only("unpriced", meters={"verify": METER, "free": FREE, "hidden": hidden})
        assert found.level is Level.WARNING
        assert found.what.endswith("not billed: free")

    def test_the_canary_needs_a_meter_where_it_is_sent(self) -> None:
        flies: dict[str, Any] = {"CANARY": 60, "CANARY_CUSTOMER": "cus_canary"}
        assert only("canary", flies).level is Level.ERROR
        known = {"plan": Plan([], [], {"c2meter_canary": "mtr_2"})}
        assert only("canary", flies, stripe=known).level is Level.OK
        assert only("canary", {"CANARY": 60}).level is Level.OK


class TestWebhooks:
    def test_none(self) -> None:
        none: dict[str, Any] = {"STRIPE_WEBHOOK_SECRET": ""}
        assert only("webhooks", none).level is Level.WARNING
        assert only("webhooks", none, stripe={"is_diverted": True}).level is Level.OK

    def test_a_secret_of_the_wrong_form_is_named_by_its_place(self) -> None:
        found = only("webhooks", {"STRIPE_WEBHOOK_SECRET": "whsec_a1, sk_test_oops"})
        assert (found.level, found.what) == (
            Level.ERROR,
            "webhook secret 2 of 2 is no signing secret",
        )

    def test_a_secret_and_no_route(self) -> None:
        assert only("webhooks", host={"webhook_path": None}).level is Level.WARNING

    def test_nobody_sends_to_the_route(self) -> None:
        elsewhere = [Destination("https://app.example.com/other", False, True, ["*"])]
        found = only("webhooks", stripe={"snapshots": elsewhere})
        assert found.what == "no snapshot destination at Stripe sends to /stripe/webhook"
        assert found.cure == "create one for customer.subscription.updated, invoice.created"

    def test_a_disabled_destination(self) -> None:
        found = only("webhooks", stripe={"thin": [Destination(HOOK, True, False, ["*"])]})
        assert (found.level, "disabled" in found.what) == (Level.ERROR, True)

    def test_a_needed_event_that_is_not_sent(self) -> None:
        some = [Destination(HOOK, False, True, ["customer.subscription.updated"])]
        found = only("webhooks", stripe={"snapshots": some})
        assert found.what == "no snapshot destination sends invoice.created"

    def test_each_destination_has_a_secret(self) -> None:
        one: dict[str, Any] = {"STRIPE_WEBHOOK_SECRET": "whsec_a1"}
        assert only("webhooks", one).level is Level.WARNING
        assert only("webhooks", one, stripe={"is_diverted": True}).level is Level.OK

    def test_nothing_is_said_of_what_the_key_may_not_see(self) -> None:
        assert check("webhooks", stripe={"thin": None}) == []


class TestDatabase:
    def test_out_of_order(self) -> None:
        found = only("database", database={"failure": "ledger.db has vanished"})
        assert (found.level, "vanished" in found.what) == (Level.ERROR, True)

    @pytest.mark.parametrize(
        ("kind", "level"),
        [
            ("ext4", Level.OK),
            ("", Level.OK),
            ("nfs4", Level.ERROR),
            ("cifs", Level.ERROR),
            ("tmpfs", Level.WARNING),
        ],
    )
    def test_file_systems(self, kind: str, level: Level) -> None:
        place = Place(str(DATABASE), kind, LOW_BYTES)
        assert only("database", database={"place": place}).level is level

    def test_in_memory_will_do_for_a_trial(self) -> None:
        place = Place(str(DATABASE), "tmpfs", LOW_BYTES)
        found = only("database", database={"place": place}, stripe={"is_diverted": True})
        assert found.level is Level.OK

    @pytest.mark.parametrize(
        ("synchronous", "wanted", "level"),
        [
            ("full", "full", Level.OK),
            ("normal", "relaxed", Level.WARNING),
            ("normal", "full", Level.ERROR),
            ("off", "relaxed", Level.ERROR),
        ],
    )
    def test_synchronous(self, synchronous: str, wanted: str, level: Level) -> None:
        settings = DatabaseSettings(synchronous, "wal", DATABASE)
        found = only("durability", {"DURABILITY": wanted}, database={"settings": settings})
        assert found.level is level

    def test_journal_mode(self) -> None:
        settings = DatabaseSettings("full", "delete", DATABASE)
        first, _ = check("durability", database={"settings": settings})
        assert (first.level, "delete" in first.what) == (Level.ERROR, True)

    def test_a_log_that_is_not_taken_back(self) -> None:
        files = {f"{DATABASE}-wal": (MAX_WAL_BYTES + 1, 0o600)}
        _, found = check("durability", database={"files": files})
        assert (found.level, "256.0 MiB" in found.what) == (Level.WARNING, True)

    @pytest.mark.parametrize("mode", [0o644, 0o660, 0o602])
    def test_files_that_others_can_open(self, mode: int) -> None:
        found = only("files", database={"files": {str(DATABASE): (5, mode)}})
        assert (found.level, found.cure) == (Level.WARNING, f"chmod 600 {DATABASE}")

    @pytest.mark.parametrize(
        ("free", "level"),
        [(LOW_BYTES, Level.OK), (LOW_BYTES - 1, Level.WARNING), (FULL_BYTES - 1, Level.ERROR)],
    )
    def test_disk(self, free: int, level: Level) -> None:
        spill = Place("/srv/app/c2meter.spill", "ext4", free)
        found = only("disk", database={"spill": spill})
        assert found.level is level
        if level is not Level.OK:
            assert found.what.endswith("free where /srv/app/c2meter.spill lies")

    def test_spilled_events(self) -> None:
        waiting = only("spill", status={"spill": {"pending": 3, "corrupt": 0}})
        assert (waiting.level, waiting.what[:8]) == (Level.WARNING, "3 events")
        bad = only("spill", status={"spill": {"pending": 0, "corrupt": 1}})
        assert (bad.level, "c2meter.spill.corrupt" in bad.what) == (Level.ERROR, True)

    def test_status(self) -> None:
        found = only("status", status={"problems": ["one", "two"]})
        assert (found.level, found.what) == (
            Level.ERROR,
            "status is not healthy: one, and 1 more",
        )


class TestHost:
    def test_workers(self) -> None:
        off: dict[str, Any] = {"WORKER": "off"}
        assert only("worker", off).level is Level.WARNING
        assert only("worker", off, status={"oldest_unshipped_age_s": 5}).level is Level.ERROR
        assert only("worker", off, status={"workers": [{"pid": 1}]}).level is Level.OK
        assert only("worker").level is Level.OK

    def test_threads_before_a_fork(self) -> None:
        assert only("fork", host={"has_early_worker": True}).level is Level.WARNING
        assert only("fork").level is Level.OK

    def test_limits_in_the_memory_of_each_process(self) -> None:
        found = only("limiter", host={"shares_limits": False, "processes": 4})
        assert (found.level, "4 times as much" in found.what) == (Level.WARNING, True)
        assert only("limiter", host={"shares_limits": False, "processes": 1}).level is Level.OK
        assert only("limiter", host={"shares_limits": None}).level is Level.OK

    def test_processes_that_deliver_by_threads_are_counted(self) -> None:
        two = {"workers": [{"pid": 1}, {"pid": 2}]}
        alone = {"shares_limits": False, "processes": 1}
        assert only("limiter", host=alone, status=two).level is Level.WARNING
        assert only("limiter", {"WORKER": "off"}, host=alone, status=two).level is Level.OK

    def test_the_documents_headers_are_weak_in_three_ways(self) -> None:
        found = only("headers", host={"headers": tuple(STANDARD.items())})
        assert found.level is Level.WARNING
        for words in ("'unsafe-inline'", "X-XSS-Protection", "preload"):
            assert words in found.what
        assert only("headers", host={"headers": ()}).level is Level.OK

    @pytest.mark.parametrize(
        ("policy", "is_weak"),
        [
            ("default-src 'self' 'unsafe-inline'", True),
            ("default-src 'unsafe-inline'; script-src 'self'", False),
            ("script-src 'unsafe-inline' 'nonce-abc'", False),
            ("script-src 'self' 'unsafe-eval'", True),
            ("style-src 'unsafe-inline'; script-src 'self'", False),
        ],
    )
    def test_policies(self, policy: str, is_weak: bool) -> None:
        found = only("headers", host={"headers": (("content-security-policy", policy),)})
        assert (found.level is Level.WARNING) is is_weak

    def test_alerts(self) -> None:
        assert only("alerts", host={"channels": []}).level is Level.WARNING
        found = only("alerts", host={"channels": []}, stripe={"is_diverted": True})
        assert found.level is Level.OK
        found = only("alerts", host={"reached": {"email": "login"}})
        assert (found.level, found.what) == (
            Level.ERROR,
            "alerts cannot be announced by email: login",
        )
        assert only("alerts", host={"reached": {"email": ""}}).what.endswith("email (reached)")

    def test_storage(self) -> None:
        stored = {"storage_gb": {**METER, "aggregation": "max"}}
        assert only("storage", meters=stored).level is Level.WARNING
        used = {"meters": {"storage_gb": {"events": 1}}}
        assert check("storage", meters=stored, status=used) == []
        asked = {"has_storage_loader": True}
        found = only("storage", meters=stored, host=asked)
        assert (found.level, "'0 2 * * *'" in found.what) == (Level.OK, True)
        assert only("storage", host=asked).level is Level.ERROR
