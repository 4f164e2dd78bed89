"""Loading the catalogue: the packaged one is the document's, and every mistake names its cure."""

from __future__ import annotations

import copy
import json
import tomllib
from decimal import Decimal
from pathlib import Path
from typing import Any

import limits
import pytest

from flask_c2meter.catalogue import DEFAULT_PATH, load
from flask_c2meter.errors import CatalogueError, CatalogueTypeError, UnknownMeter
from flask_c2meter.model import Aggregation, Plan, Price, Tier

MINIMAL = {"event_type": "page.rendered", "unit": "page", "aggregation": "sum"}


def with_meter(**keys: Any) -> dict[str, Any]:
    """A source with one meter, ``pages``."""
    return {"meters": {"pages": {**MINIMAL, **keys}}}


def default_source() -> dict[str, Any]:
    return tomllib.loads(DEFAULT_PATH.read_text(encoding="utf-8"))


def test_the_default_has_the_documents_seven_meters() -> None:
    found = {
        meter.name: (meter.event_type, meter.aggregation.value, meter.unit, meter.billable)
        for meter in load().meters.values()
    }
    assert found == {
        "verify_operations": ("verify.completed", "sum", "verify", True),
        "sign_operations": ("sign.completed", "sum", "sign", True),
        "storage_gb": ("storage.measured", "max", "gb", True),
        "active_sites": ("site.activated", "unique_count", "site", True),
        "api_calls": ("api.request", "sum", "call", False),
        "support_requests": ("support.ticket.created", "count", "request", False),
        "dashboard_views": ("dashboard.viewed", "sum", "view", False),
    }


@pytest.mark.parametrize(
    ("meter", "starter", "growth", "scale"),
    [
        ("verify_operations", 2000, 15000, 60000),
        ("sign_operations", 200, 1000, 5000),
        ("storage_gb", 10, 50, 200),
        ("active_sites", 2, 5, 10),
    ],
)
def test_the_default_includes_the_documents_quantities(
    meter: str, starter: int, growth: int, scale: int
) -> None:
    included = load().meter(meter).included
    assert included == {"starter": starter, "growth": growth, "scale": scale}
    assert all(isinstance(quantity, Decimal) for quantity in included.values())


def test_the_defaults_other_rules_are_the_documents() -> None:
    catalogue = load()
    verify, sign = catalogue.meter("verify_operations"), catalogue.meter("sign_operations")
    assert (verify.rate_limit, sign.rate_limit) == ("100 per minute", "50 per minute")
    assert verify.filter == {"verification_result": True}
    assert verify.price == Price("flat", "usd", unit_amount=Decimal(4))
    assert [meter.name for meter in catalogue.meters.values() if meter.price] == [verify.name]
    storage = catalogue.meter("storage_gb")
    assert storage.precision == 3
    assert storage.value_from == ("storage_gb", "evidence_gb", "manifest_gb", "backup_gb")
    assert catalogue.meter("active_sites").unique_by == "domain"
    assert catalogue.plans == {
        "starter": Plan("starter", "Starter"),
        "growth": Plan("growth", "Growth"),
        "scale": Plan("scale", "Scale"),
    }


def test_toml_json_and_mapping_say_the_same(tmp_path: Path) -> None:
    source = default_source()
    as_json = tmp_path / "catalogue.json"
    as_json.write_text(json.dumps(source))
    assert load(source) == load(as_json) == load(str(as_json)) == load(DEFAULT_PATH) == load()


def test_a_mapping_is_not_changed_and_does_not_change_the_catalogue() -> None:
    source = default_source()
    before = copy.deepcopy(source)
    catalogue = load(source)
    assert source == before
    source["meters"]["verify_operations"]["filter"]["verification_result"] = False
    assert catalogue.meter("verify_operations").filter == {"verification_result": True}


def test_a_catalogue_cannot_be_changed() -> None:
    catalogue = load()
    with pytest.raises(TypeError):
        catalogue.meters["x"] = catalogue.meter("api_calls")  # type: ignore[index]
    with pytest.raises(TypeError):
        catalogue.meter("verify_operations").included["pro"] = None  # type: ignore[index]


def test_a_meter_needs_little() -> None:
    meter = load(with_meter()).meter("pages")
    assert meter.display_name == "Pages"
    assert (meter.aggregation, meter.precision) == (Aggregation.SUM, 0)
    assert meter.billable
    assert meter.price is meter.rate_limit is None


