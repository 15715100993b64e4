# SPDX-License-Identifier: Apache-2.0
"""Hooks of the pod and container lifecycle; nri/ implements them with NRI plugins.

A hook may raise PvecriError only where its docstring says that it may refuse. Hooks are idempotent: they set
`notified` of the pod or container and send no event twice.
"""

from __future__ import annotations

from pvecri.model import Resources
from pvecri.oci.adjustment import Adjustment
from pvecri.pods.registry import ContainerEntry, PodEntry


class Hooks:
    """The hooks without NRI: they do nothing."""

    async def run_pod(self, pod: PodEntry) -> None:
        """Before the pod becomes READY; its CT and network exist. May refuse: `remove_pod` follows then."""

    async def update_pod(self, pod: PodEntry, resources: Resources, overhead: Resources) -> None:
        """Before the pod's CT is resized; unset fields keep their values. May refuse."""

    async def updated_pod(self, pod: PodEntry) -> None:
        """After the pod's CT was resized."""

    async def stop_pod(self, pod: PodEntry) -> None:
        """After the pod's containers have exited, before its network and its CT are stopped."""

    async def remove_pod(self, pod: PodEntry) -> None:
        """After the pod was removed, or its creation failed."""

    async def create_container(self, pod: PodEntry, container: ContainerEntry) -> Adjustment | None:
        """Before the container becomes CREATED; returns the changes to it. May refuse: `remove_container` follows.

        The root filesystem and the OCI spec exist.
        """
        return None

    async def created_container(self, pod: PodEntry, container: ContainerEntry) -> None:
        """After the container became CREATED."""

    async def start_container(self, pod: PodEntry, container: ContainerEntry) -> None:
        """Before the container is started. May refuse."""

    async def started_container(self, pod: PodEntry, container: ContainerEntry) -> None:
        """After the container became RUNNING."""

    async def update_container(self, pod: PodEntry, container: ContainerEntry, changes: Resources) -> Resources:
        """Before the container's limits change; returns the changes to make. May refuse."""
        return changes

    async def updated_container(self, pod: PodEntry, container: ContainerEntry) -> None:
        """After the container's limits changed."""

    async def stop_container(self, pod: PodEntry, container: ContainerEntry) -> None:
        """After the container exited or failed to start."""

    async def remove_container(self, pod: PodEntry, container: ContainerEntry) -> None:
        """Before the container is removed, or after its creation failed."""
