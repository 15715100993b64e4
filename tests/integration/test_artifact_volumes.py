# SPDX-License-Identifier: Apache-2.0
"""OCI artifacts as image volumes of pods."""

from __future__ import annotations

import json
import os
from typing import Any

import grpc
import pytest
from support.cri_client import CALL_TIMEOUT, CriClient, eventually, pod_security, refused
from support.daemon import Machine
from support.image_builder import BuiltImage, build_artifact

from pvecri.cri.proto import cri_pb2 as pb

SCRIPT = b"#!/bin/sh\necho it ran\n"
MODEL = build_artifact(("model.bin", b"weights"), ("sub/2", b"two"), ("run.sh", SCRIPT))


@pytest.fixture(params=["unprivileged", "privileged"])
def pod(request: pytest.FixtureRequest, cri: CriClient) -> str:
    linux = pod_security(privileged=True) if request.param == "privileged" else pb.LinuxPodSandboxConfig()
    return cri.run_pod(cri.pod_config(linux=linux))


def pull(cri: CriClient, machine: Machine, built: BuiltImage = MODEL, tag: str = "1") -> str:
    """Push and pull; the ID, by which a kubelet mounts it."""
    return cri.pull(machine.registry.push("tests/artifact", tag, built))


def volume(image: str, container_path: str = "/data", **fields: Any) -> dict[str, Any]:
    spec = pb.ImageSpec(image=image)
    return {"mounts": [pb.Mount(container_path=container_path, image=spec, readonly=True, **fields)]}


def image_status(cri: CriClient, image: str) -> pb.ImageStatusResponse:
    request = pb.ImageStatusRequest(image=pb.ImageSpec(image=image), verbose=True)
    response: pb.ImageStatusResponse = cri.images.ImageStatus(request, timeout=CALL_TIMEOUT)
    return response


def remove_image(cri: CriClient, image: str) -> None:
    cri.images.RemoveImage(pb.RemoveImageRequest(image=pb.ImageSpec(image=image)), timeout=CALL_TIMEOUT)


def test_container_reads_an_artifact_and_cannot_change_or_run_it(
    cri: CriClient, machine: Machine, pod: str
) -> None:
    script = (
        "cd /data; cat model.bin sub/2; stat -c ' %u %g %a' . sub run.sh; echo x 2>&1 >model.bin; ./run.sh 2>&1"
    )
    shown = cri.finish(pod, "sh", "-c", f"{script}; chmod +x run.sh 2>&1; true", **volume(pull(cri, machine)))
    assert shown.startswith("weightstwo 0 0 755\n 0 0 755\n 0 0 644\n")
    assert shown.count("Read-only file system") == 2
    assert shown.count("Permission denied") == 1


@pytest.mark.parametrize(
    ("sub_path", "place", "shown"),
    [
        ("sub", "/data", "2\n"),
        (".", "/data", "model.bin\nrun.sh\nsub\n"),
        ("sub/2", "/etc/settings", "/etc/settings\n"),
    ],
)
def test_sub_path_selects_a_directory_or_a_file(
    cri: CriClient, machine: Machine, pod: str, sub_path: str, place: str, shown: str
) -> None:
    assert cri.finish(pod, "ls", place, **volume(pull(cri, machine), place, image_sub_path=sub_path)) == shown


def test_sub_path_that_is_not_in_the_artifact_is_refused(cri: CriClient, machine: Machine) -> None:
    pod, fields = cri.run_pod(), volume(pull(cri, machine), image_sub_path="none")
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "image_sub_path: ImageVolumeMountFailed: 'none' is not in"):
        cri.create(pod, cri.container_config("true", **fields))


def test_artifact_is_no_containers_image(cri: CriClient, machine: Machine) -> None:
    pod, artifact = cri.run_pod(), pull(cri, machine)
    image = pb.ImageSpec(image=artifact, user_specified_image="models/one:1")
    words = (
        "config.image.image: 'models/one:1' is an OCI artifact .application/vnd.example.model.; it can be a volume"
    )
    with refused(grpc.StatusCode.INVALID_ARGUMENT, words):
        cri.create(pod, cri.container_config("true", image=image))
    assert cri.containers() == []


def test_artifact_is_listed_and_shown_like_an_image(cri: CriClient, machine: Machine) -> None:
    artifact = pull(cri, machine)
    reference = f"{machine.registry.address}/tests/artifact:1"
    found = image_status(cri, reference)
    size = len(b"{}") + sum(map(len, MODEL.layers))
    assert (found.image.id, list(found.image.repo_tags), found.image.size) == (artifact, [reference], size)
    info = json.loads(found.info["info"])
    storage, users = info.pop("storage"), info.pop("usedBy")
    assert info == {"artifactType": "application/vnd.example.model", "manifest": json.loads(MODEL.manifest)}
    assert len(storage["layers"]) == len(MODEL.layers)
    assert not any(users.values())
    listed = cri.images.ListImages(pb.ListImagesRequest(), timeout=CALL_TIMEOUT).images
    assert found.image in listed
    remove_image(cri, artifact)
    remove_image(cri, artifact)
    assert not image_status(cri, reference).HasField("image")


def test_artifact_stays_mounted_over_its_removal_and_a_crash_of_the_daemon(
    cri: CriClient, machine: Machine
) -> None:
    artifact = pull(cri, machine)
    container = cri.run(cri.run_pod(), "sleep", "1000", **volume(artifact))
    remove_image(cri, artifact)
    machine.kill()
    machine.start()
    cri = machine.client
    assert cri.output(container, "cat", "/data/model.bin") == "weights"
    (mount,) = cri.status(container).mounts
    assert (mount.image.image, mount.image.image_ref, mount.readonly) == (artifact, artifact, True)


def test_crash_in_a_pull_leaves_nothing_of_an_artifact(cri: CriClient, machine: Machine) -> None:
    built = build_artifact(("large", os.urandom(64 << 20)), ("small", b"1"))
    reference = machine.registry.push("tests/large-artifact", "1", built)
    request = pb.PullImageRequest(image=pb.ImageSpec(image=reference))
    images = machine.state_dir / "images/overlay"
    kept = set((images / "layers").iterdir())
    call = cri.images.PullImage.future(request, timeout=CALL_TIMEOUT)
    eventually(lambda: list((images / "new").glob("*/large")) or call.done(), "the file arrives")
    machine.kill()
    machine.start()
    cri = machine.client
    assert list((images / "new").iterdir()) == []
    is_complete = image_status(cri, reference).HasField("image")  # the pull may have been faster than the crash
    assert is_complete or set((images / "layers").iterdir()) == kept
    container = cri.run(cri.run_pod(), "sleep", "1000", **volume(cri.pull(reference)))
    assert cri.output(container, "cat", "/data/small") == "1"


def test_containers_of_a_pod_share_an_artifact(cri: CriClient, machine: Machine, pod: str) -> None:
    fields = volume(pull(cri, machine))
    shown = [cri.finish(pod, "cat", "/data/sub/2", name=name, **fields) for name in ("one", "two")]
    assert shown == ["two", "two"]
