"""What the public names promise to type checkers; ``mypy --strict`` and pyright read this."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from decimal import Decimal
from typing import Any, ClassVar, assert_type
from wsgiref.types import WSGIApplication

from flask import Blueprint, Flask, Response, request
from flask.views import MethodView, View

from flask_c2meter import (
    ALL_CUSTOMERS,
    C2Meter,
    Customer,
    StorageMeasurement,
    Usage,
    UsageEvent,
    current_customer,
    current_metering,
    current_usage,
    metered,
)
from flask_c2meter.hooks import Sight
from flask_c2meter.metering import Metering
from flask_c2meter.wsgi import MeterMiddleware, Reply, Terms

app = Flask(__name__)
meter = C2Meter()
assert_type(C2Meter(app), C2Meter)
assert_type(meter.init_app(app), None)


@meter.customer_loader
def load() -> Customer | None:
    return Customer("cus_1", user_id="42", plan="starter", email=None)


assert_type(load(), Customer | None)


@meter.storage_loader
def measure() -> Iterator[StorageMeasurement]:
    yield StorageMeasurement("cus_1", evidence_gb="1.5", backup_gb=Decimal(2))
    yield StorageMeasurement(Customer("cus_2"), error="unreachable")


assert_type(measure(), Iterator[StorageMeasurement])


@meter.storage_loader
def measure_wanted(is_wanted: Callable[[str], bool]) -> list[StorageMeasurement]:
    return [StorageMeasurement("cus_1", storage_gb=1)] if is_wanted("cus_1") else []


meter.storage_loader(lambda: [42])  # type: ignore[type-var]


@meter.metrics_auth
def may_scrape() -> bool:
    return request.headers.get("Authorization") == "Bearer token"


assert_type(meter.metrics_blueprint(), Blueprint)
assert_type(meter.metrics_blueprint(public=True), Blueprint)


@meter.dashboard_auth
def look() -> Sight:
    return ALL_CUSTOMERS if request.args else current_customer or "cus_1"


assert_type(meter.dashboard_blueprint(), Blueprint)
meter.dashboard_auth(lambda: 42)  # type: ignore[arg-type, return-value]


@app.get("/verify/<int:number>")
@metered("verify_operations")
def verify(number: int, *, fast: bool = False) -> dict[str, str]:
    """The decorator keeps the view's parameters and result."""
    assert_type(current_customer, Customer)
    assert_type(current_customer.plan, str | None)
    current_usage.update(manifest_id="m-1")
    current_usage.value = 3
    current_usage.value = Decimal("1.5")
    current_usage.cancel()
    return {}


assert_type(verify(7, fast=True), dict[str, str])
verify("seven")  # type: ignore[arg-type]
verify(7, slow=True)  # type: ignore[call-arg]


@metered("sign_operations", rate_limit=False, body="json", value=lambda response: 1)
async def sign(name: str) -> Response:
    return Response(name)


kept: Callable[[str], Awaitable[Response]] = sign


async def signs() -> None:
    assert_type(await sign("a"), Response)
    await sign(7)  # type: ignore[arg-type]


class Verifications(MethodView):
    """The decorator keeps methods too, ``self`` included."""

    @metered("verify_operations")
    def get(self, number: int) -> dict[str, int]:
        return {"number": number}

    @metered("verify_operations")
    async def post(self, number: int, *, fast: bool = False) -> Response:
        return Response(str(number))


app.add_url_rule("/verifications/<int:number>", view_func=Verifications.as_view("verifications"))
assert_type(Verifications().get(7), dict[str, int])
Verifications().get("seven")  # type: ignore[arg-type]


async def posts() -> None:
    assert_type(await Verifications().post(7, fast=True), Response)
    await Verifications().post(7, slow=True)  # type: ignore[call-arg]


class Signing(View):
    """As a decorator of the class: of the view function that it becomes."""

    decorators: ClassVar[list[Callable[..., Any]]] = [metered("sign_operations")]

    def dispatch_request(self) -> str:
        return "signed"


app.add_url_rule("/sign", view_func=Signing.as_view("signing"))


def size(response: Response) -> int:
    return response.content_length or 0


metered("storage_gb", value=size, properties=lambda response: {"backup_gb": 1})
metered("storage_gb", value=1.5)  # type: ignore[arg-type]
metered("storage_gb", rate_limit=True)  # type: ignore[arg-type]
metered("storage_gb", body="xml")  # type: ignore[arg-type]
metered("storage_gb", enforce="block")
metered("storage_gb", enforce="refuse")  # type: ignore[arg-type]
metered("storage_gb", unknown=1)  # type: ignore[call-arg]

assert_type(current_metering.record("active_sites", current_customer), UsageEvent | None)
assert_type(current_metering.record("active_sites", "cus_1", domain="a.example"), UsageEvent | None)
assert_type(current_metering.usage("cus_1"), list[Usage])
assert_type(current_metering.usage("cus_1")[0].total, Decimal)
assert_type(current_metering.adjust("cus_1", "active_sites", "key", "reason"), UsageEvent)
current_metering.record("active_sites", "cus_1", value=1.5)  # type: ignore[arg-type]


def customer_of(environ: dict[str, Any]) -> Customer | str | None:
    return environ.get("REMOTE_USER")


def pages(reply: Reply) -> int:
    assert_type(reply.headers, list[tuple[str, str]])
    return reply.status


middleware = MeterMiddleware(
    app.wsgi_app,
    meters={"POST /sign": Terms("sign_operations", value=pages), "* /*": "api_calls", "* /x": None},
    customer=customer_of,
    config=app.config,
)
assert_type(middleware.metering, Metering)
around: WSGIApplication = MeterMiddleware(
    middleware, {"* /*": "api_calls"}, lambda environ: "cus_1"
)
app.wsgi_app = middleware  # type: ignore[method-assign]
MeterMiddleware(app, {"* /*": "api_calls"}, lambda environ: 42)  # type: ignore[arg-type, return-value]
MeterMiddleware(app, {"* /*": 42}, customer_of)  # type: ignore[dict-item]
Terms[Reply]("api_calls", bill_on=lambda reply: reply.code == 200)  # type: ignore[attr-defined]
