# SPDX-License-Identifier: Apache-2.0
"""Whose namespaces a pod or container uses."""

from __future__ import annotations

from enum import Enum

from pvecri.model.base import Value


class NamespaceMode(Enum):
    """Whose namespace a container uses (CRI NamespaceMode)."""

    POD = "pod"
    CONTAINER = "container"
    NODE = "node"
    TARGET = "target"


class IdMapping(Value, frozen=True):
    """`length` ids from `container_id` inside the user namespace are `host_id`… outside."""

    container_id: int
    host_id: int
    length: int


class UserNamespace(Value, frozen=True):
    """The user namespace that the kubelet asks for: POD with mappings, or NODE for none."""

    mode: NamespaceMode = NamespaceMode.NODE
    uids: tuple[IdMapping, ...] = ()
    gids: tuple[IdMapping, ...] = ()


class NamespaceOptions(Value, frozen=True):
    """CRI NamespaceOption. `target_id` is a container id when `pid` is TARGET."""

    network: NamespaceMode = NamespaceMode.POD
    pid: NamespaceMode = NamespaceMode.POD
    ipc: NamespaceMode = NamespaceMode.POD
    target_id: str = ""
    user: UserNamespace | None = None

    @property
    def uses_host(self) -> bool:
        """Whether any namespace is the node's own."""
        return NamespaceMode.NODE in (self.network, self.pid, self.ipc)
