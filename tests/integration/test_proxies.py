"""``current_customer``, ``current_usage`` and ``current_metering``: bound, they work; unbound, they
say what is missing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask
from flask_host import BOB, Host, load_customer

from flask_c2meter import Customer, current_customer, current_metering, current_usage
from flask_c2meter.metering import Metering


class TestBound:
    def test_the_customer_is_the_loaders_in_any_view(self, host: Host) -> None:
        @host.app.get("/me")
        def me() -> dict[str, Any]:
            assert isinstance(current_customer, Customer)
            return {"id": current_customer.id, "plan": current_customer.plan}

        assert host.client(BOB).get("/me").json == {"id": "cus_bob", "plan": "starter"}

    def test_nobody_is_falsy(self, host: Host) -> None:
        host.app.add_url_rule("/me", view_func=lambda: {"known": bool(current_customer)})
        assert host.client().get("/me").json == {"known": True}
        assert host.client({}).get("/me").json == {"known": False}

    @pytest.mark.parametrize("known", [True, False])
    def test_the_loader_runs_once_per_request(self, host: Host, known: bool) -> None:
        calls: list[Customer | None] = []

        def load() -> Customer | None:
            calls.append(load_customer() if known else None)
            return calls[-1]

        host.meter.customer_loader(load)

        @host.app.before_request
        def look() -> None:
            assert bool(current_customer) is known

        host.route(lambda: current_customer.id)
        for number in (1, 2):
            assert host.client().get("/").status_code == (200 if known else 401)
            assert len(calls) == number

    def test_usage_knows_its_meter_and_customer(self, host: Host) -> None:
        def view() -> dict[str, Any]:
            return {
                "meter": current_usage.meter,
                "customer": current_usage.customer.id,
                "value": current_usage.value,
                "cancelled": current_usage.is_cancelled,
            }

        host.route(view)
        assert host.client().get("/").json == {
            "meter": "sign_operations",
            "customer": "cus_alice",
            "value": None,
            "cancelled": False,
        }

    def test_metering_needs_only_an_app_context(self, host: Host) -> None:
        with host.app.app_context():
            assert isinstance(current_metering, Metering)
            current_metering.record("active_sites", "cus_123", domain="example.com")
            sites = {row.meter: row.total for row in current_metering.usage("cus_123")}
        assert sites["active_sites"] == 1

    def test_metering_is_the_current_apps(self, new_host: Callable[..., Host]) -> None:
        one, two = new_host(), new_host()
        with one.app.app_context():
            current_metering.record("api_calls", "cus_1")
            with two.app.app_context():
                current_metering.record("api_calls", "cus_2")
        assert (one.event().customer, two.event().customer) == ("cus_1", "cus_2")


class TestUnbound:
    def test_outside_of_everything(self) -> None:
        with pytest.raises(RuntimeError, match="only known while a request is handled"):
            _ = current_customer.id
        with pytest.raises(RuntimeError, match="only inside a view with @metered"):
            current_usage.update(a=1)
        with pytest.raises(RuntimeError, match=r"with app\.app_context\(\)"):
            current_metering.record("api_calls", "cus_1")

    def test_in_an_app_context_only(self, host: Host) -> None:
        with host.app.app_context():
            with pytest.raises(RuntimeError, match="only known while a request is handled"):
                _ = current_customer.id
            with pytest.raises(RuntimeError, match="only inside a view with @metered"):
                current_usage.cancel()

    def test_usage_in_a_view_that_is_not_metered(self, host: Host) -> None:
        host.app.testing = True
        host.app.add_url_rule("/", view_func=lambda: current_usage.meter)
        with pytest.raises(RuntimeError, match="only inside a view with @metered"):
            host.client().get("/")

    def test_usage_after_the_metered_view_has_returned(self, host: Host) -> None:
        host.app.testing = True
        host.route(lambda: "")

        @host.app.after_request
        def too_late(response: Any) -> Any:
            current_usage.cancel()
            return response

        with pytest.raises(RuntimeError, match="only inside a view with @metered"):
            host.client().get("/")

    def test_an_app_that_is_not_metered(self) -> None:
        app = Flask("bare")
        with app.test_request_context("/"):
            for use in (lambda: current_customer.id, lambda: current_metering.store):
                with pytest.raises(RuntimeError, match="Did you forget to call 'init_app'"):
                    use()
