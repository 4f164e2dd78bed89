"""A catalogue that changes and a Stripe to bring up to it."""

from __future__ import annotations

import copy
from typing import Any

from flask_c2meter.catalogue import load
from flask_c2meter.emulator import StripeEmulator
from flask_c2meter.gateway import Gateway
from flask_c2meter.provisioner import Provisioner
from flask_c2meter.provisioning import Plan

#: Two plans, a meter of each kind: priced, with places, without a price, not billable.
CATALOGUE: dict[str, Any] = {
    "plans": {"starter": {}, "growth": {}},
    "meters": {
        "verify": {
            "event_type": "verify.done",
            "unit": "verify",
            "aggregation": "sum",
            "included": {"starter": 20, "growth": "unlimited"},
            "price": {
                "mode": "graduated",
                "currency": "usd",
                "tiers": [
                    {"up_to": 50, "unit_amount": "4.35"},
                    {"unit_amount": "2.5", "flat_amount": "100"},
                ],
            },
        },
        "storage": {
            "event_type": "storage.measured",
            "unit": "GB",
            "aggregation": "max",
            "precision": 3,
            "included": {"starter": "0.5", "growth": 10},
            "price": {"mode": "flat", "currency": "usd", "unit_amount": "12.5"},
        },
        "sites": {
            "event_type": "site.on",
            "unit": "site",
            "aggregation": "count",
            "included": {"starter": 1},
        },
        "calls": {
            "event_type": "call",
            "unit": "call",
            "aggregation": "count",
            "billable": False,
        },
    },
}


def catalogue() -> dict[str, Any]:
    """A copy to change."""
    return copy.deepcopy(CATALOGUE)


class Shop:
    """Stripe, and the means to look at it and to bring it up to a catalogue."""

    def __init__(self, stripe: StripeEmulator, key: str = "sk_test_1") -> None:
        self.stripe = stripe
        self.gateway = Gateway(key, base_url=stripe.url)
        #: How long Stripe has asked to be left alone.
        self.pauses: list[float] = []

    def provisioner(self, content: dict[str, Any] | None = None) -> Provisioner:
        return Provisioner(self.gateway, load(content or CATALOGUE), self.pauses.append)

    def plan(self, content: dict[str, Any] | None = None) -> Plan:
        return self.provisioner(content).plan()

    def apply(self, content: dict[str, Any] | None = None) -> list[tuple[str, str, str]]:
        """Bring it up to the catalogue; the steps that were taken."""
        taken: list[tuple[str, str, str]] = []
        provisioner = self.provisioner(content)
        last = provisioner.apply(
            provisioner.plan(), lambda step, id: taken.append((step.action, step.kind, step.name))
        )
        assert not last.changes
        return taken

    def ask(self, call: Any) -> Any:
        """What Stripe answers to *call*, a function of the SDK's client."""
        return self.gateway.ask(call)

    def meters(self) -> list[dict[str, Any]]:
        return self._all(lambda client: client.v1.billing.meters.list({"limit": 100}))

    def products(self) -> list[dict[str, Any]]:
        return self._all(lambda client: client.v1.products.list({"limit": 100}))

    def prices(self, *, active: bool | None = None) -> list[dict[str, Any]]:
        params: Any = {"limit": 100, "expand": ["data.tiers"]}
        if active is not None:
            params["active"] = active
        return self._all(lambda client: client.v1.prices.list(params))

    def _all(self, listing: Any) -> list[dict[str, Any]]:
        return self.ask(
            lambda client: [each.to_dict() for each in listing(client).auto_paging_iter()]
        )

    def picture(self) -> list[tuple[Any, ...]]:
        """All that matters of all objects, without their ids."""
        names = {meter["id"]: meter["event_name"] for meter in self.meters()}
        return sorted(
            [
                *(
                    ("meter", m["event_name"], m["display_name"], m["status"])
                    for m in self.meters()
                ),
                *(("product", p["id"], p["name"], p["active"]) for p in self.products()),
                *(
                    (
                        "price",
                        str(p["lookup_key"]),
                        p["active"],
                        names[p["recurring"]["meter"]],
                        str(p.get("tiers")),
                    )
                    for p in self.prices()
                ),
            ],
            key=str,
        )

    def writes(self) -> list[Any]:
        """The requests that were to change something."""
        return [request for request in self.stripe.requests if request.method == "POST"]
