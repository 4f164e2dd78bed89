"""Checks of what Stripe says of us."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from ..catalogue import CANARY
from ..provisioning import Action, Step
from .findings import Facts, Finding, error, named, ok, warning

if TYPE_CHECKING:
    from ..survey import Destination, Survey

#: Stripe refuses what lies five minutes ahead, and so do we a webhook that is as old.
MAX_SKEW_S = 60.0

_PROVISION = "flask c2meter provision shows the plan, with --apply it is carried out"
_MOVED_CLOCK = "if the emulator's clock was moved, start the emulator anew; else set both by NTP"
_SIGNING_SECRET = re.compile(r"whsec_[A-Za-z0-9+/=_-]+")

_CURES = {
    "no_connection": "see that the network lets this host out to Stripe",
    "dns": "see that this host can resolve names",
    "tls": "see the certificates of this host, and that nothing stands between it and Stripe",
}


def key(facts: Facts) -> Iterator[Finding]:
    """Is there a key, and where does it lead?"""
    found = facts.stripe
    if found is None:
        yield warning(
            "no Stripe key: the ledger records and nothing is delivered",
            "set C2METER_STRIPE_SECRET_KEY (or STRIPE_SECRET_KEY)",
        )
        return
    kind = f"{'restricted' if found.is_restricted else 'secret'} key, {_mode(found)} mode"
    if found.failure.startswith("401"):
        yield error(
            f"the {kind}: refused ({found.failure})",
            "paste the key anew; in Stripe's Dashboard, see that it was not revoked",
        )
    elif found.is_diverted and found.livemode:
        yield error(
            f"the {kind}, is given to {found.account.split()[0]} in Stripe's place",
            "remove C2METER_STRIPE_BASE_URL, and roll the key",
        )
    elif found.is_diverted:
        yield ok(f"a {kind}, for {found.account.split()[0]} in Stripe's place")
    elif facts.config.transport == "stream" and not found.livemode:
        yield error(
            f"a {kind}, but the transport 'stream' works in live mode only",
            "set C2METER_TRANSPORT to 'v1'",
        )
    else:
        yield ok(f"a {kind}")


def _mode(found: Survey) -> str:
    return "live" if found.livemode else "test"


def connection(facts: Facts) -> Iterator[Finding]:
    """Does Stripe answer?"""
    found = facts.stripe
    if found is None or found.failure.startswith("401"):
        return
    if found.failure:
        yield error(
            f"Stripe could not be asked: {found.failure}",
            _CURES.get(found.failure, "see status.stripe.com, and try again later"),
        )
    else:
        yield ok(f"{found.account.split()[0]} answers")


def permissions(facts: Facts) -> Iterator[Finding]:
    """May a restricted key do what it has to? Sending events can only be tried by selftest."""
    found = facts.stripe
    if found is None or (found.failure and not found.missing):
        return
    for lacking in found.missing:
        is_vital = lacking.is_vital and not (
            lacking.name.startswith("Subscriptions") and facts.host.has_subscription_loader
        )
        say = error if is_vital else warning
        yield say(
            f"the key lacks {lacking.name}, for {lacking.needed_for}",
            "in Stripe's Dashboard, under API keys, add it to the restricted key",
        )
    if not found.missing:
        yield ok("the key may read everything that is looked at")


def clock(facts: Facts) -> Iterator[Finding]:
    """Is our clock right?"""
    found = facts.stripe
    if found is None or found.skew_s is None:
        return
    where = "behind" if found.skew_s > 0 else "ahead of"
    if abs(found.skew_s) > MAX_SKEW_S:
        yield error(
            f"the clock of this host is {abs(found.skew_s):,.0f} s {where} Stripe's: events from "
            "the future wait, webhooks are refused",
            _MOVED_CLOCK if found.is_diverted else "have it set by NTP (timedatectl set-ntp true)",
        )
    else:
        yield ok(f"within {max(1, abs(round(found.skew_s)))} s of Stripe's")


def account(facts: Facts) -> Iterator[Finding]:
    """Does the ledger belong to the account of the key?"""
    known = facts.status["account"]
    if facts.stripe is None:
        return
    if known is None:
        yield ok("the ledger has not delivered anywhere yet")
    elif known != facts.stripe.account:
        yield error(
            f"nothing is sent: the ledger delivers to {known}, the key is of "
            f"{facts.stripe.account}",
            "give the key of that account, or after thought: flask c2meter worker --adopt",
        )
    else:
        yield ok(f"the ledger delivers to {known}")


# -- the catalogue ---------------------------------------------------------------------------------

_HELD = "so that their usage is held, and billed nowhere if that lasts"


def meters(facts: Facts) -> Iterator[Finding]:
    """Does Stripe count as the shipments need it?"""
    plan = facts.stripe and facts.stripe.plan
    if not plan:
        return
    steps = [step for step in plan.steps if step.kind == "meter"]
    for step in _of(steps, Action.CANNOT_CHANGE):
        yield error(f"the meter {step.name} counts otherwise at Stripe: {step.detail}", step.note)
    yield from _group(steps, Action.CREATE, f"not at Stripe, {_HELD}", error)
    yield from _group(steps, Action.REACTIVATE, f"deactivated at Stripe, {_HELD}", error)
    yield from _group(steps, Action.RENAME, "named otherwise at Stripe", warning)
    yield from _group(steps, Action.DEACTIVATE, "at Stripe, but no more in the catalogue", warning)
    if steps and all(step.action is Action.KEEP for step in steps):
        yield ok(f"{len(steps)} at Stripe add up what is shipped")


def prices(facts: Facts) -> Iterator[Finding]:
    """Does Stripe bill by the catalogue: the same units, tiers and amounts?"""
    plan = facts.stripe and facts.stripe.plan
    if not plan:
        return
    steps = [step for step in plan.steps if step.kind != "meter"]
    for step in _of(steps, Action.CANNOT_CHANGE):
        yield error(f"{step.kind} {step.name} is in the way: {step.detail}", step.note)
    made = [step for step in _of(steps, Action.CREATE) if step.kind == "price"]
    drifted = [step.name for step in made if step.replaces]
    if drifted:
        yield error(
            f"Stripe bills by another unit, tier or amount than the catalogue: {named(drifted)}",
            f"{_PROVISION}; then move the subscriptions to the new prices",
        )
    absent = [step.name for step in made if not step.replaces]
    if absent:
        yield error(f"not at Stripe, so that usage is billed nowhere: {named(absent)}", _PROVISION)
    yield from _group(steps, Action.REACTIVATE, "deactivated at Stripe", error)
    yield from _group(steps, Action.RENAME, "named otherwise on invoices", warning)
    # What is replaced goes, too, and was named above.
    gone = [step for step in steps if step.name not in drifted]
    yield from _group(gone, Action.DEACTIVATE, "at Stripe, but no more in the catalogue", warning)
    kept = [step for step in steps if step.kind == "price"]
    if kept and all(step.action is Action.KEEP for step in steps):
        yield ok(f"{len(kept)} at Stripe bill by the catalogue")


def _of(steps: Sequence[Step], action: Action) -> list[Step]:
    return [step for step in steps if step.action is action]


def _group(
    steps: Sequence[Step], action: Action, what: str, say: Callable[[str, str], Finding]
) -> Iterator[Finding]:
    if found := _of(steps, action):
        yield say(f"{what}: {named([step.name for step in found])}", _PROVISION)


def unpriced(facts: Facts) -> Iterator[Finding]:
    """Is there usage that nobody pays for?"""
    billable = [meter for meter in facts.catalogue.meters.values() if meter.billable]
    names = [meter.name for meter in billable if meter.price is None]
    if names:
        yield warning(
            f"no price in the catalogue, so counted and not billed: {named(names)}",
            "give them a price, or billable = false",
        )
    elif billable:
        yield ok("every billable meter has a price")


def canary(facts: Facts) -> Iterator[Finding]:
    """Does Stripe have a meter for the canary, where it flies that far?"""
    if not facts.config.canary_s:
        return
    plan = facts.stripe and facts.stripe.plan
    if not facts.config.canary_customer:
        yield ok(f"an event every {facts.config.canary_s} s, not sent to Stripe")
    elif plan and CANARY.name not in plan.meter_ids:
        yield error(
            f"the canary is sent to Stripe, which has no meter {CANARY.name}",
            "create it in the Dashboard: sum of value, by stripe_customer_id; or remove "
            "C2METER_CANARY_CUSTOMER",
        )
    elif plan:
        yield ok(f"an event every {facts.config.canary_s} s, sent to Stripe")


# -- webhooks --------------------------------------------------------------------------------------


def webhooks(facts: Facts) -> Iterator[Finding]:
    """Does Stripe tell us what has changed?"""
    secrets, found = facts.config.stripe_webhook_secret, facts.stripe
    if not secrets:
        yield from _no_secret(facts)
        return
    wrong = [str(n) for n, each in enumerate(secrets, 1) if not _SIGNING_SECRET.fullmatch(each)]
    if wrong:
        yield error(
            f"webhook secret {', '.join(wrong)} of {len(secrets)} is no signing secret",
            "C2METER_STRIPE_WEBHOOK_SECRET takes what begins with whsec_, of each destination",
        )
    path = facts.host.webhook_path
    if path is None:
        yield warning(
            "there is a webhook secret, and no route that receives webhooks",
            'app.register_blueprint(meter.webhook_blueprint(), url_prefix="/stripe")',
        )
        return
    if found is None or found.snapshots is None or found.thin is None:
        return
    ours = [
        destination
        for destination in (*found.snapshots, *found.thin)
        if urlsplit(destination.url).path.endswith(path)
    ]
    problems = [
        *_unheard(ours, path, "snapshot", facts.snapshot_events),
        *_unheard(ours, path, "thin", facts.thin_events),
    ]
    yield from problems
    if len(secrets) < len({(each.url, each.is_thin) for each in ours}) and not found.is_diverted:
        yield warning(
            f"{len(ours)} destinations, each with a secret of its own, and {len(secrets)} secret",
            "give all of them in C2METER_STRIPE_WEBHOOK_SECRET, separated by commas",
        )
    elif not problems and not wrong:
        yield ok(f"Stripe sends what is needed to {path}")


def _no_secret(facts: Facts) -> Iterator[Finding]:
    if facts.is_trial:
        yield ok("none, which will do for a trial: plans and periods are looked up")
        return
    yield warning(
        "no webhooks: usage that Stripe refuses after taking it is not noticed",
        "set C2METER_STRIPE_WEBHOOK_SECRET and create two destinations, see docs/webhooks.md",
    )


def _unheard(
    ours: Sequence[Destination], path: str, payload: str, kinds: Sequence[str]
) -> Iterator[Finding]:
    """What of the needed *kinds* is sent to none of *ours*."""
    destinations = [each for each in ours if each.is_thin == (payload == "thin")]
    if not destinations:
        yield warning(
            f"no {payload} destination at Stripe sends to {path}",
            f"create one for {', '.join(kinds)}",
        )
        return
    enabled = [each for each in destinations if each.is_enabled]
    if not enabled:
        yield error(
            f"the {payload} destination {destinations[0].url} is disabled at Stripe",
            "enable it in Workbench; Stripe disables one that fails for days",
        )
        return
    missing = [kind for kind in kinds if not any(each.wants(kind) for each in enabled)]
    if missing:
        yield warning(
            f"no {payload} destination sends {', '.join(missing)}",
            f"add them to {enabled[0].url} in Workbench",
        )