def test_without_plans_of_its_own_a_source_has_the_documents() -> None:
    assert load(with_meter()).plans == load().plans
    source = with_meter(included={"pro": "0.5"}, precision=1) | {"plans": {"pro": {}}}
    assert load(source).plans == {"pro": Plan("pro", "Pro")}
    assert load(source).meter("pages").included == {"pro": Decimal("0.5")}


def test_included_may_be_unlimited_or_nothing() -> None:
    meter = load(with_meter(included={"starter": 0, "scale": "unlimited"})).meter("pages")
    assert meter.included == {"starter": Decimal(0), "scale": None}


@pytest.mark.parametrize("mode", ["graduated", "volume"])
def test_tiers_are_exact(mode: str) -> None:
    tiers = [
        {"up_to": 100, "unit_amount": "0.000000000001"},
        {"up_to": "200", "unit_amount": 3, "flat_amount": "50"},
        {"unit_amount": "0"},
    ]
    price = load(with_meter(price={"mode": mode, "currency": "eur", "tiers": tiers}))
    assert price.meter("pages").price == Price(
        mode,  # type: ignore[arg-type]
        "eur",
        tiers=(
            Tier(Decimal(100), Decimal("0.000000000001")),
            Tier(Decimal(200), Decimal(3), Decimal(50)),
            Tier(None, Decimal(0)),
        ),
    )


@pytest.mark.parametrize(
    "notation",
    ["100 per minute", "100/minute", "10/second; 100/minute", "5 per 2 hours", "1/day|9 per Month"],
)
def test_a_rate_limit_is_in_the_notation_of_limits(notation: str) -> None:
    meter = load(with_meter(rate_limit=notation)).meter("pages")
    assert meter.rate_limit == notation
    assert limits.parse_many(notation)


def test_an_unknown_meter_names_the_known_ones() -> None:
    with pytest.raises(UnknownMeter, match=r"did you mean 'sign_operations'.*storage_gb") as caught:
        load().meter("sign_operation")
    assert isinstance(caught.value, LookupError)
    assert isinstance(caught.value, ValueError)


def flat(**keys: Any) -> dict[str, Any]:
    return {"price": {"mode": "flat", "currency": "usd", "unit_amount": "4", **keys}}


def tiered(*tiers: Any) -> dict[str, Any]:
    return {"price": {"mode": "graduated", "currency": "usd", "tiers": list(tiers)}}


def prop(**keys: Any) -> dict[str, Any]:
    return {"properties": {"size": {"type": "integer", **keys}}}


