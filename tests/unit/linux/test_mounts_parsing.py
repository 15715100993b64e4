# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

from pvecri.linux.mounts import MountEntry, mounts, parse_mountinfo


def test_mountinfo_line_is_parsed() -> None:
    line = b"36 35 98:0 /mnt1 /mnt2 rw,noatime shared:7 master:3 - ext3 /dev/root rw,errors=continue"
    assert parse_mountinfo(line) == MountEntry(
        mount_id=36,
        parent_id=35,
        root="/mnt1",
        mountpoint=Path("/mnt2"),
        options=("rw", "noatime"),
        peer_group=7,
        master=3,
        fstype="ext3",
        source="/dev/root",
        super_options="rw,errors=continue",
    )


def test_mountinfo_optional_fields() -> None:
    entry = parse_mountinfo(b"36 35 98:0 / /a rw unbindable - tmpfs none rw")
    assert (entry.peer_group, entry.master) == (0, 0)


def test_octal_escapes_in_paths_are_decoded() -> None:
    entry = parse_mountinfo(rb"36 35 98:0 / /a\040b\134c\011d rw - tmpfs with\040blank rw")
    assert entry.mountpoint == Path("/a b\\c\td")
    assert entry.source == "with blank"


def test_missing_source_is_empty() -> None:
    assert parse_mountinfo(b"36 35 98:0 / /a rw - tmpfs  rw").source == ""


def test_own_mount_table_has_the_root() -> None:
    assert any(entry.mountpoint == Path("/") for entry in mounts())
