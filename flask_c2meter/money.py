"""Money as people read it. Pure; imports only :mod:`~flask_c2meter.decimals`.

Everything else of this package counts in minor units; here, and only here, they become major ones.
"""

from __future__ import annotations

from decimal import Decimal

from .decimals import EXACT

#: Currencies whose minor unit is the currency itself, and those with a thousand of them.
#: Source: docs.stripe.com/currencies.
_PLACES = {
    **dict.fromkeys("bif clp djf gnf jpy kmf krw mga pyg rwf vnd vuv xaf xof xpf".split(), 0),
    **dict.fromkeys("bhd jod kwd omr tnd".split(), 3),
}

_SYMBOLS = {"usd": "$", "eur": "€", "gbp": "£", "jpy": "¥"}


def major(amount: Decimal, currency: str) -> Decimal:
    """*amount* in major units: 2,000 cents are 20.00 dollars.

    :param amount: minor units.
    :param currency: three lower-case letters.
    """
    places = _PLACES.get(currency, 2)
    return amount.scaleb(-places, context=EXACT).quantize(Decimal(1).scaleb(-places), context=EXACT)


def written(amount: Decimal, currency: str) -> str:
    """*amount* with its currency: ``$20.00``, ``¥500``, ``CHF 12.50``."""
    number = f"{major(abs(amount), currency):,f}"
    sign = "-" if amount < 0 else ""
    symbol = _SYMBOLS.get(currency)
    return f"{sign}{symbol}{number}" if symbol else f"{sign}{currency.upper()} {number}"


def rate(amount: Decimal, currency: str) -> str:
    """*amount* with its currency and every digit: ``$0.0435``; a price may be a part of a cent.

    :param amount: minor units, >= 0.
    """
    places = _PLACES.get(currency, 2)
    exact = amount.scaleb(-places, context=EXACT).normalize(EXACT)
    if exact.as_tuple().exponent > -places:  # type: ignore[operator]
        return written(amount, currency)
    symbol = _SYMBOLS.get(currency)
    return f"{symbol}{exact:,f}" if symbol else f"{currency.upper()} {exact:,f}"
