"""``python -m example_app``: serve the example, with stand-ins for the rest of the world.

``python -m example_app demo`` fills the example that runs already, or one that it starts, with a
month of believable traffic.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
import time
from contextlib import ExitStack, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen

from flask import Flask

from flask_c2meter.catalogue import load

from . import create_app
from .arrivals import Arrivals
from .customers import DEMO_CUSTOMERS
from .demo import MAY_INVENT
from .kept import kept
from .stand_ins import StandIns, served
from .views import CATALOGUE, destination

#: So long ago the demo customers have subscribed, on the first start.
_SUBSCRIBED = timedelta(days=19)

_GREETING = """
  The example app        {url}
  Dashboard              {url}/billing/usage  (log in on the page)
  Stripe                 {stripe}

  API keys               {keys}

  Try it here, or from a shell:

    curl -H "Authorization: Bearer {key}" -F file=@photo.jpg {url}/api/sign -o signed.jpg
    curl -H "Authorization: Bearer {key}" -F file=@signed.jpg {url}/api/verify
    curl -H "Authorization: Bearer {key}" {url}/api/usage
    {flask} c2meter bill {customer}

  Ctrl-C ends it. What must be kept is in {instance}
"""


def main() -> None:
    """Serve until interrupted."""
    arguments = _arguments()
    # One line per request would bury the greeting: the page asks for the counts every second.
    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    logging.getLogger("mail.log").setLevel(logging.WARNING)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    is_demo = arguments.what == "demo"
    if is_demo and arguments.port and _fill(f"http://{arguments.host}:{arguments.port}"):
        return
    with ExitStack() as stack, suppress(KeyboardInterrupt):
        settings: dict[str, Any] = {}
        world = None
        if not _has_stripe_settings():
            world = stack.enter_context(StandIns(Arrivals(arguments.instance / "arrivals.jsonl")))
            settings = {**world.settings, MAY_INVENT: True}
        app = create_app(settings, instance_path=str(arguments.instance))
        url = stack.enter_context(served(app, arguments.host, arguments.port))
        if world is not None:
            world.tell(url)
            since = _first_day(arguments.instance) - _SUBSCRIBED
            world.open_shop(load(CATALOGUE), DEMO_CUSTOMERS.values(), since)
        if is_demo:
            _fill(url)
        print(_greeting(app, url), flush=True)
        while True:  # one wait without end would sleep through a signal that another thread gets
            time.sleep(0.5)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m example_app", description=main.__doc__)
    parser.add_argument(
        "what",
        nargs="?",
        choices=["serve", "demo"],
        default="serve",
        help="demo: with a month of traffic, in the app that runs already if there is one",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to serve on (%(default)s)")
    parser.add_argument("--port", type=int, default=5000, help="0 = any free (%(default)s)")
    parser.add_argument(
        "--instance",
        type=lambda folder: Path(folder).absolute(),
        default=Path(Flask("example_app").instance_path),
        help="folder for the signing chain and the ledger",
    )
    return parser.parse_args()


def _has_stripe_settings() -> bool:
    names = ("STRIPE_SECRET_KEY", "C2METER_STRIPE_SECRET_KEY", "C2METER_STRIPE_BASE_URL")
    return any(os.environ.get(name) for name in names)


def _first_day(instance: Path) -> datetime:
    """The UTC day of the first start: the emulator forgets, but periods must not move."""
    text = kept(instance / "first-day", lambda: datetime.now(UTC).date().isoformat())
    return datetime.fromisoformat(text.strip()).replace(tzinfo=UTC)


def _fill(url: str) -> bool:
    """Have the app at *url* invent a month for each customer; False if there is no app."""
    for key, customer in DEMO_CUSTOMERS.items():
        request = Request(f"{url}/api/demo", method="POST", headers={"X-API-Key": key})
        try:
            with urlopen(request, timeout=300) as response:
                recorded = json.load(response)["recorded"]
        except URLError as error:
            if isinstance(error.reason, ConnectionRefusedError):
                return False
            sys.exit(f"{url} does not do that: {error}")
        print(f"  {customer.id}: {recorded:,} events recorded", flush=True)
    return True


def _greeting(app: Flask, url: str) -> str:
    stripe = destination(app.config)
    where = f"{stripe['url'] or ''}  ({stripe['words']})".strip()
    keys = [f"{key}  ({customer.plan})" for key, customer in DEMO_CUSTOMERS.items()]
    factory = "example_app"
    if app.instance_path != Flask("example_app").instance_path:
        factory = f"\"example_app:create_app(instance_path='{app.instance_path}')\""
    return _GREETING.format(
        url=url,
        stripe=where,
        keys=f"\n{'':25}".join(keys),
        key=next(iter(DEMO_CUSTOMERS)),
        customer=next(iter(DEMO_CUSTOMERS.values())).id,
        flask=f"{os.path.relpath(sys.executable)} -m flask --app {factory}",
        instance=app.instance_path,
    )


if __name__ == "__main__":
    main()
