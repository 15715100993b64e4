# SPDX-License-Identifier: Apache-2.0
"""cgroups of version 1, version 2 and hybrid hosts, as directories of plain files."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pvecri.linux.cgroups import EVERY_DEVICE, Cgroups, DeviceRule, detect


def machine(root: Path, *mounts: str) -> Cgroups:
    """What is found on a machine with these mounts; `ROOT` stands for /sys/fs/cgroup."""
    table = root.parent / "mounts"
    table.write_text("".join(f"none {line.replace('ROOT', str(root))} 0 0\n" for line in mounts))
    for line in mounts:
        Path(line.replace("ROOT", str(root)).split()[0]).mkdir(parents=True, exist_ok=True)
    return detect(root, table)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "cgroup"


@pytest.fixture
def v2(root: Path) -> Cgroups:
    return machine(root, "ROOT cgroup2 rw,nosuid,nsdelegate")


@pytest.fixture
def v1(root: Path) -> Cgroups:
    return machine(
        root,
        "ROOT/cpu,cpuacct cgroup rw,relatime,cpu,cpuacct",
        "ROOT/cpuset cgroup rw,cpuset",
        "ROOT/devices cgroup rw,devices",
        "ROOT/pids cgroup rw,pids",
        "ROOT/systemd cgroup rw,xattr,name=systemd",
    )


# -- which trees there are -----------------------------------------------------------------------------------


def test_detect_pure_v2(root: Path, v2: Cgroups) -> None:
    (root / "cgroup.controllers").write_text("cpuset cpu io memory pids\n")
    assert (v2.v2, v2.v1, v2.pure_v2) == (root, {}, True)
    assert v2.controllers == {"cpuset", "cpu", "io", "memory", "pids"}


def test_detect_v1(root: Path, v1: Cgroups) -> None:
    assert (v1.v2, v1.pure_v2) == (None, False)
    assert v1.v1 == {
        "cpu": root / "cpu,cpuacct",
        "cpuacct": root / "cpu,cpuacct",
        "cpuset": root / "cpuset",
        "devices": root / "devices",
        "pids": root / "pids",
        "name=systemd": root / "systemd",
    }
    assert {"cpu", "devices", "pids"} <= v1.controllers


def test_detect_ignores_a_cgroup_that_is_mounted_again(root: Path) -> None:
    trees = ("ROOT/pids cgroup rw,pids", "ROOT/unified cgroup2 rw")
    again = ("ROOT/pids/kubepods/web cgroup rw,pids", "ROOT/unified/kubepods/web cgroup2 rw")
    assert machine(root, *trees, *again) == machine(root, *trees)


def test_detect_hybrid(root: Path) -> None:
    found = machine(root, "ROOT/memory cgroup rw,memory", "ROOT/unified cgroup2 rw")
    assert (found.v2, found.pure_v2) == (root / "unified", False)
    assert found.controllers == {"memory"}
    assert found.directory("/lxc/105", "memory") == root / "memory/lxc/105"


def test_detect_ignores_trees_outside_the_root(root: Path, tmp_path: Path) -> None:
    chroot = tmp_path / "chroot/sys/fs/cgroup"
    found = machine(root, "ROOT cgroup2 rw", f"{chroot} cgroup2 rw", f"{chroot}/memory cgroup rw,memory")
    assert (found.v2, found.v1) == (root, {})


def test_detect_without_cgroups(root: Path) -> None:
    found = machine(root, "/tmp tmpfs rw")
    assert (found.v2, found.v1, found.controllers) == (None, {}, frozenset())
    assert found.processes("/lxc/105") == []
    with pytest.raises(FileNotFoundError, match="cgroup controller memory"):
        found.directory("/lxc/105", "memory")


# -- groups --------------------------------------------------------------------------------------------------


def cpuset(group: Path, cpus: str, mems: str) -> None:
    group.mkdir(parents=True, exist_ok=True)
    (group / "cpuset.cpus").write_text(f"{cpus}\n")
    (group / "cpuset.mems").write_text(f"{mems}\n")


def test_make_creates_the_group_in_every_tree(root: Path, v1: Cgroups) -> None:
    cpuset(root / "cpuset", "0-3", "0")
    cpuset(root / "cpuset/web", "", "")
    v1.make("/web")
    trees = ["cpu,cpuacct", "cpuset", "devices", "pids", "systemd"]
    assert v1.directories("/web") == [root / tree / "web" for tree in trees]
    assert all(directory.is_dir() for directory in v1.directories("/web"))


def test_v1_cpuset_is_inherited_from_the_parent(root: Path, v1: Cgroups) -> None:
    cpuset(root / "cpuset", "0-3", "0")
    cpuset(root / "cpuset/web", "", "1")
    v1.make("/web")
    assert (root / "cpuset/web/cpuset.cpus").read_text() == "0-3\n"
    assert (root / "cpuset/web/cpuset.mems").read_text() == "1\n"


def test_make_and_remove_are_idempotent(root: Path, v2: Cgroups) -> None:
    for _ in range(2):
        v2.make("/web")
    v2.make("/web/inner")
    assert v2.exists("/web/inner")
    for _ in range(2):
        v2.remove("/web")
    assert not v2.exists("/web")
    assert root.is_dir()


# -- processes -----------------------------------------------------------------------------------------------


def populate(group: Path, *pids: int) -> None:
    group.mkdir(parents=True, exist_ok=True)
    (group / "cgroup.procs").write_text("".join(f"{pid}\n" for pid in pids))


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A process that waits until it is ended."""
    process = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    yield process
    process.kill()
    process.wait()
    assert process.stdin is not None
    process.stdin.close()


