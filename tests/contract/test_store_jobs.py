"""Every store's memory of daily jobs: one holder, one row per customer and day, one alert."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import date, timedelta
from decimal import Decimal

import pytest
from sqlalchemy import text
from storekit import DAY, MINUTE, NOW, adjustment, record, usage

from flask_c2meter.errors import LeaseLost
from flask_c2meter.model import JobAlert
from flask_c2meter.store import Entry, Store, encode
from flask_c2meter.store.leases import JobLease

JOB = "storage"
TODAY = NOW.date()


def nobody_is_gone(owner: str) -> bool:
    return False


def take(
    store: Store,
    owner: str = "a",
    after: timedelta = timedelta(0),
    is_gone: Callable[[str], bool] = nobody_is_gone,
) -> JobLease | None:
    return store.jobs.take(JOB, owner, NOW + after, MINUTE, is_gone)


def must_take(store: Store, owner: str = "a", after: timedelta = timedelta(0)) -> JobLease:
    lease = take(store, owner, after)
    assert lease is not None
    return lease


def put(store: Store, day: date = TODAY, **states: str | None) -> None:
    lease = must_take(store)
    with store.jobs.batch(lease, day, NOW + MINUTE) as batch:
        batch.put(states)


class TestLease:
    def test_one_holds_it_until_it_is_left(self, store: Store) -> None:
        lease = must_take(store)
        assert take(store, "b") is None
        assert store.jobs.holder(JOB, NOW, MINUTE, nobody_is_gone) == "a"
        store.jobs.leave(lease)
        assert store.jobs.holder(JOB, NOW, MINUTE, nobody_is_gone) is None
        assert take(store, "b") is not None

    def test_other_jobs_are_others(self, store: Store) -> None:
        must_take(store)
        assert store.jobs.take("backup", "b", NOW, MINUTE, nobody_is_gone) is not None

    def test_its_owner_takes_it_again_and_what_it_had_before_is_void(self, store: Store) -> None:
        before = must_take(store)
        must_take(store)
        with pytest.raises(LeaseLost):
            store.jobs.extend(before, NOW + MINUTE)

    def test_it_runs_out_unless_it_is_extended(self, store: Store) -> None:
        lease = must_take(store)
        store.jobs.extend(lease, NOW + 2 * MINUTE)
        assert take(store, "b", after=1.5 * MINUTE) is None
        assert take(store, "b", after=2 * MINUTE) is not None
        with pytest.raises(LeaseLost, match="taken over by b"):
            store.jobs.extend(lease, NOW + 9 * MINUTE)

    def test_that_of_a_dead_process_is_over_at_once(self, store: Store) -> None:
        must_take(store)
        assert take(store, "b", is_gone=lambda owner: owner == "a") is not None

    def test_one_from_the_future_is_over(self, store: Store) -> None:
        must_take(store, after=timedelta(hours=5))
        assert take(store, "b") is not None

    def test_leaving_what_another_holds_leaves_it_to_the_other(self, store: Store) -> None:
        lease = must_take(store)
        must_take(store, "b", after=MINUTE)
        store.jobs.leave(lease)
        assert take(store, "c", after=MINUTE) is None

    def test_of_many_that_come_at_once_one_gets_it(self, store: Store) -> None:
        take(store, "first", after=-timedelta(hours=1))
        with ThreadPoolExecutor(8) as pool:
            taken = list(pool.map(lambda n: take(store, f"owner-{n}"), range(8)))
        assert sum(lease is not None for lease in taken) == 1


class TestCustomers:
    def test_a_row_says_done_or_why_not(self, store: Store) -> None:
        put(store, cus_a=None, cus_b="too large")
        assert store.jobs.is_done(JOB, TODAY, "cus_a")
        assert not store.jobs.is_done(JOB, TODAY, "cus_b")
        assert not store.jobs.is_done(JOB, TODAY - DAY, "cus_a")
        assert store.jobs.failure(JOB, TODAY, "cus_b") == "too large"
        assert store.jobs.failure(JOB, TODAY, "cus_a") is None
        assert store.jobs.failures(JOB, TODAY, 10) == [("cus_b", "too large")]
        put(store, cus_b=None)
        assert store.jobs.failures(JOB, TODAY, 10) == []
        assert store.jobs.count(JOB, TODAY) == 2

    def test_rows_and_events_come_together_or_not_at_all(self, store: Store) -> None:
        lease = must_take(store)
        with pytest.raises(ZeroDivisionError):
            with store.jobs.batch(lease, TODAY, NOW + MINUTE) as batch:
                assert batch.append([Entry(encode(usage("storage", 5, key="k")))]) == [True]
                batch.put({"cus_1": None})
                raise ZeroDivisionError
        assert store.events() == [] and store.jobs.count(JOB, TODAY) == 0

    def test_a_batch_is_refused_once_another_holds_the_job(self, store: Store) -> None:
        lease = must_take(store)
        must_take(store, "b", after=MINUTE)
        with pytest.raises(LeaseLost):
            with store.jobs.batch(lease, TODAY, NOW + MINUTE):
                raise AssertionError("it was let in")

    def test_what_was_measured_before_is_the_latest_of_this_job_not_voided(
        self, store: Store
    ) -> None:
        def measured(days: int, units: int, customer: str = "cus_1") -> None:
            key = f"storage:{TODAY - timedelta(days)}"
            record(store, usage("storage", units, key=key, customer=customer))

        measured(0, 1)
        measured(1, 2)
        measured(3, 4)
        measured(40, 7)
        measured(40, 7, "cus_2")
        record(store, usage("storage", 9))
        record(store, usage("verify", 9, key=f"storage:{TODAY - DAY}", customer="cus_2"))
        lease = must_take(store)

        def before() -> dict[str, int]:
            with store.jobs.batch(lease, TODAY, NOW + MINUTE) as batch:
                return batch.before(["cus_1", "cus_2", "cus_3"], "storage")

        assert before() == {"cus_1": 2}
        store.adjust(adjustment(f"storage:{TODAY - DAY}", "storage"))
        assert before() == {"cus_1": 4}


class TestEnd:
    def finish(
        self, store: Store, day: date = TODAY, error: str | None = None, share: str = "0.1"
    ) -> tuple[int, int, bool, bool]:
        result = store.jobs.finish(
            must_take(store),
            day,
            NOW,
            NOW + MINUTE,
            error=error,
            max_failures=Decimal(share),
            channels=["webhook", "email"],
        )
        return result.total, result.failed, result.is_bad, result.alert is not None

    def test_ten_of_a_hundred_are_not_too_many_and_eleven_are(self, store: Store) -> None:
        customers: dict[str, str | None] = {f"cus_{n}": None for n in range(90)}
        put(store, **customers, **{f"bad_{n}": "why" for n in range(10)})
        assert self.finish(store) == (100, 10, False, False)
        put(store, cus_0="why")
        assert self.finish(store) == (100, 11, True, True)

    def test_a_day_is_told_of_once_whatever_else_happens(self, store: Store) -> None:
        put(store, cus_a="why")
        assert self.finish(store) == (1, 1, True, True)
        put(store, cus_b="why")
        assert self.finish(store) == (2, 2, True, False)
        assert self.finish(store, error="the loader failed") == (2, 2, True, False)
        assert self.finish(store, TODAY + DAY, error="the loader failed") == (0, 0, True, True)

    def test_the_alert_waits_on_each_channel(self, store: Store) -> None:
        put(store, cus_a="why", cus_b=None)
        self.finish(store)
        assert store.announcements.due_channels(NOW + MINUTE) == {"webhook", "email"}
        claim = store.announcements.claim("webhook", NOW + MINUTE)
        assert claim is not None and isinstance(alert := claim.alert, JobAlert)
        assert (alert.job, alert.day, alert.total, alert.failed) == (JOB, TODAY, 2, 1)
        assert (alert.rate, alert.is_broken) == ("50.00%", False)

    def test_it_is_known_what_came_of_the_latest_day(self, store: Store) -> None:
        assert store.jobs.last(JOB) is None
        put(store, cus_a=None, cus_b="why")
        self.finish(store, share="1")
        self.finish(store, TODAY - DAY)
        last = store.jobs.last(JOB)
        assert last is not None
        assert (last.day, last.total, last.failed, last.rate) == (TODAY, 2, 1, "50.00%")
        assert (last.begun_at, last.ended_at) == (NOW, NOW + MINUTE)

    def test_who_was_there_the_day_before_and_is_not_named_is_counted(self, store: Store) -> None:
        put(store, TODAY - DAY, cus_a=None, cus_b=None, cus_c="why")
        put(store, TODAY, cus_a="why")
        self.finish(store)
        last = store.jobs.last(JOB)
        assert last is not None and last.unnamed == 1

    def test_rows_that_nobody_can_need_go(self, store: Store) -> None:
        for days in (39, 40, 41, 400):
            put(store, TODAY - timedelta(days), cus_a=None)
        self.finish(store)
        kept = [store.jobs.count(JOB, TODAY - timedelta(days)) for days in (39, 40, 41, 400)]
        assert kept == [1, 1, 0, 0]

    def test_it_gives_the_job_back(self, store: Store) -> None:
        self.finish(store)
        assert take(store, "b") is not None

    def test_another_holder_s_end_is_refused(self, store: Store) -> None:
        lease = must_take(store)
        must_take(store, "b", after=MINUTE)
        with pytest.raises(LeaseLost):
            store.jobs.finish(
                lease, TODAY, NOW, NOW, error="x", max_failures=Decimal(0), channels=["webhook"]
            )
        with store.reading() as connection:
            assert connection.execute(text("SELECT COUNT(*) FROM alerts")).scalar() == 0
