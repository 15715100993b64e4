# SPDX-License-Identifier: Apache-2.0
"""What every rootfs driver must do (pvecri.images.drivers.base), as one suite.

A driver's tests are a subclass of RootfsConformance with a fixture `driver`, freshly set up on storage of its own
that the fixture takes away again.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import os
import shutil
import signal
import stat
import struct
import subprocess
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import NamedTemporaryFile

import pytest
from support.image_builder import LayerBuilder, digest_of
from support.userns import user_namespace

from pvecri.images.drivers.base import LayerKey, Owner, RootfsDriver
from pvecri.images.unpacking.client import Job, unpacker
from pvecri.linux import mounts
from pvecri.model import ContainerId

ONE = ContainerId("c" * 64)
TWO = ContainerId("d" * 64)
ROOT = 300_000
LIMIT = 48 << 20


def diff_id(number: int) -> str:
    return f"sha256:{number:064x}"


def add_layers(driver: RootfsDriver, *contents: dict[str, str]) -> list[LayerKey]:
    """Commit layers of plain files, lowest first, each on top of the one before."""
    keys: list[LayerKey] = []
    for number, content in enumerate(contents):
        key = driver.layer_key([diff_id(each) for each in range(number + 1)])
        directory = driver.begin_layer(key, keys[-1] if keys else None)
        for name, text in content.items():
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            (directory / name).write_text(text)
        driver.commit_layer(key, directory)
        keys.append(key)
    return keys


def start(driver: RootfsDriver, layers: Sequence[LayerKey], container: ContainerId = ONE) -> Path:
    driver.create_rootfs(container, layers, Owner())
    return driver.mount_rootfs(container, layers, None)


def run_as(uid: int, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, user=uid, group=uid, extra_groups=[], capture_output=True, text=True, check=False
    )


def unpack_layers(driver: RootfsDriver, *layers: LayerBuilder) -> list[LayerKey]:
    """Commit these layers, lowest first, by the helper that pulls use."""
    return unpack_archives(driver, *(layer.build() for layer in layers))


def unpack_archives(driver: RootfsDriver, *archives: bytes) -> list[LayerKey]:
    keys: list[LayerKey] = []
    diff_ids = []
    for archive in archives:
        diff_ids.append(digest_of(archive))
        key = driver.layer_key(diff_ids)
        directory = driver.begin_layer(key, keys[-1] if keys else None)
        asyncio.run(_unpack(driver, archive, directory))
        driver.commit_layer(key, directory)
        keys.append(key)
    return keys


async def _unpack(driver: RootfsDriver, archive: bytes, directory: Path) -> None:
    with NamedTemporaryFile() as blob:
        blob.write(archive)
        blob.flush()
        job = Job(
            layer="layer", directory=str(directory), max_size=1 << 30, max_entries=100_000, stacked=driver.stacked
        )
        async with unpacker() as helper:
            await helper.run(job, os.open(blob.name, os.O_RDONLY))


def everything() -> LayerBuilder:
    """A layer with one of each kind of entry."""
    builder = LayerBuilder().directory("n" * 255).directory("sticky", mode=0o1777)
    attributes = {"SCHILY.xattr.user.note": "hello"}
    builder.file("file", "x", mode=0o4711, uid=7, gid=8, mtime=1_000_000_000, pax_headers=attributes)
    builder.hardlink("link", "file").symlink("symlink", "/nowhere")
    return builder.device("null", 1, 3, mode=0o666).fifo("pipe")


def tool_with_capability() -> LayerBuilder:
    """grep that may bind privileged ports, and a directory for /proc."""
    capability = struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0)  # cap_net_bind_service=ep
    attributes = {"SCHILY.xattr.security.capability": capability.decode("utf-8", "surrogateescape")}
    busybox = Path("/bin/busybox").read_bytes()
    return LayerBuilder().directory("proc").file("grep", busybox, mode=0o755, pax_headers=attributes)


def listing(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*"))


def fill(path: Path, size: int) -> None:
    """Write and synchronise, so that the refusal comes now."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT)
    try:
        for _ in range(size >> 20):
            os.write(fd, os.urandom(1 << 20))
            os.fsync(fd)
    finally:
        os.close(fd)


