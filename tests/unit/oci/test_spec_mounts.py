# SPDX-License-Identifier: Apache-2.0
"""The `mounts` of the OCI spec."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.plans import MAPPED, in_pod, plan, secured

from pvecri.model import NamespaceMode
from pvecri.oci import spec_mounts
from pvecri.oci.devices import HostDevice
from pvecri.oci.plan import BindSource, Plan
from pvecri.oci.runtime_spec import Mount


def bind(container_path: str, source: str = "/src", **changes: Any) -> BindSource:
    fields = {"readonly": False, "recursive_readonly": False, "propagation": "rprivate", **changes}
    return BindSource(Path(source), container_path, **fields)


def at(wanted: Plan, destination: str) -> Mount:
    """The only mount at a place."""
    (found,) = (mount for mount in spec_mounts.mounts(wanted) if mount.destination == destination)
    return found


def test_kernel_filesystems_are_mounted_first() -> None:
    destinations = [mount.destination for mount in spec_mounts.mounts(plan())]
    assert destinations[:6] == ["/proc", "/dev", "/dev/pts", "/dev/mqueue", "/sys", "/sys/fs/cgroup"]
    assert set(destinations[6:]) == {"/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/dev/shm"}


@pytest.mark.parametrize(("privileged", "access"), [(False, "ro"), (True, "rw")])
def test_sysfs_and_cgroup_are_writable_only_if_privileged(privileged: bool, access: str) -> None:
    wanted = secured(privileged=privileged)
    for place in ("/sys", "/sys/fs/cgroup"):
        assert access in at(wanted, place).options


def test_pod_files_are_readonly_with_a_readonly_rootfs() -> None:
    assert "rw" in at(plan(), "/etc/hosts").options
    assert {"ro", "nosuid"} <= set(at(secured(readonly_rootfs=True), "/etc/hosts").options)
    assert "rw" in at(secured(readonly_rootfs=True), "/dev/shm").options


def test_dev_shm_is_the_hosts_with_host_ipc() -> None:
    assert at(plan(), "/dev/shm").source == "/run/pod/files/shm"
    assert at(in_pod(ipc=NamespaceMode.NODE), "/dev/shm").source == "/dev/shm"


@pytest.mark.parametrize("path", ["/etc/hosts", "/etc//hosts", "/etc/hosts/"])
def test_requested_mount_replaces_the_default_one(path: str) -> None:
    assert at(plan(binds=(bind(path),)), "/etc/hosts").source == "/src"


def test_requested_mounts_are_sorted_by_depth() -> None:
    wanted = plan(binds=(bind("/a/b/c"), bind("/a"), bind("/a/b")))
    assert [place for place in destinations(wanted) if place.startswith("/a")] == ["/a", "/a/b", "/a/b/c"]


def destinations(wanted: Plan) -> list[str]:
    return [mount.destination for mount in spec_mounts.mounts(wanted)]


POD_FILES = ["/etc/hosts", "/etc/hostname", "/etc/resolv.conf"]


def test_pods_files_are_mounted_over_a_volume_at_etc() -> None:
    assert destinations(plan(binds=(bind("/etc"), bind("/etc/hosts", "/own"))))[-5:] == [
        "/etc",
        "/etc/hostname",
        "/etc/resolv.conf",
        "/dev/shm",
        "/etc/hosts",
    ]
    assert at(plan(binds=(bind("/etc"), bind("/etc/hosts", "/own"))), "/etc/hosts").source == "/own"


def test_pods_shared_memory_is_mounted_over_the_nodes_dev() -> None:
    found = destinations(plan(binds=(bind("/dev", "/dev"),)))
    assert [place for place in found if place.startswith("/dev")] == ["/dev", "/dev/shm"]


def test_devices_are_mounted_over_the_nodes_dev() -> None:
    device = HostDevice("/dev/kvm", "c", 10, 232, 0o660, 0, 104, "rw")
    found = destinations(plan(binds=(bind("/dev"),), devices=(device,), mappings=MAPPED))
    assert found.index("/dev") < found.index("/dev/kvm")


def test_volume_at_the_root_comes_after_the_kernel_filesystems() -> None:
    found = destinations(plan(binds=(bind("/"),)))
    assert found[6:] == ["/", *POD_FILES, "/dev/shm"]
    assert found[:6] == destinations(plan())[:6]


def test_nodes_sys_has_the_nodes_cgroups() -> None:
    assert [place for place in destinations(plan(binds=(bind("/sys"),))) if "/sys" in place] == ["/sys"]


@pytest.mark.parametrize(
    ("changes", "options"),
    [
        ({}, ["rbind", "rprivate", "rw"]),
        ({"readonly": True}, ["rbind", "rprivate", "ro"]),
        ({"readonly": True, "recursive_readonly": True}, ["rbind", "rprivate", "rro"]),
        ({"propagation": "rslave"}, ["rbind", "rslave", "rw"]),
        ({"readonly": True, "restrictions": ("nosuid", "nodev")}, ["rbind", "rprivate", "ro", "nosuid", "nodev"]),
        ({"restrictions": ("nosuid",)}, ["rbind", "rprivate", "rw"]),
    ],
)
def test_bind_mount_options(changes: dict[str, Any], options: list[str]) -> None:
    assert list(spec_mounts.bind_mount(bind("/data", **changes)).options) == options


def test_relative_container_path_is_relative_to_the_root() -> None:
    assert spec_mounts.bind_mount(bind("data")).destination == "/data"


def test_devices_are_bind_mounted_in_a_user_namespace() -> None:
    device = HostDevice("/dev/kvm", "c", 10, 232, 0o660, 0, 104, "rw")
    bound = at(plan(devices=(device,), mappings=MAPPED), "/dev/kvm")
    assert (bound.source, bound.type) == ("/run/devices/0", "bind")
    assert spec_mounts.device_mounts(plan(devices=(device,))) == []
