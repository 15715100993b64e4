# SPDX-License-Identifier: Apache-2.0
"""Containers' root filesystems, and what the Image Manager finds after its restart. Needs root."""

from __future__ import annotations

import asyncio
import os
import struct
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace
from support import opened
from support.image_builder import LayerBuilder, build_image, digest_of
from support.images import image_manager, image_root
from support.registry import Registry
from support.userns import user_namespace

from pvecri.errors import AlreadyExists, NotFound
from pvecri.images.manager import ImageManager
from pvecri.images.store import RootfsRecord, Store
from pvecri.linux import mounts
from pvecri.model import ContainerId, Image, ImageId

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")

CONTAINER = "c" * 64
CAPABILITY = struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0)  # cap_net_bind_service=ep, VFS_CAP_REVISION_2
BASE = LayerBuilder().directory("bin").file("bin/sh", "shell", mode=0o755, uid=5).build()


@pytest.fixture
def root() -> Iterator[Path]:
    with image_root() as directory:
        yield directory


@pytest.fixture
def userns() -> Iterator[Path]:
    with user_namespace(first_id=300_000) as path:
        yield path


@pytest.fixture
async def manager(root: Path, registry: Registry) -> AsyncIterator[ImageManager]:
    async with image_manager(root, registry) as manager:
        yield manager


@pytest.fixture
async def image(manager: ImageManager, registry: Registry) -> Image:
    return await manager.pull(registry.push("app", "1", build_image(BASE)))


async def prepare(manager: ImageManager, image: Image, userns: Path | None = None) -> Path:
    owner = 300_000 if userns else 0
    return await manager.prepare_rootfs(CONTAINER, image.id, userns=userns, root_uid=owner, root_gid=owner)


