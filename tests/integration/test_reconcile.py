"""``flask c2meter reconcile``: planted differences between the ledger and Stripe, found by name."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from billing_rig import CUSTOMER, HOUR, Account, at, billed
from flask_host import Host
from reconcile_rig import (
    DAY,
    OTHERS,
    a_month,
    differences,
    double,
    in_stripe,
    journal,
    kinds,
    lose,
    post,
    reconcile,
    recorded,
    sent,
)

from flask_c2meter.reconciliation import Kind

UNREPAIRABLE = ("late", "refused", "foreign")


def test_a_month_with_five_planted_differences_is_reconciled_in_one_run(tmp_path: Path) -> None:
    known = {"cus_1", *OTHERS}
    with billed(tmp_path, emulator={"customers": known}) as account:
        a_month(account, known)
        planted = {
            CUSTOMER: "late",
            "cus_2": "lost",
            "cus_3": "doubled",
            "cus_4": "refused",
            "cus_5": "foreign",
        }
        assert kinds(differences(account)) == planted
        assert journal(account) == []

        result = reconcile(account, "--repair", "--by", "ann")
        assert result.exit_code == 1
        assert all(customer in result.output for customer in planted)
        assert "1 doubled, 1 foreign, 1 late, 1 lost, 1 refused; 2 repaired" in result.output
        account.work()
        for customer in ("cus_2", "cus_3"):
            assert in_stripe(account, customer) == recorded(account, customer)
        assert kinds(differences(account)) == {
            customer: kind for customer, kind in planted.items() if kind in UNREPAIRABLE
        }
        assert journal(account) == [
            "ann: lost: Stripe shows 0 of the minute, not 4",
            "ann: doubled: Stripe shows 10 of the minute, not 5",
        ]
        assert list(account.store.verify()) == []
        # Of 466 hours of customers' meters three still differ.
        assert account.metering.status()["targets"]["billing_accuracy"] == "0.99356"


def use(account: Account, value: int = 5, customer: str = "cus_2", **more: Any) -> None:
    account.metering.record("verify", customer, value=value, **more)
    account.work()


@pytest.fixture
def account(tmp_path: Path) -> Iterator[Account]:
    with billed(tmp_path) as account:
        yield account
        assert list(account.store.verify()) == []


class TestClean:
    def test_an_empty_store_agrees(self, account: Account) -> None:
        result = reconcile(account)
        assert result.exit_code == 0
        assert "no usage since 2025-12-06 (UTC)" in result.output
        assert account.metering.status()["targets"]["billing_accuracy"] is None

    def test_what_was_delivered_agrees_at_one_read_for_each_meter(self, account: Account) -> None:
        for day in range(20):
            use(account, occurred_at=at("01-09") - day * DAY)
        before = len(account.stripe.requests)
        result = reconcile(account)
        assert (result.exit_code, differences(account)) == (0, [])
        assert "billing accuracy 100.000%: 20 of 20 hours" in result.output
        reads = [r.path for r in account.stripe.requests[before:] if "summaries" in r.path]
        assert len(reads) == 2 * 3  # two runs, three meters
        assert account.metering.status()["targets"]["billing_accuracy"] == "1.00000"

    def test_a_loss_and_a_double_of_the_same_size_do_not_hide_each_other(
        self, account: Account
    ) -> None:
        use(account)
        lose(account, sent(account, "cus_2"))
        account.go("01-12")
        use(account)
        double(account, sent(account, "cus_2"))
        account.go("01-13")
        use(account)
        assert {row["kind"] for row in differences(account)} == {"lost", "doubled"}


class TestInFlight:
    def test_fresh_usage_on_its_way_is_named_and_nothing_is_wrong(self, account: Account) -> None:
        account.metering.record("verify", "cus_2", value=3)
        (row,) = differences(account)
        assert (row["kind"], row["recorded"], row["is_fresh"]) == ("in flight", "3", True)
        assert reconcile(account).exit_code == 0

    def test_old_usage_on_its_way_is_a_difference(self, account: Account) -> None:
        account.metering.record("verify", "cus_2", value=3)
        account.go("01-10 02:00", work=False)
        assert kinds(differences(account)) == {"cus_2": "in flight"}
        assert reconcile(account).exit_code == 1

    def test_what_stripe_does_not_show_yet_is_never_called_lost(self, tmp_path: Path) -> None:
        with billed(tmp_path, emulator={"aggregation_delay": timedelta(minutes=50)}) as account:
            for _ in range(3):
                use(account)
                account.clock.advance(timedelta(minutes=10))
            assert {row["kind"] for row in differences(account)} == {"in flight"}
            assert reconcile(account, "--repair").exit_code == 0
            account.work()
            assert in_stripe(account, "cus_2") == 15
            account.clock.advance(HOUR)
            assert differences(account) == []

    def test_what_is_missing_though_newer_is_shown_is_lost_at_once(self, account: Account) -> None:
        use(account)
        lose(account, sent(account, "cus_2"))
        account.clock.advance(timedelta(minutes=2))
        use(account, customer="cus_3")
        assert kinds(differences(account)) == {"cus_2": "lost"}

    def test_what_is_missing_is_not_repaired_while_stripe_shows_nothing_newer(
        self, account: Account
    ) -> None:
        use(account)
        lose(account, sent(account, "cus_2"))
        assert kinds(differences(account)) == {"cus_2": "in flight"}
        account.clock.advance(2 * HOUR)
        result = reconcile(account, "--repair")
        assert "lost: 5 recorded, Stripe has 0; Stripe shows nothing newer" in result.output
        account.work()
        assert in_stripe(account, "cus_2") == 0

    def test_an_outcome_that_is_unknown_is_in_flight(self, account: Account) -> None:
        account.stripe.fail(reset=True, after_processing=True, path="*meter_events")
        use(account)
        account.stripe.fail(503, times=None, path="*meter_events")
        account.clock.advance(2 * HOUR)
        assert kinds(differences(account)) == {"cus_2": "in flight"}


def lost(account: Account, customer: str = "cus_2") -> None:
    """Stripe loses usage of *customer*, and shows some of another's that is newer."""
    use(account, customer=customer)
    lose(account, sent(account, customer))
    account.clock.advance(timedelta(minutes=2))
    use(account, customer="cus_3")


