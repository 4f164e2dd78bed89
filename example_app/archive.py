"""Keeps what was signed, a folder for each customer, and measures how much that is.

A real service has a bucket or a table instead; :func:`measure_storage` stays as it is. Imports
Flask and ``flask_c2meter``.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from urllib.parse import quote

from flask import current_app

from flask_c2meter import StorageMeasurement

from .customers import DEMO_CUSTOMERS

_GIGABYTE = 10**9


class Archive:
    """The files of all customers.

    :param folder: made when the first one is kept.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def keep(self, customer: str, name: str, data: bytes) -> None:
        """Keep *data* as *name*, whole or not at all."""
        folder = self._folder / customer
        folder.mkdir(parents=True, exist_ok=True)
        descriptor, draft = tempfile.mkstemp(dir=folder)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        os.replace(draft, folder / quote(name, safe=""))

    def size_bytes(self, customer: str) -> int:
        """How much is kept for *customer*."""
        folder = self._folder / customer
        if not folder.exists():
            return 0
        return sum(file.stat().st_size for file in os.scandir(folder))


def measure_storage() -> Iterator[StorageMeasurement]:
    """How much each customer stores, for the nightly job and ``flask c2meter measure-storage``."""
    archive: Archive = current_app.extensions["archive"]
    for customer in DEMO_CUSTOMERS.values():
        try:
            size = Decimal(archive.size_bytes(customer.id)) / _GIGABYTE
        except OSError as exc:
            yield StorageMeasurement(customer, error=exc.strerror or type(exc).__name__)
        else:
            yield StorageMeasurement(customer, evidence_gb=size)
