"""What provision has made bills as the catalogue says: invoice and bill are one, to the minor unit.

The invoices are rated by the emulator's own code, from prices that came over the wire and from the
meter events that the worker has sent.
"""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from billing_rig import CUSTOMER, SECOND, Account, billed

from flask_c2meter.stripe_objects import lookup_key

STEPS = [{"up_to": 50, "unit_amount": "4.35"}, {"unit_amount": "2.5", "flat_amount": "100"}]


def meter(price: dict[str, Any], included: Any, precision: int = 0) -> dict[str, Any]:
    return {
        "event_type": "x",
        "unit": "x",
        "aggregation": "max" if precision else "sum",
        "precision": precision,
        "included": {"starter": included},
        "price": {"currency": "usd", **price},
    }


METERS = {
    "flat": meter({"mode": "flat", "unit_amount": "4"}, 20),
    "flat_from_0": meter({"mode": "flat", "unit_amount": "0.333333333333"}, 0),
    "graduated": meter({"mode": "graduated", "tiers": STEPS}, 20),
    "graduated_from_0": meter({"mode": "graduated", "tiers": STEPS}, 0),
    "fee_first": meter({"mode": "graduated", "tiers": STEPS[::-1][:1]}, 0),
    "volume": meter({"mode": "volume", "tiers": STEPS}, 0),
    "places": meter({"mode": "flat", "unit_amount": "12.5"}, "0.5", precision=3),
    "graduated_places": meter(
        {
            "mode": "graduated",
            "tiers": [{"up_to": "1.5", "unit_amount": "2.5"}, {"unit_amount": 9}],
        },
        "0.25",
        precision=3,
    ),
    "unlimited": meter({"mode": "flat", "unit_amount": "4"}, "unlimited"),
}
CATALOGUE: dict[str, Any] = {"plans": {"starter": {}}, "meters": METERS}


#: Usage of every meter in one cycle after another, around each end of a tier: of those that count
#: in whole units, and of those with places.
CYCLES = [
    (0, "0"),
    (1, "0.001"),
    (19, "0.25"),
    (20, "0.251"),
    (21, "0.5"),
    (49, "0.501"),
    (50, "1.75"),
    (51, "1.751"),
    (70, "2.125"),
    (71, "7"),
    (1000, "999.999"),
]


@pytest.fixture(scope="module")
def account(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Account]:
    """A customer of all meters after eleven cycles."""
    folder: Path = tmp_path_factory.mktemp("bills")
    with billed(folder, C2METER_CATALOGUE=CATALOGUE) as account:
        account.stripe.add_subscription(CUSTOMER, [lookup_key("starter", name) for name in METERS])
        account.settle()
        for number, (whole, fine) in enumerate(CYCLES, start=1):
            for name in METERS:
                value = fine if METERS[name]["precision"] else whole
                if Decimal(value):
                    account.metering.record(name, CUSTOMER, value=value)
            account.go(f"{2026 + number // 12}-{number % 12 + 1:02}-11")
        yield account


def test_every_invoice_is_the_bill(account: Account) -> None:
    invoices = account.invoices()
    assert len(invoices) == len(CYCLES)
    for invoice, used in zip(invoices, CYCLES, strict=True):
        end = max(line.period_end for line in invoice.lines)
        ours = {line.meter: line.amount for line in account.bill(end - SECOND)}
        theirs = {line.meter: line.amount for line in invoice.lines}
        assert ours == theirs, f"with {used} used"
        assert sum(ours.values()) == invoice.total
    assert list(account.store.verify()) == []


def test_amounts_worked_out_by_hand(account: Account) -> None:
    amounts = [{line.meter: line.amount for line in each.lines} for each in account.invoices()]
    by_use = dict(zip((whole for whole, _ in CYCLES), amounts, strict=True))
    assert by_use[21]["flat"] == 4
    assert by_use[1000]["flat"] == 3920
    assert by_use[1000]["flat_from_0"] == 333
    assert by_use[71]["graduated"] == 320  # of 51, 50 at 4.35, one at 2.5 and the fee of 100
    assert by_use[50]["volume"] == 218  # 50 at 4.35 are 217.5
    assert by_use[71]["volume"] == 278  # 71 at 2.5 and the fee of 100 are 277.5
    assert by_use[0]["fee_first"] == 100
    assert by_use[1000]["places"] == 12494  # 999.499 at 12.5 are 12,493.7375
    assert by_use[1000]["graduated_places"] == 8988  # 1.5 at 2.5, 998.249 at 9 are 8,987.991
    assert {each["unlimited"] for each in amounts} == {0}
