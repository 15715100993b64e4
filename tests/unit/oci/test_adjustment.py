# SPDX-License-Identifier: Apache-2.0
"""Adjustments change the named parts of an OCI spec, and nothing else."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from support.plans import PLAN

from pvecri.oci import spec
from pvecri.oci.adjustment import Adjustment
from pvecri.oci.cdi import Hook
from pvecri.oci.runtime_spec import (
    DeviceRule,
    IntelRdt,
    IoPriority,
    MemoryPolicy,
    Mount,
    Rlimit,
    Scheduler,
    Seccomp,
    Syscall,
    SyscallArg,
)


def built(adjustment: Adjustment | None = None) -> dict[str, Any]:
    """The OCI spec of a plain container with an adjustment."""
    document: dict[str, Any] = json.loads(spec.build(replace(PLAN, adjustment=adjustment)))
    return document


def at(document: Any, path: str) -> Any:
    """The part of a document at a dotted path; None when it is not there."""
    for name in path.split("."):
        document = document.get(name) if isinstance(document, dict) else None
    return document


SYSCALL = Syscall(
    names=("ptrace",),
    action="SCMP_ACT_ERRNO",
    errno_ret=1,
    args=(SyscallArg(index=0, value=0, value_two=0, op="SCMP_CMP_EQ"),),
)


@pytest.mark.parametrize(
    ("adjustment", "path", "expected"),
    [
        (Adjustment(annotations={"k": "v"}), "annotations.k", "v"),
        (Adjustment(args=("/bin/other", "x")), "process.args", ["/bin/other", "x"]),
        (
            Adjustment(rlimits=(Rlimit(type="RLIMIT_CORE", hard=0, soft=0),)),
            "process.rlimits",
            [{"type": "RLIMIT_CORE", "hard": 0, "soft": 0}],
        ),
        (
            Adjustment(hooks=(Hook(hook_name="prestart", path="/bin/true", args=("true",), timeout=3),)),
            "hooks.prestart",
            [{"path": "/bin/true", "args": ["true"], "env": [], "timeout": 3}],
        ),
        (Adjustment(sysctls={"kernel.shmmax": "1"}), "linux.sysctl", {"kernel.shmmax": "1"}),
        (Adjustment(net_devices={"eth9": "net1"}), "linux.netDevices", {"eth9": {"name": "net1"}}),
        (
            Adjustment(io_priority=IoPriority(class_="IOPRIO_CLASS_BE", priority=4)),
            "process.ioPriority",
            {"class": "IOPRIO_CLASS_BE", "priority": 4},
        ),
        (
            Adjustment(scheduler=Scheduler(policy="SCHED_BATCH", nice=5)),
            "process.scheduler",
            {"policy": "SCHED_BATCH", "nice": 5},
        ),
        (
            Adjustment(rdt=IntelRdt(clos_id="gold", schemata=("L3:0=f",))),
            "linux.intelRdt",
            {"closID": "gold", "schemata": ["L3:0=f"]},
        ),
        (
            Adjustment(memory_policy=MemoryPolicy(mode="MPOL_BIND", nodes="0")),
            "linux.memoryPolicy",
            {"mode": "MPOL_BIND", "nodes": "0"},
        ),
        (
            Adjustment(seccomp=Seccomp(default_action="SCMP_ACT_ALLOW", syscalls=(SYSCALL,))),
            "linux.seccomp",
            {
                "defaultAction": "SCMP_ACT_ALLOW",
                "syscalls": [
                    {
                        "names": ["ptrace"],
                        "action": "SCMP_ACT_ERRNO",
                        "errnoRet": 1,
                        "args": [{"index": 0, "value": 0, "valueTwo": 0, "op": "SCMP_CMP_EQ"}],
                    }
                ],
            },
        ),
    ],
)
def test_adjustment_sets_only_the_named_part(adjustment: Adjustment, path: str, expected: object) -> None:
    document = built(adjustment)
    assert at(document, path) == expected
    top = path.partition(".")[0]
    before = built()
    for name in before:
        if name != top:
            assert document[name] == before[name]


def test_empty_adjustment_changes_nothing() -> None:
    assert built(Adjustment()) == built()


def test_environment_variables_are_added_replaced_and_removed() -> None:
    environment = built(Adjustment(env={"PATH": "/bin", "HOSTNAME": None, "NEW": "1"}))["process"]["env"]
    assert environment == ["PATH=/bin", "NEW=1"]


def test_annotations_are_removed() -> None:
    name = "io.kubernetes.cri.container-name"
    assert name in built()["annotations"]
    assert name not in built(Adjustment(annotations={name: None}))["annotations"]


def test_mount_replaces_the_one_at_the_same_destination() -> None:
    shm = Mount(destination="/dev/shm", type="tmpfs", source="tmpfs", options=("size=1m",))
    mounts = built(Adjustment(mounts={"/dev/shm": shm, "/sys": None}))["mounts"]
    assert [each for each in mounts if each["destination"] in ("/dev/shm", "/sys")] == [
        {"destination": "/dev/shm", "type": "tmpfs", "source": "tmpfs", "options": ["size=1m"]}
    ]


def test_mounts_are_sorted_by_depth() -> None:
    added: dict[str, Mount | None] = {
        path: Mount(destination=path, type="tmpfs") for path in ("/data/a/b", "/data")
    }
    places = [each["destination"] for each in built(Adjustment(mounts=added))["mounts"]]
    assert places.index("/data") < places.index("/data/a/b")


@pytest.mark.parametrize("mode", ["rslave", "rshared"])
def test_rootfs_propagation_follows_added_mounts(mode: str) -> None:
    mount = Mount(destination="/m", type="bind", source="/", options=("rbind", mode))
    assert built(Adjustment(mounts={"/m": mount}))["linux"]["rootfsPropagation"] == mode


def test_namespaces_are_joined_created_and_removed() -> None:
    changes = {"network": "/run/netns/x", "ipc": None, "cgroup": ""}
    namespaces = built(Adjustment(namespaces=changes))["linux"]["namespaces"]
    kinds = {each["type"]: each.get("path") for each in namespaces}
    assert kinds["network"] == "/run/netns/x"
    assert kinds["cgroup"] is None
    assert "ipc" not in kinds


def test_device_rules_are_appended() -> None:
    rules = built(Adjustment(device_rules=(DeviceRule(allow=True, type="c", major=10, access="rw"),)))
    assert rules["linux"]["resources"]["devices"][-1] == {"allow": True, "type": "c", "major": 10, "access": "rw"}


@pytest.mark.parametrize(
    ("adjustment", "path"),
    [
        (Adjustment(io_priority=IoPriority()), "process.ioPriority"),
        (Adjustment(scheduler=Scheduler()), "process.scheduler"),
        (Adjustment(rdt=IntelRdt()), "linux.intelRdt"),
    ],
)
def test_empty_part_removes_the_part(adjustment: Adjustment, path: str) -> None:
    assert at(built(adjustment), path) is None
