"""``current_metering``: record, usage and adjust, by hand and inside the caller's transaction."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal, localcontext
from pathlib import Path
from typing import Any

import pytest
from flask_host import Host, wait_until
from sqlalchemy import Engine, create_engine, text

from flask_c2meter import (
    Customer,
    InvalidEvent,
    KeyConflict,
    StoreUnavailable,
    UnknownEvent,
    UnknownMeter,
    UsageEvent,
)
from flask_c2meter.emulator import StripeEmulator
from flask_c2meter.metering import Metering
from flask_c2meter.testing import FrozenClock, capture_usage

NOON = datetime(2026, 1, 15, 12, tzinfo=UTC)


@pytest.fixture
def host(new_host: Callable[..., Host]) -> Host:
    return new_host(C2METER_CLOCK=FrozenClock(NOON))


@pytest.fixture
def metering(host: Host) -> Metering:
    return host.metering


def totals(metering: Metering, customer: str = "cus_1", **arguments: Any) -> dict[str, Decimal]:
    return {row.meter: row.total for row in metering.usage(customer, **arguments) if row.total}


class TestRecord:
    def test_the_event_says_all_there_is_to_know(self, metering: Metering) -> None:
        event = metering.record(
            "active_sites", "cus_1", key="site-1", domain="Shop.Example.", site_type="shopify"
        )
        assert event == UsageEvent(
            key="site-1",
            customer="cus_1",
            meter="active_sites",
            units=1,
            precision=0,
            occurred_at=NOON,
            recorded_at=NOON,
            properties={"domain": "shop.example", "site_type": "shopify"},
            unique_by="shop.example",
            fingerprint=event.fingerprint if event else None,
        )
        assert metering.store.events() == [event]

    def test_a_customer_object_also_tells_its_plan(self, metering: Metering) -> None:
        metering.record("api_calls", Customer("cus_1", plan="growth", email="a@example.com"))
        assert {row.meter: row.included for row in metering.usage("cus_1")}["sign_operations"] == (
            1000
        )

    def test_it_happens_when_it_is_said_to(self, metering: Metering) -> None:
        tokyo = timezone(timedelta(hours=9))
        event = metering.record(
            "api_calls", "cus_1", occurred_at=datetime(2026, 1, 1, 8, tzinfo=tokyo)
        )
        assert event is not None
        assert event.occurred_at == datetime(2025, 12, 31, 23, tzinfo=UTC)
        assert event.recorded_at == NOON
        assert totals(metering) == {}
        assert totals(metering, at=datetime(2025, 12, 24, tzinfo=UTC)) == {"api_calls": 1}

    @pytest.mark.parametrize("result", [False, "failed", "pending"])
    def test_what_the_filter_refuses_is_not_recorded(self, metering: Metering, result: Any) -> None:
        event = metering.record(
            "verify_operations", "cus_1", manifest_id="m-1", verification_result=result
        )
        assert event is None
        assert metering.store.events() == []

    @pytest.mark.parametrize("value", [3, Decimal("3"), Decimal("3.0"), "3", "3.0"])
    def test_a_value_in_any_exact_form(self, metering: Metering, value: Any) -> None:
        metering.record("api_calls", "cus_1", value=value)
        assert totals(metering) == {"api_calls": 3}

    def test_the_largest_value_there_is(self, metering: Metering) -> None:
        metering.record("api_calls", "cus_1", value=10**15 - 1)
        assert totals(metering) == {"api_calls": 10**15 - 1}


class TestAggregations:
    def test_sum_count_max_and_unique_count(self, metering: Metering) -> None:
        for number, domain in enumerate(("a.example", "b.example", "A.EXAMPLE:443", "b.example.")):
            metering.record("api_calls", "cus_1", value=number)
            metering.record("support_requests", "cus_1")
            metering.record("storage_gb", "cus_1", value=(5, 7, 6, 7)[number])
            metering.record("active_sites", "cus_1", domain=domain)
        assert totals(metering) == {
            "api_calls": 6,
            "support_requests": 4,
            "storage_gb": 7,
            "active_sites": 2,
        }

    def test_storage_is_the_sum_of_the_parts_given(self, metering: Metering) -> None:
        event = metering.record(
            "storage_gb", "cus_1", evidence_gb="1.25", manifest_gb=Decimal("0.005"), backup_gb=3
        )
        assert event is not None
        assert (event.value, event.units) == (Decimal("4.255"), 4255)
        assert event.properties == {
            "evidence_gb": "1.25",
            "manifest_gb": "0.005",
            "backup_gb": "3",
        }

    @pytest.mark.parametrize(
        "arguments",
        [
            pytest.param({}, id="no part at all"),
            pytest.param({"evidence_gb": Decimal("0.0001")}, id="too fine"),
            pytest.param({"evidence_gb": "0.0006", "backup_gb": "0.0005"}, id="too fine in all"),
            pytest.param({"value": Decimal("0.0001")}, id="value too fine"),
            pytest.param({"evidence_gb": 1.5}, id="a float"),
            pytest.param({"evidence_gb": -1}, id="negative"),
        ],
    )
    def test_storage_that_is_not_exact_is_refused(
        self, metering: Metering, arguments: dict[str, Any]
    ) -> None:
        with pytest.raises(InvalidEvent):
            metering.record("storage_gb", "cus_1", **arguments)
        assert metering.store.events() == []

    def test_parts_whose_sum_is_exact_are_fine(self, metering: Metering) -> None:
        metering.record("storage_gb", "cus_1", evidence_gb="0.0004", backup_gb="0.0006")
        assert totals(metering) == {"storage_gb": Decimal("0.001")}


class TestBadInput:
    """Case 25: a ``ValueError`` that names the field; no row."""

    @pytest.fixture(autouse=True)
    def nothing_is_written(self, metering: Metering) -> Iterator[None]:
        yield
        assert metering.store.events() == []

    @pytest.mark.parametrize(
        "value",
        [
            *(-1, 0.5, 1.0, float("nan"), float("inf"), 1e400, True, False, 10**15, 10**16),
            *("-1", "NaN", "inf", "1e3", "1_000", " 1", "", "\u0661", "1" * 5000, b"1", [], {}),
            *map(Decimal, ("-1", "NaN", "sNaN", "-Infinity", "1e400", "1e-400", "0.5", "1e15")),
        ],
        ids=lambda value: f"{type(value).__name__} {str(value)[:20]}",
    )
    def test_a_value_that_is_no_quantity(self, metering: Metering, value: Any) -> None:
        with pytest.raises(InvalidEvent, match=r"^value: "):
            metering.record("sign_operations", "cus_1", value=value, manifest_id="m-1")

    @pytest.mark.parametrize("meter", ["support_requests", "active_sites"])
    @pytest.mark.parametrize("value", [0, 2, "1.5"])
    def test_a_value_where_events_are_counted(
        self, metering: Metering, meter: str, value: Any
    ) -> None:
        domain = {"domain": "a.example"} if meter == "active_sites" else {}
        with pytest.raises(InvalidEvent, match="value"):
            metering.record(meter, "cus_1", value=value, **domain)

    @pytest.mark.parametrize(
        "customer",
        ["", "cus 1", "cus_1\n", "cus_1\x00", "cüs", "../etc", "c" * 256, None, 7, b"cus_1"],
    )
    def test_a_customer_that_is_no_id(self, metering: Metering, customer: Any) -> None:
        for call in (metering.record, metering.usage):
            with pytest.raises(InvalidEvent, match=r"^customer: "):
                call("api_calls", customer) if call == metering.record else call(customer)

    @pytest.mark.parametrize(
        ("properties", "field"),
        [
            ({}, "manifest_id"),
            ({"manifest_id": None}, "manifest_id"),
            ({"manifest_id": ""}, "manifest_id"),
            ({"manifest_id": "m 1"}, "manifest_id"),
            ({"manifest_id": "m\r\n1"}, "manifest_id"),
            ({"manifest_id": "m\u20281"}, "manifest_id"),
            ({"manifest_id": "m" * 101}, "manifest_id"),
            ({"manifest_id": ["m"]}, "manifest_id"),
            ({"manifest_id": "m", "manifest": "m"}, "manifest"),
            ({"manifest_id": "m", "file_size_bytes": "7"}, "file_size_bytes"),
            ({"manifest_id": "m", "file_size_bytes": 7.0}, "file_size_bytes"),
            ({"manifest_id": "m", "file_size_bytes": 10**16}, "file_size_bytes"),
            ({"manifest_id": "m", "asset_type": "hologram"}, "asset_type"),
        ],
    )
    def test_properties_that_are_missing_wrong_or_unknown(
        self, metering: Metering, properties: dict[str, Any], field: str
    ) -> None:
        with pytest.raises(InvalidEvent) as refused:
            metering.record("sign_operations", "cus_1", **properties)
        assert list(refused.value.messages) == [field]

    @pytest.mark.parametrize(
        "key", ["", "k" * 256, "k\x00", "k\n", "adjust:k", "again:k", "nested:k", 7, b"k"]
    )
    def test_a_key_that_cannot_be_kept(self, metering: Metering, key: Any) -> None:
        with pytest.raises(InvalidEvent, match=r"^key: "):
            metering.record("api_calls", "cus_1", key=key)

    @pytest.mark.parametrize(
        "moment",
        [
            datetime(2026, 1, 1),
            "2026-01-01",
            1_767_225_600,
            datetime.max.replace(tzinfo=UTC),
            datetime.min.replace(tzinfo=timezone(timedelta(hours=1))),
        ],
        ids=str,
    )
    def test_a_time_without_zone_or_beyond_the_calendar(
        self, metering: Metering, moment: Any
    ) -> None:
        with pytest.raises(InvalidEvent, match=r"^occurred_at: "):
            metering.record("api_calls", "cus_1", occurred_at=moment)
        with pytest.raises(InvalidEvent, match=r"^at: "):
            metering.usage("cus_1", at=moment)

    def test_a_time_before_1970(self, metering: Metering) -> None:
        tokyo = timezone(timedelta(hours=9))
        for moment in (
            datetime(1969, 12, 31, 23, 59, 59, 999_999, UTC),
            datetime(1970, 1, 1, 8, tzinfo=tokyo),
        ):
            with pytest.raises(InvalidEvent, match=r"^occurred_at: is before 1970-01-01"):
                metering.record("api_calls", "cus_1", occurred_at=moment)
        assert list(metering.store.verify()) == []

    def test_an_unknown_meter(self, metering: Metering) -> None:
        with pytest.raises(UnknownMeter, match="did you mean 'api_calls'") as refused:
            metering.record("api_call", "cus_1")
        assert isinstance(refused.value, ValueError)

    def test_properties_over_4_kib(self, new_host: Callable[..., Host]) -> None:
        host = new_host(
            C2METER_CATALOGUE={
                "meters": {
                    "notes": {
                        "display_name": "Notes",
                        "event_type": "note.taken",
                        "unit": "note",
                        "aggregation": "sum",
                        "properties": {
                            f"part_{n}": {"type": "string", "max_length": 1000} for n in range(5)
                        },
                    }
                }
            }
        )
        parts = {f"part_{n}": str(n) * 1000 for n in range(5)}
        with pytest.raises(InvalidEvent, match="at most 4096 bytes"):
            host.metering.record("notes", "cus_1", **parts)
        assert host.events() == []

        host.route(lambda: "done", "notes", properties=parts)
        assert host.client().get("/").text == "done"
        assert (host.event().flags, len(host.event().properties)) == (("incomplete",), 4)


class TestUsage:
    def test_every_meter_of_the_catalogue_for_whoever_it_is(self, metering: Metering) -> None:
        rows = metering.usage("cus_unknown")
        assert [row.meter for row in rows] == list(metering.catalogue.meters)
        assert {row.total for row in rows} == {Decimal(0)}
        assert {(row.included, row.utilization, row.level) for row in rows} == {(None, None, None)}

    def test_the_period_is_the_calendar_month_in_utc(self, metering: Metering) -> None:
        (period,) = {row.period for row in metering.usage("cus_1")}
        assert period.start == datetime(2026, 1, 1, tzinfo=UTC)
        assert period.end == datetime(2026, 2, 1, tzinfo=UTC)

    @pytest.mark.parametrize(
        ("used", "utilization", "level"),
        [
            (159, "0.795", None),
            (160, "0.8", "warning"),
            (190, "0.95", "critical"),
            (200, "1", "exceeded"),
            (500, "2.5", "exceeded"),
        ],
    )
    def test_usage_is_held_against_what_the_plan_includes(
        self, metering: Metering, used: int, utilization: str, level: str | None
    ) -> None:
        customer = Customer("cus_1", plan="starter")
        metering.record("sign_operations", customer, value=used, manifest_id="m-1")
        for asked in (customer, "cus_1"):
            row = next(row for row in metering.usage(asked) if row.meter == "sign_operations")
            assert (row.total, row.included) == (used, 200)
            assert (row.utilization, row.level) == (Decimal(utilization), level)

    def test_events_just_before_at_and_after_the_end_of_a_period(self, metering: Metering) -> None:
        end = datetime(2026, 2, 1, tzinfo=UTC)
        for shift in (-1, 0, 1):
            metering.record(
                "api_calls", "cus_1", value=10 + shift, occurred_at=end + timedelta(seconds=shift)
            )
        assert totals(metering, at=end - timedelta(days=1)) == {"api_calls": 9}
        assert totals(metering, at=end) == {"api_calls": 21}

    def test_of_one_customer_only(self, metering: Metering) -> None:
        metering.record("api_calls", "cus_1", value=1)
        metering.record("api_calls", "cus_11", value=2)
        assert totals(metering, "cus_1") == {"api_calls": 1}
        assert totals(metering, "cus_11") == {"api_calls": 2}


class TestAdjust:
    def test_voiding_an_event_takes_its_value_back(self, metering: Metering) -> None:
        for number in range(3):
            metering.record("api_calls", "cus_1", value=2**number, key=f"k-{number}")
        adjustment = metering.adjust("cus_1", "api_calls", "k-1", "a mistake")
        assert totals(metering) == {"api_calls": 5}
        assert (adjustment.key, adjustment.kind) == ("adjust:k-1", "adjustment")
        assert adjustment.properties == {"reason": "a mistake"}
        assert list(metering.store.verify()) == []

    def test_voiding_it_again_changes_nothing(self, metering: Metering) -> None:
        metering.record("api_calls", "cus_1", key="k")
        first = metering.adjust(Customer("cus_1"), "api_calls", "k", "a mistake")
        assert metering.adjust("cus_1", "api_calls", "k", "another reason") == first
        assert totals(metering) == {}

    @pytest.mark.parametrize(
        ("meter", "before", "voided", "after"),
        [
            ("storage_gb", [{"value": 5}, {"value": 9}, {"value": 7}], 1, 7),
            ("storage_gb", [{"value": 5}, {"value": 9}, {"value": 7}], 2, 9),
            ("active_sites", [{"domain": "a.example"}, {"domain": "a.example"}], 0, 1),
            ("active_sites", [{"domain": "a.example"}, {"domain": "b.example"}], 0, 1),
            ("support_requests", [{}, {}], 1, 1),
        ],
    )
    def test_the_period_is_as_if_it_had_never_been(
        self,
        metering: Metering,
        meter: str,
        before: list[dict[str, Any]],
        voided: int,
        after: int,
    ) -> None:
        for number, arguments in enumerate(before):
            metering.record(meter, "cus_1", key=f"k-{number}", **arguments)
        metering.adjust("cus_1", meter, f"k-{voided}", "a mistake")
        assert totals(metering) == {meter: after}
        assert list(metering.store.verify()) == []

    def test_what_is_not_there_cannot_be_voided(self, metering: Metering) -> None:
        metering.record("api_calls", "cus_1", key="k")
        metering.adjust("cus_1", "api_calls", "k", "a mistake")
        with pytest.raises(UnknownEvent, match="cus_2 has no api_calls event with key 'k'"):
            metering.adjust("cus_2", "api_calls", "k", "a mistake")
        with pytest.raises(UnknownEvent):
            metering.adjust("cus_1", "api_calls", "other", "a mistake")
        with pytest.raises(KeyConflict, match="cannot be voided"):
            metering.adjust("cus_1", "api_calls", "adjust:k", "a mistake")
        with pytest.raises(UnknownMeter):
            metering.adjust("cus_1", "api_call", "k", "a mistake")

    @pytest.mark.parametrize("reason", ["", "line\nbreak", "x" * 1025, None])
    def test_a_reason_is_needed(self, metering: Metering, reason: Any) -> None:
        metering.record("api_calls", "cus_1", key="k")
        with pytest.raises(InvalidEvent, match="reason"):
            metering.adjust("cus_1", "api_calls", "k", reason)


def test_numbers_are_exact_whatever_the_hosts_decimal_context(metering: Metering) -> None:
    customer = Customer("cus_1", plan="starter")
    metering.record("storage_gb", customer, value="12345.678")
    metering.record(
        "verify_operations", customer, value=123456, verification_result=True, manifest_id="m"
    )
    with localcontext(prec=2):
        used = {row.meter: row for row in metering.usage(customer)}
        owed = {line.meter: line for line in metering.bill(customer)}
    assert used["storage_gb"].total == Decimal("12345.678")
    assert owed["verify_operations"].amount == (123456 - 2000) * 4


class TestInTheCallersTransaction:
    """``record(connection=)``: the caller's rows and the event commit together, or not at all."""

    @pytest.fixture
    def engine(self, metering: Metering) -> Iterator[Engine]:
        metering.store.upgrade()
        engine = create_engine(metering.config.database_url)
        with engine.begin() as connection:
            connection.execute(text("CREATE TABLE sites (domain TEXT)"))
        yield engine
        engine.dispose()

    def test_they_commit_together(self, metering: Metering, engine: Engine) -> None:
        with engine.begin() as connection:
            connection.execute(text("INSERT INTO sites VALUES ('a.example')"))
            event = metering.record(
                "active_sites", "cus_1", connection=connection, domain="a.example"
            )
            assert metering.store.events() == []
        assert metering.store.events() == [event]
        assert totals(metering) == {"active_sites": 1}

    def test_they_roll_back_together(self, metering: Metering, engine: Engine) -> None:
        with pytest.raises(LookupError), engine.begin() as connection:
            connection.execute(text("INSERT INTO sites VALUES ('a.example')"))
            metering.record("active_sites", "cus_1", connection=connection, domain="a.example")
            raise LookupError
        assert metering.store.events() == []
        assert totals(metering) == {}

    def test_a_commit_by_hand_counts_even_if_nothing_else_was_written(
        self, metering: Metering, engine: Engine
    ) -> None:
        with engine.connect() as connection:
            metering.record("api_calls", "cus_1", connection=connection)
            connection.commit()
        assert totals(metering) == {"api_calls": 1}

    def test_without_a_commit_nothing_is_kept(self, metering: Metering, engine: Engine) -> None:
        with engine.connect() as connection:
            metering.record("api_calls", "cus_1", connection=connection)
        assert metering.store.events() == []

    def test_a_known_key_leaves_the_callers_transaction_alone(
        self, metering: Metering, engine: Engine
    ) -> None:
        metering.record("api_calls", "cus_1", key="k")
        with engine.begin() as connection:
            connection.execute(text("INSERT INTO sites VALUES ('a.example')"))
            assert metering.record("api_calls", "cus_1", key="k", connection=connection) is None
        assert totals(metering) == {"api_calls": 1}
        with engine.connect() as connection:
            assert connection.execute(text("SELECT count(*) FROM sites")).scalar() == 1

    def test_twice_in_one_transaction_is_once(self, metering: Metering, engine: Engine) -> None:
        with engine.begin() as connection:
            for expected in (True, False):
                event = metering.record("api_calls", "cus_1", key="k", connection=connection)
                assert (event is not None) is expected
        assert totals(metering) == {"api_calls": 1}

    def test_a_key_used_for_something_else_in_the_same_transaction_is_a_conflict(
        self, metering: Metering, engine: Engine
    ) -> None:
        with engine.begin() as connection:
            sign = {"key": "k-1", "connection": connection}
            assert metering.record("sign_operations", "cus_1", manifest_id="m", **sign)
            assert metering.record("sign_operations", "cus_1", manifest_id="m", **sign) is None
            with pytest.raises(KeyConflict):
                metering.record("sign_operations", "cus_1", manifest_id="other", **sign)
        assert len(metering.store.events()) == 1

    def test_bad_input_is_refused_before_the_connection_is_touched(
        self, metering: Metering, engine: Engine
    ) -> None:
        with engine.begin() as connection:
            with pytest.raises(InvalidEvent):
                metering.record("api_calls", "cus_1", value=-1, connection=connection)
            connection.execute(text("INSERT INTO sites VALUES ('a.example')"))
        assert metering.store.events() == []

    @pytest.mark.parametrize("url", ["sqlite://", "sqlite:///{folder}/other.sqlite"])
    def test_a_connection_to_another_database_is_refused_by_name(
        self, metering: Metering, tmp_path: Path, url: str
    ) -> None:
        with create_engine(url.format(folder=tmp_path)).begin() as connection:
            with pytest.raises(ValueError, match="to the database of C2METER_DATABASE_URL"):
                metering.record("api_calls", "cus_1", connection=connection)
        assert metering.record("api_calls", "cus_1") is not None
        assert not metering.store.is_failing

    def test_the_tables_are_made_if_it_is_the_first_event_of_all(
        self, new_host: Callable[..., Host]
    ) -> None:
        metering = new_host().metering
        Path(metering.config.database_url.removeprefix("sqlite:///")).parent.mkdir()
        engine = create_engine(metering.config.database_url)
        with engine.begin() as connection:
            metering.record("api_calls", "cus_1", connection=connection)
        engine.dispose()
        assert totals(metering) == {"api_calls": 1}

    def test_the_signal_comes_before_the_commit(self, metering: Metering, engine: Engine) -> None:
        with engine.begin() as connection, capture_usage() as captured:
            event = metering.record("api_calls", "cus_1", connection=connection)
            assert captured == [event]
            connection.rollback()
        assert metering.store.events() == []

    def test_a_database_that_is_locked_is_said_to_be_unavailable(
        self, metering: Metering, engine: Engine
    ) -> None:
        other = create_engine(metering.config.database_url, connect_args={"timeout": 0.05})
        with engine.begin() as busy, other.connect() as connection:
            busy.execute(text("INSERT INTO sites VALUES ('a.example')"))
            with pytest.raises(StoreUnavailable):
                metering.record("api_calls", "cus_1", connection=connection)
        other.dispose()
        assert metering.record("api_calls", "cus_1") is not None

    def test_it_is_delivered_after_the_commit(
        self, new_host: Callable[..., Host], stripe_emulator: StripeEmulator
    ) -> None:
        metering = new_host(
            C2METER_STRIPE_SECRET_KEY="sk_test_1", C2METER_STRIPE_BASE_URL=stripe_emulator.url
        ).metering
        metering.store.upgrade()
        engine = create_engine(metering.config.database_url)
        with engine.begin() as connection:
            metering.record("sign_operations", "cus_1", manifest_id="m", connection=connection)
            assert stripe_emulator.events == []
        assert stripe_emulator.wait_for(1)
        engine.dispose()
        wait_until(lambda: metering.status()["meters"]["sign_operations"]["delivered"] == "1")


