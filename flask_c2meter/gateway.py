"""Every word exchanged with Stripe: shipments there, totals back.

The only module that imports :mod:`stripe`, at the first call (it takes half a second). Sending
never raises: whatever Stripe or the network does becomes an
:class:`~flask_c2meter.shipment.Outcome`, and where it is not certain that Stripe processed nothing,
the verdict is ``unknown``. Nothing process-wide of the SDK is touched, no telemetry is sent or
stored, no body is logged.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import cache
from platform import python_version
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar
from urllib.parse import urlsplit

from . import answers
from .errors import ConfigError, GatewayError
from .failpoints import reach
from .model import Clock, new_id, utc_now
from .shipment import Outcome

if TYPE_CHECKING:
    from stripe import StripeClient, StripeError

_T = TypeVar("_T")

#: The version of Stripe's API this package speaks, whatever the account's default is.
API_VERSION = "2026-10-28.endive"

_MINUTE = timedelta(minutes=1)

# The SDK takes answers to be as described; these are what it, or we, trip over when one is not.
_NOT_AS_DESCRIBED = (
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)


class Refused(GatewayError):
    """A request that was not answered with success, with what that would mean for a shipment.

    :param words: Stripe's own, of a request that was wrong; may name what was in it.
    :param headers: of the answer; empty if there was none.
    """

    def __init__(
        self,
        outcome: Outcome,
        words: str = "",
        headers: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.outcome = outcome
        self.words = words
        self.headers = headers
        super().__init__(outcome.reason)


class HttpClient(Protocol):
    """What the gateway needs to speak HTTP; ``stripe.RequestsClient`` fits too."""

    def request(
        self, method: str, url: str, headers: Any, post_data: Any = None
    ) -> tuple[Any, int, Any]: ...


@dataclass(frozen=True, slots=True)
class _Process:
    """What belongs to the process that made it."""

    pid: int
    client: StripeClient
    #: The parent's. Kept, because collecting it would run clean-up on locks that may have been
    #: held by another thread at the moment of the fork.
    inherited: _Process | None


class Gateway:
    """Stripe, as seen by this package. Cheap to build; threads and forks may share one.

    :param secret_key: Stripe's secret or restricted key.
    :param base_url: replaces all of Stripe's hosts, such as the emulator's URL.
    :param clock: for dates that Stripe sends.
    :param deadline_s: longest time for one request in all, > 0.
    :param connect_timeout_s: longest time to reach one address, > 0.
    :param http_client: speaks HTTP instead of our own client; used as it is, across forks too.
    :raises ConfigError: the key cannot be one.
    """

    def __init__(
        self,
        secret_key: str,
        *,
        base_url: str | None = None,
        clock: Clock = utc_now,
        deadline_s: float = 20.0,
        connect_timeout_s: float = 5.0,
        http_client: HttpClient | None = None,
    ) -> None:
        if not re.fullmatch(r"[!-~]+", secret_key):
            # Otherwise the HTTP library refuses the header, and says so with the key in it.
            raise ConfigError("C2METER_STRIPE_SECRET_KEY is empty or has a space; paste it again")
        self._secret_key = secret_key
        self._base_url = base_url.rstrip("/") if base_url else None
        self._deadline_s = deadline_s
        self._connect_timeout_s = connect_timeout_s
        self._http_client = http_client
        self._process: _Process | None = None
        self._meter_ids: dict[str, str] = {}
        self.clock = clock

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.account}>"

    @property
    def livemode(self) -> bool:
        """True if the key moves real money."""
        return self._secret_key.startswith(("sk_live_", "rk_live_"))

    @property
    def mode(self) -> Literal["live", "test"]:
        """Which of Stripe's two worlds the key belongs to."""
        return "live" if self.livemode else "test"

    @property
    def is_restricted(self) -> bool:
        """True if the key may do what it was given permission for only."""
        return self._secret_key.startswith("rk_")

    @property
    def is_diverted(self) -> bool:
        """True if something else is spoken to in Stripe's place, such as the emulator."""
        return self._base_url is not None

    @property
    def account(self) -> str:
        """Where deliveries go, as ``host mode``: a store may know one such place only."""
        host = urlsplit(self._base_url).hostname if self._base_url else "api.stripe.com"
        return f"{host} {self.mode}"

    @property
    def client(self) -> StripeClient:
        """This process's ``StripeClient``, made on first use."""
        process = self._process
        if process is None or process.pid != os.getpid():
            # No lock: it could be held at a fork. Two threads may both make one; the last stays.
            process = self._process = _Process(os.getpid(), self._new_client(), process)
        return process.client

    def _new_client(self) -> StripeClient:
        import stripe

        http_client: Any = self._http_client or self._new_http_client(stripe.ca_bundle_path)
        hosts = ("api", "connect", "files", "meter_events") if self._base_url else ()
        addresses: Any = dict.fromkeys(hosts, self._base_url)
        client = stripe.StripeClient(
            self._secret_key,
            stripe_version=API_VERSION,
            http_client=http_client,
            max_network_retries=0,
            base_addresses=addresses,
        )
        # All services of the client hold this one object, and the SDK has no option for its class.
        client._requestor.__class__ = _requestor_class()
        return client

    def _new_http_client(self, ca_bundle: str) -> HttpClient:
        from . import wire

        return wire.HttpClient(
            deadline_s=self._deadline_s,
            connect_timeout_s=self._connect_timeout_s,
            ca_bundle=ca_bundle,
        )

    def ask(self, request: Callable[[StripeClient], _T]) -> _T:
        """Stripe's answer to *request*, a function of the client.

        :raises GatewayError: there is none, or it is a refusal.
        """
        import stripe

        from . import wire

        try:
            return request(self.client)
        except stripe.StripeError as exc:
            raise Refused(self._meaning(exc), _words(exc), exc.headers or {}) from exc
        except wire.Unreachable as exc:
            raise Refused(answers.lost(exc.reason, exc.sent)) from exc
        except _NOT_AS_DESCRIBED as exc:
            raise Refused(answers.NO_RECEIPT) from exc

    def _meaning(self, exc: StripeError) -> Outcome:
        if exc.http_status is None:
            return _foreign(exc)
        # Not exc.code: in v1 the SDK fills it for 400, 402 and 404 only.
        refusal = answers.Refusal.of(exc.http_status, exc.json_body, exc.headers or {})
        return answers.judge(refusal, self.clock())

    def deliver(
        self, request: Callable[[StripeClient], _T], is_receipt: Callable[[_T], bool]
    ) -> Outcome:
        """What became of the shipments in *request*; never raises for anything Stripe does.

        :param is_receipt: tells whether the answer of a success says what it should.
        """
        reach("before_send")
        try:
            answer = self.ask(request)
        except Refused as failed:
            return failed.outcome
        finally:
            reach("after_send")
        return answers.DELIVERED if is_receipt(answer) else answers.NO_RECEIPT

    def minute_total(self, meter: str, customer: str, minute: datetime) -> int | None:
        """What Stripe has counted so far in one *minute*, in wire units; None = nothing seen.

        :raises GatewayError: as :meth:`totals`; also for a fraction, which cannot be ours alone.
        """
        counted = self._summaries(meter, customer, minute, minute + _MINUTE)
        total = sum((each for _, each in counted), Decimal(0))
        if total != total.to_integral_value():
            raise GatewayError("fraction")
        return int(total) if counted else None

    def totals(
        self,
        meter: str,
        customer: str,
        start: datetime,
        end: datetime,
        window: Literal["hour", "day"] | None = None,
    ) -> dict[datetime, Decimal]:
        """What Stripe has counted so far in wire units, by the beginning of each window with usage.

        Stripe aggregates later than it answers, without a stated bound.

        :param start: a whole minute, hour or UTC day, as is *end*.
        :param window: None = the whole of ``[start, end)`` is one.
        :raises GatewayError: Stripe cannot be read or has no such meter (reason ``no_meter``).
        """
        return dict(self._summaries(meter, customer, start, end, window))

    def _summaries(
        self,
        meter: str,
        customer: str,
        start: datetime,
        end: datetime,
        window: Literal["hour", "day"] | None = None,
    ) -> list[tuple[datetime, Decimal]]:
        meter_id = self._meter_id(meter)
        bounds: dict[str, Any] = {
            "start_time": int(start.timestamp()),
            "end_time": int(end.timestamp()),
        }
        if window is not None:
            bounds["value_grouping_window"] = window

        def read(client: StripeClient) -> list[tuple[datetime, Decimal]]:
            rows = client.v1.billing.meters.event_summaries.list(
                meter_id,
                {"customer": customer, "limit": 100, **bounds},  # type: ignore[typeddict-item]
            )
            return [
                (datetime.fromtimestamp(row.start_time, UTC), Decimal(str(row.aggregated_value)))
                for row in rows.auto_paging_iter()
            ]

        return self.ask(read)

    def _meter_id(self, name: str) -> str:
        if name not in self._meter_ids:
            self._meter_ids.update(self.meter_ids())
        if name not in self._meter_ids:
            raise GatewayError("no_meter")
        return self._meter_ids[name]

    def meter_ids(self) -> dict[str, str]:
        """Event name -> meter id, as Stripe has them now.

        :raises GatewayError: Stripe cannot be read.
        """
        return self.ask(_meter_ids)

    def subscriptions(self, customer: str) -> list[dict[str, Any]]:
        """Stripe's subscription objects of *customer*, those that have ended included.

        :raises GatewayError: Stripe cannot be read, or (``resource_missing``) knows no such one.
        """

        def read(client: StripeClient) -> list[dict[str, Any]]:
            rows = client.v1.subscriptions.list(
                {"customer": customer, "status": "all", "limit": 100}
            )
            return [row.to_dict() for row in rows.auto_paging_iter()]

        return self.ask(read)

    def is_deleted(self, customer: str) -> bool:
        """Whether *customer* has been deleted at Stripe.

        :raises GatewayError: as :meth:`subscriptions`.
        """
        found = self.ask(lambda client: client.v1.customers.retrieve(customer).to_dict())
        return bool(found.get("deleted"))

    def invoice(self, invoice_id: str) -> dict[str, Any]:
        """Stripe's invoice object, with every line of it in ``lines``.

        :raises GatewayError: as :meth:`subscriptions`.
        """

        def read(client: StripeClient) -> dict[str, Any]:
            found = client.v1.invoices.retrieve(invoice_id).to_dict()
            lines = client.v1.invoices.line_items.list(invoice_id, {"limit": 100})
            return {**found, "lines": [line.to_dict() for line in lines.auto_paging_iter()]}

        return self.ask(read)

    def price(self, price_id: str) -> dict[str, Any]:
        """Stripe's price object.

        :raises GatewayError: as :meth:`subscriptions`.
        """
        return self.ask(lambda client: client.v1.prices.retrieve(price_id).to_dict())

    def event(self, event_id: str) -> dict[str, Any]:
        """The thin event *event_id* with its data, which the push of it lacks.

        :raises GatewayError: Stripe cannot be read, or does not know it any more.
        """
        return self.ask(lambda client: client.v2.core.events.retrieve(event_id).to_dict())


