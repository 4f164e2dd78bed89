"""Is everything set up as it should be, and does it work: ``doctor``."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from functools import partial
from shutil import get_terminal_size
from textwrap import fill as _fill
from typing import Any

import click
from flask import Flask, current_app

from ..checks import Finding, HostFacts, Level
from ..doctor import Examination, examine, findings, knock
from ..globals import AppState, app_state
from ..limiting import workers_from_environment
from ..signals import usage_alert
from .terminal import command

#: Longer lines are hard to read.
MAX_COLUMNS = 100

# Paths and commands are for copying: they stay whole.
fill: partial[str] = partial(_fill, break_long_words=False, break_on_hyphens=False)

_SIGNS = {Level.OK: (" ", None), Level.WARNING: ("?", "yellow"), Level.ERROR: ("!", "red")}


@command
@click.option("--strict", is_flag=True, help="Exit 1 for warnings, too.")
@click.option("--network", is_flag=True, help="Also connect to the mail server and the webhook.")
@click.option("--json", "as_json", is_flag=True, help="For a program, such as CI.")
def doctor(strict: bool, network: bool, as_json: bool) -> None:
    """Is everything set up as it should be? Each finding comes with its cure.

    Looks at the key and what it may do, the clock, meters and prices at Stripe against the
    catalogue, webhooks, the database and its files, disk space, the worker, rate limits, security
    headers and alerts. Changes nothing. What only a real event can show is what selftest shows.

    Findings are errors (!): usage is not counted, not billed or not safe; or warnings (?): it
    works, but not for ever or not for everybody. What cannot be known, because Stripe or the
    database cannot be reached, is left out.

    Exit codes: 0 no errors; 1 errors, or with --strict warnings.
    """
    usage = app_state().metering
    examination = examine(usage, _host_facts(_app(), app_state(), network=network))
    found = findings(examination)
    has_errors = any(each.level is Level.ERROR for _, each in found)
    if as_json:
        account = usage.gateway.account if usage.gateway else None
        click.echo(json.dumps(_plain(examination, account), indent=2))
    else:
        _print(examination)
    sys.exit(1 if has_errors or (strict and found) else 0)


def _app() -> Flask:
    app: Flask = current_app._get_current_object()  # type: ignore[attr-defined]
    return app


def _host_facts(app: Flask, state: AppState, *, network: bool) -> HostFacts:
    config, hooks = state.metering.config, state.hooks
    by_mail = config.mail_server is not None and hooks.mail_sender is None
    return HostFacts(
        has_early_worker=state.metering.worker.is_running,
        headers=state.headers.secure,
        shares_limits=state.limiter.is_shared,
        processes=workers_from_environment(),
        webhook_path=_webhook_path(app),
        has_subscription_loader=hooks.subscription_loader is not None,
        has_storage_loader=hooks.storage_loader is not None,
        channels=[
            *(["email"] if config.mail_server or hooks.mail_sender else []),
            *(["webhook"] if config.alert_webhook_url else []),
            *(["signal"] if any(True for _ in usage_alert.receivers_for(app)) else []),
        ],
        reached=knock(config, by_mail=by_mail) if network else None,
    )


def _webhook_path(app: Flask) -> str | None:
    """The path of the webhook blueprint, if it is registered."""
    for rule in app.url_map.iter_rules():
        if app.view_functions[rule.endpoint].__module__ == "flask_c2meter.webhooks":
            return str(rule.rule)
    return None


def _plain(examination: Examination, account: str | None) -> dict[str, Any]:
    all_found = [each for some in examination.values() for each in some]
    return {
        "version": 1,
        "account": account,
        "summary": {level.value: sum(each.level is level for each in all_found) for level in Level},
        "findings": [
            {"check": name, "level": each.level, "what": each.what, "cure": each.cure}
            for name, each in findings(examination)
        ],
        "fine": [
            {"check": name, "what": each.what}
            for name, some in examination.items()
            for each in some
            if each.level is Level.OK
        ],
    }


def _print(examination: Examination) -> None:
    width = max(len(name) for name in examination)
    columns = min(MAX_COLUMNS, get_terminal_size((MAX_COLUMNS, 24)).columns)
    for name, each in _by_check(examination):
        sign, color = _SIGNS[each.level]
        indent = " " * (width + 4)
        what = fill(each.what, columns, initial_indent=indent, subsequent_indent=indent)
        click.secho(f"{sign} {name:<{width}}  {what.strip()}", fg=color)
        if each.cure:
            further = f"{indent}   "
            click.echo(
                fill(f"-> {each.cure}", columns, initial_indent=indent, subsequent_indent=further)
            )
    levels = [each.level for _, each in _by_check(examination)]
    errors, warnings = levels.count(Level.ERROR), levels.count(Level.WARNING)
    wrong = [_counted(errors, "error")] * (errors > 0) + [_counted(warnings, "warning")] * (
        warnings > 0
    )
    right = levels.count(Level.OK)
    click.secho(f"\n{', '.join(wrong) or 'Nothing to do'}; {right} in order.", bold=True)


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"


def _by_check(examination: Examination) -> Iterator[tuple[str, Finding]]:
    for name, some in examination.items():
        for each in some:
            yield name, each


COMMANDS = (doctor,)
