# SPDX-License-Identifier: Apache-2.0
"""What every rootfs driver must do (pvecri.images.drivers.base), as one suite.

A driver's tests are a subclass of RootfsConformance with a fixture `driver`, freshly set up on storage of its own
that the fixture takes away again.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from support.userns import user_namespace

from pvecri.images.drivers.base import LayerKey, Owner, RootfsDriver
from pvecri.linux import mounts
from pvecri.model import ContainerId

ONE = ContainerId("c" * 64)
TWO = ContainerId("d" * 64)
ROOT = 300_000


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


@pytest.fixture
def userns() -> Iterator[Path]:
    with user_namespace(first_id=ROOT) as path:
        yield path


class RootfsConformance:
    """The suite."""

    def test_a_committed_layer_is_there_and_a_begun_one_is_not(self, driver: RootfsDriver) -> None:
        keys = add_layers(driver, {"a": "1"})
        driver.begin_layer(driver.layer_key([diff_id(7)]), None)
        assert driver.layers() == set(keys)

    def test_committing_a_layer_again_keeps_the_first(self, driver: RootfsDriver) -> None:
        add_layers(driver, {"a": "first"})
        layers = add_layers(driver, {"a": "second"})
        assert (start(driver, layers) / "a").read_text() == "first"

    def test_an_aborted_layer_leaves_nothing(self, driver: RootfsDriver) -> None:
        directory = driver.begin_layer(driver.layer_key([diff_id(7)]), None)
        driver.abort_layer(directory)
        driver.abort_layer(directory)
        assert not directory.exists()
        assert driver.layers() == set()

    def test_a_removed_layer_is_gone_and_removing_it_again_is_no_error(self, driver: RootfsDriver) -> None:
        (key,) = add_layers(driver, {"a": "1"})
        driver.remove_layer(key)
        driver.remove_layer(key)
        assert driver.layers() == set()

    def test_upper_layers_lie_over_lower_ones(self, driver: RootfsDriver) -> None:
        layers = add_layers(driver, {"a": "1", "d/x": "1"}, {"b": "2", "d/y": "2"}, {"a": "3"})
        root = start(driver, layers)
        assert {name: (root / name).read_text() for name in ("a", "b", "d/x", "d/y")} == {
            "a": "3",
            "b": "2",
            "d/x": "1",
            "d/y": "2",
        }

    def test_an_image_without_layers_is_an_empty_root(self, driver: RootfsDriver) -> None:
        root = start(driver, [])
        assert list(root.iterdir()) == []
        (root / "file").touch()

    def test_an_image_may_have_a_layer_twice(self, driver: RootfsDriver) -> None:
        low, middle = add_layers(driver, {"a": "1", "b": "1"}, {"a": "2", "c": "2"})
        again = driver.layer_key([diff_id(0), diff_id(1), diff_id(0)])
        directory = driver.begin_layer(again, middle)
        (directory / "a").write_text("1")
        (directory / "b").write_text("1")
        driver.commit_layer(again, directory)
        root = start(driver, [low, middle, again])
        assert {name: (root / name).read_text() for name in "abc"} == {"a": "1", "b": "1", "c": "2"}

    def test_two_hundred_layers_are_mounted(self, driver: RootfsDriver, userns: Path) -> None:
        layers = add_layers(driver, *({f"f{number}": ""} for number in range(200)))
        driver.create_rootfs(ONE, layers, Owner(uid=ROOT, gid=ROOT))
        assert len(list(driver.mount_rootfs(ONE, layers, userns).iterdir())) == 200

    def test_containers_do_not_see_each_others_writes(self, driver: RootfsDriver) -> None:
        layers = add_layers(driver, {"a": "image", "b": "image"})
        first, second = start(driver, layers, ONE), start(driver, layers, TWO)
        (first / "a").write_text("first")
        (first / "b").unlink()
        assert ((second / "a").read_text(), (second / "b").read_text()) == ("image", "image")
        assert not (first / "b").exists()

    def test_what_was_written_is_there_after_the_next_mount(self, driver: RootfsDriver) -> None:
        layers = add_layers(driver, {"a": "image"})
        root = start(driver, layers)
        (root / "new").write_text("kept")
        (root / "a").unlink()
        driver.unmount_rootfs(ONE)
        assert not mounts.is_mountpoint(root)
        again = driver.mount_rootfs(ONE, layers, None)
        assert [path.name for path in again.iterdir()] == ["new"]

    def test_mounting_and_unmounting_twice_is_no_error(self, driver: RootfsDriver) -> None:
        layers = add_layers(driver, {"a": "1"})
        root = start(driver, layers)
        assert driver.mount_rootfs(ONE, layers, None) == root
        assert sum(entry.mountpoint == root for entry in mounts.mounts()) == 1
        driver.unmount_rootfs(ONE)
        driver.unmount_rootfs(ONE)

    def test_a_second_root_filesystem_for_a_container_is_refused(self, driver: RootfsDriver) -> None:
        start(driver, [])
        with pytest.raises(FileExistsError):
            driver.create_rootfs(ONE, [], Owner())

    def test_a_root_filesystem_that_was_not_created_cannot_be_mounted(self, driver: RootfsDriver) -> None:
        with pytest.raises(FileNotFoundError):
            driver.mount_rootfs(ONE, [], None)

    def test_a_user_namespace_owns_the_image_and_what_it_writes(self, driver: RootfsDriver, userns: Path) -> None:
        layers = add_layers(driver, {"a": "1"})
        driver.create_rootfs(ONE, layers, Owner(uid=ROOT, gid=ROOT))
        root = driver.mount_rootfs(ONE, layers, userns)
        assert (root.stat().st_uid, (root / "a").stat().st_uid) == (ROOT, ROOT)
        written = run_as(ROOT, "sh", "-c", f"echo 2 > {root}/a && echo 3 > {root}/b && cat {root}/a")
        assert (written.stdout, written.stderr) == ("2\n", "")

    def test_a_mapped_root_gets_to_its_root_and_to_nothing_else(self, driver: RootfsDriver, userns: Path) -> None:
        layers = add_layers(driver, {"a": "1"})
        driver.create_rootfs(ONE, layers, Owner(uid=ROOT, gid=ROOT))
        root = driver.mount_rootfs(ONE, layers, userns)
        assert run_as(ROOT, "ls", str(root)).returncode == 0
        assert run_as(ROOT, "ls", str(driver.writable_layer(ONE))).returncode != 0
        assert run_as(ROOT, "ls", str(root.parent)).returncode != 0

    def test_device_nodes_of_an_image_cannot_be_opened(self, driver: RootfsDriver) -> None:
        key = driver.layer_key([diff_id(0)])
        directory = driver.begin_layer(key, None)
        os.mknod(directory / "null", 0o20666, os.makedev(1, 3))
        driver.commit_layer(key, directory)
        with pytest.raises(PermissionError):
            (start(driver, [key]) / "null").open("rb")

    def test_a_root_mounted_later_shows_in_a_mount_namespace_cloned_before(self, driver: RootfsDriver) -> None:
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

    def test_a_root_in_use_is_unmounted_and_removed(self, driver: RootfsDriver) -> None:
        root = start(driver, add_layers(driver, {"a": "1"}))
        with (root / "a").open() as file:
            driver.remove_rootfs(ONE)
            assert file.read() == "1"
        assert not root.exists()

    def test_removal_takes_mounts_below_the_root_along(self, driver: RootfsDriver) -> None:
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

    def test_the_writable_layer_holds_what_was_written_only(self, driver: RootfsDriver) -> None:
        root = start(driver, add_layers(driver, {"a": "1"}))
        assert list(driver.writable_layer(ONE).iterdir()) == []
        (root / "b").write_text("2")
        assert [path.name for path in driver.writable_layer(ONE).iterdir()] == ["b"]

    def test_a_new_setup_keeps_what_is_complete_and_drops_what_is_not(self, driver: RootfsDriver) -> None:
        layers = add_layers(driver, {"a": "1"})
        root = start(driver, layers)
        half_made = driver.begin_layer(driver.layer_key([diff_id(7)]), layers[0])
        driver.setup()
        assert driver.layers() == set(layers)
        assert driver.rootfs_ids() == {ONE}
        assert mounts.is_mountpoint(root)
        assert not half_made.exists()

    def test_layers_can_be_put_on_the_disk(self, driver: RootfsDriver) -> None:
        add_layers(driver, {"a": "1"})
        driver.sync()
