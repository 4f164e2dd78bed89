"""``flask c2meter explain``: every operation behind a number, and what does not agree with it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from billing_rig import CUSTOMER, SITES, STORAGE, VERIFY, Account, billed
from cli_rig import delivering, run
from click.testing import Result
from flask_host import Host

from flask_c2meter import Customer
from flask_c2meter.emulator import StripeEmulator
from flask_c2meter.testing import FrozenClock

NOON = datetime.fromisoformat("2026-01-15T12:00:00+00:00")
SIGN = ("explain", "cus_1", "sign_operations")


@pytest.fixture
def host(
    new_host: Callable[..., Host], stripe_emulator: StripeEmulator, c2meter_clock: FrozenClock
) -> Host:
    return delivering(new_host, stripe_emulator, c2meter_clock)


def sign(host: Host, value: int, key: str, at: datetime = NOON, customer: str = "cus_1") -> None:
    customer_now = Customer(customer, plan="starter")
    host.metering.record(
        "sign_operations", customer_now, value=value, key=key, occurred_at=at, manifest_id="m"
    )


def lines(result: Result) -> list[dict[str, Any]]:
    return [json.loads(line) for line in result.output.splitlines()]


def of_type(result: Result, kind: str) -> list[dict[str, Any]]:
    return [line for line in lines(result) if line["type"] == kind]


class TestExplain:
    def test_down_to_every_operation(self, host: Host) -> None:
        sign(host, 3, "k-1", NOON - timedelta(minutes=5))
        sign(host, 4, "k-2", NOON - timedelta(minutes=5, seconds=-2))
        run(host, "worker", "--once")
        sign(host, 5, "k-3")
        result = run(host, *SIGN)
        assert result.exit_code == 0
        (shipment,) = host.metering.store.shipments()
        assert result.output.splitlines() == [
            "cus_1 sign_operations, 2026-01-01 to 2026-02-01 (UTC)",
            "  billed    12 sign, 200 included; no price, so no amount",
            "  recorded  12 sign in 3 operations",
            "  shipped   7 delivered, 5 unshipped, in 1 shipments",
            "",
            "2026-01-15 11:55  +7",
            f"  shipment {shipment.identifier}  7 delivered",
            "  11:55:00.000  3  request -  key k-1",
            "  11:55:02.000  4  request -  key k-2",
            "",
            "2026-01-15 12:00  +5",
            "  not shipped yet: 5",
            "  12:00:00.000  5  request -  key k-3",
        ]

    def test_the_request_behind_an_operation(self, host: Host) -> None:
        host.route(lambda: "")
        host.client().post("/", headers={"X-Request-ID": "req-7"})
        result = run(host, "explain", "cus_alice", "sign_operations")
        assert "request req-7" in result.output

    def test_the_amount_and_what_was_above(self, host: Host) -> None:
        host.metering.record(
            "verify_operations",
            Customer("cus_1", plan="starter"),
            value=2500,
            manifest_id="m-1",
            verification_result=True,
        )
        result = run(host, "explain", "cus_1", "verify_operations")
        assert "billed    2500 verify, 2000 included; 500 verify above it = $20.00" in result.output

    @pytest.mark.parametrize(
        ("period", "keys"),
        [
            ("2026-01", ["jan"]),
            ("2025-12", ["dec"]),
            ("2025-12-24", ["dec"]),
            ("2025-12-31T23:59:59+00:00", ["dec"]),
            ("2024-02", []),
        ],
    )
    def test_of_another_period(self, host: Host, period: str, keys: list[str]) -> None:
        sign(host, 1, "jan")
        sign(host, 2, "dec", NOON - timedelta(days=20))
        found = run(host, *SIGN, "--period", period, "--json")
        assert found.exit_code == 0
        assert [line["key"] for line in of_type(found, "operation")] == keys

    def test_what_cannot_be_a_period_exits_2(self, host: Host) -> None:
        for text in ("january", "2026-13", "2026-1"):
            assert run(host, *SIGN, "--period", text).exit_code == 2
        assert run(host, "explain", "cus_1", "signs").exit_code == 2
        assert run(host, "explain", "cus 1", "sign_operations").exit_code == 2

    def test_of_a_maximum_each_rise(self, host: Host) -> None:
        """In recorded order: an earlier minute recorded later has risen by nothing."""
        for value, minutes in (("2.5", 2), ("1", 3), ("4", 1)):
            host.metering.record(
                "storage_gb", "cus_1", value=value, occurred_at=NOON - timedelta(minutes=minutes)
            )
        found = of_type(run(host, "explain", "cus_1", "storage_gb", "--json"), "operation")
        assert [(line["value"], line["increment"]) for line in found] == [
            ("1.000", "0.000"),
            ("2.500", "2.500"),
            ("4.000", "1.500"),
        ]

    def test_of_things_counted_once_the_first_sight(self, host: Host) -> None:
        for number, domain in enumerate(("a.com", "b.com", "a.com")):
            host.metering.record(
                "active_sites",
                "cus_1",
                domain=domain,
                site_type="wordpress",
                occurred_at=NOON - timedelta(minutes=9 - number),
            )
        found = of_type(run(host, "explain", "cus_1", "active_sites", "--json"), "operation")
        assert [line["increment"] for line in found] == ["1", "1", "0"]

    def test_a_voided_operation_and_its_correction(self, host: Host) -> None:
        sign(host, 3, "k-1")
        run(host, "worker", "--once")
        host.metering.adjust("cus_1", "sign_operations", "k-1", "a test")
        result = run(host, *SIGN)
        assert "void 3 (adds -3)  request -  key adjust:k-1" in result.output
        assert "not shipped yet: -3" in result.output
        assert result.exit_code == 0

    def test_is_bounded_unless_asked(self, host: Host) -> None:
        for number in range(120):
            sign(host, 1, f"k-{number}")
        result = run(host, *SIGN)
        assert result.output.count("request -") == 100
        assert result.output.endswith(
            "\nthe first 100 operations; more with --limit, all with --json\n"
        )
        assert run(host, *SIGN, "--limit", "3").output.count("request -") == 3
        assert run(host, *SIGN, "--limit", "120").output.count("the first") == 0
        assert len(of_type(run(host, *SIGN, "--json"), "operation")) == 120
        assert len(of_type(run(host, *SIGN, "--json", "--limit", "5"), "operation")) == 5

    def test_of_an_empty_ledger(self, host: Host) -> None:
        result = run(host, *SIGN)
        assert result.exit_code == 0
        assert "recorded  0 sign in 0 operations" in result.output

    @pytest.mark.parametrize(
        ("tampering", "words"),
        [
            ("UPDATE events SET value = 9 WHERE key = 'k-1'", "checksum does not match"),
            ("UPDATE events SET value = 9 WHERE key = 'k-1'", "the events say 13"),
            ("UPDATE events SET properties = 'none' WHERE key = 'k-1'", "1 events are not as"),
            ("DELETE FROM events WHERE key = 'k-1'", "the events say 4 in 1 operations"),
            ("UPDATE totals SET total = 8", "the events say 7"),
            ("UPDATE buckets SET total = 8", "its operations say 7"),
        ],
    )
    def test_what_does_not_agree_is_named(self, host: Host, tampering: str, words: str) -> None:
        sign(host, 3, "k-1")
        sign(host, 4, "k-2")
        with host.metering.store.writing() as connection:
            connection.exec_driver_sql(tampering)
        result = run(host, *SIGN)
        assert result.exit_code == 1
        assert words in result.output
        assert run(host, *SIGN, "--json").exit_code == 1


class TestInvoice:
    @pytest.fixture
    def account(self, tmp_path: Path) -> Iterator[Account]:
        with billed(tmp_path) as account:
            account.subscribe("starter")
            account.use(60, "01-12")
            account.use("0.7", "01-13", STORAGE)
            account.use("a.com", "01-14", SITES)
            account.go("2026-01-20")
            account.use(10)
            account.go("2026-02-10 00:30")
            account.go("2026-02-10 02:00")
            yield account

    def explain(self, account: Account, *arguments: str) -> Result:
        return account.app.test_cli_runner().invoke(
            args=["c2meter", "explain", CUSTOMER, *arguments]
        )

    def test_from_its_line_to_the_operations(self, account: Account) -> None:
        invoice = account.invoices()[-1]
        result = self.explain(account, VERIFY, "--invoice", invoice.id)
        assert result.exit_code == 0, result.output
        assert f"invoice   {invoice.id}: 70 verify = $2.18" in result.output
        assert "billed    70 verify, 20 included; 50 verify above it = $2.18" in result.output
        assert "2026-01-10 to 2026-02-10" in result.output
        assert result.output.count("request -") == 2

    def test_quantities_are_in_the_meters_unit(self, account: Account) -> None:
        invoice = account.invoices()[-1]
        found = self.explain(account, STORAGE, "--invoice", invoice.id, "--json")
        assert found.exit_code == 0
        head = lines(found)[0]
        assert Decimal(head["invoiced"]) == Decimal(head["recorded"]) == Decimal("0.7")
        assert head["invoice"] == invoice.id

    def test_a_difference_is_named(self, account: Account) -> None:
        account.use(5, "02-09")
        account.work()  # too late: on no invoice
        invoice = account.invoices()[-1]
        result = self.explain(account, VERIFY, "--invoice", invoice.id)
        assert result.exit_code == 1
        assert "the invoice differs from what is recorded by -5" in result.output
        assert "5 dead" in result.output

    def test_of_somebody_else_or_nobody(self, account: Account) -> None:
        invoice = account.invoices()[-1]
        foreign = account.app.test_cli_runner().invoke(
            args=["c2meter", "explain", "cus_2", VERIFY, "--invoice", invoice.id]
        )
        assert foreign.exit_code == 1
        assert f"{invoice.id} is no invoice of cus_2" in foreign.output
        unknown = self.explain(account, VERIFY, "--invoice", "in_nothing")
        assert unknown.exit_code == 1
        (line,) = unknown.output.splitlines()
        assert line.startswith("Error: Stripe knows no invoice in_nothing at 127.0.0.1 test: ")

    def test_either_a_period_or_an_invoice(self, account: Account) -> None:
        both = ("--invoice", "in_1", "--period", "2026-01")
        assert self.explain(account, VERIFY, *both).exit_code == 2

    def test_without_stripe_there_is_one_clear_line(
        self, new_host: Callable[..., Host], host: Host, stripe_emulator: StripeEmulator
    ) -> None:
        keyless = run(new_host(), *SIGN, "--invoice", "in_1")
        assert keyless.exit_code == 1
        assert "no Stripe key" in keyless.output
        stripe_emulator.stop()
        unreachable = run(host, *SIGN, "--invoice", "in_1")
        assert unreachable.exit_code == 1
        assert unreachable.output.startswith("Stripe could not be read: ")
        assert len(unreachable.output.splitlines()) == 1
