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
    """GET /version: `version` such as `9.2.11`, `release` such as `9.2`."""

    version: str
    release: str = ""


class Memory(Answer, frozen=True):
    """Bytes."""

    total: int
    used: int = 0
    free: int = 0


class CpuInfo(Answer, frozen=True):
    """`cpus` counts hardware threads."""

    cpus: int


class NodeStatus(Answer, frozen=True):
    """GET /nodes/{node}/status."""

    memory: Memory
    cpuinfo: CpuInfo
    pveversion: str = ""
    uptime: int = 0


class StorageStatus(Answer, frozen=True):
    """GET /nodes/{node}/storage/{storage}/status; sizes in bytes, `content` as a comma-separated list."""

    type: str
    content: str = ""
    active: bool = False
    enabled: bool = False
    shared: bool = False
    total: int = 0
    used: int = 0
    avail: int = 0

    @property
    def contents(self) -> frozenset[str]:
        """The content types that the storage allows, such as `rootdir` and `vztmpl`."""
        return frozenset(self.content.split(","))


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
    size: int = 0


class VolumeInfo(Answer, frozen=True):
    """GET /nodes/{node}/storage/{storage}/content/{volume}; `path` is the file on the node."""

    path: str


class Guest(Answer, frozen=True):
    """One of GET /cluster/resources?type=vm: a CT (`type` lxc) or a VM (qemu), on any node of the cluster.

    That the guest exists, its tags and its lock are current. pvestatd refreshes `status` and `name` every ten
    seconds; a new guest has those of the last one of its VMID until then, or none.
    """

    vmid: Vmid
    node: str
    type: str
    status: str = "unknown"
    name: str = ""
    tags: str = ""
    pool: str = ""
    template: bool = False

    @property
    def tag_set(self) -> frozenset[str]:
        """The tags; Proxmox sends them as one string."""
        return frozenset(tag for tag in self.tags.split(";") if tag)


class RunState(Enum):
    """Whether a CT runs."""

    RUNNING = "running"
    STOPPED = "stopped"


class CtStatus(Answer, frozen=True):
    """GET /nodes/{node}/lxc/{vmid}/status/current; `pid` is the init's PID on the node, 0 if stopped."""

    vmid: Vmid
    status: RunState
    pid: int = 0
    name: str = ""
    lock: str = ""
    uptime: int = 0
    cpus: float = 0
    mem: int = 0
    maxmem: int = 0


class CtConfig(Answer, frozen=True):
    """GET /nodes/{node}/lxc/{vmid}/config.

    `memory` and `swap` are MiB; `raw` has every option as text, as `pct config` shows it.
    """

    hostname: str = ""
    description: str = ""
    tags: str = ""
    ostype: str = ""
    arch: str = ""
    rootfs: str = ""
    lock: str = ""
    digest: str = ""
    memory: int = 512
    swap: int = 512
    cpulimit: float = 0
    cpuunits: int = 100
    unprivileged: bool = False
    template: bool = False
    raw: dict[str, str] = {}

    @property
    def tag_set(self) -> frozenset[str]:
        """The tags; Proxmox sends them as one string."""
        return frozenset(tag for tag in self.tags.split(";") if tag)


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
    """One of GET /nodes/{node}/tasks; `status` is empty while it runs, `pstart` is clock ticks since boot."""

    upid: str
    type: str
    starttime: int
    pstart: int = 0
    id: str = ""
    status: str = ""
    endtime: int | None = None


class LogLine(Answer, frozen=True):
    """One of GET /nodes/{node}/tasks/{upid}/log."""

    n: int
    t: str


def ct_config(options: dict[str, object]) -> CtConfig:
    """The config of a CT from the decoded response; `lxc.*` lines are joined to one text."""
    raw = {name: _text(value) for name, value in options.items()}
    return msgspec.structs.replace(msgspec.convert(options, CtConfig, strict=False), raw=raw)


def _text(value: object) -> str:
    if isinstance(value, list):
        return "\n".join(": ".join(map(str, item)) if isinstance(item, list) else str(item) for item in value)
    return str(value)