class TestWhenTheStoreFails:
    @pytest.fixture
    def locked(self, metering: Metering) -> Iterator[Callable[[], None]]:
        """Another process's writer holds the database, and lets go when told to."""
        metering.store.upgrade()
        lock = Path(metering.config.database_url.removeprefix("sqlite:///") + "-lock")
        assert lock.exists()
        engine = create_engine(metering.config.database_url)
        connection = engine.connect()
        connection.execute(text("CREATE TABLE IF NOT EXISTS other (n INTEGER)"))
        connection.execute(text("INSERT INTO other VALUES (1)"))
        yield connection.commit
        connection.close()
        engine.dispose()

    def test_events_are_spilled_and_the_caller_sees_no_error(
        self, host: Host, metering: Metering, locked: Callable[[], None]
    ) -> None:
        event = metering.record("api_calls", "cus_1")
        assert event is not None
        assert metering.status()["spill"] == {"pending": 1, "corrupt": 0}
        locked()
        assert host.app.test_cli_runner().invoke(args=["c2meter", "status"]).exit_code == 1

    def test_a_spill_that_fails_too_is_an_error(
        self, new_host: Callable[..., Host], tmp_path: Path
    ) -> None:
        (tmp_path / "a file").write_text("where a folder is needed")
        metering = new_host(
            C2METER_DATABASE_URL=f"sqlite:///{tmp_path}/a file/c2meter.sqlite",
            C2METER_SPILL_PATH=str(tmp_path / "a file" / "spill"),
        ).metering
        with pytest.raises(StoreUnavailable):
            metering.record("sign_operations", "cus_1", manifest_id="m-1")
        assert metering.is_closed


