"""Checks of the store and its files: will it keep what it is given?"""

from __future__ import annotations

from collections.abc import Iterator

from .findings import Facts, Finding, error, ok, warning

#: SQLite's locks and its shared memory do not work, or not always, across a network.
#: Source: sqlite.org/wal.html, section 2.
NETWORK_FILE_SYSTEMS = frozenset(
    (
        "9p",
        "afs",
        "beegfs",
        "ceph",
        "cifs",
        "fuse.cephfs",
        "fuse.glusterfs",
        "fuse.s3fs",
        "fuse.sshfs",
        "gfs2",
        "glusterfs",
        "lustre",
        "ncpfs",
        "nfs",
        "nfs4",
        "smb2",
        "smb3",
        "smbfs",
        "virtiofs",
    )
)
_IN_MEMORY = ("ramfs", "tmpfs")

#: Longest write-ahead log that is still in order.
MAX_WAL_BYTES = 256 * 1024 * 1024
#: With less than this the next busy hour may fill the disk, or the log may.
LOW_BYTES = 1024 * 1024 * 1024
FULL_BYTES = 64 * 1024 * 1024

_UNITS = (("GiB", 1024**3), ("MiB", 1024**2), ("KiB", 1024))


def database(facts: Facts) -> Iterator[Finding]:
    """Can it be read, and does it lie where a database may lie?"""
    found, place = facts.database, facts.database.place
    if found.failure:
        yield error(
            f"the store cannot be read: {found.failure}",
            "see that C2METER_DATABASE_URL names the right one and that this user may write there;"
            " a damaged file is restored from a backup",
        )
    elif place is None:
        yield ok("the store can be read")
    elif place.file_system in NETWORK_FILE_SYSTEMS:
        yield error(
            f"{place.name} lies on {place.file_system}, a network file system, where SQLite loses "
            "events and damages its file",
            "keep it on a local disk: set C2METER_DATABASE_URL",
        )
    elif place.file_system in _IN_MEMORY and not facts.is_trial:
        yield warning(
            f"{place.name} lies in memory ({place.file_system}): it is gone with the machine",
            "keep it on a local disk: set C2METER_DATABASE_URL",
        )
    else:
        yield ok(f"{place.name} can be read and lies on {place.file_system or 'a local disk'}")


def durability(facts: Facts) -> Iterator[Finding]:
    """Does a committed event survive power loss?"""
    settings = facts.database.settings
    if settings is None:
        return
    if settings.journal_mode not in ("wal", None):
        yield error(
            f"the journal mode is {settings.journal_mode}, not wal: readers and the writer keep "
            "each other out",
            "the file system does not allow it: move the file to a local disk",
        )
    if settings.synchronous == "full":
        yield ok("a committed event survives power loss")
    elif facts.config.durability == "relaxed" and settings.synchronous == "normal":
        yield warning(
            "durability is relaxed: the events of the last moment are lost with the power",
            "set C2METER_DURABILITY to 'full'",
        )
    else:
        yield error(
            f"the database writes with synchronous = {settings.synchronous}, so that committed "
            "events can be lost",
            "set it to full at the database; nothing of ours sets it otherwise",
        )
    wal = next((size for name, (size, _) in _files(facts) if name.endswith("-wal")), 0)
    if wal > MAX_WAL_BYTES:
        yield warning(
            f"the write-ahead log has {_size(wal)}: somebody reads without an end, so that it "
            "cannot be taken back",
            "end the process that keeps the database open, such as a forgotten sqlite3 shell",
        )


def files(facts: Facts) -> Iterator[Finding]:
    """Who may read customers' addresses and change the books?"""
    if facts.database.place is None:
        return
    open_to_others = [name for name, (_, mode) in _files(facts) if mode & 0o077]
    if open_to_others:
        yield warning(
            f"other users of this machine can open {', '.join(open_to_others)}: there are "
            "customers' e-mail addresses in it",
            f"chmod 600 {' '.join(open_to_others)}",
        )
    else:
        yield ok("only this user can open the files")


def disk(facts: Facts) -> Iterator[Finding]:
    """Is there space for events, and for those that are spilled?"""
    places = [place for place in (facts.database.place, facts.database.spill) if place]
    free = {place.name: place.free_bytes for place in places if place.free_bytes is not None}
    short = {name: count for name, count in free.items() if count < LOW_BYTES}
    for name, count in short.items():
        say = error if count < FULL_BYTES else warning
        yield say(
            f"{_size(count)} are free where {name} lies",
            "make room: when the disk is full, billable requests are refused with 503",
        )
    if free and not short:
        yield ok(f"{_size(min(free.values()))} are free")


def spill(facts: Facts) -> Iterator[Finding]:
    """Do events wait outside of the store?"""
    found, name = facts.status["spill"], facts.database.spill.name
    if found["corrupt"]:
        yield error(
            f"{found['corrupt']} spilled events cannot be read: they are kept in {name}.corrupt",
            "look at the lines, record what they mean, and move the file away",
        )
    if found["pending"]:
        yield warning(
            f"{found['pending']} events wait in {name}: the store was out of order",
            "flask c2meter worker --once records them",
        )
    elif not found["corrupt"]:
        yield ok("no event is spilled")


def status(facts: Facts) -> Iterator[Finding]:
    """Does it run as well as it is set up?"""
    problems = facts.status["problems"]
    if facts.database.failure:
        return
    if problems:
        more = f", and {len(problems) - 1} more" if len(problems) > 1 else ""
        yield error(f"status is not healthy: {problems[0]}{more}", "flask c2meter status names all")
    else:
        yield ok("status is healthy")


def _files(facts: Facts) -> list[tuple[str, tuple[int, int]]]:
    return list(facts.database.files.items())


def _size(count: int) -> str:
    for unit, size in _UNITS:
        if count >= size:
            return f"{count / size:,.1f} {unit}"
    return f"{count} bytes"
