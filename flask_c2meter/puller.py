"""Reads what a host's ``storage_loader`` says, a batch at a time, in a thread of its own.

So a loader that hangs can be given up: the thread is left to itself, and ends as soon as the loader
gives way. It measures nothing before it is asked to.
"""

from __future__ import annotations

import inspect
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from itertools import islice
from typing import Any

from . import logs
from .hooks import StorageLoader
from .model import StorageMeasurement

logger: logs.Log = logs.logger(__name__)


class LoaderFailed(Exception):
    """The loader raised, or took too long.

    :param measured: what it had said of this batch before.
    """

    def __init__(self, why: str, measured: Sequence[StorageMeasurement]) -> None:
        self.measured = measured
        super().__init__(why)


class Puller:
    """One reading of a loader, from its beginning; leaving the block gives it up.

    :param context: makes what it runs in.
    :param is_wanted: handed to a loader that has a parameter.
    :param size: measurements in a batch.
    """

    def __init__(
        self,
        loader: StorageLoader,
        context: Callable[[], AbstractContextManager[Any]],
        is_wanted: Callable[[str], bool],
        size: int,
    ) -> None:
        self._loader: Callable[..., Any] = loader
        self._arguments = (is_wanted,) if inspect.signature(loader).parameters else ()
        self._context = context
        self._size = size
        self._requests: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._is_given_up = False
        self._is_ready = threading.Event()
        self._batch: list[StorageMeasurement] = []
        self._problem: BaseException | None = None

    def __enter__(self) -> Puller:
        threading.Thread(target=self._serve, name="c2meter-storage-loader", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_given_up = True
        self._requests.put(False)

    def ask(self) -> None:
        """Have the next batch measured."""
        self._batch = []
        self._is_ready.clear()
        self._requests.put(True)

    def wait(self, timeout_s: float) -> bool:
        """Wait for the batch; return whether it is there."""
        return self._is_ready.wait(timeout_s)

    def take(self) -> tuple[Sequence[StorageMeasurement], bool]:
        """The batch, and whether it is the last one.

        :raises LoaderFailed: it is not there, or the loader raised.
        """
        if not self._is_ready.is_set():
            raise LoaderFailed("the storage_loader took too long", list(self._batch))
        if self._problem is not None:
            # Its message may say anything: that is for the log, where it is by now.
            why = f"the storage_loader raised {type(self._problem).__name__}"
            raise LoaderFailed(why, self._batch)
        return self._batch, len(self._batch) < self._size

    def _serve(self) -> None:
        try:
            with self._context():
                measurements = self._checked()
                while self._requests.get():
                    batch = self._batch
                    for measurement in islice(measurements, self._size):
                        batch.append(measurement)
                        if self._is_given_up:
                            return
                    self._is_ready.set()
        except BaseException as exc:  # sys.exit() too: nobody may wait for it in vain
            logger.exception("storage_loader_failed")
            self._problem = exc
            self._is_ready.set()

    def _checked(self) -> Iterator[StorageMeasurement]:
        for measurement in self._loader(*self._arguments):
            if not isinstance(measurement, StorageMeasurement):
                raise TypeError(
                    f"the storage_loader yielded {type(measurement).__name__}; "
                    "it must yield StorageMeasurement"
                )
            yield measurement
