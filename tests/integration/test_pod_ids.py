# SPDX-License-Identifier: Apache-2.0
"""Users, groups and owners above 65535, which the ID range of Proxmox's CTs lacks."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from support import leaks
from support.cri_client import CriClient, pod_security, refused, security
from support.daemon import Machine
from support.image_builder import LayerBuilder, build_image, plain
from support.tools import tools_layer

from pvecri.cri.proto import cri_pb2 as pb

HIGH = 1_000_650_000
MAPPING = pb.IDMapping(container_id=0, host_id=4_072_865_792, length=65_536)
FRESH = "the pod was stopped, and its next sandbox has them"


def value(number: int) -> pb.Int64Value:
    return pb.Int64Value(value=number)


def run_again(cri: CriClient, config: pb.PodSandboxConfig) -> str:
    """As a kubelet does when a sandbox has ended: another attempt of the same pod."""
    config.metadata.attempt += 1
    return cri.run_pod(config)


def decision(cri: CriClient, pod: str) -> tuple[str, str]:
    described = json.loads(cri.pod_info(pod).info["info"])["userNamespace"]
    return described["kind"], described["reason"]


@pytest.fixture
def volume() -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix=leaks.PREFIX))
    try:
        yield directory
    finally:
        shutil.rmtree(directory)


def test_pod_can_have_a_user_and_groups_above_65535(cri: CriClient, volume: Path) -> None:
    os.chown(volume, 0, HIGH + 7)
    volume.chmod(0o2770)
    named: dict[str, Any] = {"run_as_user": value(HIGH), "supplemental_groups": [HIGH + 7, 2_147_483_647]}
    pod = cri.run_pod(cri.pod_config(linux=pod_security(**named)))
    mount = pb.Mount(host_path=str(volume), container_path="/data")
    script = "id -u; id -G; touch /data/made; stat -c '%u:%g' /data /data/made"
    shown = cri.finish(pod, "sh", "-c", script, linux=security(**named), mounts=[mount])
    uid, groups, directory, made = shown.splitlines()
    assert uid == str(HIGH)
    assert set(groups.split()) == {"0", str(HIGH + 7), "2147483647"}
    assert (directory, made) == (f"0:{HIGH + 7}", f"{HIGH}:{HIGH + 7}")
    assert (volume / "made").stat().st_uid == HIGH


@pytest.mark.parametrize(
    "named",
    [
        {"run_as_user": value(HIGH)},
        {"run_as_user": value(1000), "run_as_group": value(HIGH)},
        {"supplemental_groups": [70_000]},
    ],
)
def test_container_with_high_ids_gets_them_in_the_next_sandbox(cri: CriClient, named: dict[str, Any]) -> None:
    config = cri.pod_config()
    first = cri.run_pod(config)
    assert decision(cri, first) == ("ct", "default")
    with refused(grpc.StatusCode.FAILED_PRECONDITION, FRESH):
        cri.run(first, "id", linux=security(**named))
    assert cri.pod_status(first).state == pb.SANDBOX_NOTREADY
    second = run_again(cri, config)
    assert decision(cri, second) == ("pod", "high-ids")
    shown = cri.finish(second, "sh", "-c", "id -u; id -g; id -G", linux=security(**named)).split()
    assert {str(each.value if isinstance(each, pb.Int64Value) else each[0]) for each in named.values()} <= set(
        shown
    )


def test_next_sandboxes_keep_the_added_ids(machine: Machine, cri: CriClient) -> None:
    config = cri.pod_config()
    pod = cri.run_pod(config)
    for number in (HIGH, HIGH + 5):
        with refused(grpc.StatusCode.FAILED_PRECONDITION, str(number)):
            cri.run(pod, "id", linux=security(run_as_user=value(number)))
        machine.restart()
        cri = machine.client
        pod = run_again(cri, config)
    for number in (HIGH, HIGH + 5):
        named = security(run_as_user=value(number))
        assert cri.finish(pod, "id", "-u", linux=named, name=f"u{number}") == f"{number}\n"


def test_image_can_have_a_user_and_file_owners_above_65535(machine: Machine, cri: CriClient) -> None:
    owned = LayerBuilder().file("data/mine", "x", mode=0o600, uid=HIGH, gid=HIGH + 1).build()
    image = build_image(tools_layer(), owned, compress=plain, config={"User": str(HIGH)})
    pushed = machine.registry.push("tests/high-ids", "1", image)
    cri.pull(pushed)
    config, spec = cri.pod_config(), pb.ImageSpec(image=pushed)
    pod = cri.run_pod(config)
    with refused(grpc.StatusCode.FAILED_PRECONDITION, rf"{HIGH}, {HIGH + 1}"):
        cri.run(pod, "id", image=spec)
    pod = run_again(cri, config)
    shown = cri.finish(pod, "sh", "-c", "id -u; stat -c %u:%g /data/mine; cat /data/mine", image=spec)
    assert shown == f"{HIGH}\n{HIGH}:{HIGH + 1}\nx"
    cri.images.RemoveImage(pb.RemoveImageRequest(image=spec))


def test_volume_can_have_an_owner_above_65535(cri: CriClient, volume: Path) -> None:
    os.chown(volume, HIGH, HIGH)
    config, mount = cri.pod_config(), pb.Mount(host_path=str(volume), container_path="/data")
    pod = cri.run_pod(config)
    with refused(grpc.StatusCode.FAILED_PRECONDITION, FRESH):
        cri.run(pod, "id", mounts=[mount])
    shown = cri.finish(run_again(cri, config), "stat", "-c", "%u:%g", "/data", mounts=[mount])
    assert shown == f"{HIGH}:{HIGH}\n"


def test_high_user_is_refused_if_the_kubelet_set_the_mappings(cri: CriClient) -> None:
    own = pb.UserNamespace(mode=pb.POD, uids=[MAPPING], gids=[MAPPING])
    options = pb.NamespaceOption(pid=pb.CONTAINER, userns_options=own)
    pod = cri.run_pod(cri.pod_config(linux=pod_security(namespace_options=options)))
    with refused(grpc.StatusCode.FAILED_PRECONDITION, r"the client chose its IDs \(hostUsers: false\)"):
        cri.run(pod, "id", linux=security(namespace_options=options, run_as_user=value(HIGH)))
    assert cri.finish(pod, "id", "-u", linux=security(namespace_options=options)) == "0\n"


def test_pod_in_the_nodes_user_namespace_has_all_ids(cri: CriClient) -> None:
    pod = cri.run_pod(cri.pod_config(linux=pod_security(privileged=True)))
    assert cri.finish(pod, "id", "-u", linux=security(run_as_user=value(HIGH))) == f"{HIGH}\n"
