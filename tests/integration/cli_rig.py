"""``flask c2meter ...`` against a metered app that delivers to the emulator when told to."""

from __future__ import annotations

from collections.abc import Callable

from click.testing import Result
from flask_host import Host

from flask_c2meter.emulator import StripeEmulator
from flask_c2meter.testing import FrozenClock


def delivering(
    new_host: Callable[..., Host], stripe_emulator: StripeEmulator, c2meter_clock: FrozenClock
) -> Host:
    """A host that delivers to the emulator when told to."""
    return new_host(
        C2METER_STRIPE_SECRET_KEY="sk_test_1",
        C2METER_STRIPE_BASE_URL=stripe_emulator.url,
        C2METER_WORKER="off",
        C2METER_CLOCK=c2meter_clock,
    )


def run(host: Host, *arguments: str, stdin: str | None = None) -> Result:
    return host.app.test_cli_runner().invoke(args=["c2meter", *arguments], input=stdin)
