# SPDX-License-Identifier: Apache-2.0
"""Adjustments of several plugins are merged; two settings of one field are a conflict that names both plugins."""

from __future__ import annotations

from typing import Any

import pytest

from pvecri.nri.errors import Conflict, PluginError
from pvecri.nri.merge import Creation, Updates
from pvecri.nri.proto import nri_pb2 as pb


def linux(**fields: Any) -> pb.ContainerAdjustment:
    """An adjustment of the Linux part."""
    return pb.ContainerAdjustment(linux=pb.LinuxContainerAdjustment(**fields))


def limits(**fields: Any) -> pb.ContainerAdjustment:
    """An adjustment of limits."""
    return linux(resources=pb.LinuxResources(**fields))


def merged(*adjustments: pb.ContainerAdjustment, container: pb.Container | None = None) -> Creation:
    """The adjustments of plugins 1, 2, … one after the other."""
    request = pb.CreateContainerRequest(container=container or pb.Container(id="c"))
    creation = Creation(request)
    for number, adjustment in enumerate(adjustments, start=1):
        creation.add(pb.CreateContainerResponse(adjust=adjustment), f"p{number}")
    return creation


# Adjustments, by the name of the field in a conflict.
ADJUSTMENTS = {
    "annotations 'k'": pb.ContainerAdjustment(annotations={"k": "v"}),
    "mounts '/m'": pb.ContainerAdjustment(mounts=[pb.Mount(destination="/m")]),
    "env 'E'": pb.ContainerAdjustment(env=[pb.KeyValue(key="E", value="v")]),
    "args": pb.ContainerAdjustment(args=["a"]),
    "rlimits 'RLIMIT_CORE'": pb.ContainerAdjustment(rlimits=[pb.POSIXRlimit(type="RLIMIT_CORE")]),
    "cdi devices 'v/c=d'": pb.ContainerAdjustment(CDI_devices=[pb.CDIDevice(name="v/c=d")]),
    "devices '/dev/d'": linux(devices=[pb.LinuxDevice(path="/dev/d", type="c")]),
    "namespace 'uts'": linux(namespaces=[pb.LinuxNamespace(type="uts")]),
    "sysctl 'kernel.x'": linux(sysctl={"kernel.x": "1"}),
    "linux net devices 'eth9'": linux(net_devices={"eth9": pb.LinuxNetDevice(name="net1")}),
    "cgroups path": linux(cgroups_path="/x"),
    "oom score adj": linux(oom_score_adj=pb.OptionalInt(value=0)),
    "io priority": linux(io_priority=pb.LinuxIOPriority(priority=1)),
    "seccomp policy": linux(seccomp_policy=pb.LinuxSeccomp(default_action="SCMP_ACT_ALLOW")),
    "linux sched": linux(scheduler=pb.LinuxScheduler(nice=1)),
    "memory policy": linux(memory_policy=pb.LinuxMemoryPolicy(nodes="0")),
    "rdt clos id": linux(rdt=pb.LinuxRdt(clos_id=pb.OptionalString(value="x"))),
    "rdt schemata": linux(rdt=pb.LinuxRdt(schemata=pb.OptionalRepeatedString(value=["L3:0=f"]))),
    "mem limit": limits(memory=pb.LinuxMemory(limit=pb.OptionalInt64(value=1))),
    "mem reservation": limits(memory=pb.LinuxMemory(reservation=pb.OptionalInt64(value=1))),
    "mem swap limit": limits(memory=pb.LinuxMemory(swap=pb.OptionalInt64(value=1))),
    "mem disable oom killer": limits(memory=pb.LinuxMemory(disable_oom_killer=pb.OptionalBool(value=False))),
    "cpu shares": limits(cpu=pb.LinuxCPU(shares=pb.OptionalUInt64(value=1))),
    "cpu quota": limits(cpu=pb.LinuxCPU(quota=pb.OptionalInt64(value=-1))),
    "cpu period": limits(cpu=pb.LinuxCPU(period=pb.OptionalUInt64(value=1))),
    "cpu set cpus": limits(cpu=pb.LinuxCPU(cpus="0")),
    "cpu set mems": limits(cpu=pb.LinuxCPU(mems="0")),
    "pids limit": limits(pids=pb.LinuxPids(limit=5)),
    "hugepage limits '2MB'": limits(hugepage_limits=[pb.HugepageLimit(page_size="2MB", limit=1)]),
    "cgroups unified 'memory.high'": limits(unified={"memory.high": "1"}),
    "blockio class": limits(blockio_class=pb.OptionalString(value="x")),
    "rdt class": limits(rdt_class=pb.OptionalString(value="x")),
}


@pytest.mark.parametrize("field", ADJUSTMENTS)
def test_single_adjustment_is_the_result(field: str) -> None:
    assert merged(ADJUSTMENTS[field]).adjustment == ADJUSTMENTS[field]


@pytest.mark.parametrize("field", ADJUSTMENTS)
def test_conflict_names_both_plugins(field: str) -> None:
    with pytest.raises(Conflict) as raised:
        merged(ADJUSTMENTS[field], ADJUSTMENTS[field])
    assert str(raised.value) == f"NRI plugins p1 and p2 both set the {field} of container c"


def test_adjustments_of_different_fields_are_merged() -> None:
    total = merged(*ADJUSTMENTS.values()).adjustment
    for adjustment in ADJUSTMENTS.values():
        copy = pb.ContainerAdjustment()
        copy.CopyFrom(total)
        copy.MergeFrom(adjustment)
        assert copy.ByteSize() >= total.ByteSize()
    assert {each.name for each, _ in total.ListFields()} == {
        *("annotations", "mounts", "env", "args", "rlimits", "CDI_devices", "linux")
    }


