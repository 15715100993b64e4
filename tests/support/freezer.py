# SPDX-License-Identifier: Apache-2.0
"""Freezing cgroups from outside of pvecri."""

from __future__ import annotations

from support.cri_client import eventually

from pvecri.linux import cgroups

GROUPS = cgroups.detect()


def freeze(group: str) -> None:
    """Freeze a cgroup, as `runc pause` and `pct suspend` do: version 1's freezer may stay FREEZING until it is
    written again.
    """

    def is_frozen() -> bool:
        GROUPS.freeze(group, frozen=True)
        return GROUPS.is_frozen(group)

    eventually(is_frozen, f"{group} is frozen")
