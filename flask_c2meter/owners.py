"""Who holds a lease: host, process, and a random part, as a pid comes again.

A host is what shares its pids: containers of one pod share the name of the host only.

Imports only :mod:`~flask_c2meter.model`.
"""

from __future__ import annotations

import os
import socket

from .model import new_id


def new_owner() -> str:
    """A name for somebody in this process."""
    return f"{_host()}:{os.getpid()}:{new_id()[-12:]}"


def _host() -> str:
    """The name of the host and, on Linux, which of its pid namespaces this is."""
    try:
        namespace = os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return socket.gethostname()
    return f"{socket.gethostname()}/{namespace}"


def is_gone(owner: str) -> bool:
    """Whether *owner* was a process of this host that has died."""
    host, _, rest = owner.partition(":")
    pid = rest.partition(":")[0]
    if host != _host() or not pid.isdigit():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return _is_zombie(pid)


def _is_zombie(pid: str) -> bool:
    """Whether the process is dead but not yet reaped by its parent (Linux; else no)."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            return stat.read().rpartition(b")")[2].split()[0] == b"Z"
    except (OSError, IndexError):
        return False
