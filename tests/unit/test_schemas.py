"""What an event may say: exact quantities, honest properties, one spelling per domain."""

from __future__ import annotations

import decimal
import json
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flask_c2meter.catalogue import load
from flask_c2meter.errors import InvalidEvent
from flask_c2meter.model import MAX_UNITS, Aggregation, Meter, Property
from flask_c2meter.schemas import EventSchema, canonical_json, parse_units

METERS = load().meters
SCHEMAS = {name: EventSchema(meter) for name, meter in METERS.items()}
VERIFY, SIGN, STORAGE, SITES = (
    SCHEMAS[name] for name in ("verify_operations", "sign_operations", "storage_gb", "active_sites")
)
C2PA_LABEL = "urn:c2pa:3fa85f64-5717-4562-b3fc-2c963f66afa6"


def meter_with(*properties: Property, **keys: Any) -> Meter:
    return Meter(
        name="pages",
        display_name="Pages",
        event_type="page.rendered",
        unit="page",
        aggregation=keys.pop("aggregation", Aggregation.SUM),
        properties={prop.name: prop for prop in properties},
        **keys,
    )


def wrong(schema: EventSchema, /, value: object = None, **properties: Any) -> dict[str, str]:
    """The messages with which *schema* refuses an event."""
    with pytest.raises(InvalidEvent) as caught:
        schema.strict(properties, value)
    return caught.value.messages


# -- Values ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("precision", "value", "units"),
    [
        (0, 3, 3),
        (0, "3", 3),
        (0, "3.000", 3),
        (0, Decimal("3.0"), 3),
        (0, Decimal("3E+2"), 300),
        (0, 0, 0),
        (0, Decimal("-0"), 0),
        (0, Decimal("0E+400"), 0),
        (0, MAX_UNITS, MAX_UNITS),
        (3, "1.5", 1500),
        (3, Decimal("0.001"), 1),
        (3, 2, 2000),
        (3, "999999999999.999", MAX_UNITS),
        (9, "0.000000001", 1),
    ],
)
def test_a_value_becomes_whole_wire_units(precision: int, value: object, units: int) -> None:
    parsed = parse_units(meter_with(precision=precision), value)
    assert parsed == units
    assert type(parsed) is int


@pytest.mark.parametrize(
    "value",
    [
        *(True, False, 1.0, 1.5, float("nan"), float("inf"), -1, Decimal("-0.001"), 10**15, 10**16),
        *(
            pytest.param(10**5000, id="huge"),
            Decimal("1E+400"),
            Decimal("1E-400"),
            Decimal("NaN"),
            Decimal("sNaN"),
        ),
        *(Decimal("Infinity"), Decimal("0.0001"), "999999999999999.9", Decimal(10**15)),
        *("", " 1", "1 ", "+1", "-1", "-0", "1e5", "1_000", "1,5", ".5", "5.", "0x1", "NaN", "inf"),
        *("\uff11\uff12", "\u0661", "1\n", "9" * 40, "0.0001", b"1", [1], {}, 1j, object()),
        Decimal("1." + "0" * 60 + "1"),
    ],
)
@pytest.mark.parametrize("precision", [0, 3])
def test_a_bad_value_is_refused(precision: int, value: object) -> None:
    with pytest.raises(InvalidEvent) as caught:
        parse_units(meter_with(precision=precision), value)
    assert set(caught.value.messages) == {"value"}
    assert len(str(caught.value)) < 200
    assert isinstance(caught.value, ValueError)


@given(units=st.integers(0, MAX_UNITS), precision=st.integers(0, 9))
def test_every_exact_value_survives(units: int, precision: int) -> None:
    meter = meter_with(precision=precision)
    value = meter.to_value(units)
    assert parse_units(meter, value) == parse_units(meter, f"{value:f}") == units


@given(value=st.decimals(min_value=0, max_value=10**20, allow_nan=False), places=st.integers(0, 9))
def test_a_value_is_exact_or_refused(value: Decimal, places: int) -> None:
    try:
        units = parse_units(meter_with(precision=places), value)
    except InvalidEvent:
        return
    numerator, denominator = value.as_integer_ratio()
    assert units * denominator == numerator * 10**places