class TestRepair:
    def test_what_was_lost_is_shipped_once_however_often_it_is_repaired(
        self, account: Account
    ) -> None:
        lost(account)
        first = reconcile(account, "--repair")
        assert "repaired: the worker ships it anew" in first.output
        again = reconcile(account, "--repair")  # it is on its way now
        assert "in flight" in again.output and "repaired" not in again.output
        account.work()
        assert reconcile(account, "--repair").exit_code == 0
        assert in_stripe(account, "cus_2") == 5
        assert len(journal(account)) == 1

    def test_what_was_lost_and_comes_back_after_the_repair_is_taken_back(
        self, account: Account
    ) -> None:
        lost(account)
        reconcile(account, "--repair")
        account.work()
        post(account, "cus_2", 5, at("01-10"))  # what Stripe had mislaid
        assert {row["kind"] for row in differences(account)} == {"doubled"}
        reconcile(account, "--repair")
        account.work()
        assert in_stripe(account, "cus_2") == 5
        assert differences(account) == []

    def test_a_correction_that_stripe_refuses_is_a_dead_letter_with_its_reason(
        self, tmp_path: Path
    ) -> None:
        with billed(tmp_path, emulator={"allow_negative": False}) as account:
            use(account)
            double(account, sent(account, "cus_2"))
            assert reconcile(account, "--repair").exit_code == 1
            account.work()
            (row,) = differences(account)
            assert (row["kind"], row["recorded"], row["stripe"]) == ("refused", "5", "10")
            assert "invalid" in row["note"]
            assert reconcile(account, "--repair").exit_code == 1
            assert len(journal(account)) == 1
            assert list(account.store.verify()) == []

    def test_foreign_usage_is_left_alone(self, account: Account) -> None:
        use(account)
        post(account, "cus_2", 3, account.clock() - timedelta(hours=3, minutes=7))
        post(account, "cus_2", 7, account.clock() - timedelta(hours=3, minutes=41))
        rows = differences(account, "--repair")
        found = [(row["kind"], row["minute"], row["stripe"]) for row in rows]
        assert found == [
            ("foreign", "2026-01-09T20:19Z", "7"),
            ("foreign", "2026-01-09T20:53Z", "3"),
        ]
        assert journal(account) == []

    def test_foreign_usage_in_a_minute_of_ours_is_told_from_a_double(
        self, account: Account
    ) -> None:
        use(account)
        post(account, "cus_2", 3, account.clock())
        assert kinds(differences(account)) == {"cus_2": "foreign"}

    def test_an_invoice_that_is_final_is_not_repaired(self, account: Account) -> None:
        account.subscribe("starter")
        lost(account, CUSTOMER)
        account.go("02-10 02:00")
        result = reconcile(account, "--repair")
        assert result.exit_code == 1
        assert "its invoice is final: a correction would be billed nowhere" in result.output
        assert journal(account) == []

    def test_what_is_older_than_35_days_is_not_repaired(self, account: Account) -> None:
        lost(account)
        account.go("02-14 00:30")
        use(account, customer="cus_3")
        result = reconcile(account, "--repair", "--since", "2026-01-01")
        assert "older than 35 days: Stripe takes no correction" in result.output
        assert journal(account) == []

    def test_what_has_changed_meanwhile_is_not_repaired(self, account: Account) -> None:
        lost(account)
        reconciler = account.metering.reconciler()
        (finding,) = reconciler.run(reconciler.scope())
        reconcile(account, "--repair")
        account.work()
        book, now = account.store.reconciling, account.clock()
        found = finding.difference
        assert book.repair(found, "me", now) == "the minute has changed meanwhile: look again"
        assert in_stripe(account, "cus_2") == 5


