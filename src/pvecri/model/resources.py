# SPDX-License-Identifier: Apache-2.0
"""Limits (CRI LinuxContainerResources)."""

from __future__ import annotations

import msgspec

from pvecri.model.base import Value


class HugepageLimit(Value, frozen=True):
    """CRI HugepageLimit: `page_size` is the kernel's name, such as `2MB`; `limit` is bytes."""

    page_size: str
    limit: int


class Resources(Value, frozen=True):
    """CRI LinuxContainerResources; 0 or empty is unset.

    `cpu_period` and `cpu_quota` are microseconds; `cpu_shares` are cgroup v1 shares (2 to 262144). The last four
    are not the CRI's; NRI plugins set them. A `pids_limit` of -1 is unlimited.
    """

    cpu_period: int = 0
    cpu_quota: int = 0
    cpu_shares: int = 0
    memory_limit: int = 0
    memory_swap_limit: int = 0
    oom_score_adj: int = 0
    cpuset_cpus: str = ""
    cpuset_mems: str = ""
    hugepage_limits: tuple[HugepageLimit, ...] = ()
    unified: dict[str, str] = {}
    cpu_realtime_runtime: int = 0
    cpu_realtime_period: int = 0
    memory_reservation: int = 0
    pids_limit: int = 0

    def updated(self, changes: Resources) -> Resources:
        """These, with the values that are set in `changes`."""
        # So a limit cannot be set to 0, which is "unset" in the CRI; -1 removes one.
        values = {
            name: value
            for name in self.__struct_fields__
            if (value := getattr(changes, name)) != getattr(Resources(), name)
        }
        return msgspec.structs.replace(self, **values)
