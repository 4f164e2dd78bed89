"""Checks of the app around us and of its server."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from ..measurements import METER as STORAGE_METER
from .findings import Facts, Finding, error, ok, warning

if TYPE_CHECKING:
    from ..headers import Pair


def worker(facts: Facts) -> Iterator[Finding]:
    """Does somebody deliver?"""
    workers = len(facts.status["workers"])
    if facts.config.worker == "thread":
        yield ok("each process of the app delivers by a thread")
    elif workers:
        yield ok(f"{workers} worker{'s' * (workers > 1)} at work")
    elif facts.status["oldest_unshipped_age_s"] is not None:
        yield error(
            "usage waits and no worker has been seen for minutes (C2METER_WORKER is 'off')",
            "run flask c2meter worker as a service of the machine",
        )
    else:
        yield warning(
            "C2METER_WORKER is 'off' and no worker has been seen for minutes",
            "run flask c2meter worker as a service of the machine",
        )


def storage(facts: Facts) -> Iterator[Finding]:
    """Is somebody asked how much customers store, if that is billed?"""
    is_metered = STORAGE_METER in facts.catalogue.meters
    if facts.host.has_storage_loader and not is_metered:
        yield error(
            f"there is a storage_loader, and no meter {STORAGE_METER} in the catalogue: nothing is "
            "measured",
            f"name the meter {STORAGE_METER}",
        )
    elif facts.host.has_storage_loader:
        last = facts.status["storage"]
        when = f"last for {last['day']}" if last else "not yet"
        yield ok(f"measured by schedule {facts.config.storage_schedule!r} (UTC), {when}")
    elif is_metered and not _is_used(facts) and not facts.is_trial:
        yield warning(
            f"the catalogue has {STORAGE_METER}, but no storage was ever recorded and nobody is "
            "asked for it",
            "register a @meter.storage_loader, or take the meter out of the catalogue",
        )


def _is_used(facts: Facts) -> bool:
    return bool(facts.status["meters"].get(STORAGE_METER, {}).get("events"))


def fork(facts: Facts) -> Iterator[Finding]:
    """Does the app start our threads while it is created, so that a forking server loses them?"""
    if facts.host.has_early_worker:
        yield warning(
            "creating the app has started its worker: a server that forks afterwards "
            "(gunicorn --preload, uWSGI) leaves its threads in the parent process",
            "record usage in requests and commands, not while modules are imported",
        )
    else:
        yield ok("creating the app starts no thread")


def limiter(facts: Facts) -> Iterator[Finding]:
    """Are limits counted once for all processes?"""
    host = facts.host
    # Where threads deliver, each process of the server signs on as a worker.
    delivering = len(facts.status["workers"]) if facts.config.worker == "thread" else 0
    processes = max(host.processes, delivering)
    if host.shares_limits is None:
        yield ok("there are no rate limits")
    elif host.shares_limits:
        yield ok("all processes count rate limits together")
    elif processes > 1:
        yield warning(
            f"{processes} processes count rate limits each for itself: users get {processes} times "
            "as much",
            "set RATELIMIT_STORAGE_URI, to redis://... for example",
        )
    else:
        yield ok("one process counts rate limits in its memory")


def headers(facts: Facts) -> Iterator[Finding]:
    """Do the security headers keep what they promise?"""
    sent = facts.host.headers
    weak = [*_weaknesses(sent)]
    if weak:
        yield warning(
            f"weak security headers: {'; '.join(weak)}",
            "set C2METER_SECURITY_HEADERS to 'strict', or to a mapping of your own",
        )
    elif sent:
        yield ok(f"{len(sent)} security headers, none of them weak")
    else:
        yield ok("security headers are the host's own affair (C2METER_SECURITY_HEADERS = 'off')")


def _weaknesses(sent: Sequence[Pair]) -> Iterator[str]:
    values = {name.lower(): value.lower() for name, value in sent}
    policy = values.get("content-security-policy", "")
    scripts = _sources(policy, "script-src") or _sources(policy, "default-src")
    if "'unsafe-inline'" in scripts and not any("'nonce-" in each for each in scripts):
        yield "Content-Security-Policy allows inline scripts ('unsafe-inline')"
    if "'unsafe-eval'" in scripts:
        yield "Content-Security-Policy allows eval ('unsafe-eval')"
    if values.get("x-xss-protection", "0").strip() != "0":
        yield "X-XSS-Protection opens holes of its own in old browsers"
    if "preload" in values.get("strict-transport-security", ""):
        yield "Strict-Transport-Security asks to be preloaded, which takes months to undo"


def _sources(policy: str, directive: str) -> Sequence[str]:
    for part in policy.split(";"):
        name, *sources = part.split() or [""]
        if name == directive:
            return sources
    return ()


def alerts(facts: Facts) -> Iterator[Finding]:
    """Does a customer who reaches a threshold hear of it?"""
    channels, reached = facts.host.channels, facts.host.reached or {}
    if facts.config.alert_webhook_allow_loopback and not facts.is_trial:
        yield warning(
            "alert webhooks may go to this machine, and unencrypted",
            "remove C2METER_ALERT_WEBHOOK_ALLOW_LOOPBACK, which is for development",
        )
    failed = {name: reason for name, reason in reached.items() if reason}
    for name, reason in failed.items():
        yield error(
            f"alerts cannot be announced by {name}: {reason}",
            {
                "email": "see C2METER_MAIL_SERVER, _PORT, _TLS, _USERNAME and _PASSWORD",
                "webhook": "see C2METER_ALERT_WEBHOOK_URL, and that its host is up and public",
            }[name],
        )
    if channels and not failed:
        tried = " (reached)" if reached else ""
        yield ok(f"alerts are announced in the app and by {', '.join(channels)}{tried}")
    elif not channels and facts.is_trial:
        yield ok("alerts are shown in the app only, which will do for a trial")
    elif not channels:
        yield warning(
            "alerts are shown in the app only",
            "set C2METER_MAIL_SERVER or C2METER_ALERT_WEBHOOK_URL, or connect to usage_alert",
        )
