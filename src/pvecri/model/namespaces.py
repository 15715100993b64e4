# SPDX-License-Identifier: Apache-2.0
"""The namespaces of pods and containers."""

from __future__ import annotations

from enum import Enum

from pvecri.model.base import Value


class NamespaceMode(Enum):
    """The owner of a container's namespace (CRI NamespaceMode)."""

    POD = "pod"
    CONTAINER = "container"
    NODE = "node"
    TARGET = "target"


class IdMapping(Value, frozen=True):
    """CRI IDMapping: `length` IDs from `container_id` inside the user namespace are `host_id`… outside."""

    container_id: int
    host_id: int
    length: int

    def has(self, inside: int) -> bool:
        """Whether it maps the ID `inside` the user namespace."""
        return self.container_id <= inside < self.container_id + self.length


class UserNamespace(Value, frozen=True):
    """CRI UserNamespace of a request; the pod's user namespace is a UserNamespaceDecision.

    A kubelet sends POD with mappings for `hostUsers: false`, and NODE without mappings for every other pod.
    """

    mode: NamespaceMode = NamespaceMode.NODE
    uids: tuple[IdMapping, ...] = ()
    gids: tuple[IdMapping, ...] = ()


class NamespaceOptions(Value, frozen=True):
    """CRI NamespaceOption. `target_id` is a container id if `pid` is TARGET."""

    # POD is the zero value of the enum in cri.proto, so an unset field means it.
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
    """The owner of the user namespace in which a pod's containers run.

    CT: an unprivileged CT; Proxmox maps all of them to the same host IDs. POD: a pause container in a privileged
    CT, with host IDs of the pod's own. NODE: the node; root is root.
    """

    CT = "ct"
    POD = "pod"
    NODE = "node"


class UserNamespaceReason(Enum):
    """The rule that decided on a pod's user namespace."""

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
    FRONT = "front"


class UserNamespaceDecision(Value, frozen=True):
    """A pod's user namespace, and why (pods/user_namespaces.py).

    `detail` is for people: the field, volume or setting that decided. `mappings` are those of the request; for
    kind POD without them pvecri allocates host IDs, with extents for `extra_ids`.
    """

    kind: UserNamespaceKind = UserNamespaceKind.CT
    reason: UserNamespaceReason = UserNamespaceReason.DEFAULT
    detail: str = ""
    mappings: tuple[IdMapping, ...] = ()
    extra_ids: tuple[int, ...] = ()
