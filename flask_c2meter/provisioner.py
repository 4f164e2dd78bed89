"""Carries out at Stripe what :mod:`~flask_c2meter.provisioning` has planned.

Promises: it can be ended at any moment and called again, also by two at once, and what is then
there is what one undisturbed run would have made. Whoever has changed something looks once more at
what Stripe holds, and is done only when nothing is left to do.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from . import provisioning, wares
from .catalogue import Catalogue
from .errors import ProvisioningError
from .gateway import Gateway, Refused
from .provisioning import Action, Holdings, Plan, Step
from .shipment import Verdict

if TYPE_CHECKING:
    from stripe import StripeClient

T = TypeVar("T")

#: How often the rest is planned and tried anew.
ROUNDS = 3
#: How often a request is sent that Stripe has no time for.
_TRIES = 6
_MAX_WAIT_S = 30.0
#: Ids or keys in one request: Stripe takes so many lookup keys; ids are long, and URLs limited.
_CHUNK = 10


class Provisioner:
    """Brings Stripe to what the catalogue says.

    :param pause: waits for so many seconds where Stripe asks for it.
    """

    def __init__(
        self,
        gateway: Gateway,
        catalogue: Catalogue,
        pause: Callable[[float], None] = lambda seconds: time.sleep(seconds),
    ) -> None:
        self._gateway = gateway
        self._catalogue = catalogue
        self._pause = pause

    def plan(self) -> Plan:
        """What would have to be done now. Reads only.

        :raises GatewayError: Stripe cannot be read.
        """
        return provisioning.plan(self._catalogue, self._holdings())

    def apply(self, plan: Plan, tell: Callable[[Step, str], None] = lambda step, id: None) -> Plan:
        """Carry out *plan*, and whatever it takes until nothing is left to do.

        :param tell: called with each step taken and the id of its object.
        :return: the last plan, without changes.
        :raises ProvisioningError: something cannot be changed, and nothing was; or Stripe refuses
            a step, and the steps before it were taken.
        :raises GatewayError: Stripe cannot be read.
        """
        for number in range(1, ROUNDS + 1):
            if plan.obstacles:
                names = ", ".join(f"{step.kind} {step.name}" for step in plan.obstacles)
                so_far = "nothing was changed" if number == 1 else "not all is done"
                raise ProvisioningError(f"{so_far}: {names} cannot be changed")
            if not plan.changes:
                return plan
            failed = self._carry_out(plan, number, tell)
            plan = self.plan()
        if not plan.changes:
            return plan
        raise failed or ProvisioningError("others change the same at Stripe: run it again")

    def _carry_out(
        self, plan: Plan, number: int, tell: Callable[[Step, str], None]
    ) -> ProvisioningError | None:
        """Take the steps of *plan*; the failure that ended it, if another round may do better."""
        ids = dict(plan.meter_ids)
        for done, step in enumerate(plan.changes):
            try:
                id = self._ask(partial(_take, step=step, meter_ids=ids, number=number))
            except Refused as refused:
                failed = _failure(step, refused, done, len(plan.changes))
                if refused.outcome.verdict is Verdict.HOLD_ALL:
                    raise failed from refused
                return failed
            if step.kind == "meter":
                ids[step.name] = id
            tell(step, id)
        return None

    def _ask(self, request: Callable[[StripeClient], T]) -> T:
        """Stripe's answer; waits while it has too much to do, or works on the same elsewhere."""
        for attempt in range(_TRIES):
            try:
                return self._gateway.ask(request)
            except Refused as refused:
                outcome = refused.outcome
                is_busy = outcome.throttled or outcome.reason.startswith("409")
                if not is_busy or attempt == _TRIES - 1:
                    raise
                wait_s = outcome.retry_after_s
                self._pause(0.5 * 2**attempt if wait_s is None else min(wait_s, _MAX_WAIT_S))
        raise AssertionError("unreachable")

    # -- reading ---------------------------------------------------------------------------------

    def _holdings(self) -> Holdings:
        meters = self._all(lambda client: client.v1.billing.meters.list({"limit": 100}))
        counted = [*self._catalogue.meters, *(str(meter["event_name"]) for meter in meters)]
        ids = [wares.product_id(name) for name in dict.fromkeys(counted)]
        products = [product for some in _chunks(ids) for product in self._products(some)]
        name = self._catalogue.name
        ours = (product["id"] for product in products if wares.is_ours(product, name))
        searches: list[dict[str, Any]] = [{"product": id, "active": True} for id in ours]
        searches += (
            # Stripe's own words leave open whether a list without this has the inactive ones.
            {"lookup_keys": keys, "active": is_active}
            for keys in _chunks(provisioning.lookup_keys(self._catalogue))
            for is_active in (True, False)
        )
        prices = [price for search in searches for price in self._prices(search)]
        return Holdings(meters, products, list({price["id"]: price for price in prices}.values()))

    def _products(self, ids: list[str]) -> list[dict[str, Any]]:
        return self._all(lambda client: client.v1.products.list({"ids": ids, "limit": 100}))

    def _prices(self, search: Mapping[str, Any]) -> list[dict[str, Any]]:
        params: Any = {**search, "limit": 100, "expand": ["data.tiers"]}
        return self._all(lambda client: client.v1.prices.list(params))

    def _all(self, listing: Callable[[StripeClient], Any]) -> list[dict[str, Any]]:
        return self._ask(
            lambda client: [row.to_dict() for row in listing(client).auto_paging_iter()]
        )


def _chunks(items: Sequence[str]) -> Iterator[list[str]]:
    for start in range(0, len(items), _CHUNK):
        yield list(items[start : start + _CHUNK])


def _take(client: StripeClient, step: Step, meter_ids: Mapping[str, str], number: int) -> str:
    """Take *step*; the id of what was made or changed."""
    params: Any = dict(step.params)
    if step.meter is not None:
        params["recurring"] = {**params["recurring"], "meter": meter_ids[step.meter]}
    service: Any = {
        "meter": client.v1.billing.meters,
        "price": client.v1.prices,
        "product": client.v1.products,
    }[step.kind]
    if step.action is Action.CREATE:
        answer = service.create(params, {"idempotency_key": _key(step, params, number)})
    # What is there already is put into a state: to say so twice does no harm.
    elif params:
        answer = service.update(step.id, params)
    elif step.action is Action.REACTIVATE:
        answer = service.reactivate(step.id)
    else:
        answer = service.deactivate(step.id)
    return str(answer.id)


def _key(step: Step, params: Mapping[str, Any], number: int) -> str:
    """The same for all who take this step, so that Stripe makes one object for them.

    Each round has others: Stripe repeats a saved failure to a key that it knows.
    """
    content = json.dumps([step.kind, params, step.replaces, number], sort_keys=True)
    return f"c2meter-provision-{hashlib.sha256(content.encode()).hexdigest()[:40]}"


def _failure(step: Step, refused: Refused, done: int, total: int) -> ProvisioningError:
    why = f"{refused.outcome.reason} {refused.words}".strip()
    rest = f"{done} of {total} changes are made; run it again to go on"
    return ProvisioningError(f"{step.kind} {step.name} could not be changed: {why}; {rest}")
