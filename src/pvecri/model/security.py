# SPDX-License-Identifier: Apache-2.0
"""Security contexts (CRI LinuxSandboxSecurityContext, LinuxContainerSecurityContext)."""

from __future__ import annotations

from enum import Enum

from pvecri.model.base import Value
from pvecri.model.namespaces import NamespaceOptions


class ProfileKind(Enum):
    """CRI SecurityProfile.ProfileType."""

    RUNTIME_DEFAULT = "runtime/default"
    UNCONFINED = "unconfined"
    LOCALHOST = "localhost"


class SecurityProfile(Value, frozen=True):
    """CRI SecurityProfile, for seccomp or AppArmor; `localhost_ref` is its path or name if LOCALHOST."""

    kind: ProfileKind = ProfileKind.RUNTIME_DEFAULT
    localhost_ref: str = ""


class GroupsPolicy(Enum):
    """CRI SupplementalGroupsPolicy: the image's /etc/group adds groups (MERGE) or not (STRICT)."""

    MERGE = "merge"
    STRICT = "strict"


class SandboxSecurity(Value, frozen=True):
    """CRI LinuxSandboxSecurityContext."""

    namespaces: NamespaceOptions = NamespaceOptions()
    privileged: bool = False
    readonly_rootfs: bool = False
    run_as_user: int | None = None
    run_as_group: int | None = None
    supplemental_groups: tuple[int, ...] = ()
    groups_policy: GroupsPolicy = GroupsPolicy.MERGE
    seccomp: SecurityProfile | None = None
    apparmor: SecurityProfile | None = None
    selinux_label: str = ""


class Capabilities(Value, frozen=True):
    """CRI Capability: names in upper case without `CAP_`; `ALL` means all."""

    add: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    ambient: tuple[str, ...] = ()


class ContainerSecurity(Value, frozen=True):
    """CRI LinuxContainerSecurityContext."""

    namespaces: NamespaceOptions = NamespaceOptions()
    privileged: bool = False
    capabilities: Capabilities = Capabilities()
    run_as_user: int | None = None
    run_as_group: int | None = None
    run_as_username: str = ""
    supplemental_groups: tuple[int, ...] = ()
    groups_policy: GroupsPolicy = GroupsPolicy.MERGE
    readonly_rootfs: bool = False
    no_new_privs: bool = False
    masked_paths: tuple[str, ...] = ()
    readonly_paths: tuple[str, ...] = ()
    seccomp: SecurityProfile | None = None
    apparmor: SecurityProfile | None = None
    selinux_label: str = ""
