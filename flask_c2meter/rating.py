"""Turning usage into money: included quantity, overage, flat, graduated and volume prices.

Pure; imports only :mod:`~flask_c2meter.model`, :mod:`~flask_c2meter.decimals` and
:mod:`~flask_c2meter.errors`. The promise: every amount is exact until it is rounded, and it is
rounded once, where an invoice line is made. No float comes in or out, the host's :mod:`decimal`
context changes nothing, and what cannot be priced raises: no error ever becomes cost 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import ROUND_HALF_UP, Decimal, DivisionByZero, Inexact, InvalidOperation

from .decimals import not_negative, own_context
from .errors import CatalogueError, show
from .model import Price, Tier

_ZERO = Decimal(0)
_ONE = Decimal(1)


# 15 digits of units times 15 digits and 12 places of price leave much of the 100 digits unused: a
# result that does not fit is a fault and raises.
_EXACT = own_context(100, InvalidOperation, DivisionByZero, Inexact)
_ROUNDING = own_context(100, InvalidOperation, DivisionByZero, rounding=ROUND_HALF_UP)


def overage(total: Decimal, included: Decimal | None) -> Decimal:
    """The part of *total* that is billed: what exceeds the included quantity.

    :param total: usage of the period in the meter's unit, >= 0.
    :param included: part of the plan, in the same unit; None = unlimited: never an overage.
    :return: units >= 0, fractional for storage.
    :raises TypeError: a quantity is not a ``Decimal``.
    :raises ValueError: a quantity is negative or not finite.
    """
    used = not_negative("total", total)
    if included is None or used <= not_negative("included", included):
        return _ZERO
    return _EXACT.subtract(used, included)


def amount(price: Price, units: Decimal) -> Decimal:
    """What *units* of overage cost.

    Nothing used beyond the included quantity costs nothing: no tier is entered, so that no
    ``flat_amount`` is due.

    :param units: overage in the meter's unit, >= 0, fractional for storage.
    :return: minor units of the price's currency, unrounded (see :func:`rounded`). The minor unit of
        a zero-decimal currency, such as ``jpy``, is the currency's unit itself.
    :raises CatalogueError: the price has no rate for its mode, or its tiers overlap or have no open
        end.
    :raises TypeError: *units* or an amount of the price is not a ``Decimal``.
    :raises ValueError: one of them is negative or not finite.
    """
    not_negative("units", units)
    if price.mode == "graduated":
        return graduated(units, price.tiers)
    if price.mode == "volume":
        return volume(units, price.tiers)
    if price.mode != "flat" or price.unit_amount is None:
        raise CatalogueError(f"{show(price)} has no rate: a flat price needs a unit_amount")
    return _EXACT.multiply(units, not_negative("unit_amount", price.unit_amount))


def line_amount(price: Price | None, units: Decimal) -> Decimal | None:
    """The amount of one invoice line: :func:`amount`, rounded once.

    :param price: None = the meter has no price, so that its overage has units but no amount.
    :return: whole minor units, or None without a price.
    """
    return None if price is None else rounded(amount(price, units))


def least_amount(price: Price | None) -> Decimal | None:
    """What is due on a plan that includes nothing, even if nothing is used.

    Its first tier is then the price's own, and Stripe always bills the flat fee of that.

    :return: whole minor units, or None without a price.

    Source: docs.stripe.com/products-prices/pricing-models, flat fees of tiers.
    """
    if price is None:
        return None
    return rounded(price.tiers[0].flat_amount) if price.tiers else _ZERO


def rounded(exact: Decimal) -> Decimal:
    """*exact* in whole minor units, half up. Round a line once, at its end, never its parts.

    :param exact: minor units, >= 0.
    """
    return not_negative("amount", exact).quantize(_ONE, context=_ROUNDING)


def graduated(units: Decimal, tiers: Sequence[Tier]) -> Decimal:
    """Price *units* tier by tier, each tier at its own rate.

    The same as a Stripe price over total usage whose first tier is the included quantity, free.

    :param units: overage in the meter's unit, >= 0, fractional for storage.
    :param tiers: ascending ``up_to``; only the last is open.
    :return: amount in minor units, unrounded (rounding belongs to the invoice line).
    :raises CatalogueError: tiers overlap or have no open end.

    Source: Stripe Price ``tiers_mode="graduated"``.
    """
    _check_tiers(tiers)
    total = below = _ZERO
    for tier in tiers:
        if units <= below:
            break
        upper = units if tier.up_to is None else min(units, tier.up_to)
        total = _EXACT.add(total, _at_rate(tier, _EXACT.subtract(upper, below)))
        below = upper
    return total


def volume(units: Decimal, tiers: Sequence[Tier]) -> Decimal:
    """Price all *units* at the rate of the one tier that their number falls into.

    :param units: overage in the meter's unit, >= 0, fractional for storage.
    :param tiers: ascending ``up_to``, each of which still belongs to its tier; only the last is
        open.
    :return: amount in minor units, unrounded.
    :raises CatalogueError: tiers overlap or have no open end.

    Source: Stripe Price ``tiers_mode="volume"``.
    """
    _check_tiers(tiers)
    if not units:
        return _ZERO
    tier = next(each for each in tiers if each.up_to is None or units <= each.up_to)
    return _at_rate(tier, units)


def _at_rate(tier: Tier, units: Decimal) -> Decimal:
    return _EXACT.fma(tier.unit_amount, units, tier.flat_amount)


def _check_tiers(tiers: Sequence[Tier]) -> None:
    """The catalogue has checked its own; a price made in code comes here first."""
    below = _ZERO
    for number, tier in enumerate(tiers):
        not_negative(f"tiers[{number}].unit_amount", tier.unit_amount)
        not_negative(f"tiers[{number}].flat_amount", tier.flat_amount)
        is_last = number == len(tiers) - 1
        if (tier.up_to is None) is not is_last:
            raise CatalogueError(f"tiers[{number}].up_to = {tier.up_to}: only the last is open")
        if tier.up_to is not None:
            if not_negative(f"tiers[{number}].up_to", tier.up_to) <= below:
                raise CatalogueError(
                    f"tiers[{number}].up_to = {tier.up_to}: tiers overlap, list them ascending"
                )
            below = tier.up_to
    if not tiers:
        raise CatalogueError("a graduated or volume price needs tiers; the last one is open")
