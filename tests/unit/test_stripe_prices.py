"""The catalogue's prices in Stripe's words: tiers over all usage, in wire units."""

from __future__ import annotations

from decimal import Context, Decimal, localcontext
from typing import Any

import pytest

from flask_c2meter.catalogue import load
from flask_c2meter.errors import CatalogueError
from flask_c2meter.model import Meter
from flask_c2meter.money import rate
from flask_c2meter.stripe_prices import price_of


def meter(included: Any, price: Any, precision: int = 0) -> Meter:
    settings: dict[str, Any] = {
        "event_type": "v.done",
        "unit": "v",
        "aggregation": "sum",
        "precision": precision,
        "included": {} if included is None else {"starter": included},
    }
    if price is not None:
        settings["price"] = {"currency": "usd", **price}
    return load({"meters": {"v": settings}}).meter("v")


def tiers(included: Any, price: Any, precision: int = 0) -> list[dict[str, Any]]:
    found = price_of(meter(included, price, precision), "starter")
    assert found is not None
    return [tier.params() for tier in found.tiers]


FLAT = {"mode": "flat", "unit_amount": "4"}
STEPS = {
    "mode": "graduated",
    "tiers": [
        {"up_to": "1.5", "unit_amount": "2.5"},
        {"unit_amount": "0.125", "flat_amount": "100"},
    ],
}


def test_what_is_included_is_a_free_first_tier() -> None:
    assert tiers(2000, FLAT) == [
        {"up_to": 2000, "unit_amount_decimal": "0"},
        {"up_to": "inf", "unit_amount_decimal": "4"},
    ]


def test_nothing_included_needs_no_free_tier() -> None:
    assert tiers(0, FLAT) == [{"up_to": "inf", "unit_amount_decimal": "4"}]


def test_tiers_follow_what_is_included_in_wire_units() -> None:
    assert tiers("0.5", STEPS, precision=3) == [
        {"up_to": 500, "unit_amount_decimal": "0"},
        {"up_to": 2000, "unit_amount_decimal": "0.0025"},
        {"up_to": "inf", "unit_amount_decimal": "0.000125", "flat_amount_decimal": "100"},
    ]


@pytest.mark.parametrize("included", ["unlimited", None])
def test_without_a_limit_the_price_is_free(included: Any) -> None:
    assert tiers(included, FLAT) == [{"up_to": "inf", "unit_amount_decimal": "0"}]


def test_a_meter_without_a_price_has_none_at_stripe() -> None:
    assert price_of(meter(5, None), "starter") is None


def test_stripe_takes_twelve_places_of_a_wire_unit_and_the_catalogue_no_more() -> None:
    finest = {"mode": "flat", "unit_amount": "0.000000001"}
    assert tiers(0, finest, precision=3)[0]["unit_amount_decimal"] == "0.000000000001"
    with pytest.raises(CatalogueError, match="at most 9 places"):
        tiers(0, {"mode": "flat", "unit_amount": "0.0000000001"}, precision=3)


VOLUME = {"mode": "volume", "tiers": [{"up_to": 10, "unit_amount": "4"}, {"unit_amount": "2"}]}


def test_a_volume_price_bills_the_same_only_where_nothing_is_included() -> None:
    found = price_of(meter(0, VOLUME), "starter")
    assert found is not None
    assert (found.tiers_mode, len(found.tiers)) == ("volume", 2)
    with pytest.raises(CatalogueError, match="would also bill the 5 that starter includes"):
        price_of(meter(5, VOLUME), "starter")


def test_the_hosts_decimal_context_changes_nothing() -> None:
    with localcontext(Context(prec=2)):
        assert tiers("1234.567", {**FLAT, "unit_amount": "1.2345"}, precision=3) == [
            {"up_to": 1234567, "unit_amount_decimal": "0"},
            {"up_to": "inf", "unit_amount_decimal": "0.0012345"},
        ]


@pytest.mark.parametrize(
    ("amount", "currency", "text"),
    [
        ("4", "usd", "$0.04"),
        ("0", "usd", "$0.00"),
        ("4.35", "usd", "$0.0435"),
        ("900", "usd", "$9.00"),
        ("123456", "chf", "CHF 1,234.56"),
        ("0.5", "jpy", "¥0.5"),
        ("0.000000000001", "usd", "$0.00000000000001"),
    ],
)
def test_a_rate_is_written_with_every_digit(amount: str, currency: str, text: str) -> None:
    assert rate(Decimal(amount), currency) == text
