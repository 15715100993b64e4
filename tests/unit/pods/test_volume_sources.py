# SPDX-License-Identifier: Apache-2.0
"""Where a container's mounts and devices come from: looked up on the node, refused when it has none."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest

from pvecri.errors import InvalidArgument
from pvecri.model import ContainerConfig, ContainerMetadata, ContainerSecurity, Device, Mount, Propagation
from pvecri.oci.plan import BindSource
from pvecri.pods.container import volumes


def container(*mounts: Mount, **said: Any) -> ContainerConfig:
    return ContainerConfig(metadata=ContainerMetadata(name="main"), image="busybox", mounts=mounts, **said)


def mount(source: Path | str, **said: Any) -> Mount:
    return Mount(container_path="/data", host_path=str(source), **said)


def using(*devices: Device, privileged: bool = False) -> ContainerConfig:
    return container(devices=devices, security=ContainerSecurity(privileged=privileged))


def resolved(*mounts: Mount) -> list[BindSource]:
    return list(volumes.resolve_binds(container(*mounts), Path("/staging"), {}, mapped=False))


# -- mounts --------------------------------------------------------------------------------------------------


def test_bind_source_keeps_the_mounts_options(tmp_path: Path) -> None:
    (plain, strict) = resolved(mount(tmp_path), mount(tmp_path, readonly=True, recursive_readonly=True))
    assert (plain.source, plain.container_path, plain.propagation) == (tmp_path, "/data", "rprivate")
    assert (plain.readonly, plain.recursive_readonly) == (False, False)
    assert (strict.readonly, strict.recursive_readonly) == (True, True)


def test_symlink_is_resolved_once(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    assert resolved(mount(tmp_path / "link"))[0].source == tmp_path / "real"


def test_missing_source_is_created_as_a_directory(tmp_path: Path) -> None:
    resolved(mount(tmp_path), mount(tmp_path / "new/deep"))
    assert stat.S_IMODE((tmp_path / "new/deep").stat().st_mode) == 0o755


def test_error_for_a_source_that_cannot_be_created_has_its_index(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidArgument, match=r"^config\.mounts\[1\]\.host_path: .*/file/x does not exist"):
        resolved(mount(tmp_path), mount(tmp_path / "file/x"))


@pytest.mark.parametrize(("path", "staged"), [("/", True), ("/proc", True), ("/proc/sys", True), ("/sys", False)])
def test_source_that_contains_proc_is_staged(path: str, staged: bool) -> None:
    (bind,) = resolved(mount(Path(path)))
    assert (bind.source == Path("/staging/0")) is staged


def test_dangling_symlink_is_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("nothing")
    with pytest.raises(InvalidArgument, match=r"^config\.mounts\[0\]\.host_path: .*/link does not exist"):
        resolved(mount(tmp_path / "link"))


def test_circle_of_symlinks_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(InvalidArgument, match=r"^config\.mounts\[0\]\.host_path: .*/a"):
        resolved(mount(tmp_path / "a"))


def test_root_of_a_process_is_the_nodes_root() -> None:
    (bind,) = resolved(mount("/proc/self/root"))
    assert bind.source == Path("/staging/0")


def test_link_of_proc_to_what_has_no_path_is_refused() -> None:
    reader, writer = os.pipe()
    try:
        with pytest.raises(
            InvalidArgument, match=rf"^config\.mounts\[0\]\.host_path: /proc/self/fd/{reader} cannot"
        ):
            resolved(mount(f"/proc/self/fd/{reader}"))
    finally:
        os.close(reader)
        os.close(writer)


def test_source_in_a_user_namespace_is_a_clone_named_by_index(tmp_path: Path) -> None:
    staging = tmp_path / "staging"
    config = container(mount(tmp_path), mount("/"))
    sources = [bind.source for bind in volumes.resolve_binds(config, staging, {}, mapped=True)]
    assert sources == [staging / "0", staging / "1"]
    assert not staging.exists()


def test_a_clone_cannot_propagate_to_the_node(tmp_path: Path) -> None:
    config = container(mount(tmp_path, propagation=Propagation.BIDIRECTIONAL))
    with pytest.raises(InvalidArgument) as caught:
        volumes.resolve_binds(config, tmp_path / "staging", {}, mapped=True)
    words = "config.mounts[0].propagation: PROPAGATION_BIDIRECTIONAL needs a privileged pod"
    assert str(caught.value) == words


# -- image volumes -------------------------------------------------------------------------------------------


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """The mounted content of an image."""
    root = tmp_path / "image"
    (root / "usr/share").mkdir(parents=True)
    (root / "usr/share/data").write_text("of the image")
    (tmp_path / "secret").write_text("of the node")
    return root


def image_volume(image: Path, sub_path: str) -> BindSource:
    wanted = Mount(container_path="/data", image="data:1", image_sub_path=sub_path, readonly=True)
    (bind,) = volumes.resolve_binds(container(wanted), Path("/staging"), {0: image}, mapped=False)
    return bind


@pytest.mark.parametrize("sub_path", ["", "usr", "usr/share", "usr/share/data"])
def test_an_image_volume_shows_the_image_or_a_part_of_it(image: Path, sub_path: str) -> None:
    bind = image_volume(image, sub_path)
    assert (bind.source, bind.readonly, bind.propagation) == (image / sub_path, True, "rprivate")


@pytest.mark.parametrize("target", ["/usr", "../../../usr", "../usr"])
def test_symlink_in_an_image_is_resolved_inside_it(image: Path, target: str) -> None:
    (image / "link").symlink_to(target)
    assert image_volume(image, "link").source == image / "usr"


@pytest.mark.parametrize("target", ["../secret", "/secret", "{node}/secret", "/proc/self/root/etc/passwd"])
def test_symlink_in_an_image_cannot_escape_to_the_node(image: Path, target: str) -> None:
    (image / "link").symlink_to(target.format(node=image.parent))
    with pytest.raises(InvalidArgument) as caught:
        image_volume(image, "link")
    problem = "ImageVolumeMountFailed: 'link' is not in the image data:1: No such file or directory"
    assert str(caught.value) == f"config.mounts[0].image_sub_path: {problem}"


# -- devices -------------------------------------------------------------------------------------------------


def test_device_has_the_nodes_numbers_and_mode() -> None:
    (device,) = volumes.resolve_devices(
        using(Device(container_path="/dev/nothing", host_path="/dev/null", permissions="rw"))
    )
    assert (device.container_path, device.kind, device.access) == ("/dev/nothing", "c", "rw")
    assert (device.major, device.minor, device.uid, device.gid) == (1, 3, 0, 0)
    assert device.mode == Path("/dev/null").stat().st_mode & 0o7777


def test_container_path_of_a_device_defaults_to_its_host_path() -> None:
    (device,) = volumes.resolve_devices(using(Device(container_path="", host_path="/dev/zero", permissions="r")))
    assert device.container_path == "/dev/zero"


def test_directory_means_all_devices_in_it(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("no device")
    (tmp_path / "link").symlink_to("/dev/null")
    assert devices_of(tmp_path) == set()
    beneath = devices_of(Path("/dev"))
    assert {"/d/null", "/d/zero"} <= beneath
    assert not [path for path in beneath if path.startswith(("/d/shm/", "/d/pts/", "/d/console"))]


def devices_of(directory: Path) -> set[str]:
    wanted = Device(container_path="/d", host_path=str(directory), permissions="rwm")
    try:
        return {device.container_path for device in volumes.resolve_devices(using(wanted))}
    except InvalidArgument:
        return set()


@pytest.mark.parametrize("path", ["/dev/nothing", "/etc/passwd", "/etc"])
def test_error_for_a_non_device_has_its_index(path: str) -> None:
    good = Device(container_path="", host_path="/dev/null", permissions="r")
    with pytest.raises(InvalidArgument) as caught:
        volumes.resolve_devices(using(good, Device(container_path="", host_path=path, permissions="r")))
    assert str(caught.value) == f"config.devices[1].host_path: {path} is not a device of the node"


def test_the_last_of_two_devices_at_one_path_wins() -> None:
    devices = [
        Device(container_path="/dev/x", host_path=f"/dev/{name}", permissions="r") for name in ("null", "zero")
    ]
    (device,) = volumes.resolve_devices(using(*devices))
    assert device.minor == os.minor(Path("/dev/zero").stat().st_rdev)


def test_a_privileged_container_has_all_devices_of_the_node_but_its_own_kinds() -> None:
    found = {device.container_path: device for device in volumes.resolve_devices(using(privileged=True))}
    assert found["/dev/null"].access == "rwm"
    assert not [path for path in found if path.startswith(("/dev/pts/", "/dev/shm/", "/dev/mqueue/"))]
