# SPDX-License-Identifier: Apache-2.0
"""Images that Proxmox pulls as CT templates: an embedded node, a real registry, the real skopeo. Needs root."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace
from pve_replay.process import NodeProcess, new_state_dir
from support.image_builder import (
    PLATFORM,
    BuiltImage,
    LayerBuilder,
    build_artifact,
    build_image,
    build_index,
    digest_of,
    gzipped,
    plain,
)
from support.images import image_manager, image_root
from support.node import Descriptor, EmbeddedNode
from support.registry import PASSWORD, USER, Registry, running_registry
from trial.account import give_roles, make_account

from pvecri.config.settings import Config, ImagesConfig
from pvecri.errors import FailedPrecondition, Unavailable
from pvecri.images.manager import ImageManager
from pvecri.images.manifest import BadImage
from pvecri.images.registry.skopeo import auth_document
from pvecri.model import Image, RegistryAuth
from pvecri.proxmox.api import ProxmoxApi

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="unpacking needs root")

BASE = LayerBuilder().directory("bin").file("bin/sh", "shell" * 10_000).build()
TOP = LayerBuilder().file("etc/motd", os.urandom(1 << 20)).build()
OTHER = LayerBuilder().file("etc/motd", "another").build()


def app(*layers: bytes, **options: object) -> BuiltImage:
    return build_image(*(layers or (BASE, TOP)), **{"compress": gzipped, **options})  # type: ignore[arg-type]


@pytest.fixture
def root() -> Iterator[Path]:
    with image_root() as directory:
        yield directory


@pytest.fixture
async def node(registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[NodeProcess]:
    """A node whose skopeo may speak plain HTTP to the registry."""
    registry.trust_on_node(tmp_path, monkeypatch)
    with new_state_dir() as state_dir:
        async with NodeProcess(state_dir, "--faults") as process:
            yield process


@asynccontextmanager
async def manager_on(
    node: NodeProcess, root: Path, registry: Registry, **settings: object
) -> AsyncIterator[ImageManager]:
    """A manager that has Proxmox pull; `settings` are those of the section `images`."""
    images = ImagesConfig(root=root, insecure_registries=(registry.address,), template_storage="local")
    descriptor = msgspec.json.decode((node.state_dir / "node.json").read_bytes(), type=Descriptor)
    administrator, names = descriptor.administrator(node.state_dir), descriptor.names()
    account = make_account(administrator, names)
    give_roles(administrator, {**names, "images": "local"}, ("KubeImages", "KubeRegistries"))
    proxmox = EmbeddedNode(node.state_dir, descriptor, account).config()
    async with AsyncExitStack() as stack:
        api = ProxmoxApi(proxmox, image_storage="local")
        await api.start()
        stack.push_async_callback(api.close)
        manager = ImageManager(Config(images=replace(images, **settings)), api.image_templates(60.0))
        await manager.start()
        stack.push_async_callback(manager.close)
        yield manager


@pytest.fixture
async def manager(node: NodeProcess, root: Path, registry: Registry) -> AsyncIterator[ImageManager]:
    async with manager_on(node, root, registry) as manager:
        yield manager


def cache(node: NodeProcess) -> Path:
    return node.state_dir / "storage/local/template/cache"


def templates(node: NodeProcess) -> list[str]:
    """All files in the directory of templates."""
    return sorted(path.name for path in cache(node).iterdir())


def name_of(built: BuiltImage, tag: str = "1") -> str:
    return f"app_{tag}_{built.digest.removeprefix('sha256:')[:12]}.tar"


async def pulls(node: NodeProcess, source: str = "all") -> int:
    """The number of pull tasks that Proxmox has run."""
    return len(await node.get(f"/nodes/pve/tasks?source={source}&typefilter=ociregistrypull"))


async def files(manager: ImageManager, image: Image) -> dict[str, bytes]:
    path = await manager.prepare_rootfs("c" * 64, image.id, userns=None, root_uid=0, root_gid=0)
    found = {str(each.relative_to(path)): each.read_bytes() for each in path.rglob("*") if each.is_file()}
    await manager.remove_rootfs("c" * 64)
    return found


# -- pulls through Proxmox -------------------------------------------------------------------------------------


async def test_artifact_comes_from_the_registry(
    node: NodeProcess, manager: ImageManager, registry: Registry
) -> None:
    image = await manager.pull(registry.push("model", "1", build_artifact(("model.bin", b"weights"))))
    assert await files(manager, image) == {"model.bin": b"weights"}
    assert (await pulls(node), templates(node)) == (0, [])


@pytest.mark.parametrize("docker", [False, True])
@pytest.mark.parametrize("compress", [plain, gzipped])
async def test_image_pulled_by_proxmox_equals_a_direct_pull(
    manager: ImageManager,
    node: NodeProcess,
    registry: Registry,
    tmp_path: Path,
    compress: Callable[[bytes], bytes],
    docker: bool,
) -> None:
    built = app(compress=compress, docker=docker)
    reference = registry.push("app", "1", built)
    image = await manager.pull(reference)
    with image_root() as other:
        async with image_manager(other, registry) as direct:
            assert image == await direct.pull(reference)
    assert templates(node) == [name_of(built)]
    assert set(await files(manager, image)) == {"bin/sh", "etc/motd"}


async def test_proxmox_pulls_this_machines_platform_of_an_index(
    manager: ImageManager, node: NodeProcess, registry: Registry
) -> None:
    built = app()
    reference = registry.push("app", "1", build_index((PLATFORM, built)))
    assert (await manager.pull(reference)).id == built.id
    assert templates(node) == [name_of(built)]


async def test_layers_are_read_from_another_nodes_template(
    manager: ImageManager, node: NodeProcess, registry: Registry
) -> None:
    built = app()
    reference = registry.push("app", "1", built)
    await manager.pull(reference)
    registry.forget_blobs(*map(digest_of, built.layers))
    with image_root() as elsewhere:
        async with manager_on(node, elsewhere, registry) as other:
            assert set(await files(other, await other.pull(reference))) == {"bin/sh", "etc/motd"}
            await other.remove(reference)
            await other.idle()
    assert (templates(node), await pulls(node)) == ([name_of(built)], 1)


async def test_concurrent_pulls_of_one_image_create_one_template(
    manager: ImageManager, node: NodeProcess, registry: Registry
) -> None:
    reference = registry.push("app", "1", app())
    first, second = await asyncio.gather(manager.pull(reference), manager.pull(reference))
    assert (first, await pulls(node)) == (second, 1)


async def test_pull_of_a_present_image_makes_no_request_to_proxmox(
    manager: ImageManager, node: NodeProcess, registry: Registry
) -> None:
    reference = registry.push("app", "1", app())
    image = await manager.pull(reference)
    await node.end()
    try:
        assert await manager.pull(reference) == image
    finally:
        await node.begin()


@pytest.mark.parametrize("how", ["digest", "credentials", "auth_file"])
async def test_image_that_proxmox_cannot_pull_is_pulled_directly_and_logged(
    node: NodeProcess, root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    (tmp_path / "protected").mkdir()
    with running_registry(tmp_path / "protected", protected=True) as registry:
        built = app()
        reference, auth = registry.push("app", "1", built), RegistryAuth(username=USER, password=PASSWORD)
        (tmp_path / "auth.json").write_bytes(auth_document(auth, registry.address))
        file = None if how == "credentials" else tmp_path / "auth.json"
        async with manager_on(node, root, registry, auth_file=file) as manager:
            with caplog.at_level(logging.INFO, "pvecri.images"):
                wanted = f"{registry.address}/app@{built.digest}" if how == "digest" else reference
                await manager.pull(wanted, None if file else auth)
    assert "directly, not as a template" in caplog.text
    assert await pulls(node) == 0


# -- removal of templates --------------------------------------------------------------------------------------


async def test_only_the_template_of_a_removed_image_is_removed(
    manager: ImageManager, node: NodeProcess, registry: Registry
) -> None:
    (cache(node) / "app_1.tar").write_bytes(b"somebody's")
    reference = registry.push("app", "1", app())
    await manager.pull(reference)
    await manager.remove(reference)
    await manager.idle()
    assert templates(node) == ["app_1.tar"]


async def test_moved_tag_replaces_the_template(
    manager: ImageManager, node: NodeProcess, registry: Registry
) -> None:
    old = await manager.pull(registry.push("app", "1", app()))
    built = app(BASE, OTHER)
    new = await manager.pull(registry.push("app", "1", built))
    await manager.idle()
    assert templates(node) == [name_of(built)]
    assert {image.id for image in manager.list()} == {old.id, new.id}


async def test_failed_removal_of_a_template_is_retried(
    manager: ImageManager, node: NodeProcess, registry: Registry
) -> None:
    reference = registry.push("app", "1", app())
    await manager.pull(reference)
    await node.fault({"request": "DELETE /nodes/.*", "status": 500, "text": "not now", "times": None})
    await manager.remove(reference)
    await manager.idle()
    assert templates(node) != []
    await node.clear_faults()
    await manager.pull(registry.push("other", "1", app(OTHER)))
    await manager.idle()
    assert [name for name in templates(node) if name.startswith("app_")] == []


async def test_foreign_template_of_the_same_name_is_neither_used_nor_removed(
    manager: ImageManager, node: NodeProcess, registry: Registry
) -> None:
    wanted, other = app(), app(BASE, OTHER)
    await manager.pull(registry.push("app", "2", other))
    (cache(node) / name_of(wanted)).write_bytes((cache(node) / name_of(other, "2")).read_bytes())
    image = await manager.pull(registry.push("app", "1", wanted))
    assert (await files(manager, image))["etc/motd"] != b"another"
    assert name_of(wanted) in templates(node)


async def test_damaged_template_is_refused(manager: ImageManager, node: NodeProcess, registry: Registry) -> None:
    built = app()
    reference = registry.push("app", "1", built)
    await manager.pull(reference)
    file = cache(node) / name_of(built)
    data = file.read_bytes()
    layer = data.index(built.layers[1])
    file.write_bytes(data[: layer + 5000] + b"damage" + data[layer + 5006 :])
    with image_root() as elsewhere:
        async with manager_on(node, elsewhere, registry) as other:
            with pytest.raises(BadImage, match=rf"{name_of(built)}: layer .* the archive is damaged"):
                await other.pull(reference)
            assert other.list() == ()


# -- failures of Proxmox --------------------------------------------------------------------------------------


async def test_unsupported_proxmox_version_is_reported_with_the_setting(
    manager: ImageManager, node: NodeProcess, registry: Registry
) -> None:
    await node.fault({"request": "POST /nodes/pve/storage/.*", "status": 501, "text": "not implemented"})
    with pytest.raises(FailedPrecondition, match=r"images\.template_storage needs Proxmox VE 9\.1"):
        await manager.pull(registry.push("app", "1", app()))


async def test_pull_is_unavailable_while_proxmox_cannot_be_reached(
    manager: ImageManager, node: NodeProcess, registry: Registry
) -> None:
    await node.end()
    try:
        with pytest.raises(Unavailable, match=r"proxmox\.url"):
            await manager.pull(registry.push("app", "1", app()))
        assert manager.list() == ()
    finally:
        await node.begin()


async def test_message_of_proxmoxs_skopeo_reaches_the_client(
    manager: ImageManager, node: NodeProcess, registry: Registry, tmp_path: Path
) -> None:
    (tmp_path / "registries.conf").write_text("")
    reference = registry.push("app", "1", app())
    with pytest.raises(Unavailable, match=r"RegistryUnavailable: .*HTTP response.*template_storage"):
        await manager.pull(reference)
    await manager.idle()
    assert (templates(node), manager.list()) == ([], ())


async def begun_pull(manager: ImageManager, node: NodeProcess, registry: Registry) -> asyncio.Task[Image]:
    """A pull that waits for a task of Proxmox that does not end."""
    await node.fault({"task": "ociregistrypull", "hold": True})
    pull = asyncio.ensure_future(manager.pull(registry.push("app", "1", app())))

    async def under_way() -> bool:
        return await pulls(node, "active") == 1

    await node.until(under_way)
    return pull


async def test_cancelled_pull_stops_the_task_in_proxmox(
    manager: ImageManager, node: NodeProcess, registry: Registry
) -> None:
    pull = await begun_pull(manager, node, registry)
    pull.cancel()
    await asyncio.wait([pull])
    await manager.idle()
    assert (await pulls(node, "active"), templates(node)) == (0, [])


async def test_next_daemon_stops_and_removes_leftover_templates(
    node: NodeProcess, registry: Registry, root: Path
) -> None:
    async with manager_on(node, root, registry) as first:
        (await begun_pull(first, node, registry)).cancel()
    assert await pulls(node, "active") == 1
    async with manager_on(node, root, registry) as second:
        await second.idle()
    assert (await pulls(node, "active"), templates(node)) == (0, [])
