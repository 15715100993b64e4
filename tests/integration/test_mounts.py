# SPDX-License-Identifier: Apache-2.0
"""Mount system calls against the kernel itself. Needs root."""

from __future__ import annotations

import errno
import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support import opened
from support.userns import user_namespace

from pvecri.linux import mounts

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")


@pytest.fixture
def area(tmp_path: Path) -> Iterator[Path]:
    """A private directory; what is mounted below it goes with it."""
    yield tmp_path
    mounts.umount_below(tmp_path)


@contextmanager
def refused(number: int) -> Iterator[None]:
    """The kernel answers with this errno."""
    with pytest.raises(OSError, match=re.escape(f"[Errno {number}]")):
        yield


def directory(path: Path) -> Path:
    path.mkdir()
    return path


def test_a_filesystem_is_mounted_with_its_options_and_detached(area: Path) -> None:
    target = directory(area / "t")
    mounts.mount("none", target, "tmpfs", mounts.MS_NODEV | mounts.MS_NOSUID, "size=1m,mode=711")
    (entry,) = (each for each in mounts.mounts() if each.mountpoint == target)
    assert {"nodev", "nosuid"} <= set(entry.options)
    assert target.stat().st_mode & 0o777 == 0o711
    mounts.umount(target, detach=False)
    assert not mounts.is_mountpoint(target)


def test_an_error_names_the_path(area: Path) -> None:
    with pytest.raises(FileNotFoundError, match=str(area / "missing")):
        mounts.mount("none", area / "missing", "tmpfs")


def test_directory_that_is_no_mount_point_cannot_be_unmounted(area: Path) -> None:
    with refused(errno.EINVAL):
        mounts.umount(area, detach=True)


def test_unmounting_does_not_follow_a_symlink(area: Path) -> None:
    target = directory(area / "t")
    mounts.mount("none", target, "tmpfs")
    (area / "link").symlink_to(target)
    with refused(errno.EINVAL):
        mounts.umount(area / "link", detach=True)
    assert mounts.is_mountpoint(target)


def test_a_bind_mount_of_the_same_filesystem_is_a_mount_point(area: Path) -> None:
    source, target = directory(area / "s"), directory(area / "t")
    mounts.bind(source, target)
    assert mounts.is_mountpoint(target)
    assert not mounts.is_mountpoint(source)
    assert not mounts.is_mountpoint(area / "missing")


def test_readonly_bind_mount_leaves_its_source_writable(area: Path) -> None:
    source, target = directory(area / "s"), directory(area / "t")
    mounts.bind_clone(source, target, readonly=True)
    with refused(errno.EROFS):
        (target / "file").touch()
    (source / "file").touch()


def test_idmapped_bind_mount_shows_ids_mapped_by_the_namespace(area: Path) -> None:
    source, target = directory(area / "s"), directory(area / "t")
    (source / "file").touch()
    os.chown(source / "file", 5, 6)
    with user_namespace(first_id=200_000) as path:
        userns = os.open(path, os.O_RDONLY)
        mounts.bind_clone(source, target, userns, readonly=True)
        os.close(userns)
    shown = (target / "file").stat()
    assert (shown.st_uid, shown.st_gid) == (200_005, 200_006)
    with refused(errno.EROFS):
        (target / "new").touch()


def test_error_for_a_filesystem_without_idmapped_mounts_says_so(area: Path) -> None:
    with user_namespace() as path, path.open() as userns, refused(errno.EINVAL):
        mounts.bind_clone(Path("/sys/kernel"), area, userns.fileno())
    assert not mounts.is_mountpoint(area)


def test_stacked_and_nested_mounts_below_a_path_are_unmounted(area: Path) -> None:
    top = directory(area / "a")
    for _ in range(2):
        mounts.mount("none", top, "tmpfs")
    mounts.mount("none", directory(top / "b"), "tmpfs")
    other = directory(area / "ab")
    mounts.mount("none", other, "tmpfs")
    mounts.umount_below(top)
    mounts.umount_below(top)
    left = {entry.mountpoint for entry in mounts.mounts() if entry.mountpoint.is_relative_to(area)}
    assert left == {other}