WRONG = [
    # keys and names
    ({"agregation": "sum"}, "agregation = 'sum'", "did you mean 'aggregation'"),
    ({"aggregation": "summ"}, "aggregation = 'summ'", "did you mean 'sum'"),
    ({"aggregation": "last"}, "aggregation = 'last'", '"unique_count"'),
    ({"unit": ""}, "unit = ''", "not empty"),
    ({"precision": 10}, "precision = 10", "from 0 to 9"),
    ({"rate_limit": "100 a minute"}, "rate_limit = '100 a minute'", '"100 per minute"'),
    ({"rate_limit": "0 per minute"}, "rate_limit = '0 per minute'", '"100 per minute"'),
    # included
    ({"included": {"startr": 5}}, "included.startr = 5", "did you mean 'starter'"),
    ({"included": {"pro": 5}}, "included.pro = 5", "Add [plans.pro]"),
    ({"included": {"scale": -1}}, "included.scale = -1", ">= 0"),
    ({"included": {"scale": "1.5"}}, "included.scale = '1.5'", "a whole number"),
    ({"included": {"scale": "1e3"}}, "included.scale = '1e3'", "a whole number"),
    ({"included": {"scale": "\uff11"}}, "included.scale = '\uff11'", "a whole number"),
    ({"included": {"scale": "lots"}}, "included.scale = 'lots'", "a whole number"),
    ({"included": {"scale": 10**5000}}, "included.scale = a huge int", "a whole number"),
    # price
    (flat(mode="tiered"), "price.mode = 'tiered'", '"graduated"'),
    (flat(currency="USD"), "price.currency = 'USD'", "lower-case"),
    (flat(unit_amount="-4"), "price.unit_amount = '-4'", ">= 0"),
    (flat(unit_amount="NaN"), "price.unit_amount = 'NaN'", "decimal text"),
    (flat(unit_amount=Decimal("NaN")), "price.unit_amount = Decimal('NaN')", "decimal text"),
    (flat(unit_amount="0." + "1" * 13), "price.unit_amount", "at most 12 places"),
    (flat(unit_amount="0." + "1" * 12) | {"precision": 3}, "unit_amount", "at most 9 places"),
    (flat(tiers=[]), "price.tiers = []", "remove it"),
    ({"price": {"mode": "flat", "currency": "usd"}}, "price.unit_amount is missing", "add it"),
    ({"price": {"mode": "volume", "currency": "usd"}}, "price.tiers is missing", "add it"),
    (tiered(), "price.tiers = []", "at least one"),
    (
        tiered({"up_to": 5, "unit_amount": "1"}),
        "price.tiers[0].up_to = '5'",
        "leave it out of the last tier",
    ),
    (
        tiered({"unit_amount": "1"}, {"unit_amount": "2"}),
        "price.tiers[0].up_to is missing",
        "only the last",
    ),
    (
        tiered(*({"up_to": n, "unit_amount": "1"} for n in (5, 5)), {"unit_amount": "1"}),
        "price.tiers[1].up_to = '5'",
        "overlap",
    ),
    (
        tiered(*({"up_to": n, "unit_amount": "1"} for n in (5, 4)), {"unit_amount": "1"}),
        "price.tiers[1].up_to = '4'",
        "ascending",
    ),
    (
        tiered({"up_to": 0, "unit_amount": "1"}, {"unit_amount": "1"}),
        "price.tiers[0].up_to = '0'",
        "above 0",
    ),
    (tiered({"upto": 5, "unit_amount": "1"}), "price.tiers[0].upto = 5", "'up_to'"),
    # properties
    (prop(type="number"), "properties.size.type = 'number'", '"integer"'),
    (prop(pattern="a"), "properties.size.pattern = 'a'", 'only for type = "string"'),
    (prop(min=5, max=4), "properties.size.max", "must not be below min = 5"),
    (prop(type="string", min=5), "properties.size.min = 5", "only for numbers"),
    (prop(type="string", pattern="("), "properties.size.pattern = '('", "no regular expression"),
    (prop(type="string", max_length=0), "properties.size.max_length = 0", "from 1 to 1000"),
    (prop(type="string", choices=["a", "a"]), "properties.size.choices", "listed twice"),
    ({"properties": {"Size": {"type": "integer"}}}, "properties.Size", "lower-case"),
    ({"properties": {"value": {"type": "integer"}}}, "properties.value", "use another"),
    # what names a property
    ({"filter": {"size": 1}}, "filter.size = 'size'", "declare it under properties"),
    (prop() | {"filter": {"size": True}}, "filter.size = True", "a whole number"),
    (prop(min=2) | {"filter": {"size": 1}}, "filter.size = 1", "a whole number"),
    (prop(type="boolean") | {"filter": {"size": "true"}}, "filter.size = 'true'", "true or false"),
    (prop(type="decimal") | {"filter": {"size": "1"}}, "filter.size = '1'", "instead"),
    (
        prop(type="string", choices=["a"]) | {"filter": {"size": "b"}},
        "filter.size = 'b'",
        "that this property can have",
    ),
    ({"unique_by": "domain"}, "unique_by = 'domain'", "only for aggregation"),
    ({"aggregation": "unique_count"}, "unique_by = None", "name the property"),
    (
        {"aggregation": "unique_count", "unique_by": "domain"},
        "unique_by = 'domain'",
        "no such property",
    ),
    (
        {"aggregation": "unique_count", "unique_by": "size"} | prop(type="domain"),
        "unique_by = 'size'",
        "required = true",
    ),
    (
        {"aggregation": "unique_count", "unique_by": "size"} | prop(required=True),
        "unique_by = 'size'",
        '"string" or "domain"',
    ),
    ({"aggregation": "count", "precision": 2}, "precision = 2", "a count is whole"),
    ({"value_from": ["sise"]} | prop(), "value_from = 'sise'", "did you mean 'size'"),
    ({"value_from": ["size"]} | prop(type="domain"), "value_from = 'size'", '"decimal"'),
    ({"value_from": ["size"], "aggregation": "count"} | prop(), "value_from", '"sum" or "max"'),
]


@pytest.mark.parametrize(("keys", "place", "cure"), WRONG)
def test_a_mistake_is_named_with_its_value_and_cure(
    keys: dict[str, Any], place: str, cure: str
) -> None:
    with pytest.raises(CatalogueError) as caught:
        load(with_meter(**keys))
    assert str(caught.value).startswith("meters.pages.")
    assert place in str(caught.value)
    assert cure in str(caught.value)


