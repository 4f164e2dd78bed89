"""Log lines: one for each event, ``event=shipment_dead meter=verify_operations reason=invalid``.

Everything the package logs goes through :func:`logger`, which writes names and values, never
sentences with something in them: a value with a space, a quote or a line break is quoted and
escaped, so that nobody who chooses a value can write a line. Values are never secrets and never
say who a customer is; a shipment's identifier or Stripe's event id leads to them in the ledger.

The host decides where lines go and what they look like, as with any logger. :class:`LineFormatter`
and :class:`JsonFormatter` keep each record on one line, tracebacks too.
"""

from __future__ import annotations

import json
import logging
import re
from datetime import UTC, datetime

_BARE = re.compile(r"[A-Za-z0-9_.,:/@+*-]+")

#: Attribute of a record that holds its event and values.
FIELDS = "c2meter"


class Log:
    """Logs events of one module.

    :param name: the module's.
    """

    __slots__ = ("_logger",)

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)

    def info(self, event: str, **fields: object) -> None:
        """Something is in order again."""
        self._log(logging.INFO, event, fields)

    def warning(self, event: str, **fields: object) -> None:
        """Something waits or is done by half; it goes on by itself."""
        self._log(logging.WARNING, event, fields)

    def error(self, event: str, **fields: object) -> None:
        """Somebody should look."""
        self._log(logging.ERROR, event, fields)

    def exception(self, event: str, **fields: object) -> None:
        """The same, with the traceback of what is being handled: a fault, ours or a hook's."""
        self._log(logging.ERROR, event, fields, has_traceback=True)

    def _log(
        self, level: int, event: str, fields: dict[str, object], *, has_traceback: bool = False
    ) -> None:
        if not self._logger.isEnabledFor(level):
            return
        # The template is the same each time: tools that group records group these by event.
        template = "".join((f"event={event}", *(f" {name}=%s" for name in fields)))
        self._logger.log(
            level,
            template,
            *map(quoted, fields.values()),
            exc_info=has_traceback,
            extra={FIELDS: {"event": event, **fields}},
            stacklevel=3,
        )


def logger(name: str) -> Log:
    """What a module logs with: ``logger = logs.logger(__name__)``."""
    return Log(name)


def quoted(value: object) -> str:
    """*value* as it stands in a line: bare if it is one plain word, else in JSON's quotes."""
    text = str(value)
    return text if _BARE.fullmatch(text) else json.dumps(text)


class LineFormatter(logging.Formatter):
    """``time=... level=... logger=... event=...``: any record on one line, ours or not."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        head = {"time": _time(record), "level": record.levelname, "logger": record.name}
        message = record.getMessage()
        body = message if hasattr(record, FIELDS) else f"message={quoted(message)}"
        parts = [*(f"{name}={quoted(value)}" for name, value in head.items()), body]
        if trace := _trace(self, record):
            parts.append(f"traceback={quoted(trace)}")
        return " ".join(parts)


class JsonFormatter(logging.Formatter):
    """A JSON object on one line: ``{"time", "level", "logger", "event", ...}``, any record."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        head = {"time": _time(record), "level": record.levelname, "logger": record.name}
        body: dict[str, object] = getattr(record, FIELDS, {"message": record.getMessage()})
        trace = _trace(self, record)
        return json.dumps({**body, **head, **({"traceback": trace} if trace else {})}, default=str)


def _time(record: logging.LogRecord) -> str:
    moment = datetime.fromtimestamp(record.created, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _trace(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    return formatter.formatException(record.exc_info) if record.exc_info else ""
