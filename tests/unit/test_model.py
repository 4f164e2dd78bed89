"""The nouns: times, identifiers, ids, periods, quantities."""

from __future__ import annotations

import os
from dataclasses import FrozenInstanceError, fields
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal, localcontext
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flask_c2meter.errors import InvalidEvent
from flask_c2meter.model import (
    Aggregation,
    Customer,
    Meter,
    Period,
    UsageEvent,
    check_customer_id,
    check_text,
    from_ms,
    new_id,
    to_ms,
    utc_now,
)
from flask_c2meter.shipment import Shipment

NOW = datetime(2026, 1, 15, 12, tzinfo=UTC)


# -- time ------------------------------------------------------------------------------------------


@given(st.integers(0, 10**14))
def test_milliseconds_survive_the_way_to_a_moment_and_back(milliseconds: int) -> None:
    assert to_ms(from_ms(milliseconds)) == milliseconds


def test_a_moment_means_the_same_in_any_time_zone() -> None:
    assert to_ms(NOW.astimezone(timezone(timedelta(hours=-9)))) == to_ms(NOW)
    assert from_ms(to_ms(NOW)).tzinfo is UTC


def test_a_moment_without_time_zone_is_refused() -> None:
    with pytest.raises(ValueError, match="time zone"):
        to_ms(datetime(2026, 1, 1))


def test_microseconds_are_cut_not_rounded() -> None:
    assert to_ms(from_ms(5) + timedelta(microseconds=999)) == 5


def test_the_default_clock_is_aware() -> None:
    assert utc_now().utcoffset() == timedelta(0)


# -- identifiers -----------------------------------------------------------------------------------


def test_an_identifier_is_a_uuid_of_version_seven_and_fits_stripe() -> None:
    uuid = UUID(new_id())
    assert (uuid.version, uuid.variant) == (7, "specified in RFC 4122")
    assert len(new_id()) == 36


def test_identifiers_are_ordered_by_time() -> None:
    identifiers = [new_id(to_ms(NOW) + n) for n in range(100)]
    assert identifiers == sorted(identifiers)
    assert int(UUID(identifiers[0])) >> 80 == to_ms(NOW)


def test_identifiers_of_one_millisecond_differ() -> None:
    assert len({new_id(1) for _ in range(10_000)}) == 10_000


def test_a_forked_child_does_not_repeat_its_parents_identifiers() -> None:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, new_id(1).encode())
        os._exit(0)
    ours = new_id(1)
    os.waitpid(child, 0)
    theirs = os.read(reader, 100).decode()
    os.close(reader)
    os.close(writer)
    assert theirs != ours


# -- text ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "empty"),
        (None, "must be a string, not NoneType"),
        (5, "must be a string, not int"),
        ("a\nb", "control characters"),
        ("a\x00b", "control characters"),
        ("a\u2028b", "control characters"),
        ("\x85", "control characters"),
        ("\ud800", "lone surrogates"),
        ("é" * 128, "at most 255 bytes, has 256"),
    ],
)
def test_a_bad_text_is_refused_with_the_name_of_its_field(text: object, problem: str) -> None:
    with pytest.raises(InvalidEvent) as refused:
        check_text("key", text)
    assert problem in refused.value.messages["key"]


@pytest.mark.parametrize("text", ["a", "x" * 255, "é" * 127, " spaces ", "urn:c2pa:1"])
def test_a_good_text_stays_as_it_is(text: str) -> None:
    assert check_text("key", text) is text


@pytest.mark.parametrize("id", ["cus_123", "acct_1-x", "A", "c" * 255])
def test_a_customer_id_stays_as_it_is(id: str) -> None:
    assert check_customer_id(id) == id


@pytest.mark.parametrize("id", ["cus 1", "cus/1", "cüs", "*", "cus_1\n", "c" * 256, "", 7])
def test_a_bad_customer_id_is_refused_never_cleaned(id: object) -> None:
    with pytest.raises(InvalidEvent, match="customer"):
        check_customer_id(id)


@pytest.mark.parametrize("field", ["user_id", "plan", "email"])
def test_every_field_of_a_customer_is_checked(field: str) -> None:
    with pytest.raises(ValueError, match=field):
        Customer("cus_1", **{field: "a\r\nb"})


def test_a_customers_email_is_not_shown() -> None:
    assert "secret@" not in repr(Customer("cus_1", email="secret@example.com"))


# -- periods ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("moment", "start", "end"),
    [
        (datetime(2026, 1, 1, tzinfo=UTC), (2026, 1), (2026, 2)),
        (datetime(2026, 12, 31, 23, 59, 59, 999999, tzinfo=UTC), (2026, 12), (2027, 1)),
        (datetime(2028, 2, 29, tzinfo=UTC), (2028, 2), (2028, 3)),
        # already February in UTC
        (datetime(2026, 1, 31, 23, tzinfo=timezone(timedelta(hours=-5))), (2026, 2), (2026, 3)),
    ],
)
def test_the_calendar_month_is_that_of_utc(
    moment: datetime, start: tuple[int, int], end: tuple[int, int]
) -> None:
    period = Period.month_of(moment)
    assert period.start == datetime(*start, 1, tzinfo=UTC)
    assert period.end == datetime(*end, 1, tzinfo=UTC)


@given(st.datetimes(datetime(1990, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC)))
def test_every_moment_is_in_its_month_and_months_leave_no_gap(moment: datetime) -> None:
    period = Period.month_of(moment)
    assert period.start <= moment < period.end
    assert Period.month_of(period.end).start == period.end


# -- quantities ------------------------------------------------------------------------------------


@given(units=st.integers(-(10**15) + 1, 10**15 - 1), precision=st.integers(0, 9))
def test_units_survive_the_way_to_a_value_and_back(units: int, precision: int) -> None:
    meter = Meter("m", "M", "m.m", "m", Aggregation.SUM, precision)
    assert meter.to_units(meter.to_value(units)) == units


def test_units_are_exact_whatever_the_hosts_decimal_context() -> None:
    meter = Meter("m", "M", "m.m", "m", Aggregation.SUM, 3)
    event = UsageEvent("k", "cus_1", "m", 12345, 3, NOW, NOW)
    with localcontext(prec=2):
        assert meter.to_units(Decimal("12.345")) == 12345
        assert meter.to_value(12345) == event.value == Decimal("12.345")


def test_a_value_is_in_the_meters_unit() -> None:
    event = UsageEvent("k", "cus_1", "storage_gb", 1500, 3, NOW, NOW)
    assert event.value == Decimal("1.5")


def test_each_attempt_of_a_shipment_has_its_own_key() -> None:
    keys = {Shipment("id-1", "cus_1", "m", 1, NOW, attempts=n).attempt_key for n in range(3)}
    assert keys == {"id-1.0", "id-1.1", "id-1.2"}


@pytest.mark.parametrize(
    "noun", [Customer("cus_1"), Period(NOW, NOW), Shipment("i", "cus_1", "m", 1, NOW)]
)
def test_nouns_do_not_change(noun: object) -> None:
    with pytest.raises(FrozenInstanceError):
        setattr(noun, fields(noun)[0].name, None)  # type: ignore[arg-type]
