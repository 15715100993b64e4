# SPDX-License-Identifier: Apache-2.0
"""A kubelet's cgroups: which are a pod's, and what of them is written to CTs."""

from __future__ import annotations

from pathlib import Path

import pytest

from pvecri.config.settings import VmidRange
from pvecri.linux.cgroups import Cgroups
from pvecri.linux.limits import Limits
from pvecri.model import Resources, Sandbox, SandboxConfig, SandboxId, SandboxMetadata, SandboxPhase, Vmid
from pvecri.pods.registry import PodEntry
from pvecri.pods.sandbox.kubelet_cgroups import (
    KubeletCgroups,
    all_pods_cgroup,
    expand_slice,
    pod_cgroup,
    pod_resources,
)

UID = "9af64c6b-b393-4851-8ea5-ac8f2367eb2d"
SLICE = "kubepods-burstable-pod9af64c6b_b393_4851_8ea5_ac8f2367eb2d.slice"
EXPANDED = f"/kubepods.slice/kubepods-burstable.slice/{SLICE}"
MIB = 1 << 20

FILES = ("memory.max", "memory.min", "memory.low", "memory.swap.max", "cpu.max", "cpu.weight", "pids.max")


def config(cgroup_parent: str, uid: str = UID) -> SandboxConfig:
    return SandboxConfig(
        metadata=SandboxMetadata(name="web", namespace="shop", uid=uid), cgroup_parent=cgroup_parent
    )


@pytest.mark.parametrize(
    ("cgroup_parent", "group"),
    [
        (f"/kubepods/pod{UID}", f"/kubepods/pod{UID}"),
        (f"/kubepods/besteffort/pod{UID}", f"/kubepods/besteffort/pod{UID}"),
        (f"/site/kubepods/burstable/pod{UID}", f"/site/kubepods/burstable/pod{UID}"),
        (f"kubepods/pod{UID}", f"/kubepods/pod{UID}"),
        (EXPANDED, EXPANDED),
        (SLICE, EXPANDED),
        ("", ""),
        ("/", ""),
        ("/system.slice", ""),
        ("/kubepods/burstable", ""),
        ("/kubepods/pod00000000-0000-4000-8000-000000000000", ""),
        (f"/kubepods/../../etc/pod{UID}", ""),
    ],
)
def test_the_kubelets_cgroup_of_a_pod_is_known_by_the_pods_uid(cgroup_parent: str, group: str) -> None:
    assert pod_cgroup(config(cgroup_parent)) == group


def test_a_pod_without_a_uid_has_no_cgroup_of_a_kubelets() -> None:
    assert pod_cgroup(config("/kubepods/pod", uid="")) == ""


@pytest.mark.parametrize(
    ("group", "all_pods"),
    [
        (f"/kubepods/pod{UID}", "/kubepods"),
        (f"/site/kubepods/burstable/pod{UID}", "/site/kubepods"),
        (EXPANDED, "/kubepods.slice"),
        ("/site.slice/site-kubepods.slice/site-kubepods-pod1.slice", "/site.slice/site-kubepods.slice"),
        (f"/other/pod{UID}", ""),
        ("", ""),
    ],
)
def test_the_cgroup_of_all_pods_is_above_that_of_one(group: str, all_pods: str) -> None:
    assert all_pods_cgroup(group) == all_pods


@pytest.mark.parametrize(
    ("name", "path"),
    [("a.slice", "/a.slice"), ("a-b.slice", "/a.slice/a-b.slice"), (SLICE, EXPANDED)],
)
def test_a_slice_is_where_systemd_has_it(name: str, path: str) -> None:
    assert expand_slice(name) == path


ASKED = Resources(memory_limit=64 * MIB, cpu_quota=20_000, cpu_period=100_000, cpu_shares=102)


@pytest.mark.parametrize(
    ("pod", "memory_limit", "cpu_quota"),
    [
        (None, 64 * MIB, 20_000),
        (Limits(), 0, 0),
        (Limits(memory=64 * MIB), 64 * MIB, 0),
        (Limits(cpu_quota=20_000), 0, 20_000),
        (Limits(memory=64 * MIB, cpu_quota=20_000), 64 * MIB, 20_000),
    ],
)
def test_a_pod_has_only_the_limits_that_its_cgroup_has(
    pod: Limits | None, memory_limit: int, cpu_quota: int
) -> None:
    found = pod_resources(ASKED, pod)
    assert (found.memory_limit, found.cpu_quota, found.cpu_shares) == (memory_limit, cpu_quota, 102)


