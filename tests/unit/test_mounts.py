"""Which file system a folder is on, by what Linux says of its mounts."""

from __future__ import annotations

from pathlib import Path

import pytest

from flask_c2meter.doctor import file_system_of

MOUNTS = r"""
22 28 0:20 / /sys rw,nosuid shared:7 - sysfs sysfs rw
28 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
40 28 0:35 / /srv rw,relatime - nfs4 files:/srv rw,vers=4.2
41 40 0:36 / /srv/with\040space rw - xfs /dev/vdb rw
42 28 0:37 / /srv rw master:1 propagate_from:2 - tmpfs tmpfs rw
broken line
"""


@pytest.mark.parametrize(
    ("folder", "kind"),
    [
        ("/", "ext4"),
        ("/var/lib/app", "ext4"),
        ("/srvother", "ext4"),
        ("/srv", "tmpfs"),  # mounted over the other
        ("/srv/with space/app", "xfs"),
    ],
)
def test_the_longest_mount_point_counts_and_of_equal_ones_the_last(folder: str, kind: str) -> None:
    assert file_system_of(Path(folder), MOUNTS) == kind


def test_without_mounts_nothing_is_known() -> None:
    assert file_system_of(Path("/srv"), "") == ""
