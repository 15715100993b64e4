# SPDX-License-Identifier: Apache-2.0
"""Paths and names of a container on the node: its bundle, its root filesystems, its staged volumes."""

from __future__ import annotations

import shutil
from pathlib import Path

from pvecri.linux import mounts
from pvecri.model import Container, ContainerId
from pvecri.oci.runtime import Bundle
from pvecri.pods.container import volumes
from pvecri.pods.registry import ContainerEntry, PodEntry


def staging(container: ContainerEntry) -> Path:
    """The directory where idmapped clones of a container's volumes are mounted."""
    return container.bundle.directory / "volumes"


def device_nodes(bundle: Bundle) -> Path:
    """The directory with the device nodes of a container in a user namespace."""
    return bundle.directory / "devices"


def userns(pod: PodEntry) -> Path | None:
    """The pod's user namespace; None if that is the node's."""
    return pod.namespace("user") if pod.value.mappings else None


def image_volume_name(container: ContainerId, mount: int) -> str:
    """The Image Manager's name of an image volume: the container's id and the mount's index."""
    return f"{container}.{mount}"


def rootfs_names(container: Container) -> list[str]:
    """The Image Manager's names of a container's root filesystem and of its image volumes; a front has its own."""
    if container.front is not None:
        return []
    images = [index for index, mount in enumerate(container.config.mounts) if mount.image]
    return [container.id, *(image_volume_name(container.id, index) for index in images)]


def remove_device_nodes(bundle: Bundle) -> None:
    """Remove the nodes of a container's devices. Idempotent."""
    if device_nodes(bundle).exists():
        mounts.remove_tree(device_nodes(bundle))


def remove_bundle(bundle: Bundle) -> None:
    """Remove a bundle. Idempotent."""
    # First: rmtree would delete the files of volumes that are still mounted below.
    volumes.unstage(bundle.directory / "volumes")
    if (bundle.directory / "ns").exists():  # of a front's container
        mounts.remove_tree(bundle.directory / "ns")
    remove_device_nodes(bundle)
    shutil.rmtree(bundle.directory, ignore_errors=True)
