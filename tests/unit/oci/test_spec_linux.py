# SPDX-License-Identifier: Apache-2.0
"""The `linux` object of the OCI spec, branch by branch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from support.plans import FEATURES, MAPPED, OLD_RUNC, RUNC, V1, V2, able, configured, in_pod, plan, secured

from pvecri.model import HugepageLimit, NamespaceMode, NamespaceOptions, Resources
from pvecri.oci import spec_linux
from pvecri.oci.devices import HostDevice
from pvecri.oci.plan import BindSource, Plan
from pvecri.oci.runtime_spec import Part, Seccomp

NODE, POD = NamespaceMode.NODE, NamespaceMode.POD
KVM = HostDevice("/dev/kvm", "c", 10, 232, 0o660, 0, 104, "rw")
POD_PATHS = {"network": "/run/pod/ns/net", "uts": "/run/pod/ns/uts", "ipc": "/run/pod/ns/ipc"}


def builtins(part: Part) -> Any:
    """A part of the spec as its JSON has it."""
    return msgspec.json.decode(msgspec.json.encode(part))


def linux(wanted: Plan) -> Any:
    """The `linux` object of a plan's spec, as its JSON has it."""
    return builtins(spec_linux.linux(wanted))


def described(wanted: Plan) -> dict[str, str]:
    """Namespaces by type, with their paths; empty for a new one."""
    return {entry.type: entry.path for entry in spec_linux.namespaces(wanted)}


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (plan(), {"mount": "", **POD_PATHS, "pid": "", "cgroup": ""}),
        (plan(mappings=MAPPED), {"mount": "", "user": "/run/pod/ns/user", **POD_PATHS, "pid": "", "cgroup": ""}),
        (in_pod(network=NODE), {"mount": "", "ipc": "/run/pod/ns/ipc", "pid": "", "cgroup": ""}),
        (
            in_pod(ipc=NODE),
            {"mount": "", "network": "/run/pod/ns/net", "uts": "/run/pod/ns/uts", "pid": "", "cgroup": ""},
        ),
        (
            secured(namespaces=NamespaceOptions(pid=POD)),
            {"mount": "", **POD_PATHS, "pid": "/run/pod/ns/shared-pid", "cgroup": ""},
        ),
        (
            replace(in_pod(pid=NODE), config=secured(namespaces=NamespaceOptions(pid=NODE)).config),
            {"mount": "", **POD_PATHS, "cgroup": ""},
        ),
        (
            replace(secured(namespaces=NamespaceOptions(pid=NamespaceMode.TARGET)), target_pid=17),
            {"mount": "", **POD_PATHS, "pid": "/proc/17/ns/pid", "cgroup": ""},
        ),
        (
            secured(privileged=True, namespaces=NamespaceOptions(pid=NamespaceMode.CONTAINER)),
            {"mount": "", **POD_PATHS, "pid": ""},
        ),
        (plan(features=able(cgroups=V1)), {"mount": "", **POD_PATHS, "pid": ""}),
    ],
)
def test_namespaces_follow_the_modes_of_the_request(wanted: Plan, expected: dict[str, str]) -> None:
    assert described(wanted) == expected


@pytest.mark.parametrize(
    ("mappings", "runtime", "present"), [(MAPPED, OLD_RUNC, True), (MAPPED, RUNC, False), ((), OLD_RUNC, False)]
)
def test_id_mappings_with_a_userns_path_are_for_old_runc_only(mappings: Any, runtime: Any, present: bool) -> None:
    document = linux(plan(mappings=mappings, features=able(oci_runtime=runtime)))
    assert ("uidMappings" in document) is present
    if present:
        assert document["uidMappings"] == [{"containerID": 0, "hostID": 100_000, "size": 65_536}]


def test_masked_and_readonly_paths_are_omitted_for_privileged_containers() -> None:
    hidden = {"masked_paths": ("/proc/kcore",), "readonly_paths": ("/proc/sys",)}
    document = linux(secured(**hidden))
    assert (document["maskedPaths"], document["readonlyPaths"]) == (["/proc/kcore"], ["/proc/sys"])
    assert not {"maskedPaths", "readonlyPaths"} & set(linux(secured(privileged=True, **hidden)))


def test_cgroups_path_is_below_the_cts_cgroup() -> None:
    assert linux(plan())["cgroupsPath"] == f"/lxc/105/{'c' * 64}"


