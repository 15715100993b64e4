# SPDX-License-Identifier: Apache-2.0
"""Plans of containers for tests of the OCI spec: a plain one, and what a test changes of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from msgspec.structs import replace as changed

from pvecri.linux.cgroups import Cgroups
from pvecri.model import (
    ContainerConfig,
    ContainerId,
    ContainerMetadata,
    ContainerSecurity,
    ContainerUser,
    IdMapping,
    ImageConfig,
    NamespaceMode,
    NamespaceOptions,
    SandboxConfig,
    SandboxId,
    SandboxMetadata,
    SandboxSecurity,
)
from pvecri.oci.capabilities import DEFAULT
from pvecri.oci.features import HostFeatures, RuntimeBinary
from pvecri.oci.plan import Plan

V2 = Cgroups(v2=Path("/sys/fs/cgroup"), v1={})
V1 = Cgroups(v2=None, v1={"memory": Path("/sys/fs/cgroup/memory"), "devices": Path("/sys/fs/cgroup/devices")})
RUNC = RuntimeBinary("/usr/bin/runc", "runc", (1, 1, 15), frozenset({"rro"}))
OLD_RUNC = RuntimeBinary("/usr/bin/runc", "runc", (1, 1, 5))
FEATURES = HostFeatures(
    cgroups=V2,
    oci_runtime=RUNC,
    conmon="/usr/bin/conmon",
    capabilities=DEFAULT,
    lowest_oom_score_adj=-1000,
    apparmor=False,
    apparmor_default=False,
    selinux=False,
    swap_limit=True,
    controllers=frozenset({"cpu", "memory", "pids", "hugetlb"}),
)
CONTAINER = ContainerConfig(
    metadata=ContainerMetadata(name="web"),
    image="registry.example/web:1",
    command=("/web",),
    security=ContainerSecurity(namespaces=NamespaceOptions(pid=NamespaceMode.CONTAINER)),
)
SANDBOX = SandboxConfig(metadata=SandboxMetadata(name="web-0", namespace="shop", uid="42"))
MAPPED = (IdMapping(container_id=0, host_id=100_000, length=65_536),)
PLAN = Plan(
    id=ContainerId("c" * 64),
    sandbox_id=SandboxId("5" * 64),
    cgroup=f"/lxc/105/{'c' * 64}",
    config=CONTAINER,
    sandbox=SANDBOX,
    image=ImageConfig(),
    image_reference="registry.example/web@sha256:1",
    rootfs=Path("/rootfs"),
    user=ContainerUser(),
    binds=(),
    devices=(),
    device_nodes=Path("/run/devices"),
    pod_files=Path("/run/pod/files"),
    pod_files_restrictions=("nosuid",),
    hostname="web-0",
    mappings=(),
    namespace_dir="/run/pod/ns",
    target_pid=None,
    capabilities=DEFAULT,
    seccomp=None,
    features=FEATURES,
)


def plan(**changes: Any) -> Plan:
    """The plain plan with other fields, as Plan has them."""
    return replace(PLAN, **changes)


def configured(**fields: Any) -> Plan:
    """The plain plan with other fields of its ContainerConfig."""
    return plan(config=changed(CONTAINER, **fields))


def secured(**fields: Any) -> Plan:
    """The plain plan with other fields of its ContainerSecurity."""
    return configured(security=changed(CONTAINER.security, **fields))


def in_pod(**modes: Any) -> Plan:
    """The plain plan in a pod that uses such namespaces."""
    return plan(sandbox=changed(SANDBOX, security=SandboxSecurity(namespaces=NamespaceOptions(**modes))))


def able(**changes: Any) -> HostFeatures:
    """The plain plan's features with other fields."""
    return replace(FEATURES, **changes)
