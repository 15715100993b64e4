# SPDX-License-Identifier: Apache-2.0
"""Which containers are refused, in which words, and which are just about accepted."""

from __future__ import annotations

from typing import Any

import pytest

from pvecri.errors import InvalidArgument
from pvecri.model import (
    ContainerConfig,
    ContainerMetadata,
    ContainerSecurity,
    Device,
    HugepageLimit,
    IdMapping,
    Mount,
    NamespaceMode,
    NamespaceOptions,
    Propagation,
    Resources,
    SandboxConfig,
    SandboxMetadata,
    SandboxSecurity,
    UserNamespace,
)
from pvecri.pods.validation import check_container, check_resources

POD, CONTAINER, NODE, TARGET = NamespaceMode
MAPPING = (IdMapping(container_id=0, host_id=70_000, length=65_536),)
SELINUX = (
    "config.linux.security_context.selinux_options: 'u:r:t:s0' is not supported: Proxmox VE has AppArmor, not "
    "SELinux (runtime.ignore_selinux_options is false)"
)


def container(name: str = "main", image: str = "busybox", **said: Any) -> ContainerConfig:
    return ContainerConfig(metadata=ContainerMetadata(name=name), image=image, **said)


def secured(**said: Any) -> ContainerConfig:
    return container(security=ContainerSecurity(**said))


def sharing(**said: Any) -> ContainerConfig:
    return secured(namespaces=NamespaceOptions(**said))


def mounting(container_path: str = "/data", host_path: str = "/srv", **said: Any) -> ContainerConfig:
    return container(mounts=(Mount(container_path=container_path, host_path=host_path, **said),))


def showing(image_sub_path: str = "", host_path: str = "", readonly: bool = True) -> ContainerConfig:
    return mounting(host_path=host_path, image="data", image_sub_path=image_sub_path, readonly=readonly)


def device(container_path: str = "", host_path: str = "/dev/fuse", permissions: str = "rwm") -> ContainerConfig:
    return container(
        devices=(Device(container_path=container_path, host_path=host_path, permissions=permissions),)
    )


def pod(log_directory: str = "/logs", privileged: bool = False, **said: Any) -> SandboxConfig:
    return SandboxConfig(
        metadata=SandboxMetadata(name="web", namespace="shop", uid="1"),
        log_directory=log_directory,
        security=SandboxSecurity(privileged=privileged, namespaces=NamespaceOptions(**said)),
    )


PLAIN = [
    (container(name=""), "config.metadata.name: must not be empty"),
    (container(name="a/b"), "config.metadata.name: 'a/b' contains a character that is not allowed in a name"),
    (container(image=""), "config.image.image: must not be empty"),
    (container(working_dir="src"), "config.working_dir: 'src' is not an absolute path"),
    (container(envs=(("A", ""), ("", "1"))), "config.envs[1].key: '' is not a name of an environment variable"),
    (container(envs=(("A=B", "1"),)), "config.envs[0].key: 'A=B' is not a name of an environment variable"),
    (container(envs=(("A", "1\0"),)), "config.envs[0].value: contains a NUL character"),
    (container(command=("sh", "-c\0")), "config.command[1]: contains a NUL character"),
    (container(args=("a\0",)), "config.args[0]: contains a NUL character"),
    (container(log_path="/main/0.log"), "config.log_path: '/main/0.log' is outside of the pod's log_directory"),
    (container(log_path="../0.log"), "config.log_path: '../0.log' is outside of the pod's log_directory"),
    (container(log_path="0.log\0"), "config.log_path: contains a NUL character"),
    (container(resources=Resources(cpu_shares=-2)), "config.linux.resources.cpu_shares: must not be negative"),
]

