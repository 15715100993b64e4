# SPDX-License-Identifier: Apache-2.0
"""The conformance suite for each rootfs driver, and tests of its own. Needs root."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from integration.rootfs_conformance import LIMIT, ONE, TWO, RootfsConformance, add_layers, diff_id, start, userns
from support.filesystems import btrfs_filesystem
from support.images import image_root
from support.simulated_zfs import SimulatedZfs
from support.userns import user_namespace

from pvecri.errors import FailedPrecondition
from pvecri.images.drivers.base import Owner, RootfsDriver
from pvecri.images.drivers.btrfs import BtrfsDriver
from pvecri.images.drivers.overlay import OverlayDriver
from pvecri.images.drivers.raw import RawDriver
from pvecri.images.drivers.zfs import ZfsDriver
from pvecri.linux import mounts

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")

__all__ = ["userns"]  # a fixture of the suite


@pytest.fixture
def storage() -> Iterator[Path]:
    with image_root() as directory:
        yield directory


@pytest.fixture
def btrfs(storage: Path) -> Iterator[Path]:
    with btrfs_filesystem(storage) as place:
        yield place


def overlay(root: Path) -> OverlayDriver:
    driver = OverlayDriver(root / "overlay")
    driver.setup()
    return driver


def raw(root: Path, limit: int = 0) -> RawDriver:
    driver = RawDriver(root / "raw", limit=limit)
    driver.setup()
    return driver


def btrfs_driver(root: Path, limit: int = 0) -> BtrfsDriver:
    driver = BtrfsDriver(root / "pvecri", limit=limit)
    driver.setup()
    return driver


def zfs_driver(root: Path, pool: str = "tank", limit: int = 0) -> ZfsDriver:
    driver = ZfsDriver(root / "zfs", f"{pool}/pvecri", limit=limit)
    driver.setup()
    return driver


class TestOverlay(RootfsConformance):
    @pytest.fixture
    def driver(self, storage: Path) -> RootfsDriver:
        return overlay(storage)

    def test_mark_of_an_unclean_unmount_does_not_prevent_the_next_mount(self, driver: RootfsDriver) -> None:
        root = start(driver, [])
        mounts.umount(root, detach=True)
        mark = driver.writable_layer(ONE).parent / "work/work/incompat/volatile"
        assert mark.exists()
        assert driver.mount_rootfs(ONE, [], None) == root

    def test_the_images_root_directory_keeps_its_mode(self, driver: RootfsDriver) -> None:
        (key,) = add_layers(driver, {"a": "1"})
        directory = driver.begin_layer(key, None)
        directory.chmod(0o1777)
        driver.remove_layer(key)
        driver.commit_layer(key, directory)
        assert start(driver, [key]).stat().st_mode & 0o7777 == 0o1777


class TestOverlayForOlderKernels(RootfsConformance):
    """With staging mounts, as a kernel before 6.15 needs them."""

    @pytest.fixture
    def driver(self, storage: Path) -> RootfsDriver:
        driver = overlay(storage)
        driver._roots.stages = True
        return driver

    def test_staging_mounts_are_removed(self, driver: RootfsDriver, storage: Path) -> None:
        layers = add_layers(driver, {"a": "1"}, {"b": "2"})
        driver.create_rootfs(ONE, layers, Owner(uid=300_000, gid=300_000))
        with user_namespace(first_id=300_000) as path:
            root = driver.mount_rootfs(ONE, layers, path)
        mounted = {entry.mountpoint for entry in mounts.mounts() if entry.mountpoint.is_relative_to(storage)}
        assert mounted == {storage / "overlay", root}


class TestRaw(RootfsConformance):
    """With EROFS, if kernel and tools support it."""

    @pytest.fixture
    def driver(self, storage: Path) -> RootfsDriver:
        return raw(storage)

    @pytest.fixture
    def limited(self, storage: Path) -> RootfsDriver:
        return raw(storage, LIMIT)

    def test_layer_is_one_file_and_one_mount_for_all_containers(self, driver: RootfsDriver, storage: Path) -> None:
        layers = add_layers(driver, {"a": "1", "b": "2"})
        for container in (ONE, TWO):
            start(driver, layers, container)
        usage = driver.layer_usage(layers[0])
        assert usage is not None
        assert (usage.bytes < 1 << 16, usage.inodes) == (True, 1)
        assert (
            sum(entry.fstype == "erofs" for entry in mounts.mounts() if storage in entry.mountpoint.parents) == 1
        )

    def test_damaged_layer_is_reported(self, driver: RawDriver, storage: Path) -> None:
        (whole, damaged) = add_layers(driver, {"a": "1"}, {"b": "x" * 100_000})
        with (storage / "raw/layers" / damaged).open("r+b") as file:
            file.seek(20_000)
            file.write(b"damage")
        assert driver.check_layer(whole) == ""
        assert damaged in driver.check_layer(damaged)


class TestRawWithExt4(RootfsConformance):
    """Without EROFS, as on a machine that does not support it. Creating a layer takes 0.2 s then."""

    many_layers = 20

    @pytest.fixture
    def driver(self, storage: Path, monkeypatch: pytest.MonkeyPatch) -> RootfsDriver:
        monkeypatch.setattr("pvecri.images.drivers.raw._kernel_supports", lambda _: False)
        return raw(storage)


class TestBtrfs(RootfsConformance):
    @pytest.fixture
    def driver(self, btrfs: Path) -> RootfsDriver:
        return btrfs_driver(btrfs)

    @pytest.fixture
    def limited(self, btrfs: Path) -> RootfsDriver:
        subprocess.run(["btrfs", "quota", "enable", str(btrfs)], check=True)
        return btrfs_driver(btrfs, LIMIT)

    def test_subvolume_created_by_a_container_is_removed_with_it(self, driver: RootfsDriver) -> None:
        root = start(driver, [])
        for nested in (root / "nested", root / "nested/deeper"):
            subprocess.run(["btrfs", "--quiet", "subvolume", "create", str(nested)], check=True)
        driver.remove_rootfs(ONE)
        driver.collect_garbage()
        assert list((driver.root / "trash").iterdir()) == []

    def test_limit_without_quotas_is_refused_with_the_command_to_enable_them(self, btrfs: Path) -> None:
        with pytest.raises(FailedPrecondition, match=r"images\.writable_layer_size.*btrfs quota enable"):
            btrfs_driver(btrfs, LIMIT)


class TestZfs(RootfsConformance):
    """On simulated datasets: tests the commands and their order, not ZFS."""

    many_layers = 20

    @pytest.fixture
    def zfs(self, storage: Path, monkeypatch: pytest.MonkeyPatch) -> SimulatedZfs:
        return SimulatedZfs(storage / "simulated", monkeypatch)

    @pytest.fixture
    def driver(self, storage: Path, zfs: SimulatedZfs) -> RootfsDriver:
        return zfs_driver(storage)

    def test_zfs_commands_are_those_of_the_manual(
        self, driver: RootfsDriver, zfs: SimulatedZfs, storage: Path
    ) -> None:
        assert zfs.commands() == [
            "zfs list -H -o name -t filesystem -d 1 tank/pvecri",
            "zfs create -o mountpoint=legacy -o xattr=sa -o acltype=posixacl tank/pvecri",
            *(f"zfs create tank/pvecri/{part}" for part in ("layers", "new", "rootfs", "trash")),
            "zfs list -H -o name -t filesystem -d 1 tank/pvecri/new",
        ]
        low, high = driver.layer_key([diff_id(0)]), driver.layer_key([diff_id(0), diff_id(1)])
        new = driver.begin_layer(low, None)
        driver.commit_layer(low, new)
        newer = driver.begin_layer(high, low)
        driver.commit_layer(high, newer)
        assert zfs.commands() == [
            f"zfs create tank/pvecri/new/{new.name}",
            f"mount -t zfs tank/pvecri/new/{new.name} {new}",
            f"zfs snapshot tank/pvecri/new/{new.name}@layer",
            f"zfs rename tank/pvecri/new/{new.name} tank/pvecri/layers/{low}",
            f"zfs clone tank/pvecri/layers/{low}@layer tank/pvecri/new/{newer.name}",
            f"mount -t zfs tank/pvecri/new/{newer.name} {newer}",
            f"zfs snapshot tank/pvecri/new/{newer.name}@layer",
            f"zfs rename tank/pvecri/new/{newer.name} tank/pvecri/layers/{high}",
        ]
        ZfsDriver(storage / "zfs", "tank/pvecri", limit=LIMIT).create_rootfs(ONE, [low, high], Owner())
        driver.mount_rootfs(ONE, [low, high], None)
        driver.written(ONE)
        assert zfs.commands() == [
            "zfs list -H -o name -t filesystem -d 1 tank/pvecri/rootfs",
            f"zfs clone -o quota={LIMIT} tank/pvecri/layers/{high}@layer tank/pvecri/rootfs/{ONE}",
            f"mount -t zfs tank/pvecri/rootfs/{ONE} {storage}/zfs/rootfs/{ONE}/w/tree",
            f"zfs get -Hp -o value used tank/pvecri/rootfs/{ONE}",
        ]

    def test_datasets_are_destroyed_after_their_clones(
        self, driver: RootfsDriver, zfs: SimulatedZfs, storage: Path
    ) -> None:
        layers = add_layers(driver, {"a": "1"}, {"b": "2"}, {"c": "3"})
        start(driver, layers)
        driver.remove_rootfs(ONE)
        for key in layers:
            driver.remove_layer(key)
        driver.collect_garbage()
        zfs.commands()
        left = {path.name for path in (storage / "simulated/fs").iterdir()}
        assert left == {
            "tank",
            "tank%pvecri",
            *(f"tank%pvecri%{part}" for part in ("layers", "new", "rootfs", "trash")),
        }

    def test_missing_pool_is_reported_with_the_setting(self, storage: Path, zfs: SimulatedZfs) -> None:
        with pytest.raises(FailedPrecondition, match=r"images\.dataset: 'lake/pvecri' cannot be used"):
            ZfsDriver(storage / "zfs", "lake/pvecri").setup()


@pytest.mark.skipif(not Path("/dev/zfs").exists(), reason="this kernel has no ZFS")
class TestZfsForReal(RootfsConformance):
    @pytest.fixture
    def pool(self, storage: Path) -> Iterator[str]:
        file, name = storage / "zfs.image", f"pvt{os.getpid()}"
        with file.open("wb") as image:
            image.truncate(2 << 30)
        subprocess.run(["zpool", "create", "-m", "none", name, str(file)], check=True)
        try:
            yield name
        finally:
            mounts.umount_below(storage)
            subprocess.run(["zpool", "destroy", "-f", name], check=True)

    @pytest.fixture
    def driver(self, storage: Path, pool: str) -> RootfsDriver:
        return zfs_driver(storage, pool)

    @pytest.fixture
    def limited(self, storage: Path, pool: str) -> RootfsDriver:
        return zfs_driver(storage, pool, LIMIT)


def test_btrfs_driver_refuses_other_filesystems(storage: Path) -> None:
    with pytest.raises(FailedPrecondition, match="is not on btrfs"):
        BtrfsDriver(storage / "btrfs").setup()


def test_loop_devices_are_detached_with_their_mounts(storage: Path) -> None:
    driver = raw(storage, LIMIT)
    start(driver, [])
    backing = [path.read_text() for path in Path("/sys/block").glob("loop*/loop/backing_file")]
    assert sum(str(storage) in file for file in backing) == 1
    driver.remove_rootfs(ONE)
    backing = [path.read_text() for path in Path("/sys/block").glob("loop*/loop/backing_file")]
    assert not any(str(storage) in file for file in backing)


def test_filesystem_without_trusted_attributes_is_refused_with_the_setting(storage: Path) -> None:
    mounts.mount("none", storage, "ramfs")
    with pytest.raises(FailedPrecondition, match=r"images\.root"):
        OverlayDriver(storage / "overlay").setup()
