# SPDX-License-Identifier: Apache-2.0
"""What plugins are told of an OCI runtime spec (config.json); all else in one is not read."""

from __future__ import annotations

import msgspec

from pvecri.oci.adjustment import IoPriority, Rdt, Scheduler


class Part(msgspec.Struct, frozen=True, rename="camel"):
    """The base of the parts."""


class User(Part, frozen=True):
    """Who the first process runs as."""

    uid: int = 0
    gid: int = 0
    additional_gids: list[int] = []


class Rlimit(Part, frozen=True):
    """A POSIX resource limit."""

    type: str
    hard: int
    soft: int


class Process(Part, frozen=True):
    """What runs."""

    args: list[str] = []
    env: list[str] = []
    user: User = User()
    rlimits: list[Rlimit] = []
    oom_score_adj: int | None = None
    io_priority: IoPriority | None = None
    scheduler: Scheduler | None = None


class Mount(Part, frozen=True):
    """A mount."""

    destination: str
    type: str = ""
    source: str = ""
    options: list[str] = []


class Hook(Part, frozen=True):
    """A program at one turn of the life."""

    path: str
    args: list[str] = []
    env: list[str] = []
    timeout: int | None = None


class Hooks(Part, frozen=True):
    """The programs, by turn."""

    prestart: list[Hook] = []
    create_runtime: list[Hook] = []
    create_container: list[Hook] = []
    start_container: list[Hook] = []
    poststart: list[Hook] = []
    poststop: list[Hook] = []


class Namespace(Part, frozen=True):
    """Without a path it is a new one."""

    type: str
    path: str = ""


class Device(Part, frozen=True):
    """A device node."""

    path: str
    type: str
    major: int = 0
    minor: int = 0
    file_mode: int | None = None
    uid: int | None = None
    gid: int | None = None


class DeviceRule(Part, frozen=True):
    """An entry of the device allow-list; no number means any."""

    allow: bool
    type: str = ""
    major: int | None = None
    minor: int | None = None
    access: str = ""


class Hugepages(Part, frozen=True):
    """A limit, in bytes."""

    page_size: str
    limit: int


class Resources(Part, frozen=True):
    """The cgroup's limits."""

    memory: dict[str, int] = {}
    cpu: dict[str, int | str] = {}
    hugepage_limits: list[Hugepages] = []
    unified: dict[str, str] = {}
    devices: list[DeviceRule] = []
    pids: dict[str, int] = {}


class SyscallArgument(Part, frozen=True):
    """A condition on an argument."""

    index: int = 0
    value: int = 0
    value_two: int = 0
    op: str = ""


class Syscall(Part, frozen=True):
    """What to do about some system calls."""

    names: list[str]
    action: str
    errno_ret: int | None = None
    args: list[SyscallArgument] = []


class Seccomp(Part, frozen=True):
    """The system call filter."""

    default_action: str
    default_errno_ret: int | None = None
    architectures: list[str] = []
    flags: list[str] = []
    listener_path: str = ""
    listener_metadata: str = ""
    syscalls: list[Syscall] = []


class Linux(Part, frozen=True):
    """All that is Linux's."""

    namespaces: list[Namespace] = []
    devices: list[Device] = []
    resources: Resources = Resources()
    cgroups_path: str = ""
    seccomp: Seccomp | None = None
    sysctl: dict[str, str] = {}
    net_devices: dict[str, dict[str, str]] = {}
    intel_rdt: Rdt | None = None


class Spec(Part, frozen=True):
    """The whole."""

    process: Process = Process()
    mounts: list[Mount] = []
    hooks: Hooks = Hooks()
    annotations: dict[str, str] = {}
    linux: Linux = Linux()