class TestScope:
    def test_of_one_customer(self, account: Account) -> None:
        lost(account)
        assert differences(account, "--customer", "cus_3") == []
        assert kinds(differences(account, "--customer", "cus_2")) == {"cus_2": "lost"}
        assert account.metering.status()["reconciled"] is None  # that was not everything

    def test_idle_customers_are_asked_about_when_told_to(self, account: Account) -> None:
        account.go("03-10")
        use(account, occurred_at=at("02-04"))
        account.go("04-10")
        post(account, "cus_2", 3, at("04-09"))
        assert differences(account) == []
        assert kinds(differences(account, "--idle")) == {"cus_2": "foreign"}

    def test_since(self, account: Account) -> None:
        lost(account)
        account.clock.advance(DAY)
        assert differences(account, "--since", "2026-01-11") == []


class TestOutOfReach:
    def test_without_a_key(self, host: Host) -> None:
        result = host.app.test_cli_runner().invoke(args=["c2meter", "reconcile"])
        assert result.exit_code == 1
        assert result.output.startswith("there is nothing to reconcile with: no Stripe key here")
        assert len(result.output.splitlines()) == 1

    def test_stripe_is_down(self, account: Account) -> None:
        use(account)
        account.stripe.stop()
        result = reconcile(account)
        account.stripe.start()
        assert result.exit_code == 1
        assert result.output == "Stripe could not be read: no_connection\n"

    def test_another_account(self, account: Account) -> None:
        account.store.note("account", "api.stripe.com live")
        result = reconcile(account)
        assert result.exit_code == 1
        assert "this ledger delivers to api.stripe.com live, not to 127.0.0.1 test" in result.output

    def test_reads_that_fail_for_a_moment_are_made_again(self, account: Account) -> None:
        use(account)
        account.stripe.fail(429, path="*event_summaries", retry_after=0)
        account.stripe.fail(503, path="*event_summaries", retry_after=0)
        assert reconcile(account).exit_code == 0

    def test_a_customer_that_stripe_does_not_know_is_no_reason_to_stop(
        self, account: Account
    ) -> None:
        use(account)
        use(account, customer="cus_3")
        account.stripe.fail(
            404, times=None, code="resource_missing", match=lambda r: "customer=cus_2" in r.query
        )
        result = reconcile(account, "--repair")
        assert "lost: 5 recorded, Stripe has 0; Stripe does not know this" in result.output
        assert journal(account) == []

    def test_a_damaged_store_exits_2_in_one_line(self, account: Account) -> None:
        use(account)
        account.store.close()
        path = Path(account.metering.config.database_url.removeprefix("sqlite:///"))
        intact = path.read_bytes()
        path.write_bytes(b"this is no database at all, but long enough" * 100)
        result = reconcile(account)
        assert result.exit_code == 2
        assert "is damaged" in result.output
        assert len(result.output.splitlines()) == 1
        path.write_bytes(intact)


