"""What every store is given: an empty database of its own.

Another kind of store joins the contract by one more entry in :data:`KINDS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from storekit import METERS

from flask_c2meter.store import Store, open_store

#: How to make the URL of an empty database of each kind.
KINDS: dict[str, Callable[[Path], str]] = {
    "sqlite": lambda folder: f"sqlite:///{folder}/ledger.db",
}


@pytest.fixture(params=KINDS)
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return KINDS[request.param](tmp_path)


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    store = open_store(store_url, METERS)
    yield store
    store.close()
