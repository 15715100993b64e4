# SPDX-License-Identifier: Apache-2.0
"""Containers, pods and CTs that somebody froze can be stopped and removed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from support.cri_client import CriClient, eventually, security
from support.daemon import Machine
from support.freezer import GROUPS, freeze

from pvecri.cri.proto import cri_pb2 as pb

COUNTS = "while true; do echo counted; usleep 1000; done"


def freeze_container(cri: CriClient, pod: str, container: str) -> None:
    freeze(f"/lxc/{cri.vmid(pod)}/{container}")


def freeze_ct(cri: CriClient, pod: str, _: str) -> None:
    freeze(f"/lxc/{cri.vmid(pod)}")


def freeze_below_container(cri: CriClient, pod: str, container: str) -> None:
    """Freeze a group of the container's own, as a privileged container can."""
    group = f"/lxc/{cri.vmid(pod)}/{container}/below"
    GROUPS.make(group)
    pid = GROUPS.processes(f"/lxc/{cri.vmid(pod)}/{container}")[0]
    for directory in GROUPS.directories(group):
        (directory / "cgroup.procs").write_text(str(pid))
    freeze(group)


def freeze_unified(cri: CriClient, pod: str, _: str) -> None:
    """Freeze the CT in version 2's tree, which a hybrid host has beside version 1's freezer."""
    if GROUPS.v2 is None or not (GROUPS.v2 / f"lxc/{cri.vmid(pod)}").exists():
        pytest.skip("the CT has no group of version 2 on this machine")
    (GROUPS.v2 / f"lxc/{cri.vmid(pod)}/cgroup.freeze").write_text("1")


every_freezer = pytest.mark.parametrize(
    "frozen", [freeze_container, freeze_ct, freeze_below_container, freeze_unified]
)
Freeze = Callable[[CriClient, str, str], None]


@every_freezer
@pytest.mark.parametrize("grace", [0, 1])
def test_frozen_container_is_stopped(cri: CriClient, pod: str, container: str, frozen: Freeze, grace: int) -> None:
    frozen(cri, pod, container)
    cri.stop(container, timeout=grace)
    status = cri.status(container)
    assert (status.state, status.exit_code) == (pb.CONTAINER_EXITED, 137)


@every_freezer
def test_frozen_container_is_removed(cri: CriClient, pod: str, container: str, frozen: Freeze) -> None:
    frozen(cri, pod, container)
    cri.remove(container)
    assert cri.containers() == []


@every_freezer
def test_pod_with_a_frozen_container_is_removed(
    machine: Machine, cri: CriClient, pod: str, container: str, frozen: Freeze
) -> None:
    frozen(cri, pod, container)
    cri.stop_pod(pod)
    assert cri.status(container).exit_code == 137
    cri.remove_pod(pod)
    machine.assert_nothing_left()


def test_pod_without_containers_in_a_frozen_ct_is_removed(machine: Machine, cri: CriClient, pod: str) -> None:
    freeze(f"/lxc/{cri.vmid(pod)}/ns")
    cri.stop_pod(pod)
    cri.remove_pod(pod)
    machine.assert_nothing_left()


def test_frozen_container_does_not_run_on_before_it_dies(cri: CriClient, pod: str) -> None:
    shared = security(namespace_options=pb.NamespaceOption(pid=pb.POD))
    # Not the first process: of a PID namespace that is shared, the kernel does not kill the others with that.
    container = cri.run(pod, "sh", "-c", f"({COUNTS}) & sleep 1000", linux=shared)
    eventually(lambda: "counted" in cri.text(container), "it counts")
    freeze_container(cri, pod, container)
    before = cri.text(container).count("counted")
    cri.stop(container)
    assert cri.text(container).count("counted") <= before + 1  # one may have been in the pipe to conmon


def test_other_containers_stay_frozen(cri: CriClient, pod: str, container: str) -> None:
    other = cri.run(pod, "sleep", "1000", name="other")
    freeze_container(cri, pod, other)
    cri.stop(container)
    assert GROUPS.is_frozen(f"/lxc/{cri.vmid(pod)}/{other}")