def work(driver: RootfsDriver, step: int) -> None:
    """Layers and root filesystems come and go."""
    key = driver.layer_key([diff_id(step)])
    directory = driver.begin_layer(key, None)
    (directory / "a").write_bytes(b"x" * 100_000)
    driver.commit_layer(key, directory)
    start(driver, [key], ContainerId(f"{step:064x}"))
    driver.remove_rootfs(ContainerId(f"{step - 1:064x}"))
    driver.remove_layer(driver.layer_key([diff_id(step - 1)]))


def kill_after(steps: int, step: Callable[[int], None]) -> None:
    """Do one step after the other in a process that is killed some time after this many."""
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            for number in itertools.count():
                step(number)
                os.write(send, b".")
        os._exit(1)
    os.close(send)
    for _ in range(steps):
        assert os.read(receive, 1), "the process ended by itself"
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(receive)


@pytest.fixture
def userns() -> Iterator[Path]:
    with user_namespace(first_id=ROOT) as path:
        yield path


class RootfsConformance:
    """The suite."""

    many_layers = 200

    @pytest.fixture
    def limited(self) -> RootfsDriver | None:
        """A driver on the same storage that lets a container write LIMIT bytes, where the driver can."""
        return None

    def test_layer_is_listed_once_it_is_committed(self, driver: RootfsDriver) -> None:
        keys = add_layers(driver, {"a": "1"})
        driver.begin_layer(driver.layer_key([diff_id(7)]), None)
        assert driver.layers() == set(keys)

    def test_committing_a_layer_again_keeps_the_first(self, driver: RootfsDriver) -> None:
        add_layers(driver, {"a": "first"})
        layers = add_layers(driver, {"a": "second"})
        assert (start(driver, layers) / "a").read_text() == "first"

    def test_aborted_layer_leaves_nothing(self, driver: RootfsDriver) -> None:
        directory = driver.begin_layer(driver.layer_key([diff_id(7)]), None)
        driver.abort_layer(directory)
        driver.abort_layer(directory)
        assert not directory.exists()
        assert driver.layers() == set()

    def test_removing_a_layer_is_idempotent(self, driver: RootfsDriver) -> None:
        (key,) = add_layers(driver, {"a": "1"})
        driver.remove_layer(key)
        driver.remove_layer(key)
        assert driver.layers() == set()

    def test_upper_layers_hide_lower_ones(self, driver: RootfsDriver) -> None:
        layers = add_layers(driver, {"a": "1", "d/x": "1"}, {"b": "2", "d/y": "2"}, {"a": "3"})
        root = start(driver, layers)
        assert {name: (root / name).read_text() for name in ("a", "b", "d/x", "d/y")} == {
            "a": "3",
            "b": "2",
            "d/x": "1",
            "d/y": "2",
        }

    def test_image_without_layers_has_an_empty_root(self, driver: RootfsDriver) -> None:
        root = start(driver, [])
        assert list(root.iterdir()) == []
        (root / "file").touch()

    def test_image_may_have_a_layer_twice(self, driver: RootfsDriver) -> None:
        low, middle = add_layers(driver, {"a": "1", "b": "1"}, {"a": "2", "c": "2"})
        again = driver.layer_key([diff_id(0), diff_id(1), diff_id(0)])
        directory = driver.begin_layer(again, middle)
        (directory / "a").write_text("1")
        (directory / "b").write_text("1")
        driver.commit_layer(again, directory)
        root = start(driver, [low, middle, again])
        assert {name: (root / name).read_text() for name in "abc"} == {"a": "1", "b": "1", "c": "2"}

    def test_hundreds_of_layers_are_mounted(self, driver: RootfsDriver, userns: Path) -> None:
        layers = add_layers(driver, *({f"f{number}": ""} for number in range(self.many_layers)))
        driver.create_rootfs(ONE, layers, Owner(uid=ROOT, gid=ROOT))
        assert len(list(driver.mount_rootfs(ONE, layers, userns).iterdir())) == self.many_layers

    def test_containers_do_not_see_each_others_writes(self, driver: RootfsDriver) -> None:
        layers = add_layers(driver, {"a": "image", "b": "image"})
        first, second = start(driver, layers, ONE), start(driver, layers, TWO)
        (first / "a").write_text("first")
        (first / "b").unlink()
        assert ((second / "a").read_text(), (second / "b").read_text()) == ("image", "image")
        assert not (first / "b").exists()

    def test_written_files_persist_over_a_remount(self, driver: RootfsDriver) -> None:
        layers = add_layers(driver, {"a": "image"})
        root = start(driver, layers)
        (root / "new").write_text("kept")
        (root / "a").unlink()
        driver.unmount_rootfs(ONE)
        assert not mounts.is_mountpoint(root)
        again = driver.mount_rootfs(ONE, layers, None)
        assert [path.name for path in again.iterdir()] == ["new"]

    def test_mounting_and_unmounting_are_idempotent(self, driver: RootfsDriver) -> None:
        layers = add_layers(driver, {"a": "1"})
        root = start(driver, layers)
        assert driver.mount_rootfs(ONE, layers, None) == root
        assert sum(entry.mountpoint == root for entry in mounts.mounts()) == 1
        driver.unmount_rootfs(ONE)
        driver.unmount_rootfs(ONE)

    def test_second_root_filesystem_of_a_container_is_refused(self, driver: RootfsDriver) -> None:
        start(driver, [])
        with pytest.raises(FileExistsError):
            driver.create_rootfs(ONE, [], Owner())

    def test_root_filesystem_that_was_not_created_cannot_be_mounted(self, driver: RootfsDriver) -> None:
        with pytest.raises(FileNotFoundError):
            driver.mount_rootfs(ONE, [], None)

    def test_image_and_written_files_are_mapped_to_the_user_namespace(
        self, driver: RootfsDriver, userns: Path
    ) -> None:
        layers = add_layers(driver, {"a": "1"})
        driver.create_rootfs(ONE, layers, Owner(uid=ROOT, gid=ROOT))
        root = driver.mount_rootfs(ONE, layers, userns)
        assert (root.stat().st_uid, (root / "a").stat().st_uid) == (ROOT, ROOT)
        written = run_as(ROOT, "sh", "-c", f"echo 2 > {root}/a && echo 3 > {root}/b && cat {root}/a")
        assert (written.stdout, written.stderr) == ("2\n", "")

    def test_mapped_root_can_reach_only_its_own_root_filesystem(self, driver: RootfsDriver, userns: Path) -> None:
        layers = add_layers(driver, {"a": "1"})
        driver.create_rootfs(ONE, layers, Owner(uid=ROOT, gid=ROOT))
        root = driver.mount_rootfs(ONE, layers, userns)
        assert run_as(ROOT, "ls", str(root)).returncode == 0
        assert run_as(ROOT, "ls", str(root.parent)).returncode != 0
        for other in set(root.parent.iterdir()) - {root}:
            assert run_as(ROOT, "ls", str(other)).returncode != 0

    def test_device_nodes_of_an_image_cannot_be_opened(self, driver: RootfsDriver) -> None:
        key = driver.layer_key([diff_id(0)])
        directory = driver.begin_layer(key, None)
        os.mknod(directory / "null", 0o20666, os.makedev(1, 3))
        driver.commit_layer(key, directory)
        with pytest.raises(PermissionError):
            (start(driver, [key]) / "null").open("rb")

    def test_mount_propagates_to_a_mount_namespace_cloned_before(self, driver: RootfsDriver) -> None:
        layers = add_layers(driver, {"a": "seen"})
        command = [
            "unshare",
            "--mount",
            "--propagation",
            "unchanged",
            "sh",
            "-c",
            'echo; read path; cat "$path"/a',
        ]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            child.stdout.readline()
            output, _ = child.communicate(f"{start(driver, layers)}\n")
        assert output == "seen"

    def test_root_filesystem_in_use_is_unmounted_and_removed(self, driver: RootfsDriver) -> None:
        root = start(driver, add_layers(driver, {"a": "1"}))
        with (root / "a").open() as file:
            driver.remove_rootfs(ONE)
            assert file.read() == "1"
        assert not root.exists()

    def test_removal_unmounts_mounts_below_the_root(self, driver: RootfsDriver) -> None:
        root = start(driver, add_layers(driver, {"d/a": "1"}))
        mounts.mount("none", root / "d", "tmpfs")
        driver.remove_rootfs(ONE)
        driver.remove_rootfs(ONE)
        assert driver.rootfs_ids() == set()
        assert not any(entry.mountpoint.is_relative_to(root) for entry in mounts.mounts())

    def test_garbage_of_any_depth_is_collected(self, driver: RootfsDriver) -> None:
        root = start(driver, [])
        deep = "mkdir a && cd -P a || exit 1; " * 1500
        subprocess.run(["sh", "-c", deep], cwd=root, check=True)
        driver.remove_rootfs(ONE)
        driver.collect_garbage()
        assert driver.rootfs_ids() == set()

    def test_setup_keeps_committed_layers_and_removes_others(self, driver: RootfsDriver) -> None:
        layers = add_layers(driver, {"a": "1"})
        root = start(driver, layers)
        half_made = driver.begin_layer(driver.layer_key([diff_id(7)]), layers[0])
        driver.setup()
        assert driver.layers() == set(layers)
        assert driver.rootfs_ids() == {ONE}
        assert mounts.is_mountpoint(root)
        assert not half_made.exists()

    def test_layers_can_be_synced(self, driver: RootfsDriver) -> None:
        add_layers(driver, {"a": "1"})
        driver.sync()

    def test_check_of_an_undamaged_layer_finds_nothing(self, driver: RootfsDriver) -> None:
        layers = unpack_layers(driver, everything(), LayerBuilder().file("above"))
        assert [driver.check_layer(key) for key in layers] == ["", ""]

    # -- what layers may hold ----------------------------------------------------------------------------------

    def test_whiteouts_and_opaque_directories_hide_lower_files_only(self, driver: RootfsDriver) -> None:
        base = LayerBuilder().file("gone").file("kept").directory("d").file("d/old").file("d/sub/old")
        base.directory("tree").file("tree/deep/x").file("dir-to-file/x").file("file-to-dir", "old")
        top = LayerBuilder().file(".wh.gone").file(".wh.never-there").file("d/new").file("d/.wh..wh..opq")
        top.file(".wh.tree").file("dir-to-file", "file").directory("file-to-dir").file("file-to-dir/x")
        root = start(driver, unpack_layers(driver, base, top))
        assert listing(root) == ["d", "d/new", "dir-to-file", "file-to-dir", "file-to-dir/x", "kept"]

    @pytest.mark.parametrize("mapped", [False, True])
    def test_all_file_types_and_attributes_are_preserved(
        self, driver: RootfsDriver, userns: Path, mapped: bool
    ) -> None:
        layers = unpack_layers(driver, everything(), LayerBuilder().file("above"))
        shift = ROOT if mapped else 0
        driver.create_rootfs(ONE, layers, Owner(uid=shift, gid=shift))
        root = driver.mount_rootfs(ONE, layers, userns if mapped else None)
        file = (root / "file").stat()
        assert (file.st_mode, file.st_uid, file.st_gid) == (0o104711, shift + 7, shift + 8)
        assert int(file.st_mtime) == 1_000_000_000
        assert (root / "link").samefile(root / "file")
        assert (root / "symlink").readlink() == Path("/nowhere")
        assert (root / "null").lstat().st_rdev == os.makedev(1, 3)
        assert stat.S_ISFIFO((root / "pipe").lstat().st_mode)
        assert os.getxattr(root / "file", "user.note") == b"hello"
        assert (root / ("n" * 255)).is_dir()
        assert (root / "sticky").stat().st_mode == 0o41777

    def test_file_capabilities_work_in_a_user_namespace(self, driver: RootfsDriver, userns: Path) -> None:
        layers = unpack_layers(driver, tool_with_capability())
        driver.create_rootfs(ONE, layers, Owner(uid=ROOT, gid=ROOT))
        root = driver.mount_rootfs(ONE, layers, userns)
        script = 'mount --rbind /proc "$0"/proc && exec chroot --userspec=9:9 "$0" /grep CapPrm /proc/self/status'
        command = ["nsenter", f"--user={userns}", "unshare", "--mount", "sh", "-c", script, str(root)]
        shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert shown.split() == ["CapPrm:", "0000000000000400"]

    def test_sparse_file_stays_sparse(self, driver: RootfsDriver, tmp_path: Path) -> None:
        with (tmp_path / "sparse").open("wb") as file:
            file.truncate(200 << 20)
            file.seek(100 << 20)
            file.write(b"in the middle")
        archive = ["tar", "--create", "--sparse", "--format=posix", "-C", str(tmp_path), "sparse"]
        layers = unpack_archives(driver, subprocess.run(archive, capture_output=True, check=True).stdout)
        driver.sync()
        usage = shutil.disk_usage(driver.root).used
        root = start(driver, layers)
        assert (root / "sparse").stat().st_size == 200 << 20
        with (root / "sparse").open("rb") as file:
            file.seek(100 << 20)
            assert file.read(13) == b"in the middle"
        driver.remove_rootfs(ONE)
        driver.remove_layer(layers[0])
        driver.collect_garbage()
        assert usage - shutil.disk_usage(driver.root).used < 50 << 20

    def test_layer_of_ten_thousand_files_is_committed_and_removed(self, driver: RootfsDriver) -> None:
        builder = LayerBuilder()
        for number in range(10_000):
            builder.file(f"d{number % 100}/f{number}", str(number))
        layers = unpack_layers(driver, builder)
        root = start(driver, layers)
        assert sum(len(list(each.iterdir())) for each in root.iterdir()) == 10_000
        assert (root / "d99/f9999").read_text() == "9999"
        driver.remove_rootfs(ONE)
        driver.remove_layer(layers[0])
        driver.collect_garbage()
        assert driver.layers() == set()

    # -- accounting and limits ---------------------------------------------------------------------------------

    def test_written_counts_the_writable_layer_only(self, driver: RootfsDriver) -> None:
        root = start(driver, add_layers(driver, {"image": "x" * (4 << 20)}))
        before = driver.written(ONE)
        (root / "new").write_bytes(os.urandom(2 << 20))
        driver.sync()
        after = driver.written(ONE)
        assert before.bytes < 1 << 20
        assert 2 << 20 <= after.bytes - before.bytes < 3 << 20
        driver.remove_rootfs(ONE)
        assert driver.written(ONE)[:2] == (0, 0)

    def test_container_cannot_write_more_than_its_limit(self, limited: RootfsDriver | None) -> None:
        if limited is None:
            pytest.skip("the driver cannot limit")
        layers = add_layers(limited, {"image": "x" * (4 << 20)})
        for container in (ONE, TWO):
            root = start(limited, layers, container)
            assert (root / "image").stat().st_size == 4 << 20
            with pytest.raises(OSError, match=r"No space|quota") as refused:
                fill(root / "new", 2 * LIMIT)
            assert refused.value.errno in {errno.ENOSPC, errno.EDQUOT}
            assert LIMIT / 2 < (root / "new").stat().st_size <= LIMIT

    def test_limited_root_filesystem_can_be_remounted(self, limited: RootfsDriver | None) -> None:
        if limited is None:
            pytest.skip("the driver cannot limit")
        (start(limited, []) / "new").write_text("kept")
        limited.unmount_rootfs(ONE)
        assert (limited.mount_rootfs(ONE, [], None) / "new").read_text() == "kept"
        limited.remove_rootfs(ONE)
        limited.collect_garbage()

    # -- many at once, and crashes -----------------------------------------------------------------------------

    def test_containers_are_created_and_removed_concurrently(self, driver: RootfsDriver) -> None:
        layers = add_layers(driver, {"a": "1"}, {"b": "2"})

        def live(number: int) -> str:
            container = ContainerId(f"{number:064x}")
            root = start(driver, layers, container)
            (root / "a").write_text(f"of {number}")
            text = (root / "a").read_text() + (root / "b").read_text()
            driver.remove_rootfs(container)
            return text

        with ThreadPoolExecutor(8) as threads:
            assert list(threads.map(live, range(32))) == [f"of {number}2" for number in range(32)]
        driver.collect_garbage()
        assert driver.rootfs_ids() == set()

    def test_layers_are_committed_concurrently_even_the_same_one(self, driver: RootfsDriver) -> None:
        def make(number: int) -> LayerKey:
            key = driver.layer_key([diff_id(number % 4)])
            directory = driver.begin_layer(key, None)
            (directory / "a").write_text(str(number % 4))
            driver.commit_layer(key, directory)
            return key

        with ThreadPoolExecutor(4) as threads:
            keys = list(threads.map(make, range(16)))
        assert driver.layers() == set(keys)
        assert (start(driver, keys[3:4]) / "a").read_text() == "3"

    @pytest.mark.parametrize("steps", [1, 2, 3, 5, 8, 13])
    def test_killed_process_leaves_only_complete_layers_and_roots(self, driver: RootfsDriver, steps: int) -> None:
        kill_after(steps, lambda step: work(driver, step))
        driver.setup()
        for key in driver.layers():
            root = start(driver, [key])
            assert len((root / "a").read_bytes()) == 100_000
            driver.remove_rootfs(ONE)
        for container in driver.rootfs_ids():
            driver.remove_rootfs(container)
        for key in driver.layers():
            driver.remove_layer(key)
        driver.collect_garbage()
        assert (driver.layers(), driver.rootfs_ids()) == (set(), set())
