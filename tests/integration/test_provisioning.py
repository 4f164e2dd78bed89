"""Bringing Stripe up to the catalogue: what is made, kept, changed, left alone and refused."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from random import Random
from threading import Barrier
from typing import Any

import pytest
from provision_rig import CATALOGUE, Shop, catalogue

from flask_c2meter.emulator import StripeEmulator
from flask_c2meter.emulator.wire import ReceivedRequest
from flask_c2meter.errors import C2MeterError, GatewayError, ProvisioningError
from flask_c2meter.provisioner import ROUNDS
from flask_c2meter.provisioning import Action, Plan, Step


@pytest.fixture
def shop(stripe_emulator: StripeEmulator) -> Shop:
    return Shop(stripe_emulator)


def obstacle(plan: Plan) -> Step:
    (step,) = plan.obstacles
    return step


# What is made


def test_an_empty_account_gets_meters_products_and_prices(shop: Shop) -> None:
    assert [step.action for step in shop.plan().steps] == [Action.CREATE] * 10
    assert shop.writes() == [], "a plan changes nothing"
    shop.apply()

    assert sorted((m["event_name"], m["display_name"], m["status"]) for m in shop.meters()) == [
        ("sites", "Sites", "active"),
        ("storage", "Storage", "active"),
        ("verify", "Verify", "active"),
    ]
    for meter in shop.meters():
        assert meter["default_aggregation"] == {"formula": "sum"}
        assert meter["customer_mapping"]["event_payload_key"] == "stripe_customer_id"
        assert meter["value_settings"] == {"event_payload_key": "value"}
        assert meter["event_time_window"] is None
    assert {p["id"]: (p["name"], p["unit_label"]) for p in shop.products()} == {
        "c2meter_sites": ("Sites", "site"),
        "c2meter_storage": ("Storage, per 0.001 GB", "0.001 GB"),
        "c2meter_verify": ("Verify", "verify"),
    }
    prices = {price["lookup_key"]: price for price in shop.prices()}
    assert set(prices) == {
        f"{plan}_{meter}" for plan in ("starter", "growth") for meter in ("verify", "storage")
    }
    price = prices["starter_storage"]
    assert [(t["up_to"], Decimal(t["unit_amount_decimal"])) for t in price["tiers"]] == [
        (500, Decimal(0)),
        (None, Decimal("0.0125")),
    ]
    assert (price["billing_scheme"], price["tiers_mode"]) == ("tiered", "graduated")
    recurring = price["recurring"]
    assert (recurring["interval"], recurring["usage_type"]) == ("month", "metered")
    assert price["metadata"] == {"c2meter_managed": "1", "plan": "starter", "meter": "storage"}


def test_the_second_time_there_is_nothing_to_do(shop: Shop) -> None:
    shop.apply()
    made = len(shop.writes())
    plan = shop.plan()
    assert plan.changes == []
    assert plan.counts[Action.KEEP] == 10
    assert shop.apply() == []
    assert len(shop.writes()) == made


def test_what_is_not_sold_is_said(shop: Shop) -> None:
    assert shop.plan().notes == [
        "sites: no price; Stripe counts it and bills nothing",
        "calls: not billable, so not at Stripe",
    ]


def test_prices_in_two_currencies_are_said_not_to_go_together(shop: Shop) -> None:
    content = catalogue()
    content["meters"]["storage"]["price"]["currency"] = "eur"
    assert "prices in eur, usd" in shop.plan(content).notes[-1]


def test_more_meters_than_a_page_of_stripes_holds(shop: Shop) -> None:
    content = catalogue()
    for number in range(101):
        shop.stripe.add_meter(f"foreign_{number}")
    shop.apply(content)
    assert shop.plan(content).changes == []


# What changes


def test_a_changed_price_is_replaced_and_subscriptions_keep_theirs(shop: Shop) -> None:
    shop.apply()
    (old,) = (p for p in shop.prices() if p["lookup_key"] == "starter_storage")
    subscription = shop.stripe.add_subscription("cus_1", ["starter_storage"])
    content = catalogue()
    content["meters"]["storage"]["price"]["unit_amount"] = "13"

    plan = shop.plan(content)
    created, dropped = plan.changes[0], plan.changes[-1]
    assert created.note == f"takes the lookup key of {old['id']}"
    assert dropped.note == "subscriptions keep a deactivated price until they are moved to another"
    assert shop.apply(content) == [
        ("create", "price", "starter_storage"),
        ("create", "price", "growth_storage"),
        ("deactivate", "price", "growth_storage"),
        ("deactivate", "price", "starter_storage"),
    ]
    prices = {p["id"]: p for p in shop.prices()}
    assert (prices[old["id"]]["active"], prices[old["id"]]["lookup_key"]) == (False, None)
    assert len(shop.prices(active=True)) == 4
    (item,) = shop.ask(lambda client: client.v1.subscriptions.retrieve(subscription))["items"].data
    assert item.price.id == old["id"]


@pytest.mark.parametrize(
    ("meter", "change"),
    [
        ("verify", {"included": {"starter": 21, "growth": "unlimited"}}),
        ("verify", {"included": {"starter": 20, "growth": 100}}),
        ("storage", {"price": {"mode": "flat", "currency": "eur", "unit_amount": "12.5"}}),
        (
            "storage",
            {
                "included": {"starter": 0, "growth": 0},
                "price": {
                    "mode": "volume",
                    "currency": "usd",
                    "tiers": [{"up_to": 3, "unit_amount": 9}, {"unit_amount": 8}],
                },
            },
        ),
    ],
)
def test_there_and_back_again_within_a_day(shop: Shop, meter: str, change: dict[str, Any]) -> None:
    """Stripe repeats its answer to a key it knows: going back must not end in an old price."""
    content = catalogue()
    content["meters"][meter].update(change)
    for _ in range(3):
        shop.apply()
        before = shop.picture()
        assert shop.apply(content)
        assert shop.plan(content).changes == []
    shop.apply()
    assert "replayed" not in {request.answered for request in shop.stripe.requests}
    assert [row for row in shop.picture() if row[0] != "price" or row[2]] == [
        row for row in before if row[0] != "price" or row[2]
    ]


def test_a_new_display_name_renames(shop: Shop) -> None:
    shop.apply()
    content = catalogue()
    content["meters"]["verify"]["display_name"] = "Checks"
    assert shop.apply(content) == [
        ("rename", "product", "c2meter_verify"),
        ("rename", "meter", "verify"),
    ]
    assert "Checks" in [meter["display_name"] for meter in shop.meters()]


def test_what_has_left_the_catalogue_is_deactivated_and_may_come_back(shop: Shop) -> None:
    shop.apply()
    before = shop.picture()
    content = catalogue()
    del content["meters"]["storage"]
    del content["plans"]["growth"]
    del content["meters"]["verify"]["included"]["growth"]
    content["meters"]["sites"]["billable"] = False

    assert shop.apply(content) == [
        ("deactivate", "price", "growth_storage"),
        ("deactivate", "price", "growth_verify"),
        ("deactivate", "price", "starter_storage"),
        ("deactivate", "meter", "sites"),
        ("deactivate", "meter", "storage"),
        ("deactivate", "product", "c2meter_sites"),
        ("deactivate", "product", "c2meter_storage"),
    ]
    assert [p["lookup_key"] for p in shop.prices(active=True)] == ["starter_verify"]
    assert {action for action, *_ in shop.apply()} == {"reactivate"}
    assert shop.picture() == before


@pytest.mark.parametrize("seed", range(5))
def test_whatever_the_catalogue_becomes_one_run_brings_stripe_up_to_it(
    shop: Shop, seed: int
) -> None:
    random = Random(seed)
    shop.stripe.add_price("foreign", lookup_key="foreign", unit_amount_decimal="1")
    foreign = shop.picture()
    for _ in range(6):
        content = any_catalogue(random)
        shop.apply(content)
        assert shop.plan(content).changes == []
        picture = shop.picture()
        assert all(row in picture for row in foreign)
        sold = {p["lookup_key"]: p for p in shop.prices(active=True)}
        meters = {name: m for name, m in content["meters"].items() if m["billable"]}
        assert set(sold) - {"foreign"} == {
            f"{plan}_{name}"
            for plan in content["plans"]
            for name in meters
            if "price" in meters[name]
        }
        active = {m["event_name"] for m in shop.meters() if m["status"] == "active"}
        assert active - {"foreign"} == set(meters)
        for key, price in sold.items():
            if key != "foreign":
                plan, _, name = key.partition("_")
                included = meters[name]["included"].get(plan)
                first = price["tiers"][0]["up_to"]
                assert first == (None if included in (None, 0) else included)


def any_catalogue(random: Random) -> dict[str, Any]:
    plans = random.sample(["a", "b", "c"], random.randint(1, 3))
    content: dict[str, Any] = {"plans": {plan: {} for plan in plans}, "meters": {}}
    for name in random.sample(["x", "y", "z"], random.randint(1, 3)):
        meter = content["meters"][name] = {
            "display_name": random.choice(["One", "Two"]),
            "event_type": "e",
            "unit": random.choice(["u", "v"]),
            "aggregation": "count",
            "billable": random.random() < 0.8,
            "included": {plan: random.choice([0, 5]) for plan in plans if random.random() < 0.7},
        }
        if random.random() < 0.8:
            amount = random.choice(["1", "2.5"])
            meter["price"] = {"mode": "flat", "currency": "usd", "unit_amount": amount}
    return content


# What is not ours


def test_what_others_made_is_never_touched(shop: Shop) -> None:
    stripe = shop.stripe
    stripe.add_meter("foreign")
    stripe.add_price("foreign", lookup_key="foreign", unit_amount_decimal="1", product="prod_1")
    stripe.add_price("foreign_too", unit_amount_decimal="1", product="c2meter_foreign_too")
    foreign = shop.picture()
    shop.apply()
    content = catalogue()
    del content["meters"]["storage"]
    shop.apply(content)
    assert [row for row in shop.picture() if "foreign" in str(row)] == [
        row for row in foreign if "foreign" in str(row)
    ]


def test_a_meter_made_by_hand_is_used_but_never_changed(shop: Shop) -> None:
    id = shop.stripe.add_meter("verify", "By hand")
    shop.apply()
    kept = next(step for step in shop.plan().steps if step.name == "verify")
    assert (kept.action, kept.note) == (
        Action.KEEP,
        "not made by provision: used as it is, never changed",
    )
    assert {p["recurring"]["meter"] for p in shop.prices() if "verify" in p["lookup_key"]} == {id}
    content = catalogue()
    del content["meters"]["verify"]
    shop.apply(content)
    assert ("meter", "verify", "By hand", "active") in shop.picture()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"default_aggregation": {"formula": "last"}}, "default_aggregation is last, must be sum"),
        (
            {"customer_mapping": {"type": "by_id", "event_payload_key": "who"}},
            "customer_mapping is by_id who, must be by_id stripe_customer_id",
        ),
        (
            {"value_settings": {"event_payload_key": "n"}},
            "value_settings is n, must be value",
        ),
        ({"event_time_window": "day"}, "event_time_window is day, must be unset"),
    ],
)
def test_a_meter_that_counts_otherwise_cannot_be_changed(
    shop: Shop, settings: dict[str, Any], said: str
) -> None:
    params = {
        "display_name": "v",
        "event_name": "verify",
        "default_aggregation": {"formula": "sum"},
        **settings,
    }
    shop.ask(lambda client: client.v1.billing.meters.create(params))
    plan = shop.plan()
    assert (obstacle(plan).name, obstacle(plan).detail) == ("verify", said)
    assert "give the meter another name in the catalogue" in obstacle(plan).note
    before = shop.picture()
    with pytest.raises(ProvisioningError, match="nothing was changed: meter verify cannot be"):
        shop.apply()
    assert shop.picture() == before


def test_a_deactivated_meter_made_by_hand_is_for_its_maker_to_reactivate(shop: Shop) -> None:
    id = shop.stripe.add_meter("verify")
    shop.ask(lambda client: client.v1.billing.meters.deactivate(id))
    assert "reactivate it in the Dashboard" in obstacle(shop.plan()).note


def test_a_lookup_key_of_anothers_price_is_not_taken(shop: Shop) -> None:
    id = shop.stripe.add_price("other", lookup_key="starter_verify", unit_amount_decimal="1")
    step = obstacle(shop.plan())
    assert step.detail == (
        f"its lookup key belongs to {id}, not made by provision for this catalogue"
    )
    assert step.note == f"give {id} another lookup key, or none"
    shop.ask(lambda client: client.v1.prices.update(id, {"lookup_key": "mine"}))
    assert shop.apply()


def test_a_product_that_happens_to_have_our_id_is_not_taken(shop: Shop) -> None:
    params: Any = {"id": "c2meter_verify", "name": "Mine"}
    shop.ask(lambda client: client.v1.products.create(params))
    step = obstacle(shop.plan())
    assert step.detail == "not made by provision for this catalogue"
    assert step.note.startswith("give its metadata c2meter_managed=1 to hand it over")
    handed_over: Any = {"metadata": {"c2meter_managed": "1"}}
    shop.ask(lambda client: client.v1.products.update("c2meter_verify", handed_over))
    assert ("rename", "product", "c2meter_verify") in shop.apply()


def test_two_catalogues_with_names_share_an_account(shop: Shop) -> None:
    one, other = catalogue(), {"name": "other", **catalogue()}
    other["meters"] = {f"other_{name}": meter for name, meter in other["meters"].items()}
    shop.apply(one)
    shop.apply(other)
    assert shop.plan(one).changes == []
    assert shop.plan(other).changes == []

    other["meters"]["verify"] = one["meters"]["verify"]
    step = obstacle(shop.plan(other))
    assert (step.kind, step.detail) == ("product", "not made by provision for this catalogue")
    assert "c2meter_managed=1 and c2meter_catalogue=other" in step.note


# What Stripe cannot bill


def test_a_price_that_stripe_cannot_bill_is_refused(shop: Shop) -> None:
    content = catalogue()
    content["meters"]["storage"]["price"] = {
        "mode": "volume",
        "currency": "usd",
        "tiers": [{"up_to": 3, "unit_amount": 9}, {"unit_amount": 8}],
    }
    plan = shop.plan(content)
    assert [step.name for step in plan.obstacles] == ["starter_storage", "growth_storage"]
    assert "use 'graduated'" in plan.obstacles[0].note


def test_a_refused_change_leaves_the_price_that_is_sold(shop: Shop) -> None:
    shop.apply()
    content = catalogue()
    content["meters"]["storage"]["price"] = {
        "mode": "volume",
        "currency": "usd",
        "tiers": [{"unit_amount": 9}],
    }
    assert shop.plan(content).changes == []


def test_two_prices_of_one_lookup_key_are_refused(shop: Shop) -> None:
    content = catalogue()
    content["plans"]["starter_verify"] = {}
    content["meters"]["x"] = content["meters"].pop("verify")
    content["meters"]["verify_x"] = dict(content["meters"]["x"])
    step = obstacle(shop.plan(content))
    assert step.name == "starter_verify_x"
    assert step.detail == "also the lookup key of x on starter_verify"


# Failures


def nth(number: int, among: Callable[[ReceivedRequest], bool]) -> Callable[[ReceivedRequest], bool]:
    """Matches the *number*-th of the requests *among* all."""
    seen = 0

    def match(request: ReceivedRequest) -> bool:
        nonlocal seen
        seen += among(request)
        return among(request) and seen == number

    return match


def is_any(request: ReceivedRequest) -> bool:
    return True


def changed() -> dict[str, Any]:
    """A catalogue to come to from the usual one: all kinds of steps are needed."""
    content = catalogue()
    content["meters"]["storage"]["price"]["unit_amount"] = "13"
    content["meters"]["verify"]["display_name"] = "Checks"
    del content["meters"]["sites"]
    content["meters"]["calls"]["billable"] = True
    content["plans"]["scale"] = {}
    return content


@pytest.fixture(scope="module")
def undisturbed() -> dict[str, Any]:
    """What there is after the first and the second catalogue, and how many requests each took."""
    with StripeEmulator() as stripe:
        shop = Shop(stripe)
        shop.apply()
        first = len(stripe.requests)
        picture = shop.picture()
        before = len(stripe.requests)
        shop.apply(changed())
        second = len(stripe.requests) - before
        return {"first": (picture, first), "second": (shop.picture(), second)}


FAULTS = [
    pytest.param({"status": 500}, id="500, which is repeated"),
    pytest.param({"status": 500, "after_processing": True}, id="500 after processing"),
    pytest.param({"reset": True}, id="reset"),
    pytest.param({"reset": True, "after_processing": True}, id="reset after processing"),
    pytest.param({"status": 403}, id="403"),
]


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("which", ["first", "second"])
def test_a_failure_of_any_request_is_made_up_for_by_the_next_run(
    shop: Shop, undisturbed: dict[str, Any], fault: dict[str, Any], which: str
) -> None:
    expected, requests = undisturbed[which]
    content = CATALOGUE if which == "first" else changed()
    failures = 0
    for number in range(1, requests + 1):
        shop.stripe.forget()
        if which == "second":
            shop.apply()
        shop.stripe.fail(**fault, match=nth(number, is_any))
        try:
            shop.apply(content)
        except C2MeterError:
            failures += 1
            shop.apply(content)
        assert shop.stripe.faults == []
        assert shop.picture() == expected, number
        assert shop.plan(content).changes == []
    assert failures, "reads are not tried again"


def test_a_failure_says_how_far_it_came(shop: Shop) -> None:
    shop.stripe.fail(400, times=None, path="/v1/prices", message="No way.", match=is_write)
    with pytest.raises(ProvisioningError) as caught:
        shop.apply()
    assert str(caught.value) == (
        "price starter_verify could not be changed: 400 invalid_request_error No way.; "
        "0 of 8 changes are made; run it again to go on"
    )
    attempts = [request for request in shop.writes() if request.path == "/v1/prices"]
    assert len(attempts) == ROUNDS


def is_write(request: ReceivedRequest) -> bool:
    return request.method == "POST"


def test_a_key_that_may_not_write_is_not_tried_again(shop: Shop) -> None:
    shop.stripe.fail(403, times=None, match=is_write)
    with pytest.raises(ProvisioningError, match="product c2meter_verify could not be changed: 403"):
        shop.apply()
    assert len(shop.writes()) == 1


def test_a_busy_stripe_is_waited_for(shop: Shop) -> None:
    shop.stripe.fail(429, times=2, retry_after=7)
    shop.stripe.fail(429, times=1, retry_after=3600)
    shop.stripe.fail(409, times=2, match=is_write, code="idempotency_key_in_use")
    assert len(shop.apply()) == 10
    assert shop.pauses == [7, 7, 30, 0.5, 1]


def test_a_stripe_that_stays_busy_is_given_up(shop: Shop) -> None:
    shop.stripe.fail(429, times=None)
    with pytest.raises(GatewayError, match="429"):
        shop.apply()
    assert len(shop.stripe.requests) == 6


# Others at the same time


@pytest.mark.parametrize("which", ["first", "second"])
def test_two_at_once_end_in_one_set_of_objects(
    shop: Shop, undisturbed: dict[str, Any], which: str
) -> None:
    content = CATALOGUE if which == "first" else changed()
    if which == "second":
        shop.apply()
    together = Barrier(4)

    def run(number: int) -> Plan:
        provisioner = Shop(shop.stripe).provisioner(content)
        plan = provisioner.plan()
        together.wait(30)
        return provisioner.apply(plan)

    with ThreadPoolExecutor(4) as pool:
        plans = list(pool.map(run, range(4)))
    assert [plan.changes for plan in plans] == [[]] * 4
    assert shop.picture() == undisturbed[which][0]


def test_one_whose_keys_differ_still_ends_in_one_set_of_objects(
    shop: Shop, undisturbed: dict[str, Any]
) -> None:
    """After a failure another round has other keys: Stripe itself then makes two."""
    shop.apply()
    other = Shop(shop.stripe).provisioner(changed())
    plan = other.plan()
    shop.stripe.fail(
        500, match=nth(1, lambda request: request.path == "/v1/prices" and is_write(request))
    )
    shop.apply(changed())
    last = other.apply(plan)
    assert last.changes == []
    active = [row for row in shop.picture() if row[0] != "price" or row[2]]
    assert active == [row for row in undisturbed["second"][0] if row[0] != "price" or row[2]]