def _words(exc: StripeError) -> str:
    """What Stripe says is wrong with a request; nothing of 401 and 403, which speak of the key."""
    text = str(exc.user_message or "") if exc.http_status in (400, 404) else ""
    return "".join(char for char in text if char.isprintable())[:200]


def _foreign(exc: StripeError) -> Outcome:
    """What a failure of a foreign HTTP client means; it does not say what it has sent."""
    reason, sent = {
        "SSLError": ("tls", False),
        "ConnectTimeout": ("timeout", False),
        "ReadTimeout": ("timeout", True),
    }.get(type(exc.__cause__).__name__, ("reset", True))
    return answers.lost(reason, sent)


def _meter_ids(client: StripeClient) -> dict[str, str]:
    """Event name -> meter id; an active meter hides an archived one of the same name."""
    meters = client.v1.billing.meters.list({"limit": 100}).auto_paging_iter()
    return {
        meter.event_name: meter.id
        for meter in sorted(meters, key=lambda meter: meter.status == "active")
    }


@cache
def _requestor_class() -> type[Any]:
    """The SDK's requestor without its telemetry, its logging of bodies and its retries.

    The SDK offers only process-wide switches for these, which are the application's.
    """
    from stripe import VERSION
    from stripe._api_requestor import _APIRequestor

    about = {"bindings_version": VERSION, "lang": "python", "lang_version": python_version()}
    content_types = {"V1": "application/x-www-form-urlencoded", "V2": "application/json"}

    class Requestor(_APIRequestor):
        def _new_requestor_with_options(self, options: Any) -> Any:
            requestor = super()._new_requestor_with_options(options)
            requestor.__class__ = type(self)
            return requestor

        def request_headers(self, method: Any, api_mode: Any, options: Any) -> dict[str, str]:
            headers = {
                "Authorization": f"Bearer {options['api_key']}",
                "Stripe-Version": options["stripe_version"],
                "User-Agent": f"Stripe/{api_mode.lower()} PythonBindings/{VERSION}",
                "X-Stripe-Client-User-Agent": json.dumps(about),
            }
            if method == "post":
                headers["Content-Type"] = content_types[api_mode]
                headers["Idempotency-Key"] = options["idempotency_key"] or new_id()
            return headers

        def request_raw(self, *args: Any, **kwargs: Any) -> tuple[Any, int, Any]:
            kwargs.pop("is_streaming", None)
            method, url, headers, data, *_ = self._args_for_request_with_retries(*args, **kwargs)
            return _readable(*self._get_http_client().request(method, url, headers, data))

    return Requestor


def _readable(body: Any, status: int, headers: Any) -> tuple[Any, int, Any]:
    """The answer in a form that the SDK can interpret without losing status or headers.

    It drops the headers of an answer that is not JSON, ``Retry-After`` among them, and trips over
    errors that are not objects, such as a proxy's ``{"error": "text"}``.
    """
    # The SDK makes a Python warning of it, and the host may have turned warnings into errors.
    headers.pop("Stripe-Notice", None)
    try:
        answer = json.loads(body)
        is_stripes = isinstance(answer if 200 <= status < 300 else answer["error"], dict)
    except (ValueError, TypeError, KeyError, RecursionError):
        is_stripes = False
    if is_stripes:
        return body, status, headers
    substitute = "" if 200 <= status < 300 else json.dumps({"error": {"code": answers.UNREADABLE}})
    return substitute, status, headers