def test_stacked_mounts_are_detached_with_what_is_mounted_below(area: Path) -> None:
    top = directory(area / "a")
    for _ in range(2):
        mounts.mount("none", top, "tmpfs")
    mounts.mount("none", directory(top / "b"), "tmpfs")
    mounts.detach(top)
    assert not any(entry.mountpoint.is_relative_to(area) for entry in mounts.mounts())
    for absent in (top, area / "missing", area / "missing/below"):
        mounts.detach(absent)


def test_tree_is_removed_with_its_mounts_and_without_what_they_show(area: Path) -> None:
    kept, tree = directory(area / "kept"), directory(area / "tree")
    (kept / "file").touch()
    mounts.bind(kept, directory(tree / "directory"))
    (tree / "bound").touch()
    mounts.bind(kept / "file", tree / "bound", recursive=False)
    mounts.bind(kept, directory(directory(tree / "deep") / "er"))
    mounts.remove_tree(tree)
    assert not tree.exists()
    assert (kept / "file").exists()
    mounts.remove_tree(tree)


def test_removing_a_tree_follows_no_symlink(area: Path) -> None:
    shown, tree = directory(area / "shown"), directory(area / "tree")
    mounts.mount("none", directory(shown / "mounted"), "tmpfs")
    (tree / "link").symlink_to(shown)
    (area / "to-tree").symlink_to(shown)
    mounts.remove_tree(tree)
    mounts.remove_tree(area / "to-tree")
    assert mounts.is_mountpoint(shown / "mounted")


def test_tree_with_a_mount_that_stays_is_not_removed(area: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = directory(area / "tree")
    (tree / "file").touch()
    mounts.mount("none", directory(tree / "z"), "tmpfs")
    monkeypatch.setattr(mounts, "detach", lambda _: None)
    with refused(errno.EBUSY):
        mounts.remove_tree(tree)
    assert (tree / "file").exists()


def test_removing_a_tree_reads_no_mount_table(area: Path) -> None:
    tree = directory(area / "tree")
    mounts.mount("none", directory(tree / "mounted"), "tmpfs")
    with opened.recorded() as paths:
        mounts.remove_tree(tree)
    assert not tree.exists()
    assert opened.MOUNT_TABLE not in paths


def test_mounts_below_a_shared_path_propagate_to_earlier_namespaces(area: Path) -> None:
    mounts.ensure_shared(area)
    mounts.ensure_shared(area)
    command = ["unshare", "--mount", "--propagation", "unchanged", "sh", "-c"]
    script = 'echo ready; read line; grep -c " $0 " /proc/self/mountinfo'
    target = directory(area / "t")
    with subprocess.Popen(
        [*command, script, str(target)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        mounts.mount("none", target, "tmpfs")
        output, _ = child.communicate("go\n")
    assert output == "1\n"
    assert sum(entry.mountpoint == area for entry in mounts.mounts()) == 1


def test_mount_below_a_shared_path_is_not_duplicated_if_root_is_shared(area: Path) -> None:
    mounts.mount("none", area, "tmpfs")
    mounts.make_shared(area)
    shared = directory(area / "s")
    target = directory(shared / "t")
    mounts.ensure_shared(shared)
    mounts.mount("none", target, "tmpfs")
    assert sum(entry.mountpoint == target for entry in mounts.mounts()) == 1


def test_slave_mount_receives_mounts_and_does_not_propagate_its_own(area: Path) -> None:
    source, target = directory(area / "s"), directory(area / "t")
    mounts.ensure_shared(source)
    mounts.bind_clone(source, target)
    mounts.mount("none", directory(source / "down"), "tmpfs")
    mounts.mount("none", directory(target / "up"), "tmpfs")
    assert mounts.is_mountpoint(target / "down")
    assert not mounts.is_mountpoint(source / "up")
