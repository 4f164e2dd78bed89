"""Examines an installation: gathers the facts for :mod:`~flask_c2meter.checks` and has them judged.

Changes nothing, at Stripe or here; only a ledger that is not there yet is created, as by every
command. Promise: what cannot be reached becomes a finding, never an exception.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .checks import CHECKS, DatabaseFacts, Facts, Finding, HostFacts, Level, Place
from .errors import ChannelError, CorruptStore, StoreUnavailable
from .metering import Metering
from .stripe_events import REPORTS, SNAPSHOTS
from .survey import survey

if TYPE_CHECKING:
    from .config import Config

#: Name of a check -> what it has found; of what could not be known there is nothing.
Examination = Mapping[str, Sequence[Finding]]

_FILES = ("", "-wal", "-shm", "-lock")


def examine(metering: Metering, host: HostFacts) -> Examination:
    """Make every check.

    :param host: what is known of the app.
    """
    facts = gather(metering, host)
    return {name: found for name, check in CHECKS.items() if (found := [*check(facts)])}


def findings(examination: Examination) -> list[tuple[str, Finding]]:
    """What something should be done about, with the name of its check; the worst first."""
    found = [(name, each) for name, some in examination.items() for each in some]
    return [
        pair for level in (Level.ERROR, Level.WARNING) for pair in found if pair[1].level is level
    ]


def gather(metering: Metering, host: HostFacts) -> Facts:
    """The facts about an app."""
    gateway = metering.gateway
    return Facts(
        config=metering.config,
        catalogue=metering.catalogue,
        stripe=None if gateway is None else survey(gateway, metering.catalogue),
        database=_database(metering),
        status=metering.status(),
        host=host,
        snapshot_events=SNAPSHOTS,
        thin_events=sorted(REPORTS),
    )


def knock(config: Config, *, by_mail: bool) -> dict[str, str]:
    """Whether the alert channels of the configuration can be reached: channel -> failure, or empty.

    :param by_mail: whether mails go to the server of the configuration.
    """
    reached = {}
    if by_mail:
        from .channels.smtp import SmtpSender

        reached["email"] = _failure(SmtpSender(config).knock)
    if config.alert_webhook_url is not None:
        from .channels.webhook import WebhookChannel

        channel = WebhookChannel(
            config.alert_webhook_url,
            config.alert_webhook_secret or "",
            config.clock,
            config.alert_webhook_allow_loopback,
        )
        reached["webhook"] = _failure(channel.knock)
    return reached


def _failure(try_it: Callable[[], None]) -> str:
    try:
        try_it()
    except ChannelError as exc:
        return exc.reason
    return ""


def _database(metering: Metering) -> DatabaseFacts:
    spill = _place(metering.spill.path)
    try:
        settings = metering.store.settings()
    except (StoreUnavailable, CorruptStore) as exc:
        return DatabaseFacts(failure=str(exc), spill=spill)
    path = settings.path
    return DatabaseFacts(
        settings=settings,
        place=None if path is None else _place(path),
        files={} if path is None else dict(_files(path)),
        spill=spill,
    )


def _files(path: Path) -> Iterator[tuple[str, tuple[int, int]]]:
    """The files that belong to the SQLite database at *path*: name, size and permission bits."""
    for suffix in _FILES:
        try:
            found = os.stat(f"{path}{suffix}")
        except OSError:
            continue
        yield f"{path}{suffix}", (found.st_size, found.st_mode & 0o777)


def _place(path: Path) -> Place:
    """Where *path* lies; it need not exist yet."""
    folder = next(filter(os.path.isdir, path.absolute().parents), None)
    if folder is None:
        return Place(str(path))
    try:
        return Place(str(path), _file_system(folder), shutil.disk_usage(folder).free)
    except OSError:
        return Place(str(path))


def _file_system(folder: Path) -> str:
    """Type of the file system that *folder* is on (Linux; elsewhere empty)."""
    try:
        mounts = Path("/proc/self/mountinfo").read_text("utf-8", "surrogateescape")
    except OSError:
        return ""
    return file_system_of(folder.resolve(), mounts)


def file_system_of(folder: Path, mounts: str) -> str:
    """Type of the file system of *folder* by the lines of ``/proc/self/mountinfo``.

    Of several mounts on one folder the last lies on top.

    Source: proc_pid_mountinfo(5): field 5 is the mount point, the type follows after a dash.
    """
    best, found = -1, ""
    for line in mounts.splitlines():
        fields, _, rest = line.partition(" - ")
        parts = fields.split(" ")
        if len(parts) < 5 or not rest:
            continue
        point = Path(re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), parts[4]))
        if folder.is_relative_to(point) and len(point.parts) >= best:
            best, found = len(point.parts), rest.split(" ", 1)[0]
    return found
