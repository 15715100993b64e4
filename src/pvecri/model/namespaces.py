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

    def has(self, inside: int) -> bool:
        """Whether it maps this ID of the user namespace."""
        return self.container_id <= inside < self.container_id + self.length


class UserNamespace(Value, frozen=True):
    """CRI UserNamespace as a client sends it. What a pod gets is UserNamespaceDecision.

    A kubelet sends POD with mappings for `hostUsers: false`, and NODE without for every other pod.
    """

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


class UserNamespaceKind(Enum):
    """Whose user namespace the containers of a pod run in.

    CT: the one of an unprivileged CT, whose ID range Proxmox gives to all of them. POD: one made for the pod
    alone, in a privileged CT that holds nothing but its init. NODE: the node's, root is root.
    """

    CT = "ct"
    POD = "pod"
    NODE = "node"


class UserNamespaceReason(Enum):
    """Why a pod is in the user namespace that it is in."""

    DEFAULT = "default"
    PER_POD = "per-pod"
    KUBELET_MAPPING = "kubelet-mapping"
    CRI_NODE = "cri-node"
    PRIVILEGED = "privileged"
    HOST_NETWORK = "host-network"
    HOST_PID = "host-pid"
    HOST_IPC = "host-ipc"
    ANNOTATION = "annotation"
    RUNTIME_HANDLER = "runtime-handler"
    HIGH_IDS = "high-ids"
    VOLUME = "volume"
    UNPRIVILEGED_OFF = "unprivileged-off"


class UserNamespaceDecision(Value, frozen=True):
    """Which user namespace a pod gets, and why (pods/user_namespaces.py).

    `detail` is for people: what in the request, the node or the configuration led to it. `mappings` are those of
    the kubelet's choice; of kind POD without them pvecri chooses, with an extent for each of `extra_ids`.
    """

    kind: UserNamespaceKind = UserNamespaceKind.CT
    reason: UserNamespaceReason = UserNamespaceReason.DEFAULT
    detail: str = ""
    mappings: tuple[IdMapping, ...] = ()
    extra_ids: tuple[int, ...] = ()
