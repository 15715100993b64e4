# SPDX-License-Identifier: Apache-2.0
"""Container adjustments of NRI are converted; unsupported settings are refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from pvecri.errors import FailedPrecondition
from pvecri.model import HugepageLimit, Resources
from pvecri.nri import from_proto, to_proto
from pvecri.nri.proto import nri_pb2 as pb
from pvecri.oci.adjustment import Adjustment
from pvecri.oci.devices import HostDevice
from pvecri.oci.runtime_spec import IntelRdt, IoPriority, MemoryPolicy, Mount, Scheduler

GROUP = "/lxc/105/c"


def linux(**fields: Any) -> pb.ContainerAdjustment:
    """An adjustment of the Linux part."""
    return pb.ContainerAdjustment(linux=pb.LinuxContainerAdjustment(**fields))


def device(**fields: Any) -> HostDevice:
    """A character device with what NRI leaves unsaid."""
    usual = {"kind": "c", "major": 1, "minor": 3, "mode": 0o666, "uid": 0, "gid": 0, "access": "rw"}
    return HostDevice(**{"container_path": "/dev/d", **usual, **fields})


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (pb.ContainerAdjustment(annotations={"a": "1", "-b": ""}), Adjustment(annotations={"b": None, "a": "1"})),
        (
            pb.ContainerAdjustment(env=[pb.KeyValue(key="-A"), pb.KeyValue(key="A", value="2")]),
            Adjustment(env={"A": "2"}),
        ),
        (
            pb.ContainerAdjustment(mounts=[pb.Mount(destination="-/x"), pb.Mount(destination="/y", type="tmpfs")]),
            Adjustment(mounts={"/x": None, "/y": Mount(destination="/y", type="tmpfs")}),
        ),
        (
            linux(devices=[pb.LinuxDevice(path="/dev/d", type="c", major=1, minor=3)]),
            Adjustment(devices={"/dev/d": device()}),
        ),
        (
            linux(
                devices=[
                    pb.LinuxDevice(
                        path="/dev/d",
                        type="b",
                        major=1,
                        minor=3,
                        file_mode=pb.OptionalFileMode(value=0o100640),
                        uid=pb.OptionalUInt32(value=7),
                    )
                ]
            ),
            Adjustment(devices={"/dev/d": device(kind="b", mode=0o640, uid=7, access="rwm")}),
        ),
        (linux(devices=[pb.LinuxDevice(path="-/dev/d")]), Adjustment(devices={"/dev/d": None})),
        (linux(oom_score_adj=pb.OptionalInt(value=0)), Adjustment(oom_score_adj=0)),
        (linux(cgroups_path=GROUP), Adjustment()),
        (linux(io_priority=pb.LinuxIOPriority()), Adjustment(io_priority=IoPriority())),
        (
            linux(io_priority=pb.LinuxIOPriority(**{"class": pb.IOPRIO_CLASS_RT}, priority=2)),
            Adjustment(io_priority=IoPriority(class_="IOPRIO_CLASS_RT", priority=2)),
        ),
        (
            linux(scheduler=pb.LinuxScheduler(policy=pb.SCHED_FIFO, priority=3)),
            Adjustment(scheduler=Scheduler(policy="SCHED_FIFO", priority=3)),
        ),
        (
            linux(memory_policy=pb.LinuxMemoryPolicy(mode=pb.MPOL_BIND, nodes="0")),
            Adjustment(memory_policy=MemoryPolicy(mode="MPOL_BIND", nodes="0")),
        ),
        (
            linux(resources=pb.LinuxResources(rdt_class=pb.OptionalString(value="gold"))),
            Adjustment(rdt=IntelRdt(clos_id="gold")),
        ),
        (linux(rdt=pb.LinuxRdt(remove=True)), Adjustment(rdt=IntelRdt())),
    ],
)
def test_container_adjustment_is_converted(wanted: pb.ContainerAdjustment, expected: Adjustment) -> None:
    assert from_proto.adjustment(wanted, GROUP) == expected


def test_empty_container_adjustment_is_none() -> None:
    assert from_proto.adjustment(pb.ContainerAdjustment(), GROUP) is None


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (linux(cgroups_path="/else"), "the cgroup '/else' is not supported"),
        (linux(devices=[pb.LinuxDevice(path="/dev/f", type="p")]), "the device /dev/f is of type 'p'"),
        (
            linux(resources=pb.LinuxResources(blockio_class=pb.OptionalString(value="slow"))),
            "there is no block I/O class 'slow'",
        ),
        (linux(scheduler=pb.LinuxScheduler(policy=99)), "LinuxSchedulerPolicy 99 is unknown"),  # type: ignore[arg-type]
    ],
)
def test_unsupported_adjustment_is_refused(wanted: pb.ContainerAdjustment, message: str) -> None:
    with pytest.raises(FailedPrecondition, match=message):
        from_proto.adjustment(wanted, GROUP)


LIMITS = Resources(
    cpu_period=100_000,
    cpu_quota=-1,
    cpu_shares=512,
    cpu_realtime_runtime=5,
    cpu_realtime_period=6,
    cpuset_cpus="0-1",
    cpuset_mems="0",
    memory_limit=1 << 30,
    memory_swap_limit=2 << 30,
    memory_reservation=1 << 20,
    hugepage_limits=(HugepageLimit(page_size="2MB", limit=4 << 20),),
    unified={"memory.high": "1"},
    pids_limit=-1,
)


@pytest.mark.parametrize("limits", [LIMITS, Resources(), Resources(cpu_shares=2)])
def test_resources_round_trip(limits: Resources) -> None:
    assert from_proto.resources(to_proto.resources(limits)) == limits


def test_swap_limit_of_an_adjustment_defaults_to_the_memory_limit() -> None:
    wanted = pb.LinuxResources(memory=pb.LinuxMemory(limit=pb.OptionalInt64(value=1 << 20)))
    assert from_proto.resources(wanted) == Resources(memory_limit=1 << 20, memory_swap_limit=1 << 20)
