"""What arrived where: each alert as it came by mail, webhook and signal, for the page to show.

One line of JSON per arrival in a file of the instance folder, so that every process sees all of
them and a restart forgets none. Imports the standard library only.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

Place = Literal["mail", "webhook", "signal"]

#: Alert -> place -> everything that came.
Found = Mapping[str, Mapping[Place, list[dict[str, Any]]]]


class Arrivals:
    """The book of arrivals.

    :param path: created with the first one.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def add(self, alert: str, place: Place, **facts: Any) -> None:
        """Note that the alert with this identifier came to *place*.

        :param facts: what came, as JSON has it.
        """
        arrival = {"alert": alert, "place": place, "at": datetime.now(UTC).isoformat(), **facts}
        line = json.dumps(arrival).encode() + b"\n"
        # A single write in append mode: lines of several processes do not mix.
        file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(file, line)
        finally:
            os.close(file)

    def found(self) -> Found:
        """Everything that came so far."""
        found: defaultdict[str, defaultdict[Place, list[dict[str, Any]]]]
        found = defaultdict(lambda: defaultdict(list))
        if self._path.exists():
            for line in self._path.read_text("utf-8").splitlines():
                arrival = json.loads(line)
                found[arrival["alert"]][arrival["place"]].append(arrival)
        return found
