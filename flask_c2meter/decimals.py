"""Decimal arithmetic that owes nothing to the host; imports nothing of the package.

The host may have set the thread's context, and :data:`decimal.DefaultContext` before us, to any
precision and rounding. What matters is computed with a context of our own.
"""

from __future__ import annotations

from collections.abc import Callable
from decimal import (
    ROUND_HALF_EVEN,
    Context,
    Decimal,
    DecimalException,
    DivisionByZero,
    InvalidOperation,
    localcontext,
)
from functools import wraps
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def own_context(
    prec: int, *traps: type[DecimalException], rounding: str = ROUND_HALF_EVEN
) -> Context:
    """A context of *prec* digits in which *traps*, and nothing else, raise."""
    # Spelled out in full: what is left out comes from DefaultContext.
    return Context(
        prec=prec,
        rounding=rounding,
        Emin=-999_999,
        Emax=999_999,
        capitals=1,
        clamp=0,
        flags=[],
        traps=list(traps),
    )


#: For quantities and amounts, whose 30 digits leave much of it unused.
EXACT: Context = own_context(60, InvalidOperation, DivisionByZero)


def exactly(function: Callable[P, R]) -> Callable[P, R]:
    """*function*, computing in :data:`EXACT` whatever the thread's context is."""

    @wraps(function)
    def compute(*args: P.args, **kwargs: P.kwargs) -> R:
        with localcontext(EXACT):
            return function(*args, **kwargs)

    return compute


def not_negative(name: str, number: Decimal) -> Decimal:
    """*number* itself if it can be a quantity or an amount.

    :param name: what it is, for the message.
    :raises TypeError: it is not a ``Decimal``.
    :raises ValueError: it is negative or not finite.
    """
    if not isinstance(number, Decimal):
        raise TypeError(f"{name} must be a Decimal, not {type(number).__name__}")
    if not number.is_finite() or number < 0:
        raise ValueError(f"{name} = {number} must be a number >= 0")
    return number