@pytest.mark.parametrize(
    ("keys", "place"),
    [
        (flat(unit_amount=0.5), "price.unit_amount = 0.5 has type float"),
        (flat(unit_amount=True), "price.unit_amount = True has type bool"),
        (flat(unit_amount=None), "price.unit_amount = None has type NoneType"),
        (tiered({"unit_amount": 1.0}), "price.tiers[0].unit_amount = 1.0 has type float"),
        (tiered({"up_to": 1.0, "unit_amount": 1}), "price.tiers[0].up_to = 1.0"),
        (tiered({"flat_amount": 1.0, "unit_amount": 1}), "price.tiers[0].flat_amount = 1.0"),
        (tiered(5), "price.tiers[0] = 5 has type int"),
        ({"price": "4"}, "price = '4' has type str"),
        ({"included": {"scale": 2.5}}, "included.scale = 2.5 has type float"),
        ({"included": {"scale": True}}, "included.scale = True has type bool"),
        ({"unit": 5}, "unit = 5 has type int"),
        ({"precision": "3"}, "precision = '3' has type str"),
        ({"precision": True}, "precision = True has type bool"),
        ({"billable": "no"}, "billable = 'no' has type str"),
        ({"aggregation": 1}, "aggregation = 1 has type int"),
        ({"value_from": "size"}, "value_from = 'size' has type str"),
        ({"properties": ["size"]}, "properties = ['size'] has type list"),
        ({"properties": {"size": "integer"}}, "properties.size = 'integer' has type str"),
        (prop(required=1), "properties.size.required = 1 has type int"),
        (prop(max=1.5), "properties.size.max = 1.5 has type float"),
    ],
)
def test_a_wrong_type_is_a_type_error(keys: dict[str, Any], place: str) -> None:
    with pytest.raises(CatalogueTypeError) as caught:
        load(with_meter(**keys))
    assert str(caught.value).startswith(f"meters.pages.{place}")
    assert isinstance(caught.value, TypeError)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({}, "meters is missing"),
        ({"meters": {}}, r"at least one \[meters.NAME\]"),
        ({"meter": {}}, "meter = {}: unknown key .did you mean 'meters'"),
        ({"meters": {"page views": MINIMAL}}, "meters.page views = 'page views': name it with"),
        ({"meters": {"a.b": MINIMAL}}, "name it with"),
        ({"meters": {"p" * 101: MINIMAL}}, "name it with"),
        ({"meters": {1: MINIMAL}}, "meters.1 .* write the key as text"),
        (with_meter() | {"plans": {"a plan": {}}}, "plans.a plan"),
        (with_meter() | {"name": "my shop"}, "name = 'my shop': name it with letters, digits"),
        (with_meter() | {"name": 5}, "name = 5 has type int: write it as text"),
        (with_meter() | {"plans": {"pro": {"price": 5}}}, "plans.pro.price = 5: unknown key"),
    ],
)
def test_a_wrong_shape_is_named(source: dict[str, Any], message: str) -> None:
    with pytest.raises(CatalogueError, match=message):
        load(source)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("c.toml", "[meters", "is no .toml file"),
        ("c.toml", "[meters.a]\n[meters.a]\n", "is no .toml file"),
        ("c.json", "{", "is no .json file"),
        ("c.json", '{"meters": {"a": {}, "a": {}}}', "key 'a' appears twice"),
        ("c.json", "[]", "has type list: write it as a table"),
        ("c.yaml", "meters:", r"use a file named \.toml or \.json"),
    ],
)
def test_a_wrong_file_is_named(tmp_path: Path, name: str, text: str, message: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(CatalogueError, match=message):
        load(path)


def test_a_missing_or_garbled_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CatalogueError, match=r"nowhere\.toml.*correct C2METER_CATALOGUE"):
        load(tmp_path / "nowhere.toml")
    garbled = tmp_path / "garbled.toml"
    garbled.write_bytes(b"\xff\xfe")
    with pytest.raises(CatalogueError, match=r"garbled\.toml.*is no \.toml file"):
        load(garbled)


def test_a_float_price_in_json_fails(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    path.write_text(json.dumps(with_meter(**flat(unit_amount=0.04))))
    with pytest.raises(CatalogueTypeError, match=r"unit_amount = 0\.04 has type float"):
        load(path)
