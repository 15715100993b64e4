# SPDX-License-Identifier: Apache-2.0
"""Containers."""

from __future__ import annotations

from enum import Enum

from pvecri.model.base import ContainerId, ImageId, SandboxId, Value
from pvecri.model.front import FrontContainer
from pvecri.model.namespaces import IdMapping
from pvecri.model.resources import Resources
from pvecri.model.security import ContainerSecurity


class ContainerMetadata(Value, frozen=True):
    """CRI ContainerMetadata; both together are unique in the pod."""

    name: str
    attempt: int = 0


class Propagation(Enum):
    """CRI MountPropagation, by the names of mount(8) and the OCI spec."""

    PRIVATE = "rprivate"
    HOST_TO_CONTAINER = "rslave"
    BIDIRECTIONAL = "rshared"


class Mount(Value, frozen=True):
    """CRI Mount: a directory or file of the node, or an image's content, at `container_path`.

    `image_ref` is the id that `image` resolved to when the container was created.
    """

    container_path: str
    host_path: str = ""
    readonly: bool = False
    recursive_readonly: bool = False
    selinux_relabel: bool = False
    propagation: Propagation = Propagation.PRIVATE
    uid_mappings: tuple[IdMapping, ...] = ()
    gid_mappings: tuple[IdMapping, ...] = ()
    image: str = ""
    image_sub_path: str = ""
    image_ref: str = ""


class Device(Value, frozen=True):
    """CRI Device; `permissions` has the letters r, w and m."""

    container_path: str
    host_path: str
    permissions: str


class ContainerConfig(Value, frozen=True):
    """CRI ContainerConfig, validated. `image` is the reference as the client gave it."""

    metadata: ContainerMetadata
    image: str
    user_specified_image: str = ""
    command: tuple[str, ...] = ()
    args: tuple[str, ...] = ()
    working_dir: str = ""
    envs: tuple[tuple[str, str], ...] = ()
    mounts: tuple[Mount, ...] = ()
    devices: tuple[Device, ...] = ()
    cdi_devices: tuple[str, ...] = ()
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    log_path: str = ""
    stdin: bool = False
    stdin_once: bool = False
    tty: bool = False
    resources: Resources = Resources()
    security: ContainerSecurity = ContainerSecurity()
    stop_signal: str = ""


class ContainerState(Enum):
    """CRI ContainerState."""

    CREATED = "created"
    RUNNING = "running"
    EXITED = "exited"
    UNKNOWN = "unknown"


class ContainerUser(Value, frozen=True):
    """The user of the container's first process, by IDs inside its user namespace."""

    uid: int = 0
    gid: int = 0
    groups: tuple[int, ...] = ()


class Container(Value, frozen=True):
    """A container in the store. Times are 0 if unset; `log_path` is absolute, or empty for no log.

    `image_reference` is a digest or tag of the image. `image_name` is its first tag at the container's
    creation, or what the request named; empty for a container of an older pvecri. `added_sources` are the sources
    of bind mounts that NRI plugins added to a container in a user namespace. `front` is set for a
    front's container.
    """

    id: ContainerId
    sandbox_id: SandboxId
    config: ContainerConfig
    image_id: ImageId
    image_reference: str
    created_at: int
    state: ContainerState = ContainerState.CREATED
    started_at: int = 0
    finished_at: int = 0
    exit_code: int = 0
    reason: str = ""
    message: str = ""
    log_path: str = ""
    image_name: str = ""
    stop_signal: str = ""
    user: ContainerUser = ContainerUser()
    added_sources: tuple[str, ...] = ()
    front: FrontContainer | None = None

    @property
    def name(self) -> str:
        """NAME_ATTEMPT, unique in the sandbox."""
        return f"{self.config.metadata.name}_{self.config.metadata.attempt}"
