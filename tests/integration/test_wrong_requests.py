# SPDX-License-Identifier: Apache-2.0
"""Requests of a wrong shape are INVALID_ARGUMENT with the path of the field, and leave nothing behind."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from support.cri_client import CriClient, pod_security, refused, security

from pvecri.cri.proto import cri_pb2 as pb

INVALID = grpc.StatusCode.INVALID_ARGUMENT
LONG = "x" * (200 << 10)
MANY_DIGITS = "9" * 5000
ARABIC = "\N{ARABIC-INDIC DIGIT ONE}\N{ARABIC-INDIC DIGIT TWO}"


def limited(**limits: Any) -> dict[str, Any]:
    return {"linux": pb.LinuxContainerConfig(resources=pb.LinuxContainerResources(**limits))}


def secured(**fields: Any) -> dict[str, Any]:
    return {"linux": security(**fields)}


def mounting(host_path: str, container_path: str = "/data") -> dict[str, Any]:
    return {"mounts": [pb.Mount(host_path=host_path, container_path=container_path)]}


PODS: list[tuple[dict[str, Any], str]] = [
    ({"log_directory": f"/{'x' * 256}"}, r"config\.log_directory: has a component longer than 255 bytes"),
    (
        {"linux": pod_security(run_as_user=pb.Int64Value(value=-1))},
        r"config\.linux\.security_context\.run_as_user\.value: -1 is not an id",
    ),
    (
        {"linux": pb.LinuxPodSandboxConfig(cgroup_parent="/a\0")},
        r"config\.linux\.cgroup_parent: contains a NUL character",
    ),
    (
        {"linux": pb.LinuxPodSandboxConfig(resources=pb.LinuxContainerResources(cpu_quota=1))},
        r"config\.linux\.resources\.cpu_quota: 1 is less than 1000 microseconds",
    ),
]


@pytest.mark.parametrize(("fields", "words"), PODS, ids=[words for _, words in PODS])
def test_wrong_pod_is_refused_by_its_field(cri: CriClient, fields: dict[str, Any], words: str) -> None:
    with refused(INVALID, f"^{words}"):
        cri.run_pod(cri.pod_config(**fields))
    assert cri.pods() == []


CONTAINERS: list[tuple[dict[str, Any], str]] = [
    ({"args": ["-c", LONG]}, r"config\.args\[1\]: has 204800 bytes"),
    ({"envs": [pb.KeyValue(key="A", value=LONG.encode())]}, r"config\.envs\[0\]: has 204802 bytes"),
    (secured(run_as_username=MANY_DIGITS), r"config\..*\.run_as_username: the image has no user '9{20}"),
    (secured(run_as_username=ARABIC), r"config\..*\.run_as_username: the image has no user"),
    (secured(masked_paths=["kcore"]), r"config\..*\.masked_paths\[0\]: 'kcore' is not an absolute path"),
    (secured(readonly_paths=["/a\0"]), r"config\..*\.readonly_paths\[0\]: "),
    (secured(supplemental_groups=[1] * 65537), r"config\..*\.supplemental_groups: has 65537 groups"),
    (limited(cpuset_cpus="two"), r"config\.linux\.resources\.cpuset_cpus: 'two' is not a list"),
    (limited(unified={"../memory.max": "1"}), r"config\.linux\.resources\.unified\[\.\./memory\.max\]: "),
    (mounting("/proc/1/fd/0/x"), r"config\.mounts\[0\]\.host_path: "),
    (mounting(f"/{'x' * 256}"), r"config\.mounts\[0\]\.host_path: has a component longer"),
    ({"working_dir": "/x" * 2048}, r"config\.working_dir: is longer than 4095 bytes"),
    ({"devices": [pb.Device(host_path="/proc/1/root", permissions="r")]}, r"config\.devices\[0\]\.host_path: "),
]


@pytest.mark.parametrize(("fields", "words"), CONTAINERS, ids=[words for _, words in CONTAINERS])
def test_wrong_container_is_refused_by_its_field(
    cri: CriClient, pod: str, fields: dict[str, Any], words: str
) -> None:
    with refused(INVALID, f"^{words}"):
        cri.create(pod, cri.container_config("true", **fields))
    assert cri.containers() == []


def empty_list(path: Path) -> None:
    path.write_text("[]")


def nesting(path: Path) -> None:
    path.write_text("[" * 100_000)


def fifo(path: Path) -> None:
    os.mkfifo(path)


@pytest.mark.parametrize("make", [empty_list, nesting, fifo])
def test_seccomp_profile_that_is_none_is_refused(
    cri: CriClient, pod: str, tmp_path: Path, make: Callable[[Path], None]
) -> None:
    make(tmp_path / "profile")
    profile = pb.SecurityProfile(profile_type=pb.SecurityProfile.Localhost, localhost_ref=f"{tmp_path}/profile")
    with refused(INVALID, r"^config\.linux\.security_context\.seccomp\.localhost_ref: cannot read"):
        cri.create(pod, cri.container_config("true", **secured(seccomp=profile)))
    assert cri.containers() == []


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["echo", LONG], r"cmd\[1\]: has 204800 bytes, the kernel takes 131071"),
        (["echo", "a\0b"], r"cmd\[1\]: contains a NUL character"),
        (["echo", *["x" * 100_000] * 30], "cmd: has 3000283 bytes"),
    ],
)
def test_exec_of_what_the_kernel_cannot_take_is_refused(
    cri: CriClient, container: str, command: list[str], words: str
) -> None:
    with refused(INVALID, f"^{words}"):
        cri.exec(container, *command)
    with refused(INVALID, f"^{words}"):
        cri.runtime.Exec(pb.ExecRequest(container_id=container, cmd=command, stdout=True))
    assert cri.output(container, "echo", "x" * 131071) == "x" * 131071 + "\n"


def test_negative_timeout_of_an_exec_is_none(cri: CriClient, container: str) -> None:
    assert cri.exec(container, "true", timeout=-1).exit_code == 0


def test_log_directory_that_is_a_file_is_told_by_its_path(cri: CriClient, tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("")
    pod = cri.run_pod(cri.pod_config(log_directory=f"{tmp_path}/logs"))
    container = cri.create(pod, cri.container_config("true"))
    with refused(INVALID, rf"^config\.log_path: cannot create {tmp_path}/logs: "):
        cri.start(container)


def test_capability_that_is_added_and_dropped_is_dropped(cri: CriClient, pod: str) -> None:
    both = pb.Capability(add_capabilities=["CHOWN", "KILL"], drop_capabilities=["ALL", "CHOWN"])
    shown = cri.finish(pod, "grep", "CapEff", "/proc/self/status", **secured(capabilities=both))
    assert int(shown.split()[1], 16) == 1 << 5  # CAP_KILL
