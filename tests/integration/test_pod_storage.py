# SPDX-License-Identifier: Apache-2.0
"""Pods whose root filesystems come from each rootfs driver, over the socket. Needs root."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.cri_client import CriClient, eventually, pod_security
from support.daemon import Machine
from support.filesystems import btrfs_filesystem
from support.image_builder import LayerBuilder, build_image
from support.images import image_root
from support.machine_node import SECOND_STORAGE, EmbeddedNode

from pvecri.cri.proto import cri_pb2 as pb
from pvecri.linux import mounts

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")

SCRIPT = "id -u && touch /new && rm /etc/group && ls -n /etc/passwd | tr -s ' ' | cut -d' ' -f3 && stat -c %a /tmp"


@pytest.fixture
def place() -> Iterator[Path]:
    with image_root() as directory, btrfs_filesystem(directory) as mounted:
        yield mounted


@pytest.fixture
def on_storage(machine: Machine, place: Path, request: pytest.FixtureRequest) -> Iterator[CriClient]:
    """The machine with its images elsewhere, until the end of the test."""
    with machine.restarted(images=f'driver = "{request.param}"\nroot = "{place}/images"') as cri:
        cri.pull(machine.image)
        yield cri


@pytest.mark.parametrize("on_storage", ["raw", "btrfs"], indirect=True)
@pytest.mark.parametrize("privileged", [False, True])
def test_containers_run_and_write_with_every_driver(
    machine: Machine, on_storage: CriClient, place: Path, privileged: bool
) -> None:
    cri = on_storage
    pod = cri.run_pod(cri.pod_config(linux=pod_security(privileged=privileged)))
    assert cri.finish(pod, "sh", "-c", SCRIPT, name="first") == "0\n0\n1777\n"
    assert cri.finish(pod, "sh", "-c", "ls /new 2>&1; cat /etc/group | head -1", name="second").endswith(
        "root:x:0:\n"
    )
    running = cri.run(pod, "sleep", "1000", name="running")
    machine.restart(images=machine_settings(machine))
    cri = machine.client
    assert cri.output(running, "cat", "/etc/group").startswith("root:x:0:")
    cri.remove_pod(pod)
    (driver,) = (path for path in (place / "images").iterdir() if (path / "rootfs").exists())
    assert list((driver / "rootfs").iterdir()) == []
    assert pb.ImageSpec(image=machine.image).image in {tag for image in images(cri) for tag in image.repo_tags}


def test_root_disk_is_on_the_images_storage_with_the_configured_size(
    machine: Machine, embedded: EmbeddedNode
) -> None:
    place = embedded.state_dir / "storage" / SECOND_STORAGE / "pvecri-images"
    embedded.allow("KubeRootfs", **{"local-lvm": SECOND_STORAGE})
    # Given anew, template_storage takes the place of storage, too, which is then not set at all.
    proxmox = 'template_storage = "local"\nrootfs_size_gib = 1'
    machine.restart(proxmox=proxmox, images=f'storage = "{SECOND_STORAGE}"')
    try:
        cri = machine.client
        cri.pull(machine.image)
        pod = cri.run_pod(cri.pod_config())
        rootfs = str(machine.node.ct(cri.vmid(pod), "config")["rootfs"])
        assert (rootfs.partition(":")[0], rootfs.rpartition(",")[2]) == (SECOND_STORAGE, "size=1G")
        assert list((place / "overlay/layers").iterdir()) != []
        assert cri.finish(pod, "sh", "-c", "echo runs") == "runs\n"
        cri.remove_pod(pod)
    finally:
        machine.restart()
        mounts.umount_below(place)
        shutil.rmtree(place)


def test_images_pulled_by_proxmox_are_listed_as_templates(machine: Machine, embedded: EmbeddedNode) -> None:
    def templates() -> list[str]:
        found = machine.node.request("GET", f"/nodes/{machine.node.name}/storage/local/content")
        assert isinstance(found, list)
        return [each["volid"] for each in found if each["volid"].startswith("local:vztmpl/shown_1_")]

    embedded.allow("KubeImages", "KubeRegistries", images="local")
    machine.restart(images='template_storage = "local"')
    try:
        reference = machine.registry.push("tests/shown", "1", build_image(LayerBuilder().file("a").build()))
        machine.client.pull(reference)
        assert len(templates()) == 1
        machine.client.images.RemoveImage(pb.RemoveImageRequest(image=pb.ImageSpec(image=reference)))
        eventually(lambda: not templates(), "the template is gone with the image")
    finally:
        machine.restart()


def machine_settings(machine: Machine) -> str:
    """The settings for images that the machine runs with now."""
    lines = (machine.directory / "config.toml").read_text().splitlines()
    return "\n".join(line for line in lines if line.startswith(("driver =", "root =")))


def images(cri: CriClient) -> list[pb.Image]:
    return list(cri.images.ListImages(pb.ListImagesRequest()).images)