def test_the_hosts_decimal_context_changes_nothing() -> None:
    with decimal.localcontext(prec=2):
        assert parse_units(METERS["storage_gb"], "123.456") == 123456
        event = STORAGE.strict({"evidence_gb": "123.456", "backup_gb": "0.001"})
    assert event.units == 123457
    assert event.properties == {"evidence_gb": "123.456", "backup_gb": "0.001"}


@pytest.mark.parametrize("name", ["verify_operations", "support_requests", "active_sites"])
def test_without_a_value_an_event_counts_one(name: str) -> None:
    assert parse_units(METERS[name], None) == 1


def test_a_maximum_has_no_default() -> None:
    with pytest.raises(InvalidEvent, match="value"):
        parse_units(meter_with(aggregation=Aggregation.MAX), None)


@pytest.mark.parametrize("name", ["support_requests", "active_sites"])
def test_counted_events_are_one_each(name: str) -> None:
    assert parse_units(METERS[name], 1) == parse_units(METERS[name], "1") == 1
    with pytest.raises(InvalidEvent, match="leave the value out"):
        parse_units(METERS[name], 2)


def test_storage_is_the_sum_of_what_is_given() -> None:
    event = STORAGE.strict({"evidence_gb": "1.5", "manifest_gb": Decimal("0.25"), "backup_gb": 2})
    assert event.units == 3750
    assert event.properties == {"evidence_gb": "1.5", "manifest_gb": "0.25", "backup_gb": "2"}
    assert STORAGE.strict({"storage_gb": "0.0005", "backup_gb": "0.0005"}).units == 1
    assert STORAGE.strict({"storage_gb": 9}, value="1.5").units == 1500
    assert STORAGE.strict({}, value=0).units == 0


def test_storage_without_any_measurement_is_no_zero() -> None:
    assert "evidence_gb" in wrong(STORAGE)["value"]
    assert "3 decimal places" in wrong(STORAGE, storage_gb="0.0001")["value"]
    assert set(wrong(STORAGE, storage_gb=1.5, backup_gb=1)) == {"storage_gb"}


# -- Properties ------------------------------------------------------------------------------------


def test_a_good_event_is_kept_as_said() -> None:
    said = {"manifest_id": C2PA_LABEL, "verification_result": True, "processing_time_ms": 12}
    event = VERIFY.strict(said)
    assert (event.units, event.properties, event.flags) == (1, said, ())
    assert event.unique_by is None
    assert event.properties is not said


@pytest.mark.parametrize(
    ("said", "kept"),
    [(True, True), (False, False), ("success", True), ("failed", False), ("pending", False)],
)
def test_a_result_is_a_boolean_or_one_of_three_words(said: object, kept: bool) -> None:
    event = VERIFY.strict({"manifest_id": "m", "verification_result": said})
    assert event.properties["verification_result"] is kept
    assert VERIFY.is_billable(event.properties) is kept


def test_an_absent_filter_property_passes() -> None:
    assert VERIFY.is_billable({})
    assert SIGN.is_billable({"manifest_id": "m"})


@pytest.mark.parametrize(
    ("schema", "name", "value"),
    [
        *((VERIFY, "verification_result", bad) for bad in (1, 0, "true", "Success", "", None, [])),
        *((VERIFY, "processing_time_ms", bad) for bad in (True, 1.0, "5", -1, 10**15, None)),
        *((VERIFY, "manifest_id", bad) for bad in ("", "a b", "m\n", "m\x00", "é", "m" * 101, 5)),
        (VERIFY, "manifest_id", "\ud800"),
        (SIGN, "asset_type", "Image"),
        (SIGN, "file_size_bytes", -1),
        (STORAGE, "backup_gb", 1.5),
        (STORAGE, "backup_gb", float("nan")),
        (STORAGE, "backup_gb", float("inf")),
        (STORAGE, "backup_gb", True),
        (STORAGE, "backup_gb", "-1"),
        (STORAGE, "backup_gb", "1e3"),
        (STORAGE, "backup_gb", Decimal("1E+400")),
        (STORAGE, "backup_gb", Decimal("1E-400")),
        (STORAGE, "backup_gb", Decimal("NaN")),
        (STORAGE, "backup_gb", "1" * 16),
        (SCHEMAS["api_calls"], "endpoint", "/a\r\nSet-Cookie: b"),
        (SCHEMAS["api_calls"], "endpoint", "/\u2028"),
        (SCHEMAS["api_calls"], "endpoint", "/" * 256),
        (SCHEMAS["api_calls"], "status_code", 600),
    ],
)
def test_a_bad_property_is_refused_by_name(schema: EventSchema, name: str, value: object) -> None:
    good = {VERIFY: {"manifest_id": "m"}, SIGN: {"manifest_id": "m"}, STORAGE: {"storage_gb": 1}}
    assert set(wrong(schema, **{**good.get(schema, {}), name: value})) == {name}


