"""The endpoints of the catalogue: products and prices.

Imports ``account``, ``bodies``, ``calls``, ``meters``, ``prices``, ``referee``, ``terms`` and
``wire``.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from .account import Account
from .bodies import price_body, product_body, seconds
from .calls import EXPAND, PAGING, Call, Route, is_within, missing, page
from .meters import Meter
from .prices import Price, Product, Recurring, Tier, new_product
from .referee import (
    Shape,
    amount,
    boolean,
    decimal,
    list_of,
    metadata,
    one_of,
    span,
    text,
    whole_number,
)
from .terms import new_id
from .wire import Refusal

# --- products -------------------------------------------------------------------------------


def _create_product(account: Account, call: Call) -> Any:
    product = new_product(call.params["name"], call.now, call.params.get("id"))
    _edit_product(product, call.params)
    return product_body(account.catalogue.add_product(product), call.livemode)


def _update_product(account: Account, call: Call) -> Any:
    product = _find_product(account, call)
    _edit_product(product, call.params)
    product.updated = call.now
    return product_body(product, call.livemode)


def _edit_product(product: Product, params: Mapping[str, Any]) -> None:
    product.name = params.get("name", product.name)
    product.is_active = params.get("active", product.is_active)
    product.description = params.get("description", product.description)
    product.unit_label = params.get("unit_label", product.unit_label)
    product.metadata = {**product.metadata, **params.get("metadata", {})}


def _retrieve_product(account: Account, call: Call) -> Any:
    return product_body(_find_product(account, call), call.livemode)


def _list_products(account: Account, call: Call) -> Any:
    params = call.params
    found = [
        product_body(product, call.livemode)
        for product in reversed(account.catalogue.products.values())
        if params.get("active", product.is_active) == product.is_active
        and product.id in params.get("ids", [product.id])
        and is_within(params.get("created"), seconds(product.created))
    ]
    return page(found, PRODUCTS, call)


def _find_product(account: Account, call: Call) -> Product:
    product = account.catalogue.products.get(call.id)
    if product is None:
        raise missing("product", call.id)
    return product


# --- prices ---------------------------------------------------------------------------------


def _create_price(account: Account, call: Call) -> Any:
    params = call.params
    price = Price(
        id=new_id("price"),
        product=_product_of(account, call),
        currency=params["currency"].lower(),
        created=call.now,
        unit_amount=_one_amount(params, "unit_amount"),
        tiers=[_tier(tier) for tier in params.get("tiers", ())],
        tiers_mode=params.get("tiers_mode"),
        recurring=_recurring(account, params["recurring"]) if "recurring" in params else None,
        lookup_key=params.get("lookup_key"),
        nickname=params.get("nickname"),
        metadata=params.get("metadata", {}),
        is_active=params.get("active", True),
    )
    if params.get("billing_scheme", "per_unit") != ("tiered" if price.tiers else "per_unit"):
        raise Refusal("Tiers go with billing_scheme=tiered, and only they.", param="billing_scheme")
    account.catalogue.add_price(price, transfer_lookup_key=params.get("transfer_lookup_key", False))
    return _priced(price, call, "tiers")


def _product_of(account: Account, call: Call) -> Product:
    params = call.params
    if ("product" in params) is ("product_data" in params):
        raise Refusal("Pass either product or product_data.", param="product")
    if "product" in params:
        return account.catalogue.find_product(params["product"])
    data = params["product_data"]
    product = new_product(data["name"], call.now, data.get("id"))
    _edit_product(product, data)
    return product


def _one_amount(params: Mapping[str, Any], name: str) -> Decimal | None:
    both = params.get(name), params.get(f"{name}_decimal")
    if None not in both:
        raise Refusal(f"Pass only one of {name} and {name}_decimal.", param=name)
    return both[0] if both[1] is None else both[1]


def _tier(params: Mapping[str, Any]) -> Tier:
    return Tier(
        params["up_to"], _one_amount(params, "unit_amount"), _one_amount(params, "flat_amount")
    )


def _recurring(account: Account, params: Mapping[str, Any]) -> Recurring:
    is_metered = params.get("usage_type") == "metered"
    if is_metered is not ("meter" in params):
        raise Refusal(
            "A metered price names its meter in recurring[meter]; a licensed one has none.",
            param="recurring[meter]",
        )
    meter = _meter(account, params["meter"]) if is_metered else None
    return Recurring(params["interval"], params.get("interval_count", 1), meter)


def _meter(account: Account, id: str) -> Meter:
    meter = account.meters.by_id.get(id)
    if meter is None:
        raise Refusal(
            f"No such billing meter: '{id}'", code="resource_missing", param="recurring[meter]"
        )
    return meter


def _update_price(account: Account, call: Call) -> Any:
    price, params = _find_price(account, call), call.params
    if "lookup_key" in params:
        account.catalogue.name_price(
            price, params["lookup_key"], transfer=params.get("transfer_lookup_key", False)
        )
    price.is_active = params.get("active", price.is_active)
    price.nickname = params.get("nickname", price.nickname)
    price.metadata = {**price.metadata, **params.get("metadata", {})}
    return _priced(price, call, "tiers")


def _retrieve_price(account: Account, call: Call) -> Any:
    return _priced(_find_price(account, call), call, "tiers")


def _list_prices(account: Account, call: Call) -> Any:
    found = [
        _priced(price, call, "data.tiers")
        for price in reversed(account.catalogue.prices.values())
        if _is_wanted(price, call.params)
    ]
    return page(found, PRICES, call)


def _is_wanted(price: Price, params: Mapping[str, Any]) -> bool:
    kind = "recurring" if price.recurring else "one_time"
    wanted = params.get("recurring", {})
    usage_type = "metered" if price.meter else "licensed"
    return (
        params.get("active", price.is_active) == price.is_active
        and params.get("product", price.product.id) == price.product.id
        and params.get("currency", price.currency).lower() == price.currency
        and params.get("type", kind) == kind
        and ("lookup_keys" not in params or price.lookup_key in params["lookup_keys"])
        and wanted.get("usage_type", usage_type) == usage_type
        and ("interval" not in wanted or (price.rhythm or ("",))[0] == wanted["interval"])
        and ("meter" not in wanted or (price.meter and price.meter.id) == wanted["meter"])
        and is_within(params.get("created"), seconds(price.created))
    )


def _find_price(account: Account, call: Call) -> Price:
    price = account.catalogue.prices.get(call.id)
    if price is None:
        raise missing("price", call.id)
    return price


def _priced(price: Price, call: Call, path: str) -> dict[str, Any]:
    return price_body(price, call.livemode, with_tiers=call.expands(path))


def _up_to(name: str, value: Any) -> int | None:
    return None if value == "inf" else whole_number(name, value)


def _interval_count(name: str, value: Any) -> int:
    count = whole_number(name, value)
    if not 1 <= count <= 1095:
        raise Refusal(f"Invalid {name}: must be between 1 and 1095", param=name)
    return count


# --- the table ------------------------------------------------------------------------------

_WORDS = {"description": text(5000), "unit_label": text(12)}
_PRODUCT: dict[str, Any] = {"active": boolean, "metadata": metadata, **_WORDS}
_NEW_PRODUCT = Shape({"name": text(5000)}, {"id": text(5000), **_PRODUCT, **EXPAND})
_INTERVAL = one_of("day", "week", "month", "year")
_USAGE = one_of("licensed", "metered")
_TIER = Shape(
    {"up_to": _up_to},
    {
        "flat_amount": amount,
        "flat_amount_decimal": decimal,
        "unit_amount": amount,
        "unit_amount_decimal": decimal,
    },
)
_PRICE: dict[str, Any] = {
    "active": boolean,
    "lookup_key": text(200),
    "metadata": metadata,
    "nickname": text(5000),
    "transfer_lookup_key": boolean,
    **EXPAND,
}
_NEW_PRICE = Shape(
    {"currency": text(3)},
    {
        "billing_scheme": one_of("per_unit", "tiered"),
        "product": text(5000),
        "product_data": Shape({"name": text(5000)}, {"id": text(5000), **_PRODUCT}),
        "recurring": Shape(
            {"interval": _INTERVAL},
            {"interval_count": _interval_count, "meter": text(5000), "usage_type": _USAGE},
        ),
        "tiers": list_of(_TIER),
        "tiers_mode": one_of("graduated", "volume"),
        "unit_amount": amount,
        "unit_amount_decimal": decimal,
        **_PRICE,
    },
)
_LIST_PRICES = Shape(
    optional={
        "active": boolean,
        "created": span,
        "currency": text(3),
        "lookup_keys": list_of(text(200), max_items=10),
        "product": text(5000),
        "recurring": Shape(
            optional={"interval": _INTERVAL, "meter": text(5000), "usage_type": _USAGE}
        ),
        "type": one_of("one_time", "recurring"),
        **PAGING,
        **EXPAND,
    }
)
_LIST_PRODUCTS = Shape(
    optional={
        "active": boolean,
        "created": span,
        "ids": list_of(text(5000)),
        **PAGING,
        **EXPAND,
    }
)

PRODUCTS = "/v1/products"
PRICES = "/v1/prices"
PRICE_ROUTES = (
    Route("POST", PRODUCTS, _create_product, _NEW_PRODUCT),
    Route("GET", PRODUCTS, _list_products, _LIST_PRODUCTS),
    Route("GET", PRODUCTS + "/{id}", _retrieve_product, Shape(optional=EXPAND)),
    Route(
        "POST",
        PRODUCTS + "/{id}",
        _update_product,
        Shape(optional={"name": text(5000), **_PRODUCT, **EXPAND}),
    ),
    Route("POST", PRICES, _create_price, _NEW_PRICE),
    Route("GET", PRICES, _list_prices, _LIST_PRICES),
    Route("GET", PRICES + "/{id}", _retrieve_price, Shape(optional=EXPAND)),
    Route("POST", PRICES + "/{id}", _update_price, Shape(optional=_PRICE)),
)
