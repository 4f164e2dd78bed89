"""Pages are executed beside what the integration tests are made of."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from flask_c2meter import usage_alert

# Their far ends and stories are needed here too; pytest adds a folder only when it collects there.
sys.path.append(str(Path(__file__).parents[1] / "integration"))


@pytest.fixture(autouse=True)
def receivers() -> Iterator[None]:
    """What a page connects hears of nothing after it."""
    before = list(usage_alert.receivers_for(object()))
    yield
    for receiver in list(usage_alert.receivers_for(object())):
        if receiver not in before:
            usage_alert.disconnect(receiver)
