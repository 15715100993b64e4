# SPDX-License-Identifier: Apache-2.0
"""A container is frozen while a checkpoint packs its writable layer, and runs on afterwards."""

from __future__ import annotations

from pathlib import Path

from support.cri_client import CriClient, eventually
from support.daemon import Machine
from support.freezer import GROUPS, freeze

from pvecri.oci.runtime import Bundle


def test_container_frozen_for_a_checkpoint_is_thawed_after_a_crash(
    machine: Machine, cri: CriClient, pod: str, container: str
) -> None:
    group = f"/lxc/{cri.vmid(pod)}/{container}"
    bundle = Bundle(Path(machine.directory / "run/containers" / container))
    bundle.frozen_file.touch()
    freeze(group)
    machine.restart()
    eventually(lambda: not GROUPS.is_frozen(group), "it is thawed")
    assert not bundle.frozen_file.exists()


def test_container_that_somebody_else_froze_stays_frozen_over_a_restart(
    machine: Machine, cri: CriClient, pod: str, container: str
) -> None:
    group = f"/lxc/{cri.vmid(pod)}/{container}"
    freeze(group)
    machine.restart()
    assert GROUPS.is_frozen(group)
