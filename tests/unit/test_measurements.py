"""What a ``storage_loader`` says is believed exactly, or refused with its reason; never 0 GB."""

from __future__ import annotations

from decimal import Decimal, localcontext
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flask_c2meter import Customer, InvalidEvent, StorageMeasurement, catalogue
from flask_c2meter.measurements import METER, Judge, Judged, customer_id, event_key
from flask_c2meter.model import percentage
from flask_c2meter.schemas import EventSchema

METERS = catalogue.load(None).meters


def judge(
    before: int | None = None, max_growth: int | str = 10, meter: str = METER, **said: Any
) -> Judged:
    """What becomes of a measurement of cus_1 (``before`` in MB)."""
    definition = METERS[meter]
    judge = Judge(definition, EventSchema(definition), Decimal(max_growth))
    return judge.judge(StorageMeasurement("cus_1", **said), before)


def refusal(before: int | None = None, **said: Any) -> str:
    with pytest.raises(InvalidEvent) as caught:
        judge(before, **said)
    return str(caught.value)


class TestValue:
    def test_the_parts_are_added_up(self) -> None:
        judged = judge(evidence_gb="1.5", manifest_gb=2, backup_gb=Decimal("0.25"), storage_gb="3")
        assert judged.event.units == 6750
        assert not judged.is_rounded
        assert judged.event.properties == {
            "storage_gb": "3",
            "evidence_gb": "1.5",
            "manifest_gb": "2",
            "backup_gb": "0.25",
        }

    def test_a_measured_nothing_is_nothing(self) -> None:
        assert judge(evidence_gb=0).event.units == 0
        assert judge(evidence_gb=Decimal("-0")).event.units == 0

    def test_more_places_than_the_meter_has_are_rounded_up_once(self) -> None:
        judged = judge(evidence_gb="0.0001", manifest_gb="0.0001")
        assert (judged.event.units, judged.is_rounded) == (1, True)
        assert judge(evidence_gb="1.0010000").is_rounded is False

    def test_bytes_divided_by_a_gibibyte_are_a_measurement(self) -> None:
        exact = Decimal(123_456_789_012) / 2**30
        judged = judge(evidence_gb=exact)
        assert judged.event.units == 114979
        assert judged.event.properties == {"evidence_gb": f"{exact:.9f}"}

    def test_the_least_there_is_counts_as_one_unit(self) -> None:
        assert judge(evidence_gb=Decimal("1E-100000")).event.units == 1

    @given(parts=st.lists(st.integers(0, 10**14), min_size=1, max_size=4), places=st.integers(0, 9))
    def test_it_is_never_less_than_was_measured_and_less_than_a_unit_more(
        self, parts: list[int], places: int
    ) -> None:
        names = ("storage_gb", "evidence_gb", "manifest_gb", "backup_gb")
        said = {
            name: Decimal(part).scaleb(-places - 3)
            for name, part in zip(names, parts, strict=False)
        }
        units = judge(**said).event.units
        exact = Decimal(sum(parts)).scaleb(-places)
        assert 0 <= units - exact < 1
        assert judge(**said).is_rounded == (units != exact)

    def test_the_host_s_decimal_context_does_not_matter(self) -> None:
        with localcontext() as context:
            context.prec = 3
            assert judge(evidence_gb="123456.789").event.units == 123456789
            assert judge(1_234_567, evidence_gb="12345.67").event.units == 12_345_670
            with pytest.raises(InvalidEvent):
                judge(1_234_567, evidence_gb="12345.671")


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ({}, "nothing was measured"),
        ({"error": "S3 is away"}, "S3 is away"),
        ({"error": ""}, "error"),
        ({"error": "S3", "evidence_gb": 1}, "S3"),
        ({"evidence_gb": "many"}, "evidence_gb: must be an int, a Decimal or text"),
        ({"evidence_gb": "NaN"}, "evidence_gb"),
        ({"evidence_gb": Decimal("NaN")}, "evidence_gb"),
        ({"evidence_gb": Decimal("Infinity")}, "evidence_gb"),
        ({"evidence_gb": 1.5}, "not float"),
        ({"evidence_gb": float("nan")}, "not float"),
        ({"evidence_gb": True}, "not bool"),
        ({"evidence_gb": {"gb": 1}}, "not dict"),
        ({"evidence_gb": ""}, "evidence_gb"),
        ({"evidence_gb": -1}, "must not be negative"),
        ({"evidence_gb": "1", "manifest_gb": Decimal("-0.001")}, "manifest_gb: must not be negat"),
        ({"evidence_gb": 10**15}, "15 digits"),
        ({"evidence_gb": Decimal("1E+999999")}, "15 digits"),
        ({"evidence_gb": Decimal("1E+50"), "manifest_gb": Decimal("1E-99")}, "15 digits"),
    ],
)
def test_what_is_no_measurement_is_refused(said: dict[str, Any], reason: str) -> None:
    assert reason in refusal(**said)


def test_every_wrong_part_is_named() -> None:
    assert set(refusal(evidence_gb="x", backup_gb=-1).split("; ")) == {
        "evidence_gb: must be an int, a Decimal or text such as '1.5', not 'x'",
        "backup_gb: must not be negative",
    }


def test_an_error_of_the_host_is_one_printable_short_line() -> None:
    text = refusal(error="a\nb\x1b[2J" + "c" * 10_000)
    assert text.isprintable() and len(text) < 200


class TestGrowth:
    def test_ten_times_is_believed_and_more_is_not(self) -> None:
        assert judge(1000, evidence_gb=10).event.units == 10_000
        assert "10.001 is more than 10 times the 1.000 before" in refusal(
            1000, evidence_gb="10.001"
        )

    @pytest.mark.parametrize("before", [None, 0])
    def test_from_nothing_any_growth_is_believed(self, before: int | None) -> None:
        assert judge(before, evidence_gb=500).event.units == 500_000

    def test_shrinking_is_believed(self) -> None:
        assert judge(1000, evidence_gb=0).event.units == 0

    def test_zero_allows_any(self) -> None:
        assert judge(1, max_growth=0, evidence_gb=900).event.units == 900_000

    def test_it_may_be_no_whole_number(self) -> None:
        assert judge(1000, max_growth="1.5", evidence_gb="1.5").event.units == 1500
        with pytest.raises(InvalidEvent):
            judge(1000, max_growth="1.5", evidence_gb="1.501")


def test_a_customer_is_itself_or_its_id() -> None:
    assert customer_id(StorageMeasurement("cus_1")) == "cus_1"
    assert customer_id(StorageMeasurement(Customer("cus_1", plan="scale"))) == "cus_1"
    for bad in ("", "cus 1", "*", None, 7):
        with pytest.raises(InvalidEvent):
            customer_id(StorageMeasurement(bad))  # type: ignore[arg-type]


def test_keys_sort_as_days_do() -> None:
    from datetime import date

    assert event_key("storage", date(2026, 1, 9)) == "storage:2026-01-09"


@pytest.mark.parametrize(
    ("part", "whole", "text"),
    [
        (11, 100, "11.00%"),
        (0, 0, "0.00%"),
        (1, 3, "33.33%"),
        (2, 3, "66.67%"),
        (1, 1, "100.00%"),
        (1, 100_000, "0.00%"),
        (1, 20_000, "0.01%"),
    ],
)
def test_a_rate_has_two_places(part: int, whole: int, text: str) -> None:
    assert percentage(part, whole) == text
