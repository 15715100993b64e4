# SPDX-License-Identifier: Apache-2.0
"""The limits and labels of a pod of CRI-O, which are in the spec of its sandbox and not in its containers'."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pvecri.front import bundle
from pvecri.model import Resources, SandboxConfig

SANDBOX, CONTAINER = "a" * 64, "b" * 64
LIMITS = {"cpu_period": 100000, "cpu_quota": 50000, "memory_limit_in_bytes": 1 << 26}
PREFIX = "io.kubernetes.cri-o."


def named(kind: str, name: str, **more: object) -> dict[str, str]:
    """The annotations of a pod's spec or of a container's; values of `more` as JSON."""
    pod = {"io.kubernetes.pod.name": "web", "io.kubernetes.pod.namespace": "default", "io.kubernetes.pod.uid": "u"}
    return {
        f"{PREFIX}ContainerType": kind,
        f"{PREFIX}SandboxID": SANDBOX,
        f"{PREFIX}SandboxName": "k8s_web_default_u_2",
        f"{PREFIX}Metadata": json.dumps({"name": name}),
        f"{PREFIX}Labels": json.dumps({**pod, "app": name}),
        **{key: json.dumps(value) for key, value in more.items()},
    }


def write(storage: Path, container: str, found: dict[str, Any]) -> bundle.Bundle:
    """A bundle as CRI-O lays it out below its storage."""
    directory = storage / "overlay-containers" / container / "userdata"
    directory.mkdir(parents=True)
    spec = {"root": {"path": "/merged"}, "linux": {}, "annotations": found}
    (directory / "config.json").write_text(json.dumps(spec))
    return bundle.read(directory)


def pod_of(found: bundle.Bundle, container: str) -> SandboxConfig:
    sandbox, _ = bundle.wanted(found, container, "/run/pvecri-runtime")
    return sandbox.config


@pytest.mark.parametrize("name", ["pod-linux-resources.crio.io", f"{PREFIX}PodLinuxResources"])
def test_a_pods_ct_has_the_limits_of_its_sandbox_without_a_container(tmp_path: Path, name: str) -> None:
    write(tmp_path, SANDBOX, named("sandbox", "POD", **{name: LIMITS}))
    pod = pod_of(write(tmp_path, CONTAINER, named("container", "httpd")), CONTAINER)
    assert pod.resources == Resources(cpu_period=100000, cpu_quota=50000, memory_limit=1 << 26)
    assert pod.labels["app"] == "POD"
    assert (pod.metadata.name, pod.metadata.attempt) == ("web", 2)


def test_overhead_is_that_of_the_sandbox(tmp_path: Path) -> None:
    overhead = {"pod-linux-overhead.crio.io": {"memory_limit_in_bytes": 1 << 20}}
    found = write(tmp_path, SANDBOX, named("sandbox", "POD", **overhead))
    assert pod_of(found, SANDBOX).overhead == Resources(memory_limit=1 << 20)


@pytest.mark.parametrize("content", [None, "{}", "not JSON"])
def test_a_container_without_a_spec_of_its_sandbox_has_a_pod_without_limits(
    tmp_path: Path, content: str | None
) -> None:
    if content is not None:
        directory = tmp_path / "overlay-containers" / SANDBOX / "userdata"
        directory.mkdir(parents=True)
        (directory / "config.json").write_text(content)
    pod = pod_of(write(tmp_path, CONTAINER, named("container", "httpd")), CONTAINER)
    assert pod.resources == Resources()
    assert pod.labels == {
        "io.kubernetes.pod.name": "web",
        "io.kubernetes.pod.namespace": "default",
        "io.kubernetes.pod.uid": "u",
    }