def test_every_wrong_field_is_named_at_once() -> None:
    messages = wrong(VERIFY, -1, verification_result="maybe", procesing_time_ms=5)
    assert messages == {
        "manifest_id": "is required",
        "verification_result": "must be true or false, or one of success, failed, pending",
        "procesing_time_ms": "is none of verify_operations's: manifest_id, verification_result, "
        "processing_time_ms (did you mean 'processing_time_ms'?)",
        "value": "must not be negative",
    }


def test_odd_names_make_short_messages_of_one_line() -> None:
    names = ["x" * 10_000, "a\nb", "\ud800", *(f"unknown_{number}" for number in range(1000))]
    with pytest.raises(InvalidEvent) as caught:
        VERIFY.strict(dict.fromkeys(names, 1) | {"manifest_id": "m"})
    text = str(caught.value)
    assert len(text) < 3000
    assert text.isprintable()


@pytest.mark.parametrize("properties", [None, [], "text", 5, [("manifest_id", "m")]])
def test_properties_that_are_no_mapping_are_refused(properties: Any) -> None:
    with pytest.raises(InvalidEvent, match="properties: must be a mapping"):
        VERIFY.strict(properties)
    assert VERIFY.lenient(properties).flags == ("incomplete",)


def test_properties_may_be_called_like_anything_in_a_schema() -> None:
    names = ("fields", "load", "opts", "context", "dump", "validate", "get_attribute", "_schema")
    schema = EventSchema(meter_with(*(Property(name, "integer") for name in names)))
    said = {name: number for number, name in enumerate(names)}
    assert schema.strict(said).properties == said


def test_over_long_properties_are_refused_or_left_out() -> None:
    names = ("a", "b", "c")
    schema = EventSchema(meter_with(*(Property(name, "string", max_length=1000) for name in names)))
    long = {"a": "é" * 1000, "b": "\U0001f600" * 600, "c": "c"}
    assert "at most 4096 bytes" in wrong(schema, **long)["properties"]
    event = schema.lenient(long)
    assert event.properties == {"b": long["b"], "c": "c"}
    assert (event.units, event.flags) == (1, ("incomplete",))


# -- After the work is done ------------------------------------------------------------------------


def test_a_good_event_is_the_same_either_way() -> None:
    said = {"manifest_id": C2PA_LABEL, "verification_result": "success"}
    assert VERIFY.lenient(said) == VERIFY.strict(said)


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ({}, {}),
        ({"manifest_id": "m\n"}, {}),
        ({"manifest_id": "m", "colour": "red"}, {"manifest_id": "m"}),
        ({"manifest_id": "m", "verification_result": float("nan")}, {"manifest_id": "m"}),
        ({"verification_result": "failed"}, {"verification_result": False}),
    ],
)
def test_done_work_is_billed_without_its_bad_properties(
    said: dict[str, Any], kept: dict[str, Any]
) -> None:
    event = VERIFY.lenient(said)
    assert (event.units, event.properties, event.flags) == (1, kept, ("incomplete",))


@pytest.mark.parametrize("value", [-1, 1.5, float("nan"), True, 10**16, Decimal("1E+400"), "x", []])
def test_an_undecidable_value_is_zero_and_flagged(value: object) -> None:
    event = VERIFY.lenient({"manifest_id": "m"}, value)
    assert (event.units, event.flags) == (0, ("invalid",))
    assert event.properties == {"manifest_id": "m"}


