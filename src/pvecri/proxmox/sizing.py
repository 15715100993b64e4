# SPDX-License-Identifier: Apache-2.0
"""The size of a pod's CT, computed from the pod's resources.

Proxmox sets `memory.max` to the CT's memory and `memory.high` to 1016/1024 of it, from 16 GiB on to 128 MiB less
(PVE::LXC::Config). Above `memory.high` the kernel throttles everything in the cgroup, so the CT gets enough that
its `memory.high` covers the sum of its containers' limits: a container reaches its own limit first.
"""

from __future__ import annotations

import msgspec

from pvecri.linux.accounting import UNLIMITED
from pvecri.model import Resources

MIB = 1 << 20
MEMORY_MIN_MIB = 16  # the minimum of Proxmox's `memory`
HIGH_GAP_MAX_MIB = 128  # from 16 GiB on (PVE::LXC::Config, calculate_memory_constraints)
CPULIMIT_MAX = 8192.0  # the maximum of Proxmox's `cpulimit`
CPU_PERIOD_DEFAULT = 100_000  # microseconds; the kernel's default too
CPUUNITS_DEFAULT = 100  # cgroup v2's default weight, and Proxmox's
SHARES_MIN, SHARES_MAX = 2, 262_144  # the range of cgroup v1's cpu.shares


class CtSize(msgspec.Struct, frozen=True, kw_only=True):
    """A CT's size in Proxmox's units: MiB; cores, 0 for no limit; cgroup v2 weight, 1 to 10000."""

    memory_mib: int
    swap_mib: int = 0
    cpulimit: float = 0.0
    cpuunits: int = CPUUNITS_DEFAULT


def ct_size(
    resources: Resources, overhead: Resources, *, node_memory: int, overhead_mib: int, swap: int | None = None
) -> CtSize:
    """The size of a pod's CT.

    `resources` is the sum of the pod's containers and `overhead` the RuntimeClass's (CRI LinuxPodSandboxConfig);
    `node_memory` is bytes, used for "no limit"; `overhead_mib` is proxmox.memory_overhead_mib; `swap` is bytes,
    by default computed from `resources`.
    """
    return CtSize(
        memory_mib=memory_mib(resources, overhead, node_memory=node_memory, overhead_mib=overhead_mib),
        swap_mib=swap_mib(resources) if swap is None else _ceil_div(swap, MIB),
        cpulimit=cpulimit(resources, overhead),
        cpuunits=cpuunits(resources, overhead),
    )


def memory_mib(resources: Resources, overhead: Resources, *, node_memory: int, overhead_mib: int) -> int:
    """The CT's memory: the pod's limit, the overhead of init and conmon, and the gap above memory.high."""
    if not 0 < resources.memory_limit < UNLIMITED:  # Proxmox has no "unlimited": unset means 512 MiB
        return max(MEMORY_MIN_MIB, node_memory // MIB)
    wanted = resources.memory_limit + max(0, overhead.memory_limit)
    return max(MEMORY_MIN_MIB, _with_gap(_ceil_div(wanted, MIB) + overhead_mib))


def swap_mib(resources: Resources) -> int:
    """The CT's swap: the pod's memory_swap_limit minus its memory_limit; 0 if unset."""
    if not 0 < resources.memory_limit < min(resources.memory_swap_limit, UNLIMITED):
        return 0
    return _ceil_div(resources.memory_swap_limit - resources.memory_limit, MIB)


def cpulimit(resources: Resources, overhead: Resources) -> float:
    """Cores, rounded up to hundredths so that the CT never has less than its containers; 0 for no limit."""
    if resources.cpu_quota <= 0:
        return 0.0
    hundredths = _quota_hundredths(resources) + _quota_hundredths(overhead)
    # Hundredths: what the API's form encoding keeps (ctspec.wire).
    return min(CPULIMIT_MAX, hundredths / 100)


def cpuunits(resources: Resources, overhead: Resources) -> int:
    """The CT's cgroup v2 weight, converted from cgroup v1 shares as runc and crun do."""
    shares = max(0, resources.cpu_shares) + max(0, overhead.cpu_shares)
    if shares == 0:
        return CPUUNITS_DEFAULT
    shares = min(max(shares, SHARES_MIN), SHARES_MAX)
    # Shares 2 to 262144 are mapped linearly to weights 1 to 10000.
    return 1 + (shares - SHARES_MIN) * 9999 // (SHARES_MAX - SHARES_MIN)


def _with_gap(high_mib: int) -> int:
    """The smallest memory whose `memory.high` is at least `high_mib`."""
    return min(_ceil_div(high_mib * 1024, 1016), high_mib + HIGH_GAP_MAX_MIB)


def _quota_hundredths(resources: Resources) -> int:
    if resources.cpu_quota <= 0:
        return 0
    return _ceil_div(resources.cpu_quota * 100, resources.cpu_period or CPU_PERIOD_DEFAULT)


def _ceil_div(dividend: int, divisor: int) -> int:
    return -(-dividend // divisor)