async def test_many_removals_are_tidied_up_together(
    manager: ImageManager, image: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = manager._driver
    trash = driver.root / "trash"
    collected: list[int] = []
    collect = driver.collect_garbage

    def counted() -> None:
        collected.append(len(list(trash.iterdir())))
        collect()

    monkeypatch.setattr(driver, "collect_garbage", counted)
    containers = [f"{number:064x}" for number in range(8)]
    for container in containers:
        await manager.prepare_rootfs(container, image.id, userns=None, root_uid=0, root_gid=0)
    async with asyncio.timeout(60):  # that of the pull
        while manager._tidy_due:
            await asyncio.sleep(0.01)
    collected.clear()
    await asyncio.gather(*map(manager.remove_rootfs, containers))
    async with asyncio.timeout(60):
        while sum(collected) < len(containers) or any(trash.iterdir()):
            await asyncio.sleep(0.01)
    assert len(collected) < len(containers)


def files(root: Path) -> list[str]:
    """Everything but empty directories and the database."""
    return [str(path) for path in root.rglob("*") if path.is_file() and not path.name.startswith("images.db")]


# -- one container ---------------------------------------------------------------------------------------------


async def test_root_filesystem_is_owned_by_the_user_namespaces_root(
    manager: ImageManager, image: Image, userns: Path
) -> None:
    path = await prepare(manager, image, userns)
    assert (path.stat().st_uid, (path / "bin/sh").stat().st_uid) == (300_000, 300_005)
    assert manager.rootfs_ids() == {CONTAINER}


async def test_file_capabilities_work_in_a_user_namespace(
    manager: ImageManager, registry: Registry, userns: Path
) -> None:
    capability = {"SCHILY.xattr.security.capability": CAPABILITY.decode("utf-8", "surrogateescape")}
    busybox = Path("/bin/busybox").read_bytes()
    builder = LayerBuilder().directory("bin").directory("proc")
    layer = builder.file("bin/grep", busybox, mode=0o755, pax_headers=capability).build()
    path = await prepare(manager, await manager.pull(registry.push("cap", "1", build_image(layer))), userns)
    script = 'mount --rbind /proc "$0"/proc && exec chroot --userspec=9:9 "$0" /bin/grep CapPrm /proc/self/status'
    process = await asyncio.create_subprocess_exec(
        *("nsenter", f"--user={userns}", "unshare", "--mount", "sh", "-c", script, str(path)),
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await process.communicate()
    assert output.split() == [b"CapPrm:", b"0000000000000400"]


async def test_second_root_filesystem_of_a_container_is_refused(manager: ImageManager, image: Image) -> None:
    await prepare(manager, image)
    with pytest.raises(AlreadyExists):
        await prepare(manager, image)
    await manager.remove_rootfs(CONTAINER)
    await prepare(manager, image)


async def test_root_filesystem_of_an_unknown_image_is_not_found(manager: ImageManager) -> None:
    with pytest.raises(NotFound, match="is not in the store"):
        await manager.prepare_rootfs(CONTAINER, ImageId(digest_of(b"none")), userns=None, root_uid=0, root_gid=0)
    with pytest.raises(NotFound, match="has no root filesystem"):
        await manager.mount_rootfs(CONTAINER, None)


async def test_failed_root_filesystem_leaves_nothing(manager: ImageManager, image: Image, root: Path) -> None:
    with pytest.raises(FileNotFoundError):
        await prepare(manager, image, root / "no-namespace")
    await manager.idle()
    assert manager.rootfs_ids() == set()
    assert not list((root / "overlay/rootfs").iterdir())
    await prepare(manager, image)


async def test_cancelled_root_filesystem_leaves_nothing(manager: ImageManager, image: Image, root: Path) -> None:
    caller = asyncio.ensure_future(prepare(manager, image))
    while not manager.rootfs_ids() and not caller.done():
        await asyncio.sleep(0)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert manager.rootfs_ids() == set()
    assert not list((root / "overlay/rootfs").iterdir())


async def test_writable_layers_are_counted_apart_from_images(manager: ImageManager, image: Image) -> None:
    path = await prepare(manager, image)
    before, images = await manager.rootfs_usage(CONTAINER), (await manager.usage()).images
    (path / "new").write_bytes(b"x" * 100_000)
    after, usage = await manager.rootfs_usage(CONTAINER), await manager.usage()
    assert after.inodes_used == before.inodes_used + 1
    assert after.used_bytes >= before.used_bytes + 100_000
    assert usage.containers.used_bytes == after.used_bytes
    assert usage.images.used_bytes == images.used_bytes
    assert images.inodes_used > 3


async def test_removal_of_a_root_filesystem_removes_its_writable_layer_and_is_idempotent(
    manager: ImageManager, image: Image, root: Path
) -> None:
    path = await prepare(manager, image)
    (path / "written").write_text("x")
    for _ in range(2):
        await manager.remove_rootfs(CONTAINER)
    await manager.unmount_rootfs(CONTAINER)
    await manager.idle()
    assert not any("written" in name for name in files(root))
    assert (await manager.rootfs_usage(CONTAINER)).used_bytes == 0


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o7777


async def test_directory_left_out_of_an_upper_layers_archive_keeps_its_attributes(
    manager: ImageManager, registry: Registry, userns: Path
) -> None:
    base = LayerBuilder().directory(".", mode=0o555).directory("tmp", mode=0o1777)
    base.directory("home").directory("home/me", mode=0o700, uid=7, gid=8).directory("new", mode=0o700)
    top = LayerBuilder().file("tmp/x").file("home/me/deep/y").directory("new", mode=0o711).file("other/z")
    path = await prepare(
        manager, await manager.pull(registry.push("app", "1", build_image(base.build(), top.build()))), userns
    )
    names = (".", "tmp", "home", "home/me", "home/me/deep", "new", "other")
    assert [oct(mode(path / name)) for name in names] == [
        *("0o555", "0o1777", "0o755", "0o700", "0o755", "0o711", "0o755")
    ]
    assert ((path / "home/me").stat().st_uid, (path / "home/me").stat().st_gid) == (300_007, 300_008)
    assert (path / "home/me/deep/y").exists()


@pytest.mark.parametrize(
    "removal",
    [
        LayerBuilder().file(".wh.d"),
        LayerBuilder().file("d").file("e"),
    ],
)
async def test_attributes_of_a_whited_out_directory_are_not_restored(
    manager: ImageManager, registry: Registry, removal: LayerBuilder
) -> None:
    base, again = LayerBuilder().directory("d", mode=0o700).build(), LayerBuilder().file("d/sub/x").build()
    image = await manager.pull(registry.push("app", "1", build_image(base, removal.build(), again)))
    path = await prepare(manager, image)
    assert (mode(path / "d"), mode(path / "d/sub")) == (0o755, 0o755)


async def test_restoring_attributes_does_not_restore_a_whited_out_directory(
    manager: ImageManager, registry: Registry
) -> None:
    base, middle = LayerBuilder().directory("d", mode=0o700).build(), LayerBuilder().file("d/x").build()
    built = build_image(base, middle, LayerBuilder().file(".wh.d").build())
    path = await prepare(manager, await manager.pull(registry.push("app", "1", built)))
    assert list(path.iterdir()) == []


# -- restarts and crashes --------------------------------------------------------------------------------------


async def test_images_and_mounted_roots_outlive_the_manager(root: Path, registry: Registry) -> None:
    parentless = LayerBuilder().directory("tmp", mode=0o1777).build(), LayerBuilder().file("tmp/x").build()
    async with image_manager(root, registry) as first:
        image = await first.pull(registry.push("app", "1", build_image(BASE, *parentless)))
        path = await prepare(first, image)
        (path / "written").write_text("kept")
    async with image_manager(root, registry) as second:
        assert second.list() == (image,)
        assert second.rootfs_ids() == {CONTAINER}
        assert (path / "written").read_text() == "kept"
        assert await second.mount_rootfs(CONTAINER, None) == path


async def test_root_filesystem_is_mounted_again_after_the_nodes_restart(
    root: Path, registry: Registry, userns: Path
) -> None:
    async with image_manager(root, registry) as first:
        image = await first.pull(registry.push("app", "1", build_image(BASE)))
        path = await prepare(first, image, userns)
        (path / "written").write_text("kept")
    mounts.umount_below(root)
    async with image_manager(root, registry) as second:
        assert await second.mount_rootfs(CONTAINER, userns) == path
        assert (path / "written").read_text() == "kept"
        assert (path / "bin/sh").stat().st_uid == 300_005


async def test_root_filesystem_is_removed_without_a_look_at_the_nodes_mounts(
    manager: ImageManager, image: Image, root: Path, userns: Path
) -> None:
    await prepare(manager, image, userns)
    with opened.recorded() as paths:
        await manager.unmount_rootfs(CONTAINER)
        await manager.remove_rootfs(CONTAINER)
    assert opened.MOUNT_TABLE not in paths
    below = root / "overlay/rootfs"
    assert not any(entry.mountpoint.is_relative_to(below) for entry in mounts.mounts())


async def test_leftovers_of_a_crash_are_removed(root: Path, registry: Registry) -> None:
    async with image_manager(root, registry):
        pass
    for name in (
        "tmp/pull-x/layout",
        "overlay/new/x",
        "overlay/layers/" + "ab" * 32,
        f"overlay/rootfs/{CONTAINER}/w",
    ):
        (root / name).mkdir(parents=True)
        (root / name / "file").touch()
    (root / "blobs/sha256" / ("cd" * 32)).touch()
    async with image_manager(root, registry) as manager:
        await manager.idle()
        assert files(root) == []
        assert manager.rootfs_ids() == set()


async def test_record_without_a_root_filesystem_is_removed(root: Path, registry: Registry) -> None:
    async with image_manager(root, registry):
        pass
    store = Store(root / "images.db")
    store.put_rootfs(RootfsRecord(container=ContainerId(CONTAINER), image=ImageId("x"), layers=()))
    store.close()
    async with image_manager(root, registry) as manager:
        assert manager.rootfs_ids() == set()


@pytest.mark.parametrize("loss", ["layer", "config", "half of the config", "power"])
async def test_image_with_a_lost_part_is_pulled_again(root: Path, registry: Registry, loss: str) -> None:
    reference = registry.push("app", "1", build_image(BASE))
    async with image_manager(root, registry) as manager:
        image = await manager.pull(reference)
        await manager.idle()
    if loss == "layer":
        (root / "overlay/layers" / digest_of(BASE).removeprefix("sha256:")).rename(root / "overlay/lost")
    elif loss == "config":
        (root / "blobs/sha256" / image.id.removeprefix("sha256:")).unlink()
    elif loss == "half of the config":
        os.truncate(root / "blobs/sha256" / image.id.removeprefix("sha256:"), 100)
    else:
        store = Store(root / "images.db")
        store.put(layers=[replace(layer, boot="another") for layer in store.layers()])
        store.close()
    async with image_manager(root, registry) as manager:
        assert manager.list() == ()
        assert await manager.pull(reference) == image
        assert manager.raw_config(image.id) == build_image(BASE).config
        assert (await prepare(manager, image) / "bin/sh").read_text() == "shell"
