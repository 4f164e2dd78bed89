"""What every store tells of itself and of single customers, for those who examine it."""

from __future__ import annotations

from typing import Literal

import pytest
from storekit import DAY, METERS, MINUTE, NOW, Sender, adjustment, delivered, record, usage

from flask_c2meter.model import Flag, UsageEvent
from flask_c2meter.store import Store, open_store


def test_a_committed_event_is_on_the_disk(store: Store) -> None:
    assert store.settings().synchronous == "full"


@pytest.mark.parametrize(("durability", "synchronous"), [("full", "full"), ("relaxed", "normal")])
def test_sqlite_says_what_is_in_force(
    store_url: str, durability: Literal["full", "relaxed"], synchronous: str
) -> None:
    store = open_store(store_url, METERS, durability)
    if store_url.startswith("sqlite"):
        found = store.settings()
        assert (found.synchronous, found.journal_mode) == (synchronous, "wal")
        assert found.path is not None
        assert found.path.is_file()
    store.close()


def test_streams_that_began_and_never_said_how_much_they_were(store: Store) -> None:
    def reserve(key: str, *more: Flag) -> UsageEvent:
        return usage(units=0, key=key, flags=("reserved", *more))

    record(store, reserve("silent"), reserve("silent too", "incomplete"), usage(key="whole"))
    record(store, reserve("spoken"), usage(key="part:1:spoken", units=3))
    record(store, reserve("voided"))
    store.adjust(adjustment("voided"))
    record(store, usage("sign", 0, key="of another", flags=("reserved",), recorded_at=NOW - DAY))

    assert store.silent_streams(NOW) == {"sign": 1}
    assert store.silent_streams(NOW + MINUTE) == {"verify": 2, "sign": 1}
    assert store.counts()["verify"].reserved == 4


def test_the_shipments_of_one_minute(store: Store) -> None:
    record(store, usage(key="a"), usage(key="b", occurred_at=NOW + MINUTE), usage("sign"))
    sender = Sender(store)
    sender.settle(*map(delivered, sender.claim(at=NOW + MINUTE)))
    store.adjust(adjustment("a"))
    sender.claim(at=NOW + 2 * MINUTE)
    found = store.shipments_of("cus_1", "verify", NOW)
    assert [(each.value, each.state) for each in found] == [(1, "delivered"), (-1, "sending")]
    assert store.shipments_of("cus_2", "verify", NOW) == []


def test_whether_a_customer_has_usage_of_its_own(store: Store) -> None:
    ours = ("test:", "adjust:test:")
    assert not store.has_events_besides("cus_1", ours)
    record(store, usage(key="test:1"))
    store.adjust(adjustment("test:1"))
    assert not store.has_events_besides("cus_1", ours)
    record(store, usage(key="test", customer="cus_2"), usage(key="te%t:1", customer="cus_3"))
    assert store.has_events_besides("cus_2", ours)
    assert store.has_events_besides("cus_3", ours)
    assert store.has_events_besides("cus_3", ("te_t:",)), "a prefix is no pattern"
