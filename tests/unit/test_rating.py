"""What usage costs: exact to the minor unit, whatever the price and the host's decimal settings."""

from __future__ import annotations

import decimal
from collections.abc import Iterator
from decimal import Decimal
from fractions import Fraction
from math import floor
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flask_c2meter.catalogue import load
from flask_c2meter.errors import CatalogueError
from flask_c2meter.model import Price, Tier
from flask_c2meter.rating import amount, line_amount, overage, rounded

FOUR_CENTS = Price("flat", "usd", unit_amount=Decimal(4))
FIRST_TIERS = (
    Tier(Decimal(100), Decimal(10), flat_amount=Decimal(500)),
    Tier(Decimal(1000), Decimal("7.5"), flat_amount=Decimal(50)),
    Tier(None, Decimal(5)),
)


def tiered(mode: str, *tiers: Tier, currency: str = "usd") -> Price:
    return Price(mode, currency, tiers=tiers)  # type: ignore[arg-type]


def cost(price: Price, units: str | int) -> Decimal:
    return amount(price, Decimal(units))


# -- the included quantity -------------------------------------------------------------------------


def test_the_documents_own_case_is_500_units_and_2000_minor_units() -> None:
    units = overage(Decimal(2500), Decimal(2000))
    assert units == 500
    assert line_amount(FOUR_CENTS, units) == 2000


def test_the_default_catalogues_verify_price_gives_the_documents_amount() -> None:
    meter = load().meters["verify_operations"]
    units = overage(Decimal(2500), meter.included["starter"])
    assert line_amount(meter.price, units) == 2000


@pytest.mark.parametrize(
    ("total", "included", "units"),
    [
        ("0", "0", "0"),
        ("1", "0", "1"),
        ("1999", "2000", "0"),
        ("2000", "2000", "0"),
        ("2001", "2000", "1"),
        ("10.001", "10", "0.001"),
        ("999999999999999", "1", "999999999999998"),
    ],
)
def test_only_what_exceeds_the_included_quantity_is_billed(
    total: str, included: str, units: str
) -> None:
    assert overage(Decimal(total), Decimal(included)) == Decimal(units)


def test_an_unlimited_plan_has_no_overage() -> None:
    assert overage(Decimal(10**15 - 1), None) == 0


def test_a_meter_without_a_price_has_units_but_no_amount() -> None:
    assert line_amount(None, Decimal(500)) is None


# -- prices ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("units", "expected"),
    [
        ("0", "0"),  # no tier is entered: no flat_amount is due
        ("0.001", "500.01"),
        ("1", "510"),
        ("100", "1500"),
        ("100.001", "1550.0075"),
        ("101", "1557.5"),
        ("1000", "8300"),
        ("1001", "8305"),
        ("2000", "13300"),
    ],
)
def test_a_graduated_price_bills_each_tier_at_its_own_rate(units: str, expected: str) -> None:
    assert cost(tiered("graduated", *FIRST_TIERS), units) == Decimal(expected)


@pytest.mark.parametrize(
    ("units", "expected"),
    [
        ("0", "0"),
        ("1", "510"),
        ("100", "1500"),
        ("100.001", "800.0075"),
        ("101", "807.5"),
        ("1000", "7550"),
        ("1001", "5005"),
    ],
)
def test_a_volume_price_bills_all_units_at_the_rate_of_the_tier_reached(
    units: str, expected: str
) -> None:
    assert cost(tiered("volume", *FIRST_TIERS), units) == Decimal(expected)


def test_amounts_of_twelve_decimal_places_stay_exact_until_the_line_is_rounded() -> None:
    price = Price("flat", "usd", unit_amount=Decimal("0.000000000001"))
    assert cost(price, 999_999_999_999_999) == Decimal("999.999999999999")
    assert line_amount(price, Decimal(499_999_999_999)) == 0
    assert line_amount(price, Decimal(500_000_000_000)) == 1


@pytest.mark.parametrize(
    ("exact", "whole"),
    [("0.5", 1), ("1.5", 2), ("2.5", 3), ("2.499999999999", 2), ("2.500000000001", 3), ("7", 7)],
)
def test_half_a_minor_unit_is_rounded_up(exact: str, whole: int) -> None:
    assert rounded(Decimal(exact)) == whole
    assert rounded(Decimal(exact)).as_tuple().exponent == 0


