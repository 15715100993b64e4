# SPDX-License-Identifier: Apache-2.0
"""Pulling from a real registry with the real skopeo. Needs root."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from support import figures
from support.image_builder import PLATFORM, LayerBuilder, build_image, build_index, digest_of, gzipped, plain, zstd
from support.images import image_manager, image_root
from support.registry import PASSWORD, USER, Registry, running_registry

from pvecri.errors import DeadlineExceeded, InvalidArgument, NotFound, PermissionDenied, Unavailable
from pvecri.images.manager import ImageManager
from pvecri.images.manifest import BadImage
from pvecri.images.pull.progress import Progress
from pvecri.model import Image, ImageConfig, RegistryAuth

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="unpacking needs root")

BASE = LayerBuilder().directory("bin").file("bin/sh", "shell").build()
TOP = LayerBuilder().file("etc/motd", "hello").file("bin/.wh.gone").build()


@pytest.fixture
def root() -> Iterator[Path]:
    with image_root() as directory:
        yield directory


@pytest.fixture
def protected(tmp_path: Path) -> Iterator[Registry]:
    with running_registry(tmp_path, protected=True) as running:
        yield running


@pytest.fixture
async def manager(root: Path, registry: Registry) -> AsyncIterator[ImageManager]:
    async with image_manager(root, registry) as manager:
        yield manager


async def content(manager: ImageManager, image: Image) -> dict[str, str]:
    """The files of an image, as a container sees them."""
    path = await manager.prepare_rootfs("c" * 64, image.id, userns=None, root_uid=0, root_gid=0)
    files = {str(each.relative_to(path)): each.read_text() for each in path.rglob("*") if each.is_file()}
    await manager.remove_rootfs("c" * 64)
    return files


async def kept(manager: ImageManager, root: Path) -> list[str]:
    """The files of the store after all background work, apart from the database."""
    await manager.idle()
    return sorted(
        str(path.relative_to(root)) for path in root.rglob("*") if path.is_file() and "images.db" not in path.name
    )


# -- pulled images ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("docker", [False, True])
@pytest.mark.parametrize("compress", [plain, gzipped, zstd])
async def test_images_of_all_manifest_and_compression_types_are_pulled(
    manager: ImageManager, registry: Registry, compress: Callable[[bytes], bytes], docker: bool
) -> None:
    if docker and compress is zstd:
        pytest.skip("Docker's manifests know no zstd")
    built = build_image(BASE, TOP, compress=compress, docker=docker, config={"Cmd": ["sh"], "User": "5"})
    reference = registry.push("app", "1", built)
    image = await manager.pull(reference)
    assert (image.id, image.tags, image.digests) == (
        built.id,
        (reference,),
        (f"{registry.address}/app@{built.digest}",),
    )
    assert (image.config.cmd, image.config.user) == (("sh",), "5")
    assert image.diff_ids == (digest_of(BASE), digest_of(TOP))
    assert image.size == len(built.config) + sum(map(len, built.layers))
    assert await content(manager, image) == {"bin/sh": "shell", "etc/motd": "hello"}


@pytest.mark.parametrize("docker", [False, True])
async def test_pull_of_an_index_selects_this_machines_platform(
    manager: ImageManager, registry: Registry, docker: bool
) -> None:
    other = build_image(LayerBuilder().file("other").build(), docker=docker)
    ours = build_image(BASE, docker=docker)
    index = build_index(("s390x", other), ("arm/v7", other), (PLATFORM, ours), docker=docker)
    image = await manager.pull(registry.push("app", "1", index))
    assert image.id == ours.id
    assert image.digests == (f"{registry.address}/app@{index.digest}",)


async def test_image_pulled_by_digest_has_no_tag(manager: ImageManager, registry: Registry) -> None:
    built = build_image(BASE)
    registry.push("app", "1", built)
    name = f"{registry.address}/app"
    image = await manager.pull(f"{name}:ignored@{built.digest}")
    assert (image.tags, image.digests) == ((), (f"{name}@{built.digest}",))


async def test_images_without_layers_and_with_a_repeated_layer_are_pulled(
    manager: ImageManager, registry: Registry
) -> None:
    empty = await manager.pull(registry.push("empty", "1", build_image()))
    twice = await manager.pull(registry.push("twice", "1", build_image(BASE, TOP, BASE)))
    assert await content(manager, empty) == {}
    assert await content(manager, twice) == {"bin/sh": "shell", "etc/motd": "hello"}


@pytest.mark.parametrize("docker", [False, True])
@pytest.mark.parametrize("config_type", ["application/octet-stream", "text/html", "application/json"])
async def test_images_with_a_config_type_of_old_registries_are_pulled(
    manager: ImageManager, registry: Registry, docker: bool, config_type: str
) -> None:
    built = build_image(BASE, docker=docker, config_type=config_type, config={"Cmd": ["sh"]})
    image = await manager.pull(registry.push("old", "1", built))
    assert (image.id, image.config.cmd) == (built.id, ("sh",))
    assert await content(manager, image) == {"bin/sh": "shell"}


@pytest.mark.parametrize("docker", [False, True])
async def test_config_of_nulls_is_pulled(manager: ImageManager, registry: Registry, docker: bool) -> None:
    nulls = dict.fromkeys(("User", "Env", "Entrypoint", "Cmd", "WorkingDir", "StopSignal", "Volumes", "Labels"))
    built = build_image(BASE, docker=docker, config={**nulls, "ExposedPorts": None, "OnBuild": None})
    image = await manager.pull(registry.push("nulls", "1", built))
    assert image.config == ImageConfig()


async def test_config_is_returned_byte_by_byte(manager: ImageManager, registry: Registry) -> None:
    built = build_image(BASE)
    image = await manager.pull(registry.push("app", "1", built))
    assert manager.raw_config(image.id) == built.config


# -- repeated pulls --------------------------------------------------------------------------------------------


async def test_pull_by_digest_of_a_present_image_needs_no_network(
    manager: ImageManager, registry: Registry
) -> None:
    built = build_image(BASE)
    reference = f"{registry.address}/app@{built.digest}"
    registry.push("app", "1", built)
    image = await manager.pull(reference)
    registry.stop()
    assert await manager.pull(reference) == image


async def test_pull_of_an_unmoved_tag_fetches_nothing(manager: ImageManager, registry: Registry) -> None:
    built = build_image(BASE)
    image = await manager.pull(registry.push("app", "1", built))
    await manager.idle()
    registry.forget_blobs(*map(digest_of, built.blobs))
    assert await manager.pull(f"{registry.address}/app:1") == image


async def test_present_layer_is_not_fetched_for_another_image(manager: ImageManager, registry: Registry) -> None:
    first, second = build_image(BASE), build_image(BASE, TOP)
    await manager.pull(registry.push("first", "1", first))
    await manager.idle()
    reference = registry.push("second", "1", second)
    registry.forget_blobs(digest_of(first.layers[0]))
    assert await content(manager, await manager.pull(reference)) == {"bin/sh": "shell", "etc/motd": "hello"}


async def test_pull_leaves_only_config_and_extracted_layers(
    manager: ImageManager, registry: Registry, root: Path
) -> None:
    built = build_image(BASE)
    image = await manager.pull(registry.push("app", "1", built))
    layer = f"overlay/layers/{digest_of(BASE).removeprefix('sha256:')}/bin/sh"
    assert await kept(manager, root) == [f"blobs/sha256/{image.id.removeprefix('sha256:')}", layer]


async def test_processes_killed_between_pulls_are_replaced(manager: ImageManager, registry: Registry) -> None:
    await manager.pull(registry.push("first", "1", build_image(BASE)))
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    ours = [
        int(pid)
        for pid in children
        if b"pvecri.images.unpacking.worker" in command(pid) or b"image-proxy" in command(pid)
    ]
    assert len(ours) == 2
    for pid in ours:
        os.kill(pid, signal.SIGKILL)
    await manager.pull(registry.push("second", "1", build_image(TOP)))


def command(pid: str) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


async def test_concurrent_pulls_of_one_image_share_the_download(manager: ImageManager, registry: Registry) -> None:
    reference = registry.push("app", "1", build_image(BASE))
    images = await asyncio.gather(*(manager.pull(reference) for _ in range(5)))
    assert len(set(map(id, images))) == 1


async def test_images_with_common_layers_are_pulled_concurrently(
    manager: ImageManager, registry: Registry, root: Path
) -> None:
    references = [
        registry.push(f"app{number}", "1", build_image(BASE, TOP, config={"User": str(number)}))
        for number in range(6)
    ]
    images = await asyncio.gather(*map(manager.pull, references))
    assert len({image.id for image in images}) == 6
    assert len(list((root / "overlay/layers").iterdir())) == 2


# -- tags ------------------------------------------------------------------------------------------------------


async def test_moved_tag_names_the_new_image(manager: ImageManager, registry: Registry) -> None:
    old = await manager.pull(registry.push("app", "1", build_image(BASE)))
    new = await manager.pull(registry.push("app", "1", build_image(TOP)))
    assert manager.find(f"{registry.address}/app:1") == new
    assert (manager.get(old.id).tags, manager.get(old.id).digests) == ((), old.digests)


@pytest.mark.parametrize("docker", [False, True])
async def test_tag_moved_to_another_index_of_the_same_image_keeps_the_image(
    manager: ImageManager, registry: Registry, docker: bool
) -> None:
    ours, other = build_image(BASE, docker=docker), build_image(TOP, docker=docker)
    before = await manager.pull(registry.push("app", "1", build_index((PLATFORM, ours), docker=docker)))
    await manager.idle()
    newer = build_index((PLATFORM, ours), ("s390x", other), docker=docker)
    reference = registry.push("app", "1", newer)
    registry.forget_blobs(digest_of(ours.layers[0]))
    assert await manager.pull(reference) == before
    assert (await manager.pull(f"{registry.address}/app@{newer.digest}")).digests == (
        *before.digests,
        f"{registry.address}/app@{newer.digest}",
    )


async def test_pull_of_a_second_tag_of_an_image_fetches_nothing(manager: ImageManager, registry: Registry) -> None:
    built = build_image(BASE)
    await manager.pull(registry.push("app", "1", built))
    reference = registry.push("app", "2", built)
    await manager.idle()
    registry.forget_blobs(*map(digest_of, built.blobs))
    image = await manager.pull(reference)
    assert image.tags == (f"{registry.address}/app:1", f"{registry.address}/app:2")
    assert manager.list() == (image,)


async def test_image_of_a_configured_reference_is_pinned(root: Path, registry: Registry) -> None:
    reference = registry.push("app", "1", build_image(BASE))
    async with image_manager(root, registry, pinned=(reference,)) as manager:
        assert (await manager.pull(reference)).pinned


# -- removal ---------------------------------------------------------------------------------------------------


async def test_removal_by_any_name_removes_the_image_and_all_its_names(
    manager: ImageManager, registry: Registry, root: Path
) -> None:
    built = build_image(BASE)
    registry.push("app", "1", built)
    await manager.pull(registry.push("app", "2", built))
    image = await manager.pull(f"{registry.address}/app:1")
    await manager.remove(image.id)
    await manager.remove(image.id)
    assert (manager.list(), await kept(manager, root)) == ((), [])


async def test_layers_of_another_image_are_kept_on_removal(manager: ImageManager, registry: Registry) -> None:
    first = await manager.pull(registry.push("first", "1", build_image(BASE)))
    second = await manager.pull(registry.push("second", "1", build_image(BASE, TOP)))
    await manager.remove(first.tags[0])
    assert await content(manager, second) == {"bin/sh": "shell", "etc/motd": "hello"}


async def test_layers_of_a_removed_image_are_kept_for_its_containers(
    manager: ImageManager, registry: Registry, root: Path
) -> None:
    image = await manager.pull(registry.push("app", "1", build_image(BASE)))
    path = await manager.prepare_rootfs("c" * 64, image.id, userns=None, root_uid=0, root_gid=0)
    await manager.remove(image.id)
    await manager.idle()
    await manager.unmount_rootfs("c" * 64)
    await manager.mount_rootfs("c" * 64, None)
    assert (path / "bin/sh").read_text() == "shell"
    await manager.remove_rootfs("c" * 64)
    assert await kept(manager, root) == []


# -- failures --------------------------------------------------------------------------------------------------


async def test_unknown_repository_tag_or_digest_is_not_found(manager: ImageManager, registry: Registry) -> None:
    registry.push("app", "1", build_image(BASE))
    for name in ("nothing:1", "app:2", f"app@{digest_of(b'nothing')}"):
        with pytest.raises(NotFound, match="manifest unknown"):
            await manager.pull(f"{registry.address}/{name}")


async def test_index_without_this_platform_is_not_found(manager: ImageManager, registry: Registry) -> None:
    reference = registry.push("app", "1", build_index(("s390x", build_image(BASE))))
    with pytest.raises(NotFound, match="no image found"):
        await manager.pull(reference)


async def test_unreachable_registry_is_unavailable(manager: ImageManager, registry: Registry) -> None:
    registry.stop()
    with pytest.raises(Unavailable, match=r"^RegistryUnavailable: .*connection refused"):
        await manager.pull(f"{registry.address}/app:1")


async def test_missing_skopeo_is_reported_with_the_setting(root: Path, registry: Registry) -> None:
    async with image_manager(root, registry, skopeo="/nowhere/skopeo") as manager:
        with pytest.raises(Unavailable, match=r"/nowhere/skopeo.*images\.skopeo"):
            await manager.pull("app")


async def test_malformed_reference_is_an_invalid_argument(manager: ImageManager) -> None:
    with pytest.raises(InvalidArgument, match=r"^image\.image: "):
        await manager.pull("NOT A REFERENCE")


async def test_pull_times_out(root: Path, registry: Registry) -> None:
    reference = registry.push("app", "1", build_image(BASE))
    async with image_manager(root, registry, pull_timeout=0.001) as manager:
        with pytest.raises(DeadlineExceeded, match=r"images\.pull_timeout"):
            await manager.pull(reference)
        assert await kept(manager, root) == []


async def test_stalled_pull_times_out(root: Path, registry: Registry) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with (
        server,
        image_manager(root, registry, pull_progress_timeout=0.5, insecure_registries=(address,)) as manager,
    ):
        before = figures.value("image_pulls_total", code="DEADLINE_EXCEEDED")
        with pytest.raises(DeadlineExceeded, match=r"images\.pull_progress_timeout"):
            await manager.pull(f"{address}/app:1")
        assert figures.value("image_pulls_total", code="DEADLINE_EXCEEDED") == before + 1


async def test_image_refused_by_the_policy_is_not_pulled(root: Path, registry: Registry, tmp_path: Path) -> None:
    policy = tmp_path / "policy.json"
    policy.write_text('{"default": [{"type": "reject"}]}')
    reference = registry.push("app", "1", build_image(BASE))
    async with image_manager(root, registry, policy=policy) as manager:
        with pytest.raises(PermissionDenied, match=r"^SignatureValidationFailed: "):
            await manager.pull(reference)
        assert await kept(manager, root) == []


async def test_image_accepted_by_the_policy_is_pulled(root: Path, registry: Registry, tmp_path: Path) -> None:
    policy = tmp_path / "policy.json"
    accepted = {registry.address: [{"type": "insecureAcceptAnything"}]}
    policy.write_text(json.dumps({"default": [{"type": "reject"}], "transports": {"docker": accepted}}))
    reference = registry.push("app", "1", build_image(BASE, TOP))
    async with image_manager(root, registry, policy=policy) as manager:
        assert (await manager.pull(reference)).tags == (reference,)


def counted() -> dict[str, float]:
    return {
        "succeeded": figures.value("image_pulls_total", code="OK"),
        "not found": figures.value("image_pulls_total", code="NOT_FOUND"),
        "timed": figures.value("image_pull_duration_seconds_count"),
        "layers fetched": figures.value("image_layers_total", source="registry"),
        "layers there": figures.value("image_layers_total", source="store"),
        "bytes fetched": figures.value("image_fetched_bytes_total"),
        "bytes unpacked": figures.value("image_unpacked_bytes_total"),
    }


async def test_pulls_are_counted(manager: ImageManager, registry: Registry) -> None:
    before = counted()
    await manager.pull(registry.push("base", "1", build_image(BASE)))
    reference = registry.push("app", "1", build_image(BASE, TOP))
    await manager.pull(reference)
    await manager.pull(reference)
    with pytest.raises(NotFound):
        await manager.pull(f"{registry.address}/app:2")
    assert {name: value - before[name] for name, value in counted().items()} == {
        "succeeded": 3,
        "not found": 1,
        "timed": 4,
        "layers fetched": 2,
        "layers there": 1,
        "bytes fetched": len(gzipped(BASE)) + len(gzipped(TOP)),
        "bytes unpacked": len(BASE) + len(TOP),
    }
    assert figures.value("image_pulls_in_flight") == 0


@pytest.mark.parametrize("compress", [plain, gzipped, zstd])
async def test_progress_counts_compressed_bytes(
    manager: ImageManager, registry: Registry, compress: Callable[[bytes], bytes]
) -> None:
    await manager.pull(registry.push("app", "1", build_image(BASE, TOP, compress=compress)))
    size = len(compress(BASE)) + len(compress(TOP))
    assert manager.progress == Progress(
        fetched=size, total=size, unpacked=len(BASE) + len(TOP), done=2, layers=2, present=0
    )


async def test_pull_is_logged_with_layers_and_bytes(
    manager: ImageManager, registry: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    await manager.pull(registry.push("base", "1", build_image(BASE)))
    reference = registry.push("app", "1", build_image(BASE, TOP))
    with caplog.at_level("INFO", "pvecri.images.manager"):
        await manager.pull(reference)
    (line,) = [record.getMessage() for record in caplog.records if reference in record.getMessage()]
    assert line.startswith(f"pulled {reference} in ")
    size = len(gzipped(TOP))
    assert line.endswith(f": 1 layers with {size} bytes, unpacked {len(TOP)}; 1 layers were present")


async def test_cancelled_pull_leaves_nothing(manager: ImageManager, registry: Registry, root: Path) -> None:
    reference = registry.push("app", "1", build_image(BASE, TOP))
    pull = asyncio.ensure_future(manager.pull(reference))
    while not list((root / "overlay/new").iterdir()) and not pull.done():
        await asyncio.sleep(0)
    pull.cancel()
    with pytest.raises(asyncio.CancelledError):
        await pull
    assert await kept(manager, root) == []
    assert (await manager.pull(reference)).tags == (reference,)


async def test_protected_registry_needs_the_right_credentials(root: Path, protected: Registry) -> None:
    reference = protected.push("app", "1", build_image(BASE))
    async with image_manager(root, protected) as manager:
        for wrong in (None, RegistryAuth(username=USER, password="wrong")):
            with pytest.raises(PermissionDenied, match="authentication required"):
                await manager.pull(reference, wrong)
        elsewhere = RegistryAuth(username=USER, password=PASSWORD, server_address="elsewhere.example")
        with pytest.raises(PermissionDenied):
            await manager.pull(reference, elsewhere)
        right = RegistryAuth(username=USER, password=PASSWORD, server_address=protected.address)
        assert (await manager.pull(reference, right)).tags == (reference,)
        assert not list((root / "tmp").iterdir())


async def test_blob_with_a_wrong_digest_is_refused(manager: ImageManager, registry: Registry, root: Path) -> None:
    built = build_image(BASE)
    reference = registry.push("app", "1", built)
    registry.corrupt_blob(digest_of(built.layers[0]), gzipped(TOP))
    with pytest.raises(Exception, match=digest_of(built.layers[0]).removeprefix("sha256:")):
        await manager.pull(reference)
    assert await kept(manager, root) == []


async def test_layer_with_a_wrong_diff_id_is_refused(
    manager: ImageManager, registry: Registry, root: Path
) -> None:
    built = build_image(BASE, TOP, diff_ids=[digest_of(BASE), digest_of(b"other")])
    reference = registry.push("app", "1", built)
    with pytest.raises(BadImage, match=f"{digest_of(TOP)}, but the config has {digest_of(b'other')}"):
        await manager.pull(reference)
    assert await kept(manager, root) == []


async def test_claiming_a_diff_id_does_not_give_access_to_the_layer(
    manager: ImageManager, registry: Registry
) -> None:
    await manager.pull(registry.push("secret", "1", build_image(BASE)))
    thief = build_image(TOP, diff_ids=[digest_of(BASE)])
    with pytest.raises(BadImage, match="but the config has"):
        await manager.pull(registry.push("thief", "1", thief))


async def test_known_blob_with_another_diff_id_is_refused(manager: ImageManager, registry: Registry) -> None:
    await manager.pull(registry.push("app", "1", build_image(BASE)))
    await manager.idle()
    liar = build_image(BASE, diff_ids=[digest_of(TOP)])
    with pytest.raises(BadImage, match=f"has the diff ID {digest_of(BASE)}"):
        await manager.pull(registry.push("liar", "1", liar))


@pytest.mark.parametrize(
    ("layer_type", "config_type", "problem"),
    [
        ("application/vnd.oci.image.layer.v1.tar+gzip+encrypted", None, "encrypted"),
        ("application/vnd.oci.image.layer.v1.tar+gzip+encrypted", "application/json", "encrypted"),
    ],
)
async def test_unsupported_media_types_are_refused(
    manager: ImageManager, registry: Registry, layer_type: str | None, config_type: str | None, problem: str
) -> None:
    built = build_image(BASE, layer_type=layer_type, config_type=config_type)
    with pytest.raises(Exception, match=problem):
        await manager.pull(registry.push("app", "1", built))
