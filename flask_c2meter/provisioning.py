"""What has to be done at Stripe so that it bills by the catalogue: a plan, made of steps.

Pure: the catalogue and what Stripe holds go in, steps in the order to take them come out.
Promises: an object that does not bear our mark is never changed; whatever Stripe cannot change is
named with its cure; a plan made after its steps have been taken has none to take.

A meter's product comes before the meter: it says whether the meter is ours.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Literal

from . import wares
from .catalogue import Catalogue
from .decimals import exactly
from .errors import CatalogueError
from .model import Meter
from .stripe_objects import VALUE_KEY, Object, lookup_key
from .stripe_prices import StripePrice, price_of
from .wares import product_id

_ACTIVE = MappingProxyType({"active": True})
_INACTIVE = MappingProxyType({"active": False})
_METER_CURE = (
    "Stripe changes nothing of a meter but what it is called: deactivate it in the Dashboard of "
    "Stripe, and give the meter another name in the catalogue, under which a new one is made"
)

_NOT_OURS = "not made by provision for this catalogue"

Kind = Literal["product", "meter", "price"]


class Action(StrEnum):
    """What to do about one object."""

    CREATE = "create"
    KEEP = "keep"
    RENAME = "rename"
    REACTIVATE = "reactivate"
    DEACTIVATE = "deactivate"
    CANNOT_CHANGE = "cannot_change"


@dataclass(frozen=True, slots=True)
class Step:
    """What to do about one object, and how."""

    action: Action
    kind: Kind
    #: A meter's event name, a price's lookup key, a product's id.
    name: str
    #: What it is, or what changes, for a person.
    detail: str
    #: Stripe's; None = it is not there yet.
    id: str | None = None
    #: What else follows from it; of what cannot be changed, the cure.
    note: str = ""
    #: The parameters of the request.
    params: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    #: Event name of the meter whose id a new price needs.
    meter: str | None = None
    #: Id of the price that a new one replaces.
    replaces: str | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """The way from what Stripe holds to what the catalogue says."""

    steps: Sequence[Step]
    #: What is right as it is, but worth knowing.
    notes: Sequence[str]
    #: Event name -> id of the meters that are there.
    meter_ids: Mapping[str, str]

    @property
    def changes(self) -> list[Step]:
        """The steps to take, in order."""
        idle = (Action.KEEP, Action.CANNOT_CHANGE)
        return [step for step in self.steps if step.action not in idle]

    @property
    def obstacles(self) -> list[Step]:
        """What stands in the way, and only a person can remove."""
        return _obstacles(self.steps)

    @property
    def counts(self) -> dict[Action, int]:
        """Action -> to how many objects it is to be done."""
        return {action: sum(step.action is action for step in self.steps) for action in Action}


def _obstacles(steps: Sequence[Step]) -> list[Step]:
    return [step for step in steps if step.action is Action.CANNOT_CHANGE]


@dataclass(frozen=True, slots=True)
class Holdings:
    """What Stripe holds: its objects, as plain dicts."""

    #: All of the account.
    meters: Sequence[Object] = ()
    #: Those whose id is the product id of a meter, active or not.
    products: Sequence[Object] = ()
    #: The active ones of our products, and those that have a lookup key of the catalogue; with
    #: their tiers.
    prices: Sequence[Object] = ()


def lookup_keys(catalogue: Catalogue) -> list[str]:
    """The lookup keys of all prices of *catalogue*."""
    return [
        lookup_key(plan, meter.name) for meter in _priced(catalogue) for plan in catalogue.plans
    ]


@exactly
def plan(catalogue: Catalogue, holdings: Holdings) -> Plan:
    """The steps from *holdings* to *catalogue*."""
    return _Planner(catalogue, holdings).plan()


def _billable(catalogue: Catalogue) -> list[Meter]:
    return [meter for meter in catalogue.meters.values() if meter.billable]


def _priced(catalogue: Catalogue) -> list[Meter]:
    return [meter for meter in _billable(catalogue) if meter.price is not None]


class _Planner:
    """One plan in the making."""

    def __init__(self, catalogue: Catalogue, holdings: Holdings) -> None:
        self._catalogue = catalogue
        self._products = {str(each["id"]): each for each in holdings.products}
        self._prices = holdings.prices
        self._by_key = {each["lookup_key"]: each for each in holdings.prices}
        self._meters = {name: _best(named) for name, named in _by_name(holdings.meters).items()}
        self._keys: dict[str, tuple[str, str]] = {}
        #: Ids of the prices that stay.
        self._wanted: set[str] = set()
        #: Ids of the products with something that cannot be changed: their prices stay.
        self._blocked: set[str] = set()
        self._notes: list[str] = []

    def plan(self) -> Plan:
        wanted = _billable(self._catalogue)
        steps = [step for meter in wanted for step in self._steps_of(meter)]
        steps += self._leavers({meter.name for meter in wanted})
        self._note_catalogue()
        ids = {name: str(meter["id"]) for name, meter in self._meters.items()}
        return Plan(steps, self._notes, ids)

    def _steps_of(self, meter: Meter) -> list[Step]:
        steps = [*self._product_steps(meter), *self._meter_steps(meter)]
        if meter.price and not _obstacles(steps):
            steps += (self._price_step(meter, name) for name in self._catalogue.plans)
        if _obstacles(steps):
            self._blocked.add(product_id(meter.name))
        return steps

    # -- products --------------------------------------------------------------------------------

    def _product_steps(self, meter: Meter) -> Iterator[Step]:
        id, labels = product_id(meter.name), wares.labels(meter)
        held = self._products.get(id)
        if held is None:
            is_first = meter.name not in self._meters
            params = wares.new_product(meter, self._catalogue.name, owns_meter=is_first)
            yield Step(Action.CREATE, "product", id, labels["name"], params=params)
            return
        if not self._is_ours(held):
            cure = (
                f"give its metadata {wares.marking(self._catalogue.name)} to hand it over, delete "
                "it, or give the meter another name"
            )
            yield Step(Action.CANNOT_CHANGE, "product", id, _NOT_OURS, id, cure)
            return
        if not held["active"]:
            yield Step(Action.REACTIVATE, "product", id, labels["name"], id, params=_ACTIVE)
        changed = [f"{held[key]!r} -> {new!r}" for key, new in labels.items() if held[key] != new]
        if changed:
            yield Step(Action.RENAME, "product", id, ", ".join(changed), id, params=labels)
        elif held["active"]:
            yield Step(Action.KEEP, "product", id, labels["name"], id)

    def _owns_meter(self, name: str) -> bool:
        product = self._products.get(product_id(name))
        return product is not None and self._is_ours(product) and wares.owns_meter(product)

    def _is_ours(self, held: Object) -> bool:
        return wares.is_ours(held, self._catalogue.name)

    # -- meters ----------------------------------------------------------------------------------

    def _meter_steps(self, meter: Meter) -> Iterator[Step]:
        name, held = meter.name, self._meters.get(meter.name)
        if held is None:
            params = wares.new_meter(meter)
            yield Step(Action.CREATE, "meter", name, f"sum of {VALUE_KEY}", params=params)
            return
        id, is_own = str(held["id"]), self._owns_meter(name)
        if wrong := wares.faults(held):
            yield Step(Action.CANNOT_CHANGE, "meter", name, ", ".join(wrong), id, _METER_CURE)
            return
        is_active = held["status"] == "active"
        if not is_active and not is_own:
            cure = "it was not made by provision: reactivate it in the Dashboard of Stripe"
            yield Step(Action.CANNOT_CHANGE, "meter", name, "deactivated", id, cure)
            return
        if not is_active:
            yield Step(Action.REACTIVATE, "meter", name, f"sum of {VALUE_KEY}", id)
        if is_own and held["display_name"] != meter.display_name:
            detail = f"{held['display_name']!r} -> {meter.display_name!r}"
            params = {"display_name": meter.display_name}
            yield Step(Action.RENAME, "meter", name, detail, id, params=params)
        elif is_active:
            note = "" if is_own else "not made by provision: used as it is, never changed"
            yield Step(Action.KEEP, "meter", name, f"sum of {VALUE_KEY}", id, note)

    # -- prices ----------------------------------------------------------------------------------

    def _price_step(self, meter: Meter, plan: str) -> Step:
        key = lookup_key(plan, meter.name)
        named = self._keys.setdefault(key, (plan, meter.name))
        if named != (plan, meter.name):
            what = f"also the lookup key of {named[1]} on {named[0]}"
            return Step(
                Action.CANNOT_CHANGE, "price", key, what, note="rename the plan or the meter"
            )
        try:
            wanted = price_of(meter, plan)
        except CatalogueError as error:
            return Step(
                Action.CANNOT_CHANGE, "price", key, "not expressible at Stripe", note=str(error)
            )
        assert wanted is not None  # the caller has looked whether there is a price
        held = self._by_key.get(key)
        if held is None:
            return self._new_price(meter, plan, wanted)
        id = str(held["id"])
        if not self._is_ours(held):
            what = f"its lookup key belongs to {id}, {_NOT_OURS}"
            cure = f"give {id} another lookup key, or none"
            return Step(Action.CANNOT_CHANGE, "price", key, what, id, cure)
        counted = self._meters.get(meter.name)
        if not wares.is_as_wanted(held, meter, str(counted["id"]) if counted else None, wanted):
            return self._new_price(meter, plan, wanted, replaces=id)
        self._wanted.add(id)
        detail = wares.words(meter, wanted)
        if held["active"]:
            return Step(Action.KEEP, "price", key, detail, id)
        return Step(Action.REACTIVATE, "price", key, detail, id, params=_ACTIVE)

    def _new_price(
        self, meter: Meter, plan: str, wanted: StripePrice, replaces: str | None = None
    ) -> Step:
        params = wares.new_price(meter, self._catalogue.plans[plan], wanted, self._catalogue.name)
        note = ""
        if replaces is not None:
            # Only from a price of ours: without it, Stripe refuses a key that is taken.
            params["transfer_lookup_key"] = True
            note = f"takes the lookup key of {replaces}"
        return Step(
            Action.CREATE,
            "price",
            params["lookup_key"],
            wares.words(meter, wanted),
            note=note,
            params=params,
            meter=meter.name,
            replaces=replaces,
        )

    # -- what goes -------------------------------------------------------------------------------

    def _leavers(self, wanted: set[str]) -> Iterator[Step]:
        """What is ours and no longer in the catalogue, from prices to products."""
        for price in sorted(self._prices, key=_key_or_id):
            id = str(price["id"])
            is_blocked = price["product"] in self._blocked
            if (
                self._is_ours(price)
                and price["active"]
                and id not in self._wanted
                and not is_blocked
            ):
                yield Step(
                    Action.DEACTIVATE,
                    "price",
                    _key_or_id(price),
                    id,
                    id,
                    "subscriptions keep a deactivated price until they are moved to another",
                    _INACTIVE,
                )
        gone = [
            name
            for name, meter in sorted(self._meters.items())
            if name not in wanted and meter["status"] == "active" and self._owns_meter(name)
        ]
        for name in gone:
            meter = self._meters[name]
            note = "Stripe refuses its usage from then on: have the worker deliver what is left"
            words, id = str(meter["display_name"]), str(meter["id"])
            yield Step(Action.DEACTIVATE, "meter", name, words, id, note)
        unwanted = self._products.keys() - {product_id(name) for name in wanted}
        for id in sorted(unwanted):
            product = self._products[id]
            if self._is_ours(product) and product["active"]:
                words = str(product["name"])
                yield Step(Action.DEACTIVATE, "product", id, words, id, params=_INACTIVE)

    # -- what is worth knowing -------------------------------------------------------------------

    def _note_catalogue(self) -> None:
        for meter in self._catalogue.meters.values():
            if not meter.billable:
                self._notes.append(f"{meter.name}: not billable, so not at Stripe")
            elif meter.price is None:
                self._notes.append(f"{meter.name}: no price; Stripe counts it and bills nothing")
        currencies = sorted({m.price.currency for m in _priced(self._catalogue) if m.price})
        if len(currencies) > 1:
            self._notes.append(
                f"prices in {', '.join(currencies)}: a subscription has one currency only, so that "
                "a customer of all meters needs several"
            )


def _by_name(meters: Iterable[Object]) -> dict[str, list[Object]]:
    found: dict[str, list[Object]] = {}
    for meter in meters:
        found.setdefault(str(meter["event_name"]), []).append(meter)
    return found


def _best(named: list[Object]) -> Object:
    """The meter that events of a name go to; of deactivated ones, one that could be used."""
    return max(named, key=lambda meter: (meter["status"] == "active", not wares.faults(meter)))


def _key_or_id(price: Object) -> str:
    return str(price["lookup_key"] or price["id"])
