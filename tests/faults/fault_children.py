"""What child processes of the fault suite do: ``python -m fault_children FUNCTION JSON``.

The process that is started only imports and forks, because a fork costs milliseconds where an
interpreter costs a second; what is killed are its children. Prints the result as JSON.
"""

from __future__ import annotations

import json
import os
import random
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import alembic.command  # noqa: F401  (before the forks)
import fault_oracle
import flask.testing  # noqa: F401
import stripe  # noqa: F401
from fault_app import create_app

from flask_c2meter import current_metering
from flask_c2meter.metering import Metering
from flask_c2meter.testing import FAILPOINTS, failpoint


def fork(function: Callable[[], object]) -> int:
    """Run *function* in a forked child; return the child's pid."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        function()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def wait(pid: int) -> int:
    """Exit code of the child; negative = killed by that signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def new_metering() -> Metering:
    """The metering of a new app; opens nothing."""
    with create_app().app_context():
        return current_metering._get_current_object()  # type: ignore[attr-defined,no-any-return]


def kill_at(name: str, times: int = 1) -> Any:
    """A context in which this process dies by SIGKILL when it reaches *name* for the n-th time."""
    assert name in FAILPOINTS
    left = times
    lock = threading.Lock()

    def act() -> None:
        nonlocal left
        with lock:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), 9)

    return failpoint(name, act)


def verify(metering: Metering, customer: str, key: str | None = None) -> bool:
    """Record one verification; whether it was new."""
    event = metering.record("verify_operations", customer, key=key, manifest_id="m")
    return event is not None


# -- case 1 ----------------------------------------------------------------------------------------


def kill_before_commit(kills: int) -> dict[str, int]:
    """Record with a key, die before the commit, try the same key again."""
    metering = new_metering()
    wait(fork(lambda: metering.store.counts()))  # the schema
    phantoms = repeated = 0

    def die(key: str) -> None:
        with kill_at("before_commit"):
            verify(metering, "cus_1", key)

    def retry(key: str) -> None:
        if metering.store.find("cus_1", "verify_operations", key) is not None:
            os._exit(2)
        verify(metering, "cus_1", key)
        if verify(metering, "cus_1", key):  # a client that tries once more
            os._exit(3)

    for number in range(kills):
        key = f"key-{number}"
        assert wait(fork(lambda key=key: die(key))) == -9
        code = wait(fork(lambda key=key: retry(key)))
        phantoms += code == 2
        repeated += code == 3
        assert code in (0, 2, 3)
    return {"phantoms": phantoms, "repeated": repeated}


def kill_in_stream() -> list[str]:
    """Die while a response streams that has grown to 2 by then; the values of what is recorded."""
    app = create_app()
    metering = new_metering()
    wait(fork(lambda: metering.store.counts()))

    def stream() -> None:
        for chunk in app.test_client().post("/stream", headers={"X-Customer": "cus_1"}).response:
            if chunk == b"3":  # the client has 1 and 2
                os.kill(os.getpid(), 9)

    assert wait(fork(stream)) == -9
    return [str(event.value) for event in metering.store.events()]


def kill_at_random(kills: int, seed: int) -> dict[str, int]:
    """Record in eight threads, die at any moment; count what was acknowledged and is missing."""
    metering = new_metering()
    wait(fork(lambda: metering.store.counts()))
    dice = random.Random(seed)
    missing = acknowledged = 0
    for number in range(kills):
        reader, writer = os.pipe()
        pid = fork(lambda number=number, writer=writer: _record_forever(metering, number, writer))
        os.close(writer)
        # The first byte says that it records; from then on any moment is as good as another.
        acked = os.read(reader, 12)
        threading.Event().wait(dice.uniform(0, 0.02))
        os.kill(pid, 9)
        assert wait(pid) == -9
        while chunk := os.read(reader, 65536):
            acked += chunk
        os.close(reader)
        keys = [acked[i : i + 12].decode() for i in range(0, len(acked) - len(acked) % 12, 12)]
        acknowledged += len(keys)
        for key in keys:
            missing += metering.store.find("cus_1", "verify_operations", key) is None
    rows = metering.store.counts()["verify_operations"].events
    differences = len(list(metering.store.verify()))
    return {
        "acknowledged": acknowledged,
        "missing": missing,
        "rows": rows,
        "differences": differences,
    }