def test_doubts_that_are_due_are_decided_first(account: Account) -> None:
    account.stripe.fail(reset=True, after_processing=True, path="*meter_events")
    use(account)
    account.stripe.fail(503, times=None, path="*meter_events")
    account.go("01-10 23:30", work=False)
    account.work()
    assert account.states() == {"in_doubt": 5}
    assert kinds(differences(account)) == {"cus_2": "in flight"}  # too early to tell
    account.clock.advance(HOUR)
    assert reconcile(account).exit_code == 0
    assert account.states() == {"delivered": 5}


def test_status_says_what_the_last_one_found(account: Account) -> None:
    lost(account)
    reconcile(account)
    status = account.metering.status()
    assert status["reconciled"]["differences"] == {"lost": 1}
    assert status["targets"]["billing_accuracy"] == "0.50000"
    assert "Stripe did not agree with the ledger at 2026-01-10T00:02:00Z" in status["problems"][0]
    printed = account.app.test_cli_runner().invoke(args=["c2meter", "status"]).output
    assert "accuracy   50.000 %, 2026-01-10T00:02:00+00:00 (target: 100 %): MISSED" in printed

    reconcile(account, "--repair")
    account.work()
    reconcile(account)
    status = account.metering.status()
    assert status["targets"]["billing_accuracy"] == "1.00000"
    assert status["problems"] == []


def test_one_that_reaches_less_far_hides_nothing_that_is_known(account: Account) -> None:
    lost(account)
    account.clock.advance(DAY)
    reconcile(account)
    known = account.metering.status()
    assert reconcile(account, "--since", "2026-01-11").exit_code == 0
    assert account.metering.status()["problems"] == known["problems"] != []
    assert account.metering.status()["reconciled"] == known["reconciled"]
    reconcile(account, "--since", "2026-01-01", "--repair")
    account.work()
    reconcile(account)
    assert account.metering.status()["problems"] == []
    reconcile(account, "--since", "2026-01-09")
    assert account.metering.status()["reconciled"]["since"] == "2026-01-09T00:00:00Z"


def test_an_hour_that_was_not_delivered_in_time_does_not_agree(account: Account) -> None:
    use(account, customer="cus_2")
    account.use(7)
    reconcile(account)
    known = account.metering.status()["reconciled"]
    assert (known["hours"], known["differing_hours"]) == (1, 0)  # too early to count the other
    account.clock.advance(timedelta(hours=2))
    reconcile(account)
    assert account.metering.status()["targets"]["billing_accuracy"] == "0.50000"


def test_since_is_not_in_the_future(account: Account) -> None:
    result = reconcile(account, "--since", "2028-01-01")
    assert result.exit_code == 2
    assert "is in the future" in result.output


def test_json_ends_with_a_summary(account: Account) -> None:
    lost(account)
    *rows, last = map(json.loads, reconcile(account, "--json", "--repair").output.splitlines())
    assert [row["is_repaired"] for row in rows] == [True]
    assert last["summary"] == {
        "since": "2025-12-06T00:00:00Z",
        "compared": 6,
        "hours": 2,
        "differing_hours": 1,
        "billing_accuracy": "0.50000",
        "differences": {"lost": 1},
        "repaired": 1,
    }


def test_help_names_every_kind(account: Account) -> None:
    text = reconcile(account, "--help").output
    assert all(f"\n  {kind.value} " in text for kind in Kind)
