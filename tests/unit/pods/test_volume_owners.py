# SPDX-License-Identifier: Apache-2.0
"""Which mounts are a pod's volumes, and when it matters that they cannot be idmapped."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pvecri.linux.idmapped import mounts_from
from pvecri.linux.mounts import MountEntry
from pvecri.pods.container.volume_owners import of_pod, open_to_everyone, owners_matter

UID = "5a1c-77"


def entry(mountpoint: str, number: int = 1, fstype: str = "ext4") -> MountEntry:
    return MountEntry(number, 0, "/", Path(mountpoint), (), 0, 0, fstype, "", "")


@pytest.mark.parametrize(
    ("mountpoint", "is_one"),
    [
        (f"/var/lib/kubelet/pods/{UID}/volumes/kubernetes.io~nfs/share", True),
        (f"/data/k/pods/{UID}/volume-subpaths/share/c/0", True),
        (f"/var/lib/kubelet/pods/{UID}/volumes/kubernetes.io~csi/pv/mount", True),
        (f"/var/lib/kubelet/pods/{UID}x/volumes/kubernetes.io~nfs/share", False),
        (f"/var/lib/kubelet/pods/{UID}", False),
        (f"/var/lib/kubelet/{UID}/volumes/x", False),
        (f"/pods/{UID}/plugins/x", False),
    ],
)
def test_kubelet_volumes_are_recognized_by_mountpoint(mountpoint: str, is_one: bool) -> None:
    assert [each.mountpoint for each in of_pod(UID, [entry(mountpoint)])] == [Path(mountpoint)] * is_one


@pytest.mark.parametrize("fstype", ["nfs4", "fuse", "fuse.glusterfs", "9p", "virtiofs", "cifs", "ext4"])
def test_owners_matter_on_ordinary_filesystems(fstype: str) -> None:
    assert owners_matter(fstype)


@pytest.mark.parametrize("fstype", ["proc", "sysfs", "cgroup2", "bpf", "devtmpfs", "tmpfs"])
def test_owners_do_not_matter_on_pseudo_filesystems(fstype: str) -> None:
    assert not owners_matter(fstype)


@pytest.mark.parametrize(
    ("name", "mode", "is_open"), [("file", 0o644, True), ("file", 0o640, False), ("directory", 0o750, False)]
)
def test_one_unreadable_file_makes_a_tree_not_open_to_everyone(
    tmp_path: Path, name: str, mode: int, is_open: bool
) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / "directory").mkdir(mode=0o755)
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to("nowhere")
    (tmp_path / name).chmod(mode)
    assert open_to_everyone(tmp_path) is is_open
    os.chmod(tmp_path / "directory", 0o755)  # noqa: PTH101


def test_the_mounts_of_a_tree_are_its_own_and_those_below_the_last_of_each_place() -> None:
    table = [
        entry("/", 1),
        entry("/a", 2),
        entry("/a/b/c", 3),
        entry("/a/b", 4),
        entry("/a/b", 5),
        entry("/ab", 6),
    ]
    assert [each.mount_id for each in mounts_from(Path("/a/b"), table)] == [5, 3]
    assert [each.mount_id for each in mounts_from(Path("/a/x"), table)] == [2]
    assert [each.mount_id for each in mounts_from(Path("/"), table)] == [1, 2, 6, 5, 3]
