# SPDX-License-Identifier: Apache-2.0
"""Pods, containers and images as immutable values, which all components use.

The names are the CRI's; `cri/` translates from and to protobuf. A change makes a new value
(`msgspec.structs.replace`, decision 0004). Sizes are bytes and times nanoseconds since the epoch unless the name
has another unit. The store writes values as JSON, so a new field needs a default.
"""

from pvecri.model.base import ContainerId, ImageId, SandboxId, Value, Vmid
from pvecri.model.container import (
    Container,
    ContainerConfig,
    ContainerMetadata,
    ContainerState,
    ContainerUser,
    Device,
    Mount,
    Propagation,
)
from pvecri.model.front import FrontContainer, FrontKind, FrontSandbox
from pvecri.model.image import FilesystemUsage, Image, ImageConfig, RegistryAuth
from pvecri.model.namespaces import (
    IdMapping,
    NamespaceMode,
    NamespaceOptions,
    UserNamespace,
    UserNamespaceDecision,
    UserNamespaceKind,
    UserNamespaceReason,
)
from pvecri.model.resources import HugepageLimit, Resources
from pvecri.model.sandbox import (
    DnsConfig,
    Firewall,
    FirewallRule,
    PortMapping,
    Protocol,
    ProxmoxInterface,
    Sandbox,
    SandboxConfig,
    SandboxMetadata,
    SandboxPhase,
    SandboxState,
    WarmCt,
)
from pvecri.model.security import (
    Capabilities,
    ContainerSecurity,
    GroupsPolicy,
    ProfileKind,
    SandboxSecurity,
    SecurityProfile,
)

__all__ = [
    "Capabilities",
    "Container",
    "ContainerConfig",
    "ContainerId",
    "ContainerMetadata",
    "ContainerSecurity",
    "ContainerState",
    "ContainerUser",
    "Device",
    "DnsConfig",
    "FilesystemUsage",
    "Firewall",
    "FirewallRule",
    "FrontContainer",
    "FrontKind",
    "FrontSandbox",
    "GroupsPolicy",
    "HugepageLimit",
    "IdMapping",
    "Image",
    "ImageConfig",
    "ImageId",
    "Mount",
    "NamespaceMode",
    "NamespaceOptions",
    "PortMapping",
    "ProfileKind",
    "Propagation",
    "Protocol",
    "ProxmoxInterface",
    "RegistryAuth",
    "Resources",
    "Sandbox",
    "SandboxConfig",
    "SandboxId",
    "SandboxMetadata",
    "SandboxPhase",
    "SandboxSecurity",
    "SandboxState",
    "SecurityProfile",
    "UserNamespace",
    "UserNamespaceDecision",
    "UserNamespaceKind",
    "UserNamespaceReason",
    "Value",
    "Vmid",
    "WarmCt",
]