def test_two_writers_in_two_threads_both_count(metering: Metering) -> None:
    start = threading.Barrier(2)
    events: list[UsageEvent | None] = []

    def write(number: int) -> None:
        start.wait()
        for count in range(20):
            events.append(metering.record("api_calls", "cus_1", key=f"{number}-{count}"))

    threads = [threading.Thread(target=write, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert None not in events
    assert totals(metering) == {"api_calls": 40}


def test_a_plan_that_the_catalogue_does_not_know_is_said_once(
    new_host: Callable[..., Host], caplog: pytest.LogCaptureFixture
) -> None:
    host = new_host()
    host.meter.customer_loader(lambda: Customer("cus_1", plan="gold"))
    host.route(lambda: "")
    assert [host.client().get("/").status_code for _ in range(3)] == [200, 200, 200]
    assert [r.getMessage() for r in caplog.records if "gold" in r.getMessage()] == [
        "event=plan_unknown plan=gold known=starter,growth,scale "
        "then=unlimited_unless_stripe_names_another"
    ]


def test_such_a_plan_limits_nothing(metering: Metering) -> None:
    gold = Customer("cus_1", plan="gold")
    metering.record("verify_operations", gold, value=10**6, manifest_id="m")
    used = {row.meter: row for row in metering.usage(gold)}["verify_operations"]
    assert (used.total, used.included, used.level) == (10**6, None, None)
    owed = {row.meter: row for row in metering.bill(gold)}["verify_operations"]
    assert (owed.units, owed.amount) == (0, 0)