def _record_forever(metering: Metering, child: int, writer: int) -> None:
    def loop(thread: int) -> None:
        for number in range(100_000):
            key = f"{child:04d}-{thread}-{number:05d}"
            verify(metering, "cus_1", key)
            os.write(writer, key.encode())

    threads = [threading.Thread(target=loop, args=(t,), daemon=True) for t in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


# -- case 2 ----------------------------------------------------------------------------------------


def kill_after_commit(events: int, customers: int) -> int:
    """Record so many events and die when the last one is committed; the child's exit code."""
    metering = new_metering()

    def record() -> None:
        with kill_at("after_commit", events):
            for number in range(events):
                verify(metering, f"cus_{number % customers}")

    return wait(fork(record))


# -- case 3 ----------------------------------------------------------------------------------------


def kill_while_delivering(kills: int, seed: int) -> int:
    """Record a little, deliver, die between Stripe's answer and our note of it; again and again.

    :return: the quantity recorded.
    """
    metering = new_metering()
    dice = random.Random(seed)
    recorded = 0
    for number in range(kills):
        point = ("after_send", "before_ack")[number % 2]
        times = dice.randint(1, 3) if point == "after_send" else 1
        # Enough lanes for the failpoint to be reached as often as it must.
        customers = [f"cus_{(number + i) % 11}" for i in range(times)]

        def deliver(point: str = point, times: int = times, customers: Any = customers) -> None:
            for customer in customers:
                verify(metering, customer)
            assert metering.worker is not None
            with kill_at(point, times):
                metering.worker.run_once()

        code = wait(fork(deliver))
        assert code == -9, code
        recorded += len(customers)
    return recorded


def deliver_all() -> None:
    """Deliver until nothing is due."""
    metering = new_metering()
    assert metering.worker is not None
    metering.worker.run_once(patience_s=15)


# -- cases 5 and 21 --------------------------------------------------------------------------------


def deliver_together(workers: int) -> list[int]:
    """So many processes deliver the same backlog; their exit codes."""
    metering = new_metering()

    def deliver() -> None:
        assert metering.worker is not None
        metering.worker.run_once(patience_s=15)

    return [wait(pid) for pid in [fork(deliver) for _ in range(workers)]]


def record_together(processes: int, events: int) -> dict[str, Any]:
    """So many processes record at once; their exit codes and the longest wait of one record."""
    metering = new_metering()
    wait(fork(lambda: metering.store.counts()))
    reader, writer = os.pipe()

    def record(number: int) -> None:
        metering.store.counts()  # opens the file: the wait of a record is what is measured
        longest = 0.0
        for event in range(events):
            started = time.monotonic()
            verify(metering, f"cus_{(number + event) % 5}")
            longest = max(longest, time.monotonic() - started)
        os.write(writer, f"{longest:.6f}\n".encode())

    codes = [wait(p) for p in [fork(lambda n=n: record(n)) for n in range(processes)]]
    os.close(writer)
    longest = [float(line) for line in os.read(reader, 65536).split()]
    return {"codes": codes, "longest_s": max(longest, default=None), "reports": len(longest)}


# -- P14 -------------------------------------------------------------------------------------------


def meet_a_read_only_store(folder: str) -> dict[str, Any]:
    """Serve with a ledger that becomes read-only for a while; as root this takes another user.

    :param folder: one that every user can reach.
    """
    ledger = os.path.join(folder, "ledger")
    os.mkdir(ledger)
    os.environ["C2METER_DATABASE_URL"] = f"sqlite:///{ledger}/c2meter.sqlite"
    os.environ["C2METER_SPILL_PATH"] = os.path.join(folder, "c2meter.spill")
    if os.geteuid() == 0:
        # Another user may not read this interpreter: import by use what is imported late.
        first = new_metering()
        verify(first, "cus_first")
        assert first.worker is not None
        first.worker.run_once()
        first.store.close()
        nobody = 65534
        for name in ("", "ledger", *(f"ledger/{file}" for file in os.listdir(ledger))):
            os.chown(os.path.join(folder, name), nobody, nobody)
        os.setuid(nobody)
    app = create_app()
    client = app.test_client()
    files = [f"{ledger}/c2meter.sqlite{end}" for end in ("", "-wal", "-shm", "-lock")]

    def post() -> int:
        return client.post("/verify", json={}, headers={"X-Customer": "cus_1"}).status_code

    def set_mode(files_mode: int, folder_mode: int) -> None:
        for file in filter(os.path.exists, files):
            os.chmod(file, files_mode)
        os.chmod(ledger, folder_mode)

    with app.app_context():
        metering = current_metering._get_current_object()  # type: ignore[attr-defined]
    statuses = [post()]
    store: Any = metering.store
    with store._opening:  # or the worker's thread opens the file just before it is read-only
        store.close()
        set_mode(0o444, 0o555)
    if os.access(files[0], os.W_OK):
        return {"skip": "this user may write read-only files"}
    statuses += [post(), post()]
    spilled = metering._process.spill.pending()
    set_mode(0o644, 0o755)
    deadline = time.monotonic() + 10
    while metering._process.spill.pending() and time.monotonic() < deadline:
        time.sleep(0.05)
    after = metering._process.spill.pending()
    statuses += [post()]
    assert metering.worker is not None
    metering.worker.stop()
    while metering.worker.is_running:
        time.sleep(0.05)
    deliver_all()
    return {"statuses": statuses, "spilled": spilled, "spilled_after": after}


# -- case 24 ---------------------------------------------------------------------------------------


def record_shuffled(seeds: Sequence[int], processes: int = 4, at_once: int = 10) -> list[int]:
    """Record the operations of each seed from several processes, which also deliver.

    :param at_once: so many seeds are in the same processes' hands.
    :return: exit codes other than 0.
    """
    metering = new_metering()
    wait(fork(lambda: metering.store.counts()))
    bad = []
    for start in range(0, len(seeds), at_once):
        some = seeds[start : start + at_once]
        pids = [
            fork(lambda n=n, some=some: _record_share(metering, some, n, processes))
            for n in range(processes)
        ]
        bad += [code for code in map(wait, pids) if code]
        code = wait(fork(lambda some=some: _void(metering, some)))
        bad += [code] if code else []
    return bad


def _record_share(metering: Metering, seeds: Sequence[int], number: int, processes: int) -> None:
    shares = [fault_oracle.share(seed, number, processes) for seed in seeds]
    operations = [operation for share in shares for operation in share]
    random.Random(number).shuffle(operations)
    for operation in operations:
        fault_oracle.perform(metering, operation)
    if number == seeds[0] % processes:
        assert metering.worker is not None
        metering.worker.run_once()


def _void(metering: Metering, seeds: Sequence[int]) -> None:
    for seed in seeds:
        for operation in fault_oracle.voided(seed):
            metering.adjust(operation.customer, operation.meter, operation.key, "a mistake")


if __name__ == "__main__":
    print(json.dumps(globals()[sys.argv[1]](**json.loads(sys.argv[2]))))
