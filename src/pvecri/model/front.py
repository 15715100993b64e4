# SPDX-License-Identifier: Apache-2.0
"""Pods and containers that another runtime (CRI-O, containerd, podman) runs through `pvecri-runtime`.

That runtime is the *front*: it keeps image, root filesystem, namespaces and log; the CT is pvecri's.
"""

from __future__ import annotations

from enum import Enum

from pvecri.model.base import Value


class FrontKind(Enum):
    """The front, by its annotations. NONE is podman, `ctr`, or whoever else knows no pods."""

    CRIO = "CRI-O"
    CONTAINERD = "containerd"
    NONE = "OCI client"

    @property
    def is_podless(self) -> bool:
        """Whether it knows no pods: each of its containers is one."""
        return self is FrontKind.NONE


class FrontSandbox(Value, frozen=True):
    """What a front says of a pod.

    `sandbox_id` is the id by which the front's calls name the pod. It is the pod's id, too, unless the pod has got
    a CT that had waited for one; empty in rows of earlier versions.
    `namespace` is the path of a namespace that the front keeps as long as the pod exists, empty if it keeps none.
    `has_container`: the front makes a container for the sandbox itself and deletes it with the pod; else the pod
    ends with its namespace or its last container.
    """

    kind: FrontKind
    namespace: str = ""
    has_container: bool = False
    sandbox_id: str = ""


class FrontContainer(Value, frozen=True):
    """A container as its front knows it: its id, --root, bundle and cgroup.

    `sandbox`: it is the pod's own container, which no list shows. `created` is set once `create` has succeeded.
    """

    id: str
    root: str
    bundle: str
    cgroup: str = ""
    sandbox: bool = False
    created: bool = False
