"""What a view or a path is metered by, checked where it is written down.

Imports the rules' own parsers and knows no framework: the response is whatever the shell says.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Generic, Literal, TypeVar

from marshmallow import Schema

from .errors import InvalidEvent
from .limiting import parse_rule
from .model import Meter
from .schemas import check_quantity, parse_units

#: The shell's kind of response.
R = TypeVar("R")

Value = int | Decimal | str
Properties = Mapping[str, Any]


@dataclass(frozen=True)  # with slots, CPython 3.11 fails on Terms[Response](...)
class Terms(Generic[R]):
    """What a request is metered by.

    :param meter: name of a meter of the catalogue.
    :param value: quantity in the meter's unit, or a callable that takes the response; None = what
        the app sets as the draft's ``value``, or the meter's default.
    :param properties: of the event, or a callable that takes the response; what the app passes to
        the draft's ``update`` wins.
    :param rate_limit: such as ``"100/minute"``; None = the catalogue's, False = unlimited.
    :param body: ``"json"`` = a JSON object is required; a marshmallow schema class = and validated.
    :param enforce: ``"block"``: 402 once the included quantity is used up; default ``"allow"``.
    :param bill_on: predicate on the response that replaces the default one: status 2xx and the
        meter's filter.
    :raises ValueError: an argument is wrong; a ``TypeError`` if *meter* is no name.
    """

    meter: str
    value: Value | Callable[[R], Value] | None = None
    properties: Properties | Callable[[R], Properties] | None = None
    rate_limit: str | Literal[False] | None = None
    body: Literal["json"] | type[Schema] | None = None
    enforce: Literal["allow", "block"] | None = None
    bill_on: Callable[[R], bool] | None = None
    #: Of *body*, made once.
    schema: Schema | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.meter, str):
            raise TypeError(f"name the meter: {self.meter!r} is no text like 'verify_operations'")
        if self.enforce not in (None, "allow", "block"):
            raise ValueError(f"enforce={self.enforce!r} is neither 'allow' nor 'block'")
        self._check_body()
        properties, rule, value = self.properties, self.rate_limit, self.value
        if not (properties is None or callable(properties) or isinstance(properties, Mapping)):
            raise ValueError(f"properties={properties!r} is neither a mapping nor a callable")
        if self.bill_on is not None and not callable(self.bill_on):
            raise ValueError(f"bill_on={self.bill_on!r} is not callable")
        if isinstance(rule, str):
            parse_rule(rule)
        elif rule is not None and rule is not False:
            raise ValueError(f"rate_limit={rule!r} is no limit; use '100/minute', None or False")
        if value is not None and not callable(value):
            check_quantity(value)

    def _check_body(self) -> None:
        body = self.body
        if isinstance(body, type) and issubclass(body, Schema):
            object.__setattr__(self, "schema", body())
        elif body not in (None, "json"):
            raise ValueError(f"body={body!r} is neither 'json' nor a marshmallow Schema class")

    def check_for(self, meter: Meter) -> None:
        """Refuse constants that no event of *meter* can have.

        :raises InvalidEvent: ``value`` or ``properties`` is one.
        """
        value, properties = self.value, self.properties
        if value is not None and not callable(value):
            parse_units(meter, value)
        if isinstance(properties, Mapping) and (unknown := properties.keys() - meter.properties):
            names = ", ".join(map(str, unknown))
            raise InvalidEvent({"properties": f"{meter.name} has none called {names}"})