MOUNTS = [
    (mounting(container_path=""), "container_path: must not be empty"),
    (mounting(container_path="/a/../b"), "container_path: '/a/../b' contains '..'"),
    (mounting(container_path="/a\0"), "container_path: contains a NUL character"),
    (mounting(host_path=""), "host_path: '' is not an absolute path"),
    (mounting(host_path="srv"), "host_path: 'srv' is not an absolute path"),
    (mounting(recursive_readonly=True), "recursive_read_only: needs readonly"),
    (
        mounting(readonly=True, recursive_readonly=True, propagation=Propagation.HOST_TO_CONTAINER),
        "recursive_read_only: needs PROPAGATION_PRIVATE",
    ),
    (showing(host_path="/srv"), "host_path: must be empty if image is set"),
    (showing(readonly=False), "readonly: must be set: image volumes are read-only"),
    (showing("../x"), "image_sub_path: '../x' is outside of the image"),
    (showing("/x"), "image_sub_path: '/x' is outside of the image"),
    (showing("x\0"), "image_sub_path: contains a NUL character"),
    (mounting(uid_mappings=MAPPING), "uidMappings: is not the mapping of the pod's user namespace"),
    (mounting(gid_mappings=MAPPING), "gidMappings: is not the mapping of the pod's user namespace"),
]

DEVICES = [
    (device(host_path="dev/fuse"), "host_path: 'dev/fuse' is not an absolute path"),
    (device(container_path="fuse"), "container_path: 'fuse' is not an absolute path"),
    (device(permissions=""), "permissions: '' has letters other than r, w and m"),
    (device(permissions="rx"), "permissions: 'rx' has letters other than r, w and m"),
]

LIMITS = [
    (Resources(cpu_shares=262_145), "cpu_shares: 262145 is more than 262144"),
    (Resources(cpu_period=999), "cpu_period: 999 is not within 1000 to 1000000 microseconds"),
    (Resources(cpu_quota=999), "cpu_quota: 999 is less than 1000 microseconds"),
    (Resources(cpuset_cpus="two"), "cpuset_cpus: 'two' is not a list such as 0-3,5"),
    (Resources(cpuset_cpus="0-999999"), "cpuset_cpus: '0-999999' is not a list such as 0-3,5"),
    (Resources(cpuset_mems="0,"), "cpuset_mems: '0,' is not a list such as 0-3,5"),
    (Resources(memory_swap_limit=-2), "memory_swap_limit_in_bytes: must not be negative, except -1 for no limit"),
    (
        Resources(hugepage_limits=(HugepageLimit(page_size="2M", limit=1),)),
        "hugepage_limits[0].page_size: '2M' is not a page size such as 2MB",
    ),
    (Resources(unified={"../memory.max": "1"}), "unified[../memory.max]: is not the name of a cgroup file"),
    (Resources(unified={"memory.high": "1\0"}), "unified[memory.high]: contains a NUL character"),
]

LONG = "x" * (200 << 10)
DEEP = "/x" * 2048
LENGTHS = [
    (container(args=("-c", LONG)), "args[1]: has 204800 bytes, the kernel takes 131071; pass it in a file"),
    (container(envs=(("A", LONG),)), "envs[0]: has 204802 bytes, the kernel takes 131071; pass it in a file"),
    (
        container(command=("x" * 100_000,) * 21),
        "command: has 2100189 bytes with the environment, the kernel takes 2031616; pass them in a file",
    ),
    (container(working_dir=DEEP), "working_dir: is longer than 4095 bytes"),
    (mounting(host_path=f"/{'x' * 256}"), "mounts[0].host_path: has a component longer than 255 bytes"),
    (mounting(container_path=f"/{'x' * 256}"), "mounts[0].container_path: has a component longer than 255 bytes"),
    (container(log_path="x" * 256), "log_path: has a component longer than 255 bytes"),
]

SECURITY = [
    (secured(supplemental_groups=(1,) * 65537), "supplemental_groups: has 65537 groups, the kernel takes 65536"),
    (secured(masked_paths=("proc/kcore",)), "masked_paths[0]: 'proc/kcore' is not an absolute path"),
    (secured(readonly_paths=("/a\0",)), "readonly_paths[0]: '/a\\x00' is not an absolute path"),
    (secured(privileged=True), "privileged: the pod is not privileged"),
    (secured(run_as_user=-1), "run_as_user.value: -1 is not an id"),
    (secured(run_as_user=1 << 32), "run_as_user.value: 4294967296 is not an id"),
    (secured(run_as_user=(1 << 32) - 1), "run_as_user.value: 4294967295 is not an id"),
    (secured(run_as_user=1, run_as_group=-1), "run_as_group.value: -1 is not an id"),
    (secured(supplemental_groups=(-5,)), "supplemental_groups[0]: -5 is not an id"),
    (sharing(pid=TARGET), "namespace_options.target_id: must name a container if pid is TARGET"),
    (sharing(pid=NODE), "namespace_options.pid: is NODE, but the pod's is not"),
    (sharing(network=NODE), "namespace_options.network: is NODE, but the pod's is not"),
    (sharing(ipc=NODE), "namespace_options.ipc: is NODE, but the pod's is not"),
]