def test_seccomp_filter_is_set() -> None:
    assert "seccomp" not in linux(plan())
    assert linux(plan(seccomp=Seccomp(default_action="x")))["seccomp"] == {"defaultAction": "x"}


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (Resources(), {}),
        (Resources(cpu_shares=512), {"shares": 512}),
        (Resources(cpu_quota=50_000, cpu_period=100_000), {"quota": 50_000, "period": 100_000}),
        (Resources(cpu_quota=-1), {"quota": -1}),
        (Resources(cpuset_cpus="0-1", cpuset_mems="0"), {"cpus": "0-1", "mems": "0"}),
    ],
)
def test_unset_cpu_limits_are_omitted(wanted: Resources, expected: dict[str, Any]) -> None:
    assert builtins(spec_linux.limits(wanted, FEATURES)).get("cpu", {}) == expected


@pytest.mark.parametrize(
    ("limit", "swap", "counted", "expected"),
    [
        (0, 0, True, {}),
        (100, 0, True, {"limit": 100, "swap": 100}),
        (100, 300, True, {"limit": 100, "swap": 300}),
        (100, -1, True, {"limit": 100, "swap": -1}),
        (100, 300, False, {"limit": 100}),
    ],
)
def test_swap_limit_defaults_to_the_memory_limit(
    limit: int, swap: int, counted: bool, expected: dict[str, int]
) -> None:
    wanted = Resources(memory_limit=limit, memory_swap_limit=swap)
    assert builtins(spec_linux.limits(wanted, able(swap_limit=counted))).get("memory", {}) == expected


def test_limits_without_a_controller_are_omitted() -> None:
    wanted = Resources(hugepage_limits=(HugepageLimit(page_size="2MB", limit=4096),), unified={"memory.high": "1"})
    everything = builtins(spec_linux.limits(wanted, FEATURES))
    assert everything == {
        "hugepageLimits": [{"pageSize": "2MB", "limit": 4096}],
        "unified": {"memory.high": "1"},
    }
    assert builtins(spec_linux.limits(wanted, able(controllers=frozenset(), cgroups=V1))) == {}


@pytest.mark.parametrize(
    ("limit", "controllers", "expected"), [(100, {"pids"}, 100), (0, {"pids"}, None), (1, set(), None)]
)
def test_pids_limit_of_the_configuration_is_set(limit: int, controllers: set[str], expected: int | None) -> None:
    wanted = plan(pids_limit=limit, features=able(controllers=frozenset(controllers)))
    assert builtins(spec_linux.resources(wanted)).get("pids", {}).get("limit") == expected


def test_device_rules_deny_all_but_the_requested_devices() -> None:
    denied, allowed = map(builtins, spec_linux.device_rules(plan(devices=(KVM,))))
    assert denied == {"allow": False, "access": "rwm"}
    assert allowed == {"allow": True, "type": "c", "major": 10, "minor": 232, "access": "rw"}


def test_privileged_device_rules_avoid_type_a() -> None:
    for trees in (V1, V2):
        wanted = replace(secured(privileged=True), features=able(cgroups=trees))
        rules = spec_linux.device_rules(wanted)
        assert [(rule.allow, rule.type) for rule in rules] == [(False, ""), (True, "c"), (True, "b")]


def test_devices_are_omitted_in_a_user_namespace() -> None:
    (made,) = linux(plan(devices=(KVM,)))["devices"]
    assert made == {
        "path": "/dev/kvm",
        "type": "c",
        "major": 10,
        "minor": 232,
        "fileMode": 0o660,
        "uid": 0,
        "gid": 104,
    }
    assert linux(plan(devices=(KVM,), mappings=MAPPED))["devices"] == []


@pytest.mark.parametrize(
    ("modes", "expected"),
    [
        ([], "rprivate"),
        (["rprivate"], "rprivate"),
        (["rprivate", "rslave"], "rslave"),
        (["rslave", "rshared"], "rshared"),
    ],
)
def test_rootfs_propagation_is_the_widest_of_the_mounts(modes: list[str], expected: str) -> None:
    binds = tuple(BindSource(Path("/src"), f"/{index}", False, False, mode) for index, mode in enumerate(modes))
    assert linux(plan(binds=binds))["rootfsPropagation"] == expected


def test_limits_of_the_request_are_set() -> None:
    resources = builtins(spec_linux.resources(configured(resources=Resources(memory_limit=4096, cpu_shares=2))))
    assert (resources["memory"]["limit"], resources["cpu"]["shares"]) == (4096, 2)