# -- writing, on a tree of version 2 made of plain files -----------------------------------------------------


def group(root: Path, path: str, **limits: str) -> None:
    directory = root / path
    directory.mkdir(parents=True)
    for name in FILES:
        default = {"cpu.weight": "100", "memory.min": "0", "memory.low": "0"}.get(name, "max")
        (directory / name).write_text(limits.get(name.replace(".", "_"), default))


def limit(root: Path, path: str, name: str) -> str:
    return (root / path / name).read_text()


def pod(vmid: int = 900_000) -> PodEntry:
    parent = f"/kubepods/burstable/pod{UID}"
    sandbox = Sandbox(
        id=SandboxId("a" * 64),
        config=config(parent),
        created_at=0,
        phase=SandboxPhase.READY,
        vmid=Vmid(vmid),
    )
    return PodEntry(sandbox, Path("/nonexistent"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    group(tmp_path, "kubepods", memory_max="1073741824", memory_min="4194304", pids_max="1000", cpu_weight="157")
    group(tmp_path, f"kubepods/burstable/pod{UID}", memory_low="1048576", pids_max="100")
    group(tmp_path, "lxc")
    group(tmp_path, "lxc/900000")
    return tmp_path


def mirror(root: Path, *, enforce_node_allocatable: bool = False) -> None:
    cgroups = Cgroups(v2=root, v1={})
    KubeletCgroups(cgroups, VmidRange(), enforce_node_allocatable=enforce_node_allocatable).mirror(pod())


def test_limits_that_proxmox_has_no_option_for_are_written_to_the_ct(root: Path) -> None:
    mirror(root)
    assert limit(root, "lxc/900000", "pids.max") == "100"
    assert limit(root, "lxc/900000", "memory.low") == "1048576"
    assert limit(root, "lxc/900000", "memory.min") == "0"


def test_limits_that_proxmox_sets_are_left_to_it(root: Path) -> None:
    mirror(root)
    assert limit(root, "lxc/900000", "memory.max") == "max"
    assert limit(root, "lxc/900000", "cpu.weight") == "100"


def all_cts(root: Path) -> list[str]:
    return [limit(root, "lxc", name) for name in ("memory.max", "memory.min", "pids.max", "cpu.weight")]


def test_all_cts_together_are_not_bound_by_default(root: Path) -> None:
    mirror(root)
    assert all_cts(root) == ["max", "0", "max", "100"]


def test_all_cts_together_are_bound_as_all_pods_where_that_is_set(root: Path) -> None:
    mirror(root, enforce_node_allocatable=True)
    assert all_cts(root) == ["1073741824", "4194304", "1000", "157"]


def test_a_ct_that_is_no_pod_lifts_the_bound(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    mirror(root, enforce_node_allocatable=True)
    group(root, "lxc/105")
    mirror(root, enforce_node_allocatable=True)
    assert all_cts(root) == ["max", "0", "max", "100"]
    assert "CT 105 is not a pod" in caplog.text


def test_all_cts_together_are_bound_once_for_many_pods(root: Path) -> None:
    searches: list[str] = []

    class Counted(Cgroups):
        def children(self, group: str) -> list[str]:
            searches.append(group)
            return super().children(group)

    kubelet = KubeletCgroups(Counted(v2=root, v1={}), VmidRange(), enforce_node_allocatable=True)
    pods = [pod(900_001 + number) for number in range(20)]
    for each in pods:
        group(root, f"lxc/{each.value.vmid}")
        kubelet.mirror_own(each)
    assert all_cts(root) == ["max", "0", "max", "100"]
    kubelet.bound_all([config(""), *(each.value.config for each in pods)])
    assert all_cts(root) == ["1073741824", "4194304", "1000", "157"]
    assert searches == ["/lxc"]


def test_a_limit_that_the_kernel_refuses_is_logged(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    (root / "lxc/900000/pids.max").unlink()
    mirror(root)
    assert "web_shop" in caplog.text
    assert "pids.max" in caplog.text
