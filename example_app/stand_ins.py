"""The world around the service, on loopback: Stripe, a mail server, a receiver of alert webhooks.

Started by ``python -m example_app`` where the environment names no real Stripe. What comes is noted
in :mod:`.arrivals`. Imports the emulator, ``aiosmtpd`` and the Standard Webhooks library; knows
nothing of the app but its customers.
"""

from __future__ import annotations

import asyncio
import email
import json
import secrets
import socket
from base64 import b64encode
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from email.policy import default
from threading import Thread
from typing import Any

from aiosmtpd.smtp import SMTP, Envelope, Session
from standardwebhooks import Webhook, WebhookVerificationError
from werkzeug.serving import make_server
from werkzeug.wrappers import Request, Response

from flask_c2meter import Customer
from flask_c2meter.catalogue import Catalogue
from flask_c2meter.emulator import StripeEmulator
from flask_c2meter.gateway import Gateway
from flask_c2meter.provisioner import Provisioner
from flask_c2meter.stripe_objects import lookup_key

from .arrivals import Arrivals

_HOST = "127.0.0.1"
_STRIPE_KEY = "sk_test_emulator"


class StandIns:
    """Everything that is elsewhere in reality; a context manager.

    :param arrivals: where to note what comes.
    """

    def __init__(self, arrivals: Arrivals) -> None:
        self._arrivals = arrivals
        self._running = ExitStack()
        self._stripe_secret, self._alert_secret = (
            f"whsec_{b64encode(secrets.token_bytes(24)).decode()}" for _ in range(2)
        )

    def __enter__(self) -> StandIns:
        with ExitStack() as starting:
            self.stripe = starting.enter_context(StripeEmulator())
            self._mail_port = starting.enter_context(_mail_server(self._arrivals))
            self._receiver = starting.enter_context(_receiver(self._arrivals, self._alert_secret))
            self._running = starting.pop_all()
        return self

    def __exit__(self, *exc: Any) -> None:
        self._running.close()

    @property
    def settings(self) -> dict[str, Any]:
        """What tells the app of them."""
        return {
            "C2METER_STRIPE_BASE_URL": self.stripe.url,
            "C2METER_STRIPE_SECRET_KEY": _STRIPE_KEY,
            "C2METER_STRIPE_WEBHOOK_SECRET": self._stripe_secret,
            "C2METER_MAIL_SERVER": _HOST,
            "C2METER_MAIL_PORT": self._mail_port,
            "C2METER_MAIL_TLS": False,
            "C2METER_MAIL_SENDER": "Concierge <billing@concierge.example>",
            "C2METER_ALERT_WEBHOOK_URL": self._receiver,
            "C2METER_ALERT_WEBHOOK_SECRET": self._alert_secret,
            "C2METER_ALERT_WEBHOOK_ALLOW_LOOPBACK": True,
        }

    def open_shop(
        self, catalogue: Catalogue, customers: Iterable[Customer], since: datetime
    ) -> None:
        """Sell every plan at Stripe, and let each customer have subscribed to its own.

        Returns when the app has been told.

        :param since: when they did; the same at each start, or their periods would move.
        """
        shop = Provisioner(Gateway(_STRIPE_KEY, base_url=self.stripe.url), catalogue)
        shop.apply(shop.plan())
        priced = [meter.name for meter in catalogue.meters.values() if meter.price]
        for customer in customers:
            plan = customer.plan or ""
            prices = [lookup_key(plan, meter) for meter in priced]
            self.stripe.add_customer(customer.id, email=customer.email)
            self.stripe.add_subscription(customer.id, prices, start=since, id=f"sub_{plan}")
        self.stripe.wait_for(lambda stripe: stripe.webhooks_waiting == 0)

    def tell(self, url: str) -> None:
        """Send Stripe's webhooks to the app at *url* from now on, snapshots and thin events."""
        for thin in (False, True):
            self.stripe.add_webhook_endpoint(
                f"{url}/stripe/webhook", self._stripe_secret, thin=thin
            )


class _Mailbox:
    """Takes every mail."""

    def __init__(self, arrivals: Arrivals) -> None:
        self._arrivals = arrivals

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        mail = email.message_from_bytes(envelope.original_content or b"", policy=default)
        text = mail.get_body(("plain",))
        self._arrivals.add(
            str(mail["Message-ID"]).strip("<>").partition("@")[0],
            "mail",
            to=str(mail["To"]),
            subject=str(mail["Subject"]),
            text=text.get_content() if text else "",
        )
        return "250 OK"


@contextmanager
def _mail_server(arrivals: Arrivals) -> Iterator[int]:
    """The port of a mail server that runs within the block."""
    listener = socket.create_server((_HOST, 0))
    loop = asyncio.new_event_loop()
    # Bound here, because aiosmtpd's own controllers want to be told a port.
    serving = loop.create_server(lambda: SMTP(_Mailbox(arrivals), loop=loop), sock=listener)
    server = loop.run_until_complete(serving)
    thread = Thread(target=loop.run_forever, name="mail server", daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        loop.call_soon_threadsafe(server.close)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@contextmanager
def _receiver(arrivals: Arrivals, secret: str) -> Iterator[str]:
    """The URL of a receiver of alerts that runs within the block; it believes signed ones only."""
    webhook = Webhook(secret)

    @Request.application
    def receive(request: Request) -> Response:
        body = request.get_data(as_text=True)
        try:
            webhook.verify(body, dict(request.headers))
        except WebhookVerificationError as error:
            return Response(f"{error}\n", 400)
        alert = request.headers["webhook-id"].partition("_")[2]
        arrivals.add(alert, "webhook", payload=json.loads(body), is_signed=True)
        return Response(status=204)

    with served(receive) as url:
        yield f"{url}/usage-alerts"


@contextmanager
def served(app: Any, host: str = _HOST, port: int = 0) -> Iterator[str]:
    """The URL at which the WSGI *app* is served, by threads, within the block.

    :raises OSError: the address is in use.
    """
    server = make_server(host, port, app, threaded=True)
    thread = Thread(target=server.serve_forever, name=f"server of {host}", daemon=True)
    thread.start()
    try:
        yield f"http://{host}:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