def test_a_line_is_rounded_once_and_not_tier_by_tier() -> None:
    halves = [Tier(Decimal(1), Decimal("0.5")), Tier(None, Decimal("0.5"))]
    assert line_amount(tiered("graduated", *halves), Decimal(2)) == 1


def test_a_zero_decimal_currency_is_billed_in_its_own_unit() -> None:
    yen = Price("flat", "jpy", unit_amount=Decimal("0.5"))
    assert line_amount(yen, Decimal(3)) == 2


# -- what cannot be priced -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "price",
    [
        Price("flat", "usd"),
        tiered("graduated"),
        tiered("volume"),
        tiered("graduated", Tier(Decimal(10), Decimal(1))),
        tiered("volume", Tier(Decimal(10), Decimal(1))),
        tiered("graduated", Tier(None, Decimal(1)), Tier(None, Decimal(2))),
        tiered("graduated", Tier(Decimal(0), Decimal(1)), Tier(None, Decimal(1))),
        tiered(
            "volume", Tier(Decimal(5), Decimal(1)), Tier(Decimal(5), Decimal(2)), FIRST_TIERS[2]
        ),
        tiered("stairs", FIRST_TIERS[2]),
    ],
)
@pytest.mark.parametrize("units", [0, 1])
def test_a_price_without_a_rate_for_every_unit_raises_and_never_costs_0(
    price: Price, units: int
) -> None:
    with pytest.raises(CatalogueError):
        cost(price, units)


@pytest.mark.parametrize("bad", [4.0, 4, "4", True, None])
def test_a_float_or_anything_else_that_is_no_decimal_is_refused(bad: object) -> None:
    with pytest.raises((TypeError, CatalogueError)):
        amount(Price("flat", "usd", unit_amount=bad), Decimal(1))  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        amount(FOUR_CENTS, bad)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        amount(tiered("volume", Tier(None, bad)), Decimal(1))  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        overage(bad, None)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        rounded(bad)  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", ["-1", "NaN", "sNaN", "Infinity", "-Infinity"])
def test_negative_and_infinite_quantities_are_refused(bad: str) -> None:
    number = Decimal(bad)
    with pytest.raises(ValueError):
        amount(FOUR_CENTS, number)
    with pytest.raises(ValueError):
        overage(number, Decimal(1))
    with pytest.raises(ValueError):
        overage(Decimal(1), number)
    with pytest.raises(ValueError):
        amount(tiered("graduated", Tier(None, Decimal(1), flat_amount=number)), Decimal(1))


def test_an_amount_too_long_to_be_exact_raises() -> None:
    with pytest.raises(decimal.Inexact):
        cost(Price("flat", "usd", unit_amount=Decimal("1." + "1" * 60)), "1." + "1" * 60)


@pytest.mark.parametrize(
    "context",
    [
        decimal.Context(prec=3, rounding=decimal.ROUND_DOWN),
        decimal.Context(prec=3, traps=[decimal.Inexact, decimal.Rounded]),
        decimal.Context(prec=1, Emax=1, Emin=-1, clamp=1, traps=[]),
    ],
)
def test_the_hosts_decimal_context_changes_nothing(context: decimal.Context) -> None:
    with decimal.localcontext(context):
        units = overage(Decimal("123456.789"), Decimal("2000"))
        exact = amount(tiered("graduated", *FIRST_TIERS), units)
        whole = rounded(exact)
    assert (str(units), exact, str(whole)) == ("121456.789", Decimal("610583.945"), "610584")


# -- case 23: against fractions, priced as Stripe would --------------------------------------------


def stripe_amount(price: Price, total: int, included: int, precision: int) -> int:
    """An independent way to the same invoice line, in fractions and wire units.

    A graduated price as ``provision`` writes it at Stripe: over *total* usage, the included
    quantity as a free first tier. Stripe's volume price would bill the included units as well, so
    that it has to be over the overage.
    """
    scale = 10**precision
    if price.mode == "graduated":
        tiers = [(Fraction(included), Fraction(0), Fraction(0))] if included else []
        tiers += stripe_tiers(price, included, scale)
        exact, below = Fraction(0), Fraction(0)
        for up_to, unit_amount, flat_amount in tiers:
            if total > below:
                exact += (min(Fraction(total), up_to) - below) * unit_amount + flat_amount
            below = up_to
    else:
        units = max(0, total - included)
        if price.mode == "flat":
            exact = units * Fraction(price.unit_amount or 0) / scale
        else:
            rates = [rate for rate in stripe_tiers(price, 0, scale) if units <= rate[0]]
            exact = units * rates[0][1] + rates[0][2] if units else Fraction(0)
    return floor(exact + Fraction(1, 2))


