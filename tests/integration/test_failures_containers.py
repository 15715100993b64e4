# SPDX-License-Identifier: Apache-2.0
"""Containers and images that cannot be created: status, message, and nothing left behind."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from support.cri_client import CriClient, refused, security
from support.daemon import Machine
from support.tools import tools_image

from pvecri.cri.proto import cri_pb2 as pb

INVALID = grpc.StatusCode.INVALID_ARGUMENT


def assert_only_the_pod_is_left(machine: Machine, pod: str) -> None:
    """Nothing of a container: it is in no list, and no directory, mount or root filesystem is there."""
    assert machine.client.containers() == []
    left = [item for item in machine.leftovers() if item not in machine.usual]
    assert not [item for item in left if "containers" in item or "rootfs" in item], left
    machine.client.remove_pod(pod)
    machine.assert_nothing_left()


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"metadata": pb.ContainerMetadata(name="")}, r"config\.metadata\.name"),
        ({"metadata": pb.ContainerMetadata(name="a/b")}, r"config\.metadata\.name"),
        ({"image": pb.ImageSpec()}, r"config\.image\.image"),
        ({"working_dir": "relative"}, r"config\.working_dir"),
        ({"envs": [pb.KeyValue(key="A=B")]}, r"config\.envs\[0\]\.key"),
        (
            {"mounts": [pb.Mount(host_path="/proc/not/there", container_path="/x")]},
            r"config\.mounts\[0\]\.host_path",
        ),
        ({"devices": [pb.Device(host_path="/dev/nope", permissions="r")]}, r"config\.devices\[0\]\.host_path"),
        ({"linux": security(run_as_username="nobody-here")}, r"config\..*\.run_as_username"),
        ({"linux": security(run_as_user=pb.Int64Value(value=-1))}, r"config\..*\.run_as_user"),
        (
            {"linux": security(capabilities=pb.Capability(add_capabilities=["FLY"]))},
            r"config\..*\.capabilities\.add_capabilities",
        ),
        (
            {"linux": security(namespace_options=pb.NamespaceOption(pid=pb.TARGET, target_id="0" * 64))},
            r"config\..*\.target_id",
        ),
        ({"linux": security(namespace_options=pb.NamespaceOption(network=pb.NODE))}, r"config\..*\.network"),
    ],
)
def test_error_names_the_invalid_field(
    machine: Machine, cri: CriClient, pod: str, fields: dict[str, Any], field: str
) -> None:
    with refused(INVALID, f"^{field}(\\.value)?: "):
        cri.create(pod, cri.container_config("true", **fields))
    assert_only_the_pod_is_left(machine, pod)


def test_missing_image_is_not_found(machine: Machine, cri: CriClient, pod: str) -> None:
    image = pb.ImageSpec(image="registry.example/not:there")
    with refused(grpc.StatusCode.NOT_FOUND, "image 'registry.example/not:there' is not in the store"):
        cri.create(pod, cri.container_config("true", image=image))
    assert_only_the_pod_is_left(machine, pod)


def test_container_in_an_unknown_pod_is_not_found(cri: CriClient) -> None:
    with refused(grpc.StatusCode.NOT_FOUND, f"pod sandbox '{'0' * 64}' does not exist"):
        cri.create("0" * 64, cri.container_config("true"))


def test_a_container_without_any_command_is_refused(machine: Machine, cri: CriClient, pod: str) -> None:
    with refused(INVALID, r"config\.command: none is given and the image .* has none"):
        cri.create(pod, cri.container_config())
    assert_only_the_pod_is_left(machine, pod)


def test_an_image_whose_user_is_unknown_is_refused(machine: Machine, cri: CriClient, pod: str) -> None:
    image = machine.registry.push("tests/stranger", "1", tools_image(User="stranger"))
    cri.pull(image)
    with refused(INVALID, "the image's user: the image has no user 'stranger'"):
        cri.create(pod, cri.container_config("true", image=pb.ImageSpec(image=image)))
    assert_only_the_pod_is_left(machine, pod)


@pytest.mark.parametrize("command", ["no-such-command", "/no/such/command", "/etc/passwd"])
def test_command_that_cannot_be_executed_fails_the_start(
    machine: Machine, cri: CriClient, pod: str, command: str
) -> None:
    container = cri.create(pod, cri.container_config(command))
    with refused(INVALID, f"config.command: .*{command}"):
        cri.start(container)
    status = cri.status(container)
    assert (status.state, status.exit_code, status.reason) == (pb.CONTAINER_EXITED, 128, "StartError")
    assert command in status.message
    cri.remove(container)
    assert_only_the_pod_is_left(machine, pod)


def test_a_working_directory_that_is_a_file_fails_the_start(machine: Machine, cri: CriClient, pod: str) -> None:
    container = cri.create(pod, cri.container_config("true", working_dir="/etc/passwd"))
    with refused(grpc.StatusCode.INTERNAL, "/etc/passwd"):
        cri.start(container)
    assert cri.status(container).reason == "StartError"
    cri.remove(container)
    assert_only_the_pod_is_left(machine, pod)


def test_start_error_names_a_missing_volume(machine: Machine, cri: CriClient, pod: str) -> None:
    volume = machine.directory / "volume"
    volume.mkdir()
    mount = pb.Mount(host_path=str(volume), container_path="/data")
    container = cri.create(pod, cri.container_config("true", mounts=[mount]))
    volume.rmdir()
    with refused(INVALID, rf"config\.mounts\[0\]\.host_path: {volume} does not exist"):
        cri.start(container)
    cri.remove(container)
    assert_only_the_pod_is_left(machine, pod)


def test_failed_start_leaves_nothing(machine: Machine, cri: CriClient, pod: str) -> None:
    container = cri.create(pod, cri.container_config("no-such-command"))
    with refused(INVALID, "config.command"):
        cri.start(container)
    assert machine.processes(pod, container) == []
    assert not list(machine.run_dir.glob(f"oci/{container}"))
    assert not [item for item in machine.leftovers() if item.startswith("mount") and container in item]
    assert cri.finish(pod, "echo", "next", attempt=1) == "next\n"


def test_a_log_that_cannot_be_written_fails_the_start(machine: Machine, cri: CriClient, pod: str) -> None:
    container = cri.create(pod, cri.container_config("true"))
    log = Path(cri.status(container).log_path)
    log.parent.touch()
    with refused(grpc.StatusCode.INVALID_ARGUMENT, rf"^config\.log_path: cannot create {log.parent}: "):
        cri.start(container)
    log.parent.unlink()
    cri.remove(container)
    assert_only_the_pod_is_left(machine, pod)


def test_unreachable_registry_is_unavailable_over_the_cri(machine: Machine, cri: CriClient) -> None:
    with refused(grpc.StatusCode.UNAVAILABLE, "127.0.0.1:1/no/image"):
        cri.pull("127.0.0.1:1/no/image:1")


def test_unknown_tag_is_not_found(machine: Machine, cri: CriClient) -> None:
    with refused(grpc.StatusCode.NOT_FOUND, "tests/tools:none"):
        cri.pull(machine.image.replace(":1", ":none"))


def test_unknown_digest_is_not_found(machine: Machine, cri: CriClient) -> None:
    with refused(grpc.StatusCode.NOT_FOUND, "tests/tools@sha256:0000"):
        cri.pull(f"{machine.image.rpartition(':')[0]}@sha256:{'0' * 64}")


def test_malformed_reference_is_refused(cri: CriClient) -> None:
    with refused(INVALID, "image"):
        cri.pull("Not A Reference")


def test_container_keeps_running_after_removal_of_its_image(machine: Machine, cri: CriClient, pod: str) -> None:
    image = machine.registry.push("tests/short-lived", "1", tools_image(Env=["SHORT=1"]))
    cri.pull(image)
    container = cri.run(pod, "sleep", "1000", image=pb.ImageSpec(image=image))
    cri.images.RemoveImage(pb.RemoveImageRequest(image=pb.ImageSpec(image=image)))
    assert cri.output(container, "echo", "still here") == "still here\n"


@pytest.fixture
def hanging_runtime(machine: Machine, tmp_path: Path) -> Iterator[Path]:
    """While the returned file exists, the OCI runtime's `create` never ends: it sleeps in a session of its own."""
    hang, program = tmp_path / "hang", tmp_path / "runc"
    create = f'case " $* " in *" create "*) [ -e {hang} ] && setsid sleep 1000 && exit 1 ;; esac'
    program.write_text(f'#!/bin/sh\n{create}\nexec {shutil.which("runc")} "$@"\n')
    program.chmod(0o755)
    with machine.restarted(runtime=f'oci_runtime = "{program}"\ncreate_timeout = 1.5'):
        yield hang


def test_a_create_that_hangs_is_killed_and_keeps_nothing_from_its_removal(
    machine: Machine, hanging_runtime: Path
) -> None:
    cri = machine.client
    pod = cri.run_pod()
    container = cri.create(pod, cri.container_config("sleep", "1000"))
    hanging_runtime.touch()
    with refused(grpc.StatusCode.DEADLINE_EXCEEDED, r"did not create container .*runtime\.create_timeout"):
        cri.start(container)
    assert cri.status(container).reason == "StartError"
    assert not machine.processes_of(container)
    hanging_runtime.unlink()
    cri.remove(container)
    assert cri.finish(pod, "echo", "works") == "works\n"
    cri.remove_pod(pod)
    machine.assert_nothing_left()
