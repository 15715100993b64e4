# SPDX-License-Identifier: Apache-2.0
"""Responses of the Proxmox API, with the fields that pvecri uses.

Perl does not distinguish types: a number may be sent as a string, and a boolean as 0, 1, "" or "1". So they are
decoded with msgspec's `strict=False`.
"""

from __future__ import annotations

from enum import Enum

import msgspec

from pvecri.model import Vmid


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """The base of all responses; unknown fields are ignored."""


class Version(Answer, frozen=True):
    """GET /version: `version` such as `9.2.11`."""

    version: str


class Memory(Answer, frozen=True):
    """Bytes."""

    total: int


class NodeStatus(Answer, frozen=True):
    """GET /nodes/{node}/status."""

    memory: Memory


class StorageStatus(Answer, frozen=True):
    """GET /nodes/{node}/storage/{storage}/status; `content` is a comma-separated list.

    A storage that is enabled and not `active` is offline: not mounted, its server or device not available.
    """

    type: str
    content: str = ""
    enabled: bool = True
    active: bool = False

    @property
    def contents(self) -> frozenset[str]:
        """The content types that the storage allows, such as `rootdir` and `vztmpl`."""
        return frozenset(self.content.split(","))

    def problem(self, storage: str) -> str:
        """Why the storage of this name is not active, for an error."""
        if not self.enabled:
            return f"storage {storage} is disabled, or not for this node (/etc/pve/storage.cfg)"
        return f"storage {storage} is offline: `pvesm status` on the node says why"


class StorageConfig(Answer, frozen=True):
    """One of GET /storage: a storage of storage.cfg; `path` and `pool` depend on its type.

    Only storages on which the account has Datastore.AllocateSpace or Datastore.Audit are listed.
    """

    storage: str
    type: str
    path: str = ""
    pool: str = ""


class StorageItem(Answer, frozen=True):
    """One volume of GET /nodes/{node}/storage/{storage}/content."""

    volid: str


class VolumeInfo(Answer, frozen=True):
    """GET /nodes/{node}/storage/{storage}/content/{volume}; `path` is the file on the node."""

    path: str


class Guest(Answer, frozen=True):
    """One of GET /cluster/resources?type=vm: a CT (`type` lxc) or a VM (qemu), on any node of the cluster.

    Only what is current: pvestatd refreshes `status` and `name` every ten seconds, and until then a new guest has
    those of the last one of its VMID.
    """

    vmid: Vmid
    node: str
    type: str


class TagAccess(Answer, frozen=True):
    """The option `user-tag-access`; `allow` is `none`, `list`, `existing` or `free`."""

    allow: str = msgspec.field(name="user-allow", default="free")

    @property
    def free(self) -> bool:
        """Whether every account may set any tag that is not registered."""
        return self.allow == "free"


class DatacenterOptions(Answer, frozen=True):
    """GET /cluster/options; `allowed_tags` are those that our account may set, besides any others.

    The restrictions of tags are shown with Sys.Audit on `/` only.
    """

    allowed_tags: tuple[str, ...] = msgspec.field(name="allowed-tags", default=())
    tag_access: TagAccess | None = msgspec.field(name="user-tag-access", default=None)
    registered_tags: tuple[str, ...] = msgspec.field(name="registered-tags", default=())


class CtEntry(Answer, frozen=True):
    """One of GET /nodes/{node}/lxc; sizes are bytes, `tags` are separated by semicolons.

    `cpus` is the CT's option `cores`, else its `cpulimit`, else the number of the node's CPUs.
    """

    vmid: Vmid
    name: str = ""
    cpus: float = 0.0
    maxmem: int = 0
    maxswap: int = 0
    tags: str = ""
    lock: str = ""


class CtConfig(Answer, frozen=True):
    """GET /nodes/{node}/lxc/{vmid}/config; `raw` has every option as text, as `pct config` shows it."""

    description: str = ""
    hostname: str = ""
    lock: str = ""
    rootfs: str = ""
    template: bool = False
    raw: dict[str, str] = {}

    @property
    def root_volume(self) -> str:
        """The volume id of the root filesystem, such as `local:900001/subvol-900001-disk-0.subvol`."""
        return self.rootfs.partition(",")[0].removeprefix("volume=")

    @property
    def rootfs_storage(self) -> str:
        """The storage of the root filesystem."""
        return self.root_volume.partition(":")[0]


class TaskState(Enum):
    """Whether a task still runs."""

    RUNNING = "running"
    STOPPED = "stopped"


class TaskStatus(Answer, frozen=True):
    """GET /nodes/{node}/tasks/{upid}/status."""

    status: TaskState
    exitstatus: str = ""

    @property
    def succeeded(self) -> bool:
        """Whether it succeeded; a task with warnings (`WARNINGS: n`) did."""
        return self.exitstatus == "OK" or self.exitstatus.startswith("WARNINGS:")


class TaskEntry(Answer, frozen=True):
    """One of GET /nodes/{node}/tasks; `pstart` is clock ticks since boot.

    `endtime` is when Proxmox has noticed the end; None while the task is in the list of active ones.
    """

    upid: str
    type: str
    starttime: int
    endtime: int | None = None
    pstart: int = 0
    id: str = ""


class LogLine(Answer, frozen=True):
    """One of GET /nodes/{node}/tasks/{upid}/log."""

    t: str


def ct_config(options: dict[str, object]) -> CtConfig:
    """The config of a CT from the decoded response; `lxc.*` lines are joined to one text."""
    raw = {name: _text(value) for name, value in options.items()}
    return msgspec.structs.replace(msgspec.convert(options, CtConfig, strict=False), raw=raw)


def _text(value: object) -> str:
    if isinstance(value, list):
        return "\n".join(": ".join(map(str, item)) if isinstance(item, list) else str(item) for item in value)
    return str(value)
