"""Decimal arithmetic of our own, whatever the host has set."""

from __future__ import annotations

import decimal
from collections.abc import Iterator
from decimal import ROUND_UP, Decimal, Inexact

import pytest

from flask_c2meter.decimals import EXACT, exactly, not_negative, own_context


@pytest.fixture
def hostile() -> Iterator[None]:
    """The default of new contexts, and the thread's, as a host may have set them."""
    default = decimal.DefaultContext
    before = default.copy()
    default.prec, default.rounding, default.Emax = 2, ROUND_UP, 3
    default.traps[Inexact] = True
    try:
        with decimal.localcontext(decimal.Context()):
            yield
    finally:
        default.prec, default.rounding, default.Emax = before.prec, before.rounding, before.Emax
        default.traps[Inexact] = before.traps[Inexact]


@pytest.mark.usefixtures("hostile")
def test_a_context_of_our_own_owes_the_host_nothing() -> None:
    assert repr(own_context(60, decimal.InvalidOperation, decimal.DivisionByZero)) == repr(EXACT)
    assert own_context(4).divide(Decimal(20_000), Decimal(3)) == Decimal("6667")


@pytest.mark.usefixtures("hostile")
def test_what_computes_exactly_does_so_in_any_thread() -> None:
    with pytest.raises(Inexact):
        Decimal(1) / 3
    third = exactly(lambda: Decimal(1) / 3)()
    assert len(third.as_tuple().digits) == EXACT.prec


def test_a_quantity_is_a_decimal_and_not_negative() -> None:
    assert not_negative("total", Decimal("1.5")) == Decimal("1.5")
    with pytest.raises(TypeError, match="total must be a Decimal, not float"):
        not_negative("total", 1.5)  # type: ignore[arg-type]
    for wrong in ("-1", "NaN", "Infinity"):
        with pytest.raises(ValueError, match="total = "):
            not_negative("total", Decimal(wrong))