def test_processes_include_child_groups(root: Path, v2: Cgroups) -> None:
    populate(root / "lxc/105", 11)
    populate(root / "lxc/105/ns", 12, 13)
    populate(root / "lxc/105/ns/deep", 14)
    populate(root / "lxc/1050", 15)
    assert sorted(v2.processes("/lxc/105")) == [11, 12, 13, 14]
    assert v2.processes("/lxc/105")[0] == 11


def test_processes_are_read_from_the_pids_tree(root: Path, v1: Cgroups) -> None:
    populate(root / "pids/lxc/105", 11)
    populate(root / "cpu,cpuacct/lxc/105", 12)
    assert v1.processes("/lxc/105") == [11]


def test_missing_group_has_no_processes(v2: Cgroups) -> None:
    assert v2.processes("/lxc/105") == []
    v2.kill("/lxc/105")


def test_v2_group_is_killed_by_cgroup_kill(root: Path, v2: Cgroups) -> None:
    populate(root / "web")
    (root / "web/cgroup.kill").touch()
    v2.kill("/web")
    assert (root / "web/cgroup.kill").read_text() == "1"


def test_v1_group_is_killed_process_by_process(root: Path, v1: Cgroups, sleeper: subprocess.Popen[bytes]) -> None:
    populate(root / "pids/web/inner", sleeper.pid)
    v1.kill("/web")
    assert sleeper.wait() == -9


def test_own_directory_has_the_calling_process() -> None:
    trees = detect()
    for controller in trees.controllers & {"cpu", "memory", "pids"}:
        directory = trees.own_directory(controller)
        assert str(os.getpid()) in (directory / "cgroup.procs").read_text().split()


# -- devices -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        (DeviceRule("c", 10, 229), "c 10:229 rwm"),
        (DeviceRule("b", 7, None, "r"), "b 7:* r"),
        (DeviceRule("c", None, None, "m"), "c *:* m"),
    ],
)
def test_device_rule_format(rule: DeviceRule, text: str) -> None:
    assert str(rule) == text


def test_v1_devices_are_allowed_one_by_one(root: Path, v1: Cgroups) -> None:
    group = root / "devices/lxc/105"
    group.mkdir(parents=True)
    v1.allow_devices("/lxc/105", EVERY_DEVICE[:1])
    assert (group / "devices.allow").read_text() == "c *:* rwm"


def test_allow_devices_of_a_missing_group_fails(v1: Cgroups) -> None:
    with pytest.raises(FileNotFoundError):
        v1.allow_devices("/lxc/105", EVERY_DEVICE)
