# SPDX-License-Identifier: Apache-2.0
"""What a container has on the node besides its processes: its bundle, its root filesystems, its volumes."""

from __future__ import annotations

import shutil
from pathlib import Path

from pvecri.linux import mounts
from pvecri.model import Container, ContainerId
from pvecri.oci.runtime import Bundle
from pvecri.pods.container import volumes
from pvecri.pods.registry import ContainerEntry, PodEntry


def staging(container: ContainerEntry) -> Path:
    """Where idmapped clones of the node's volumes are mounted for a container."""
    return container.bundle.directory / "volumes"


def device_nodes(bundle: Bundle) -> Path:
    """Where the devices of a container in a user namespace have their nodes."""
    return bundle.directory / "devices"


def userns(pod: PodEntry) -> Path | None:
    """The pod's user namespace, None when it has the node's."""
    return pod.namespace("user") if pod.value.mappings else None


def image_volume_name(container: ContainerId, mount: int) -> str:
    """What the Image Manager knows an image volume by: the container's id and the mount's index."""
    return f"{container}.{mount}"


def rootfs_names(container: Container) -> list[str]:
    """What the Image Manager knows a container's root filesystem and its image volumes by."""
    images = [index for index, mount in enumerate(container.config.mounts) if mount.image]
    return [container.id, *(image_volume_name(container.id, index) for index in images)]


def remove_device_nodes(bundle: Bundle) -> None:
    """Remove the nodes of a container's devices. Idempotent."""
    if device_nodes(bundle).exists():
        mounts.remove_tree(device_nodes(bundle))


def remove_bundle(bundle: Bundle) -> None:
    """Remove a bundle. Clones of the node's volumes may be mounted below it: they are never entered."""
    volumes.unstage(bundle.directory / "volumes")
    remove_device_nodes(bundle)
    shutil.rmtree(bundle.directory, ignore_errors=True)
