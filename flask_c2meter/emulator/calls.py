"""What a request becomes once it is understood, and what its endpoint is.

Imports ``account``, ``bodies``, ``referee`` and ``wire``. The families of endpoints
(``meter_calls``, ``price_calls``, ``billing_calls``) are lists of :class:`Route`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from .account import Account
from .bodies import listed
from .referee import Shape, expansions, page_limit, text
from .wire import Refusal

EXPAND: dict[str, Any] = {"expand": expansions}
PAGING: dict[str, Any] = {
    "limit": page_limit,
    "starting_after": text(5000),
    "ending_before": text(5000),
}


@dataclass(frozen=True, slots=True)
class Call:
    """A request that the referee has passed."""

    params: Mapping[str, Any]
    now: datetime
    livemode: bool
    #: The ``{id}`` in the path.
    id: str = ""

    def expands(self, path: str) -> bool:
        """Whether *path*, such as ``data.tiers``, is to be expanded."""
        return path in self.params.get("expand", ())


@dataclass(frozen=True, slots=True)
class Route:
    """One row of the table."""

    method: str
    #: With at most one ``{id}``.
    path: str
    handle: Callable[[Account, Call], Any]
    shape: Shape = field(default_factory=Shape)
    #: Authenticated by a session token instead of an API key.
    by_session: bool = False
    #: Stripe works on one request per customer and meter at a time.
    in_lane: bool = False


def page(items: list[dict[str, Any]], url: str, call: Call) -> dict[str, Any]:
    """The page of *items* that the request asks for."""
    params = call.params
    limit = params.get("limit", 10)
    ids = [item["id"] for item in items]
    shown = slice(limit)
    if "starting_after" in params:
        items = items[_cursor(ids, params, "starting_after") + 1 :]
    elif "ending_before" in params:
        items = items[: _cursor(ids, params, "ending_before")]
        shown = slice(-limit, None)
    return listed(items[shown], url, has_more=len(items) > limit)


def _cursor(ids: list[str], params: Mapping[str, Any], name: str) -> int:
    if params[name] not in ids:
        raise Refusal(f"No such object: '{params[name]}'", code="resource_missing", param=name)
    return ids.index(params[name])


def missing(kind: str, id: str) -> Refusal:
    """The refusal of a path to something that does not exist."""
    return Refusal(f"No such {kind}: '{id}'", status=404, code="resource_missing", param="id")


def is_within(bounds: tuple[int, int] | None, moment: int) -> bool:
    """Whether *moment* passes a filter made by :func:`~.referee.span`; None = every moment."""
    return bounds is None or bounds[0] <= moment <= bounds[1]