@pytest.mark.parametrize("said", [{}, {"domain": "https://example.com/"}, {"domain": None}])
def test_a_site_without_a_good_domain_is_undecidable(said: dict[str, Any]) -> None:
    event = SITES.lenient(said | {"site_type": "custom"})
    assert (event.units, event.unique_by) == (0, None)
    assert event.flags == ("incomplete", "invalid")
    assert event.properties == {"site_type": "custom"}


def test_storage_with_one_bad_part_is_undecidable() -> None:
    event = STORAGE.lenient({"evidence_gb": 1, "backup_gb": 0.5})
    assert (event.units, event.flags) == (0, ("incomplete", "invalid"))
    assert STORAGE.lenient({}).flags == ("invalid",)
    assert STORAGE.lenient({"backup_gb": 0.5}, value=2).units == 2000


@given(
    st.dictionaries(
        st.one_of(st.sampled_from([*METERS["sign_operations"].properties]), st.text()),
        st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary()),
    ),
    st.one_of(st.none(), st.integers(), st.floats(), st.decimals(), st.text()),
)
def test_lenient_never_raises_and_keeps_json(said: dict[str, Any], value: object) -> None:
    event = SIGN.lenient(said, value)
    assert 0 <= event.units <= MAX_UNITS
    assert len(canonical_json(event.properties).encode()) <= 4096


# -- Domains ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("example.com", "example.com"),
        ("Example.COM", "example.com"),
        ("example.com.", "example.com"),
        ("example.com:8443", "example.com"),
        ("example.com.:80", "example.com"),
        ("Bücher.example", "xn--bcher-kva.example"),
        ("BÜCHER.example", "xn--bcher-kva.example"),
        ("bu\u0308cher.example", "xn--bcher-kva.example"),
        ("XN--BCHER-KVA.example", "xn--bcher-kva.example"),
        ("straße.example", "xn--strae-oqa.example"),
        ("例え。テスト", "xn--r8jz45g.xn--zckzah"),
        ("localhost", "localhost"),
        ("my_shop.example.com", "my_shop.example.com"),
        ("r3---sn-x.example.com", "r3---sn-x.example.com"),
        ("1.example.com", "1.example.com"),
    ],
)
def test_a_domain_has_one_spelling(said: str, kept: str) -> None:
    event = SITES.strict({"domain": said})
    assert event.unique_by == kept
    assert event.properties == {"domain": kept}
    assert SITES.strict({"domain": kept}).unique_by == kept


@pytest.mark.parametrize(
    "said",
    [
        *("", ".", "..", "a..b", ".example.com", "example.com..", "-a.example", "a-.example"),
        *("https://example.com", "example.com/path", "user@example.com", "example.com?x", "*.a.b"),
        *(" example.com", "exa mple.com", "example.com\n", "exam\x00ple.com", "example.com:"),
        *("192.0.2.1", "192.0.2.1:80", "2130706433", "[::1]", "::1", "\uff11.2.3.4"),
        *("xn--zzzzzz.example", "a" * 64 + ".example", "a." * 130 + "com", "\u2488.example"),
        *("\ud800.example", "\u202eexample.com", 5, None, True, b"example.com", ["example.com"]),
    ],
)
def test_what_is_no_domain_is_refused(said: object) -> None:
    assert set(wrong(SITES, domain=said)) == {"domain"}


# -- JSON and threads ------------------------------------------------------------------------------


def test_canonical_json_has_one_form() -> None:
    text = canonical_json({"b": "é", "a": True, "c": 5})
    assert text == '{"a":true,"b":"é","c":5}'
    assert json.loads(text) == {"a": True, "b": "é", "c": 5}


def test_one_schema_serves_many_threads() -> None:
    def check(number: int) -> bool:
        event = VERIFY.strict({"manifest_id": f"m{number}", "processing_time_ms": number})
        return event.properties == {"manifest_id": f"m{number}", "processing_time_ms": number}

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(check, range(2000)))