REFUSED = [
    *PLAIN,
    *((config, f"config.mounts[0].{words}") for config, words in MOUNTS),
    *((config, f"config.devices[0].{words}") for config, words in DEVICES),
    *((container(resources=limits), f"config.linux.resources.{words}") for limits, words in LIMITS),
    *((config, f"config.{words}") for config, words in LENGTHS),
    *((config, f"config.linux.security_context.{words}") for config, words in SECURITY),
    (secured(selinux_label="u:r:t:s0"), SELINUX),
]


@pytest.mark.parametrize(("config", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_invalid_container_is_refused_with_message(config: ContainerConfig, message: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        check_container(config, pod())
    assert str(caught.value) == message


ACCEPTED: dict[str, tuple[ContainerConfig, SandboxConfig]] = {
    "nothing but a name and an image": (container(), pod()),
    "no log in a pod without logs": (container(), pod(log_directory="")),
    "a log in a directory of its own": (container(log_path="main/0.log"), pod()),
    "an empty variable": (container(envs=(("A", ""), ("B", "=x"))), pod()),
    "a relative path to mount at": (mounting(container_path="data"), pod()),
    "a name with two dots": (mounting(container_path="/data/..x"), pod()),
    "a mount below it all": (mounting(container_path="/", propagation=Propagation.BIDIRECTIONAL), pod()),
    "a read-only mount with all below it": (mounting(readonly=True, recursive_readonly=True), pod()),
    "an image": (showing(), pod()),
    "a part of an image": (showing("a/b"), pod()),
    "a device at its own path": (device(), pod()),
    "a device for reading at another": (device(container_path="/dev/x", permissions="r"), pod()),
    "the largest id": (secured(run_as_user=(1 << 32) - 2), pod()),
    "privileges that the pod has": (secured(privileged=True), pod(privileged=True)),
    "the node's namespaces, as the pod's": (
        sharing(network=NODE, pid=NODE, ipc=NODE),
        pod(network=NODE, pid=NODE, ipc=NODE),
    ),
    "processes apart in a pod that uses the node's": (sharing(pid=CONTAINER), pod(pid=NODE)),
    "another container's processes": (sharing(pid=TARGET, target_id="c1"), pod()),
    "mounts with the pod's mappings": (
        mounting(uid_mappings=MAPPING, gid_mappings=MAPPING),
        pod(user=UserNamespace(mode=POD, uids=MAPPING, gids=MAPPING)),
    ),
    "mounts without mappings in a pod with some": (
        mounting(),
        pod(user=UserNamespace(mode=POD, uids=MAPPING, gids=MAPPING)),
    ),
}


@pytest.mark.parametrize("what", ACCEPTED)
def test_valid_container_is_accepted(what: str) -> None:
    check_container(*ACCEPTED[what])


def test_log_path_needs_the_pods_log_directory() -> None:
    with pytest.raises(InvalidArgument, match=r"^config\.log_path: is set, but the pod has no log_directory$"):
        check_container(container(log_path="0.log"), pod(log_directory=""))


def test_error_has_the_index_of_the_refused_entry() -> None:
    good, bad = mounting().mounts[0], mounting(container_path="").mounts[0]
    with pytest.raises(InvalidArgument, match=r"^config\.mounts\[2\]\.container_path: "):
        check_container(container(mounts=(good, good, bad)), pod())


def test_limits_are_refused_by_the_name_of_the_message_they_come_in() -> None:
    with pytest.raises(InvalidArgument, match=r"^linux\.memory_limit_in_bytes: must not be negative, except"):
        check_resources("linux", Resources(memory_limit=-2))


def test_a_memory_limit_of_minus_one_is_no_limit() -> None:
    check_resources("resources", Resources(memory_limit=-1))
