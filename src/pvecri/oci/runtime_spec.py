# SPDX-License-Identifier: Apache-2.0
"""The OCI runtime spec 1.2 (config.json), as far as pvecri writes and reads it, under the names of config.md.

A field without a default is always written. One with a default is written only if it differs: None, an empty tuple
and an empty table stand for an absent field.
"""

from __future__ import annotations

from collections.abc import Collection

import msgspec
from msgspec import field

from pvecri.model import Propagation

OCI_VERSION = "1.0.2"
"""What `ociVersion` declares: crun compares it with the prefixes that it knows, and refuses all others."""


class Part(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """An object of the spec. Unknown fields are ignored."""


class Root(Part, frozen=True):
    """`root`."""

    path: str
    readonly: bool


class User(Part, frozen=True):
    """`process.user`: IDs inside the container's user namespace."""

    uid: int
    gid: int
    umask: int | None = None
    additional_gids: tuple[int, ...] | None = None


class Capabilities(Part, frozen=True):
    """`process.capabilities`: None is an absent set, which the runtimes treat as an empty one."""

    bounding: tuple[str, ...] | None = None
    effective: tuple[str, ...] | None = None
    permitted: tuple[str, ...] | None = None
    inheritable: tuple[str, ...] | None = None
    ambient: tuple[str, ...] | None = None


class Rlimit(Part, frozen=True):
    """An entry of `process.rlimits`; `type` is a name such as RLIMIT_NOFILE."""

    type: str
    hard: int
    soft: int


class IoPriority(Part, frozen=True):
    """`process.ioPriority`; the class is one of IOPRIO_CLASS_*."""

    class_: str = field(default="", name="class")
    priority: int = 0


class Scheduler(Part, frozen=True):
    """`process.scheduler`: sched_setattr(2). Times are nanoseconds."""

    policy: str = ""
    nice: int = 0
    priority: int = 0
    flags: tuple[str, ...] = ()
    runtime: int = 0
    deadline: int = 0
    period: int = 0


class Process(Part, frozen=True):
    """`process`; `env` has NAME=VALUE entries."""

    terminal: bool
    user: User
    args: tuple[str, ...]
    env: tuple[str, ...]
    cwd: str
    capabilities: Capabilities
    no_new_privileges: bool
    oom_score_adj: int
    apparmor_profile: str = ""
    rlimits: tuple[Rlimit, ...] = ()
    io_priority: IoPriority | None = None
    scheduler: Scheduler | None = None


class Mount(Part, frozen=True):
    """An entry of `mounts`; `source` is what mount(2) takes for `type`, a path of the node for a bind mount."""

    destination: str
    type: str = ""
    source: str = ""
    options: tuple[str, ...] = ()

    @property
    def is_bind(self) -> bool:
        """Whether it shows a part of the node's file tree."""
        return self.type == "bind" or "bind" in self.options or "rbind" in self.options

    @property
    def propagation(self) -> Propagation:
        """The mount propagation that its options name; private if they name none."""
        return next((each for each in Propagation if each.value in self.options), Propagation.PRIVATE)


class Hook(Part, frozen=True):
    """An entry of `hooks`; `timeout` is in seconds."""

    path: str
    args: tuple[str, ...]
    env: tuple[str, ...]
    timeout: int | None = None


class Namespace(Part, frozen=True):
    """An entry of `linux.namespaces`: joined by `path`, or a new one if there is none."""

    type: str
    path: str = ""


class IdMapping(Part, frozen=True):
    """An entry of `linux.uidMappings` and `linux.gidMappings`."""

    container_id: int = field(name="containerID")
    host_id: int = field(name="hostID")
    size: int


class Device(Part, frozen=True):
    """An entry of `linux.devices`: a node that the runtime makes in /dev."""

    path: str
    type: str
    major: int
    minor: int
    file_mode: int
    uid: int
    gid: int


class DeviceRule(Part, frozen=True):
    """An entry of `linux.resources.devices`, the allow-list; None means any number, no type any type."""

    allow: bool
    access: str
    type: str = ""
    major: int | None = None
    minor: int | None = None


class Memory(Part, frozen=True):
    """`linux.resources.memory`, in bytes; `swap` is memory and swap together."""

    limit: int | None = None
    reservation: int | None = None
    swap: int | None = None


class Cpu(Part, frozen=True):
    """`linux.resources.cpu`; times are microseconds, `cpus` and `mems` lists as cpuset(7) has them."""

    shares: int | None = None
    quota: int | None = None
    period: int | None = None
    realtime_runtime: int | None = None
    realtime_period: int | None = None
    cpus: str = ""
    mems: str = ""


class Pids(Part, frozen=True):
    """`linux.resources.pids`."""

    limit: int


class HugepageLimit(Part, frozen=True):
    """An entry of `linux.resources.hugepageLimits`: bytes of pages of one size, such as `2MB`."""

    page_size: str
    limit: int


class Resources(Part, frozen=True):
    """`linux.resources`; also what `runc update --resources` reads."""

    cpu: Cpu | None = None
    memory: Memory | None = None
    hugepage_limits: tuple[HugepageLimit, ...] = ()
    pids: Pids | None = None
    unified: dict[str, str] = {}
    devices: tuple[DeviceRule, ...] = ()


class SyscallArg(Part, frozen=True):
    """A condition on one argument of a system call."""

    index: int
    value: int
    op: str
    value_two: int | None = None


class Syscall(Part, frozen=True):
    """An entry of `linux.seccomp.syscalls`."""

    names: tuple[str, ...]
    action: str
    errno_ret: int | None = None
    args: tuple[SyscallArg, ...] = ()


class Seccomp(Part, frozen=True):
    """`linux.seccomp`."""

    default_action: str
    default_errno_ret: int | None = None
    architectures: tuple[str, ...] = ()
    flags: tuple[str, ...] | None = None
    listener_path: str = ""
    listener_metadata: str = ""
    syscalls: tuple[Syscall, ...] | None = None


class NetDevice(Part, frozen=True):
    """An entry of `linux.netDevices` (1.3): a device of the node's, and its name in the container."""

    name: str


class IntelRdt(Part, frozen=True):
    """`linux.intelRdt`."""

    clos_id: str | None = field(default=None, name="closID")
    schemata: tuple[str, ...] | None = None
    enable_monitoring: bool | None = None


class MemoryPolicy(Part, frozen=True):
    """`linux.memoryPolicy` (1.3): set_mempolicy(2)."""

    mode: str = ""
    nodes: str = ""
    flags: tuple[str, ...] = ()


class Linux(Part, frozen=True):
    """`linux`."""

    namespaces: tuple[Namespace, ...]
    cgroups_path: str
    resources: Resources
    devices: tuple[Device, ...] | None = None
    rootfs_propagation: str = ""
    uid_mappings: tuple[IdMapping, ...] = ()
    gid_mappings: tuple[IdMapping, ...] = ()
    seccomp: Seccomp | None = None
    masked_paths: tuple[str, ...] | None = None
    readonly_paths: tuple[str, ...] | None = None
    sysctl: dict[str, str] = {}
    net_devices: dict[str, NetDevice] = {}
    intel_rdt: IntelRdt | None = None
    memory_policy: MemoryPolicy | None = None


class Spec(Part, frozen=True):
    """The whole config.json; `hooks` are by kind, such as createRuntime."""

    oci_version: str
    root: Root
    process: Process
    mounts: tuple[Mount, ...]
    linux: Linux
    annotations: dict[str, str] = {}
    hooks: dict[str, tuple[Hook, ...]] = {}


def rootfs_propagation(modes: Collection[str]) -> str:
    """The `linux.rootfsPropagation` for mounts with these propagation modes: a more private root cuts them off."""
    wider = (Propagation.BIDIRECTIONAL.value, Propagation.HOST_TO_CONTAINER.value)
    return next((mode for mode in wider if mode in modes), Propagation.PRIVATE.value)


def encode(spec: Spec) -> bytes:
    """The spec as indented JSON: administrators read it."""
    return msgspec.json.format(msgspec.json.encode(spec), indent=1)


def decode(document: bytes) -> Spec:
    """The spec of a config.json that `encode` wrote."""
    return msgspec.json.decode(document, type=Spec)


class _Command(Part, frozen=True):
    cwd: str


class _Executable(Part, frozen=True):
    process: _Command


def working_directory(document: bytes) -> str:
    """`process.cwd` of any config.json, also of one that a front has written."""
    return msgspec.json.decode(document, type=_Executable).process.cwd