def test_hooks_of_several_plugins_are_merged() -> None:
    hooks = pb.Hooks(prestart=[pb.Hook(path="/bin/a")])
    creation = merged(*[pb.ContainerAdjustment(hooks=hooks)] * 2)
    assert [hook.path for hook in creation.adjustment.hooks.prestart] == ["/bin/a", "/bin/a"]
    assert creation.owners.message().owners["c"].simple[pb.FIELD_OCI_HOOKS] == "p1,p2"


REMOVALS = {
    "annotations": (
        pb.ContainerAdjustment(annotations={"k": "1"}),
        pb.ContainerAdjustment(annotations={"-k": ""}),
        pb.ContainerAdjustment(annotations={"-k": "", "k": "2"}),
    ),
    "mounts": (
        pb.ContainerAdjustment(mounts=[pb.Mount(destination="/m", source="1")]),
        pb.ContainerAdjustment(mounts=[pb.Mount(destination="-/m")]),
        pb.ContainerAdjustment(mounts=[pb.Mount(destination="-/m"), pb.Mount(destination="/m", source="2")]),
    ),
    "env": (
        pb.ContainerAdjustment(env=[pb.KeyValue(key="E", value="1")]),
        pb.ContainerAdjustment(env=[pb.KeyValue(key="-E")]),
        pb.ContainerAdjustment(env=[pb.KeyValue(key="-E"), pb.KeyValue(key="E", value="2")]),
    ),
    "devices": (
        linux(devices=[pb.LinuxDevice(path="/dev/d", major=1)]),
        linux(devices=[pb.LinuxDevice(path="-/dev/d")]),
        linux(devices=[pb.LinuxDevice(path="-/dev/d"), pb.LinuxDevice(path="/dev/d", major=2)]),
    ),
}


@pytest.mark.parametrize("kind", REMOVALS)
def test_plugin_removes_an_earlier_setting(kind: str) -> None:
    first, removal, _ = REMOVALS[kind]
    assert merged(first, removal).adjustment == removal


@pytest.mark.parametrize("kind", REMOVALS)
def test_plugin_may_set_what_it_has_removed(kind: str) -> None:
    first, removal, replacement = REMOVALS[kind]
    only_new = merged(replacement).adjustment
    assert merged(first, replacement).adjustment == only_new
    with pytest.raises(Conflict, match="p2 and p3"):
        merged(first, removal, first)


def test_empty_first_argument_removes_earlier_arguments() -> None:
    total = merged(pb.ContainerAdjustment(args=["a"]), pb.ContainerAdjustment(args=["", "b", "c"])).adjustment
    assert list(total.args) == ["b", "c"]


def test_request_shows_earlier_adjustments() -> None:
    container = pb.Container(
        id="c", env=["A=1", "B=2"], mounts=[pb.Mount(destination="/old")], annotations={"x": "y"}
    )
    creation = merged(
        pb.ContainerAdjustment(
            env=[pb.KeyValue(key="-A"), pb.KeyValue(key="C", value="3")],
            mounts=[pb.Mount(destination="-/old"), pb.Mount(destination="/new")],
            annotations={"-x": "", "z": "1"},
        ),
        limits(cpu=pb.LinuxCPU(shares=pb.OptionalUInt64(value=7))),
        container=container,
    )
    seen = creation._seen
    assert list(seen.env) == ["B=2", "C=3"]
    assert [mount.destination for mount in seen.mounts] == ["/new"]
    assert dict(seen.annotations) == {"z": "1"}
    assert seen.linux.resources.cpu.shares.value == 7


# -- updates --------------------------------------------------------------------------------------------------


def update(container: str, shares: int, *, ignore_failure: bool = False) -> pb.ContainerUpdate:
    """A adjustment for CPU shares."""
    resources = pb.LinuxResources(cpu=pb.LinuxCPU(shares=pb.OptionalUInt64(value=shares)))
    part = pb.LinuxContainerUpdate(resources=resources)
    return pb.ContainerUpdate(container_id=container, linux=part, ignore_failure=ignore_failure)


def test_updates_of_one_container_are_merged() -> None:
    updates = Updates()
    updates.add([update("a", 5, ignore_failure=True), update("b", 6)], "p1")
    quota = pb.LinuxResources(cpu=pb.LinuxCPU(quota=pb.OptionalInt64(value=9)))
    part = pb.LinuxContainerUpdate(resources=quota)
    updates.add([pb.ContainerUpdate(container_id="a", linux=part)], "p2")
    assert list(updates.merged) == ["a", "b"]
    cpu = updates.merged["a"].linux.resources.cpu
    assert (cpu.shares.value, cpu.quota.value, updates.merged["a"].ignore_failure) == (5, 9, False)


def test_conflicting_updates_fail_unless_failure_is_ignored() -> None:
    updates = Updates()
    updates.add([update("a", 5)], "p1")
    with pytest.raises(Conflict, match="p1 and p2 both set the cpu shares of container a"):
        updates.add([update("a", 6)], "p2")
    updates.add([update("a", 6, ignore_failure=True)], "p2")
    assert updates.merged["a"].linux.resources.cpu.shares.value == 5


def test_update_of_the_container_under_creation_is_refused() -> None:
    with pytest.raises(PluginError, match="p1 asks to update c while it is created"):
        Updates(creating="c").add([update("c", 5)], "p1")
