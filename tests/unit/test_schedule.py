"""A cron line says when: as cron means it, in UTC, within the day."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from flask_c2meter.schedule import Schedule

#: A Thursday.
DAY = datetime(2026, 1, 15, tzinfo=UTC)


def at(hour: int, minute: int = 0, day: datetime = DAY) -> datetime:
    return day + timedelta(hours=hour, minutes=minute)


def test_its_time_comes_to_the_second() -> None:
    schedule = Schedule("0 2 * * *")
    assert schedule.latest(at(2) - timedelta(microseconds=1)) is None
    assert schedule.latest(at(2)) == at(2)
    assert schedule.latest(at(23, 59)) == at(2)


def test_what_was_missed_yesterday_stays_missed() -> None:
    schedule = Schedule("0 2 * * *")
    assert schedule.latest(at(3)) == at(2)
    assert schedule.latest(at(24)) is None
    assert schedule.latest(at(26)) == at(26)


def test_several_times_a_day_the_latest_counts() -> None:
    schedule = Schedule("30 */6 * * *")
    assert schedule.latest(at(0, 29)) is None
    assert schedule.latest(at(0, 30)) == at(0, 30)
    assert schedule.latest(at(13)) == at(12, 30)


def test_a_clock_that_is_set_back_is_followed() -> None:
    schedule = Schedule("0 2,14 * * *")
    assert schedule.latest(at(15)) == at(14)
    assert schedule.latest(at(13)) == at(2)
    assert schedule.latest(at(1)) is None


def test_other_time_zones_are_read_as_utc() -> None:
    tokyo = timezone(timedelta(hours=9))
    assert Schedule("0 2 * * *").latest(at(2).astimezone(tokyo)) == at(2)


@pytest.mark.parametrize(
    ("line", "days"),
    [
        # Of 2026-01-11, a Sunday, to 2026-01-17, a Saturday.
        ("0 2 * * 0", [11]),
        ("0 2 * * 1-5", [12, 13, 14, 15, 16]),
        ("0 2 * * 0,6", [11, 17]),
        ("0 2 * * */2", [11, 13, 15, 17]),
        ("0 2 * * 1-5/2", [12, 14, 16]),
        ("0 2 * * 4/2", [15, 17]),
        ("0 2 13 * *", [13]),
        ("0 2 13 * 0", [11, 13]),
        ("0 2 */2 * *", [11, 13, 15, 17]),
        ("0 2 * 2 *", []),
        ("0 2 30 2 *", []),
    ],
)
def test_days_are_those_of_cron(line: str, days: list[int]) -> None:
    schedule = Schedule(line)
    week = [datetime(2026, 1, day, 12, tzinfo=UTC) for day in range(11, 18)]
    assert [day.day for day in week if schedule.latest(day)] == days
