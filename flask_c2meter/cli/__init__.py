"""``flask c2meter ...``: thin commands over :class:`~flask_c2meter.metering.Metering`.

A module has the commands of one errand: ``customers`` what customers have used and owe,
``simulate`` what they would on another plan,
``delivery`` what happens to it, ``dead`` what was set aside, ``explain`` and ``proof`` where a
number comes from and whether it is right, ``provision`` and ``reconcile`` what Stripe has,
``doctor`` and ``selftest`` whether all is well; ``terminal`` is what they all print with.

The group is a plugin of ``flask`` (entry point ``flask.commands``), which so finds it before it
loads the app: whatever is wrong with that is then said here.

Exit codes: 0 fine; 1 something needs attention (unhealthy, a difference found); 2 bad arguments or
a damaged store.
"""

from __future__ import annotations

from typing import Any

import click
from flask.cli import AppGroup

from ..errors import C2MeterError


class Commands(AppGroup):
    """Imports its commands when one is asked for: a process that serves requests never does.

    Says our own errors in one line, without a traceback; also those of an app that cannot start.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names of all commands, sorted."""
        self._load()
        return super().list_commands(ctx)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name; None if there is none."""
        self._load()
        return super().get_command(ctx, cmd_name)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except C2MeterError as exc:
            from .terminal import fail

            fail(exc)

    def _load(self) -> None:
        if self.commands:
            return
        from . import (
            backfill,
            customers,
            dead,
            delivery,
            doctor,
            explain,
            proof,
            provision,
            reconcile,
            selftest,
            simulate,
            storage,
        )

        for module in (
            customers,
            simulate,
            delivery,
            dead,
            explain,
            proof,
            backfill,
            provision,
            reconcile,
            storage,
            doctor,
            selftest,
        ):
            for command in module.COMMANDS:
                self.add_command(command)


c2meter_group: Commands = Commands(
    "c2meter", help="Usage metering: usage and bills, delivery, proof."
)