def stripe_tiers(price: Price, shift: int, scale: int) -> list[tuple[Fraction, Fraction, Fraction]]:
    return [
        (
            Fraction(10**30) if tier.up_to is None else shift + Fraction(tier.up_to) * scale,
            Fraction(tier.unit_amount) / scale,
            Fraction(tier.flat_amount),
        )
        for tier in price.tiers
    ]


def random_price(random: Random, precision: int) -> Price:
    mode = random.choice(("flat", "graduated", "volume"))
    currency = random.choice(("usd", "eur", "jpy"))
    if mode == "flat":
        return Price("flat", currency, unit_amount=random_amount(random, 12 - precision))
    edges: list[Decimal | None] = [
        Decimal(edge).scaleb(-precision)
        for edge in sorted(
            random.sample(range(1, 10 ** random.randint(1, 7)), random.randint(0, 4))
        )
    ]
    return tiered(
        mode,
        *(
            Tier(edge, random_amount(random, 12 - precision), random_amount(random, 12))
            for edge in [*edges, None]
        ),
        currency=currency,
    )


def random_amount(random: Random, places: int) -> Decimal:
    return Decimal(random.randrange(10 ** random.randint(1, 15))).scaleb(-random.randint(0, places))


def random_lines(random: Random, count: int) -> Iterator[tuple[Price, int, int, int]]:
    """Prices with usage: anywhere, at the included quantity, and at and around tier edges."""
    for _ in range(count // 20):
        precision = random.choice((0, 0, 3, 9))
        price = random_price(random, precision)
        included = random.choice((0, 1, 2000, random.randrange(10**9)))
        edges = [included]
        for tier in price.tiers[:-1]:
            edges.append(included + int((tier.up_to or Decimal(0)).scaleb(precision)))
        for number in range(20):
            if number % 2:
                total = random.choice(edges) + random.choice((-1, 0, 1))
            else:
                total = random.randrange(10 ** random.randint(1, 15))
            yield price, max(0, total), included, precision


def mismatches(count: int, seed: int) -> list[str]:
    found = []
    for price, total, included, precision in random_lines(Random(seed), count):
        value, allowance = (Decimal(units).scaleb(-precision) for units in (total, included))
        ours = line_amount(price, overage(value, allowance))
        theirs = stripe_amount(price, total, included, precision)
        if ours != theirs:
            found.append(f"{price} {total} of {included}: {ours}, not {theirs}")
    return found


def test_amounts_agree_with_the_fractions_oracle() -> None:
    assert mismatches(20_000, seed=23) == []


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_million_amounts_agree_with_the_fractions_oracle() -> None:
    assert mismatches(1_000_000, seed=2323) == []


# -- laws ------------------------------------------------------------------------------------------

QUANTITIES = st.decimals(0, 10**9, places=3)
RATES = st.decimals(0, 10**6, places=9)


@given(QUANTITIES, RATES)
def test_one_open_tier_is_a_flat_price(units: Decimal, rate: Decimal) -> None:
    flat = amount(Price("flat", "usd", unit_amount=rate), units)
    assert amount(tiered("graduated", Tier(None, rate)), units) == flat
    assert amount(tiered("volume", Tier(None, rate)), units) == flat


@given(QUANTITIES, QUANTITIES.filter(bool), RATES)
def test_splitting_a_tier_changes_no_amount(units: Decimal, edge: Decimal, rate: Decimal) -> None:
    split = tiered("graduated", Tier(edge, rate), Tier(None, rate))
    assert amount(split, units) == amount(tiered("graduated", Tier(None, rate)), units)


@given(QUANTITIES, QUANTITIES)
def test_more_usage_never_costs_less_under_a_graduated_price(one: Decimal, other: Decimal) -> None:
    price = tiered("graduated", *FIRST_TIERS)
    less, more = sorted((one, other))
    assert amount(price, less) <= amount(price, more)
