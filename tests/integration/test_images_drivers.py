# SPDX-License-Identifier: Apache-2.0
"""The rootfs drivers under the conformance suite, and what is special to each. Needs root."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from integration.rootfs_conformance import ONE, RootfsConformance, add_layers, start, userns
from support.images import image_root
from support.userns import user_namespace

from pvecri.errors import FailedPrecondition
from pvecri.images.drivers.base import Owner, RootfsDriver
from pvecri.images.drivers.overlay import OverlayDriver
from pvecri.linux import mounts

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")

__all__ = ["userns"]  # a fixture of the suite


@pytest.fixture
def storage() -> Iterator[Path]:
    with image_root() as directory:
        yield directory


def overlay(root: Path, *, stage_layers: bool) -> OverlayDriver:
    driver = OverlayDriver(root / "overlay", stage_layers=stage_layers)
    driver.setup()
    return driver


class TestOverlay(RootfsConformance):
    @pytest.fixture
    def driver(self, storage: Path) -> RootfsDriver:
        return overlay(storage, stage_layers=False)

    def test_a_mark_of_an_unclean_end_does_not_forbid_the_next_mount(self, driver: RootfsDriver) -> None:
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
        return overlay(storage, stage_layers=True)

    def test_no_staging_mount_stays(self, driver: RootfsDriver, storage: Path) -> None:
        layers = add_layers(driver, {"a": "1"}, {"b": "2"})
        driver.create_rootfs(ONE, layers, Owner(uid=300_000, gid=300_000))
        with user_namespace(first_id=300_000) as path:
            root = driver.mount_rootfs(ONE, layers, path)
        mounted = {entry.mountpoint for entry in mounts.mounts() if entry.mountpoint.is_relative_to(storage)}
        assert mounted == {storage / "overlay", root}


def test_storage_without_trusted_attributes_is_refused_by_the_settings_name(storage: Path) -> None:
    mounts.mount("none", storage, "ramfs")
    with pytest.raises(FailedPrecondition, match=r"images\.root"):
        OverlayDriver(storage / "overlay").setup()
