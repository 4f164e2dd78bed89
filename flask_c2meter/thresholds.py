"""Usage held against an included quantity gives a level.

Pure; imports only :mod:`~flask_c2meter.model` and :mod:`~flask_c2meter.decimals`. Everything is in
wire units, and each threshold is worked out once, so that asking costs next to nothing: it is asked
for each event.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal

from .decimals import EXACT
from .model import Level, Meter

#: Alert levels, mildest first; each has one threshold.
LEVELS: tuple[Level, ...] = ("warning", "critical", "exceeded")


@dataclass(frozen=True, slots=True)
class Allowance:
    """What a plan includes of a meter, and the totals at which each level begins."""

    #: Wire units, >= 0.
    included: int
    #: The least total of each of :data:`LEVELS`, ascending, >= 1.
    steps: tuple[int, ...]

    def level(self, total: int) -> Level | None:
        """The highest level that *total* reaches; None below the first."""
        reached = bisect_right(self.steps, total)
        return LEVELS[reached - 1] if reached else None


def allowance(included: int, shares: Sequence[Decimal]) -> Allowance:
    """What to hold a total against; with nothing included the first unit is ``exceeded``.

    :param included: wire units, >= 0.
    :param shares: of *included*, for each of :data:`LEVELS`, ascending.
    """
    exact = (EXACT.multiply(Decimal(included), share) for share in shares)
    least = (int(total.to_integral_value(ROUND_CEILING)) for total in exact)
    return Allowance(included, tuple(max(1, total) for total in least))


def allowances(
    meters: Iterable[Meter], shares: Sequence[Decimal]
) -> Mapping[tuple[str, str], Allowance]:
    """(meter, plan) -> its allowance, where the plan's quantity is limited."""
    return {
        (meter.name, plan): allowance(meter.to_units(included), shares)
        for meter in meters
        for plan, included in meter.included.items()
        if included is not None
    }
