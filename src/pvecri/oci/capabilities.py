# SPDX-License-Identifier: Apache-2.0
"""Capabilities of a container (capabilities(7); CRI Capability)."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path

from pvecri.errors import InvalidArgument
from pvecri.model import Capabilities

# In the order of their numbers in linux/capability.h.
NAMES = tuple(
    f"CAP_{name}"
    for name in (
        "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE "
        "NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT "
        "SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE "
        "AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ "
        "PERFMON BPF CHECKPOINT_RESTORE"
    ).split()
)

# The default set of containerd and Docker.
DEFAULT = frozenset(
    f"CAP_{name}"
    for name in (
        "CHOWN DAC_OVERRIDE FSETID FOWNER MKNOD NET_RAW SETGID SETUID SETFCAP SETPCAP NET_BIND_SERVICE "
        "SYS_CHROOT KILL AUDIT_WRITE"
    ).split()
)


def effective() -> frozenset[str]:
    """This process's effective set (/proc/self/status CapEff)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            # A later kernel's capabilities, which have no name here, are left out.
            bits = int(line.split()[1], 16)
            return frozenset(name for number, name in enumerate(NAMES) if bits >> number & 1)
    return frozenset()


def canonical(names: Iterable[str], field: str) -> frozenset[str]:
    """The kernel's names for CRI names, which may lack `CAP_`; `ALL` expands to every one.

    InvalidArgument names `field` if a name is unknown.
    """
    found: set[str] = set()
    for name in names:
        upper = name.upper()
        if upper == "ALL":
            found.update(NAMES)
            continue
        known = upper if upper.startswith("CAP_") else f"CAP_{upper}"
        if known not in NAMES:
            raise InvalidArgument(field, f"unknown capability {name!r}")
        found.add(known)
    return frozenset(found)


def granted(wanted: Capabilities, *, privileged: bool, available: frozenset[str]) -> frozenset[str]:
    """The capabilities of a container: the default set with `add`, without `drop`; a name in both is dropped.

    ALL in `add` starts from every capability, ALL in `drop` from none, which takes precedence: then `add` has the
    ones that stay. So do CRI-O and containerd. A privileged container gets all. Those that the daemon lacks (not
    in `available`) are left out: the kernel would refuse them.
    """
    if privileged:
        return available
    field = "config.linux.security_context.capabilities"
    all_added, add = _split(wanted.add, f"{field}.add_capabilities")
    all_dropped, drop = _split(wanted.drop, f"{field}.drop_capabilities")
    start = frozenset() if all_dropped else frozenset(NAMES) if all_added else DEFAULT
    return ((start | add) - drop) & available


def _split(names: Collection[str], field: str) -> tuple[bool, frozenset[str]]:
    """Whether ALL is among the names, and the others."""
    others = [name for name in names if name.upper() != "ALL"]
    return len(others) < len(names), canonical(others, field)
