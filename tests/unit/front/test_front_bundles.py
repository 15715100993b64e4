# SPDX-License-Identifier: Apache-2.0
"""Which pod and which container a front's bundle describes."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.front import containerd_annotations, crio_annotations, namespaces, oci_spec

from pvecri.errors import InvalidArgument
from pvecri.front.bundle import internal_id, read, wanted
from pvecri.front.spec import decode_resources
from pvecri.model import FrontKind, FrontSandbox, NamespaceMode, NamespaceOptions, Resources
from pvecri.pods.front.wanted import WantedContainer, WantedSandbox

SANDBOX, CONTAINER = "5a" * 32, "c0" * 32
MIB = 1 << 20
ROOT = "/run/runc"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path


def described(directory: Path, spec: object, front_id: str = CONTAINER) -> tuple[WantedSandbox, WantedContainer]:
    """What a bundle with this config.json describes."""
    (directory / "config.json").write_text(spec if isinstance(spec, str) else json.dumps(spec))
    return wanted(read(directory), front_id, ROOT)


# -- CRI-O --------------------------------------------------------------------------------------------------------


def test_crio_sandbox(directory: Path) -> None:
    resources = {"cpu_period": 100_000, "cpu_quota": 50_000, "cpu_shares": 512, "memory_limit_in_bytes": 64 * MIB}
    more = {
        "HostName": "shop",
        "PodLinuxResources": json.dumps(resources),
        "PodLinuxOverhead": json.dumps({"memory_limit_in_bytes": MIB}),
    }
    sandbox, container = described(directory, oci_spec(annotations=crio_annotations(SANDBOX, **more)), SANDBOX)
    assert (sandbox.id, sandbox.front) == (SANDBOX, FrontSandbox(kind=FrontKind.CRIO, has_container=True))
    config = sandbox.config
    metadata = config.metadata
    assert (metadata.name, metadata.namespace, metadata.uid, metadata.attempt) == (
        "pod-5a5a5a",
        "tests",
        "uid-5a5a5a",
        0,
    )
    assert (config.hostname, config.annotations) == ("shop", {"note": "of the pod"})
    assert config.labels == {"io.kubernetes.pod.name": "pod-5a5a5a", "io.kubernetes.pod.namespace": "tests"}
    limits = Resources(cpu_period=100_000, cpu_quota=50_000, cpu_shares=512, memory_limit=64 * MIB)
    assert (config.resources, config.overhead) == (limits, Resources(memory_limit=MIB))
    assert (container.front_id, container.root, container.is_sandbox) == (SANDBOX, ROOT, True)
    assert str(container.id) != sandbox.id  # here every id is one thing's


def test_crio_container_of_a_pod_with_an_infra_container(directory: Path) -> None:
    paths = {"pid": "/proc/4711/ns/pid", "network": "/proc/4711/ns/net"}
    annotations = crio_annotations(SANDBOX, "web", ImageRef="sha256:ab")
    spec = oci_spec(annotations=annotations, linux={"namespaces": namespaces(**paths)})
    sandbox, container = described(directory, spec)
    assert sandbox.front == FrontSandbox(kind=FrontKind.CRIO)
    assert (container.id, container.front_id, container.is_sandbox) == (CONTAINER, CONTAINER, False)
    assert (container.config.metadata.name, container.config.image) == ("web", "tests/tools:1")
    assert container.image_id == "sha256:ab"


def test_crio_container_of_a_pod_without_an_infra_container(directory: Path) -> None:
    paths = {"pid": "", "network": "/var/run/netns/a", "ipc": "/var/run/ipcns/a"}
    spec = oci_spec(annotations=crio_annotations(SANDBOX, "web"), linux={"namespaces": namespaces(**paths)})
    sandbox, _ = described(directory, spec)
    assert (sandbox.id, sandbox.front) == (
        SANDBOX,
        FrontSandbox(kind=FrontKind.CRIO, namespace="/var/run/netns/a"),
    )
    # The pod's own labels: the container's are not the pod's.
    assert "io.kubernetes.container.name" not in sandbox.config.labels
    assert sandbox.config.annotations == {}


def test_crio_pod_in_the_nodes_network_is_kept_by_another_namespace(directory: Path) -> None:
    paths = {"pid": "", "ipc": "/var/run/ipcns/a"}
    spec = oci_spec(annotations=crio_annotations(SANDBOX, "web"), linux={"namespaces": namespaces(**paths)})
    sandbox, _ = described(directory, spec)
    assert sandbox.front.namespace == "/var/run/ipcns/a"
    assert sandbox.config.security.namespaces.network is NamespaceMode.NODE


def test_crio_pod_name_may_have_no_labels(directory: Path) -> None:
    annotations = crio_annotations(SANDBOX, "web", Labels="{}", SandboxName="k8s_shop_demo_uid-1_7")
    metadata = described(directory, oci_spec(annotations=annotations))[0].config.metadata
    assert (metadata.name, metadata.namespace, metadata.uid, metadata.attempt) == ("shop", "demo", "uid-1", 7)


# -- containerd ---------------------------------------------------------------------------------------------------


def test_containerd_sandbox(directory: Path) -> None:
    limits = {"sandbox-cpu-period": "100000", "sandbox-cpu-quota": "50000", "sandbox-memory": str(64 * MIB)}
    annotations = containerd_annotations(SANDBOX, **limits, **{"sandbox-cpu-shares": "512"})
    sandbox, container = described(directory, oci_spec(annotations=annotations), SANDBOX)
    assert (sandbox.id, sandbox.front) == (SANDBOX, FrontSandbox(kind=FrontKind.CONTAINERD, has_container=True))
    assert sandbox.config.metadata.name == "pod-5a5a5a"
    assert sandbox.config.labels["io.kubernetes.pod.uid"] == "uid-5a5a5a"
    assert sandbox.config.resources == Resources(
        cpu_period=100_000, cpu_quota=50_000, cpu_shares=512, memory_limit=64 * MIB
    )
    assert container.is_sandbox


def test_containerd_container(directory: Path) -> None:
    paths = {"pid": "", "network": "/proc/4711/ns/net", "ipc": "/proc/4711/ns/ipc"}
    annotations = containerd_annotations(SANDBOX, "web")
    spec = oci_spec(annotations=annotations, linux={"namespaces": namespaces(**paths)})
    sandbox, container = described(directory, spec)
    assert (sandbox.id, container.id, container.is_sandbox) == (SANDBOX, CONTAINER, False)
    assert container.config.metadata.name == "web"
    assert container.config.image == "tests/tools:1"
    assert container.config.labels["io.kubernetes.container.name"] == "web"


# -- others -------------------------------------------------------------------------------------------------------


def test_container_without_annotations_is_a_pod_of_its_own(directory: Path) -> None:
    resources = {"memory": {"limit": 64 * MIB}, "cpu": {"quota": 50_000, "period": 100_000, "shares": 512}}
    spec = oci_spec(hostname="box", linux={"resources": resources})
    sandbox, container = described(directory, spec)
    assert sandbox.front == FrontSandbox(kind=FrontKind.NONE, has_container=True)
    assert (sandbox.config.metadata.name, sandbox.config.hostname) == (CONTAINER[:12], "box")
    assert sandbox.config.resources == Resources(
        cpu_period=100_000, cpu_quota=50_000, cpu_shares=512, memory_limit=64 * MIB
    )
    assert str(sandbox.id) != container.id == CONTAINER
    assert not container.is_sandbox


def test_ids_of_others_are_unique_with_their_root() -> None:
    ids = [internal_id(name, root) for name in ("web", "db") for root in ("/run/a", "/run/b")]
    ids += [internal_id(CONTAINER, root, sandbox=True) for root in ("/run/a", "/run/b")]
    assert len(set(ids)) == len(ids)
    assert all(len(each) == 64 for each in ids)
    assert internal_id(CONTAINER, "/run/a") == internal_id(CONTAINER, "/run/b") == CONTAINER


@pytest.mark.parametrize(
    ("kinds", "modes"),
    [
        (("pid", "network", "ipc", "uts"), NamespaceOptions(pid=NamespaceMode.POD)),
        ((), NamespaceOptions(network=NamespaceMode.NODE, pid=NamespaceMode.NODE, ipc=NamespaceMode.NODE)),
        (("network", "ipc"), NamespaceOptions(pid=NamespaceMode.NODE)),
    ],
)
def test_missing_namespaces_are_the_nodes(
    directory: Path, kinds: tuple[str, ...], modes: NamespaceOptions
) -> None:
    spec = oci_spec(linux={"namespaces": namespaces(**dict.fromkeys(kinds, ""))})
    found = described(directory, spec)[0].config.security.namespaces
    assert (found.network, found.ipc, found.pid) == (modes.network, modes.ipc, modes.pid)


@pytest.mark.parametrize(
    ("path", "parent", "cgroup"),
    [
        ("/kubepods/podU/crio-C", "/kubepods/podU", "/kubepods/podU/crio-C"),
        ("/libpod_parent/libpod-C", "/libpod_parent", "/libpod_parent/libpod-C"),
        ("/web", "", "/web"),
        (
            "kubepods-podU.slice:crio:C",
            "kubepods-podU.slice",
            "/kubepods.slice/kubepods-podU.slice/crio-C.scope",
        ),
        ("machine.slice:libpod:C", "machine.slice", "/machine.slice/libpod-C.scope"),
        (":cri-containerd:C", "", "/system.slice/cri-containerd-C.scope"),
        ("a.slice::C", "a.slice", "/a.slice/C.scope"),
        ("", "", ""),
        (None, "", ""),
    ],
)
def test_cgroup_of_either_manager(directory: Path, path: str | None, parent: str, cgroup: str) -> None:
    sandbox, container = described(directory, oci_spec(linux={"cgroupsPath": path}))
    assert (sandbox.config.cgroup_parent, container.cgroup) == (parent, cgroup)


# -- what is malformed --------------------------------------------------------------------------------------------


def test_missing_config_is_named(directory: Path) -> None:
    with pytest.raises(InvalidArgument, match=r"--bundle: .*/config\.json: No such file"):
        read(directory)


@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "Expected `object`, got `array`"),
        ({}, "missing required field `root`"),
        ({"root": "/"}, r"Expected `object.*`, got `str` - at `\$\.root`"),
        ({"root": {}, "linux": []}, r"at `\$\.linux`"),
        ({"root": {}, "annotations": {"a": 1}}, r"Expected `str`, got `int` - at `\$\.annotations"),
        ({"root": {}, "linux": {"cgroupsPath": "/a\0b"}}, r"at `\$\.linux\.cgroupsPath`"),
        ({"root": {}, "linux": {"namespaces": [1]}}, r"at `\$\.linux\.namespaces"),
        ({"root": {}, "linux": {"resources": {"memory": {"limit": "1G"}}}}, r"resources\.memory\.limit`"),
        ({"root": {}, "linux": {"resources": {"cpu": {"quota": 1 << 70}}}}, r"resources\.cpu\.quota`"),
    ],
)
def test_malformed_spec_is_refused_with_the_entry(directory: Path, spec: object, problem: str) -> None:
    with pytest.raises(InvalidArgument, match=f"(?s)--bundle: .*{problem}"):
        described(directory, spec)


@pytest.mark.parametrize("annotations", [crio_annotations("", "web"), containerd_annotations("", "web")])
def test_container_of_no_sandbox_is_refused(directory: Path, annotations: dict[str, str]) -> None:
    with pytest.raises(InvalidArgument, match="name no sandbox"):
        described(directory, oci_spec(annotations=annotations))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
# Every entry of a spec that is read, and every annotation.
PLACES = [
    (),
    ("root",),
    ("root", "path"),
    ("hostname",),
    ("annotations",),
    ("linux",),
    ("linux", "cgroupsPath"),
    ("linux", "namespaces"),
    ("linux", "resources"),
    *(("linux", "resources", each) for each in ("memory", "cpu", "pids", "devices")),
    ("linux", "resources", "memory", "limit"),
    ("linux", "resources", "cpu", "quota"),
]
FRONTS: dict[str, dict[str, str]] = {
    "CRI-O": crio_annotations(SANDBOX, "web", PodLinuxResources="{}", PodLinuxOverhead="{}"),
    "CRI-O sandbox": crio_annotations(SANDBOX),
    "containerd": containerd_annotations(SANDBOX, "web"),
    "containerd sandbox": containerd_annotations(SANDBOX, **{"sandbox-memory": "1"}),
    "podman": {},
}


@given(st.sampled_from(list(FRONTS)), st.sampled_from(PLACES), JSON)
def test_any_json_in_an_entry_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, name: str, place: tuple[str, ...], value: Any
) -> None:
    spec = oci_spec(annotations=FRONTS[name])
    spec["linux"]["resources"] |= {"memory": {}, "cpu": {}}
    assert_read_or_refused(tmp_path_factory.getbasetemp(), _put(spec, place, value))


def _put(spec: Any, place: tuple[str, ...], value: Any) -> Any:
    """The spec with another value in a place."""
    if not place:
        return value
    return {**spec, place[0]: _put(spec.get(place[0]), place[1:], value)}


@given(st.sampled_from(list(FRONTS)), st.data())
def test_any_text_in_an_annotation_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, name: str, data: st.DataObject
) -> None:
    annotations = dict(FRONTS[name]) or {"a": ""}
    key = data.draw(st.sampled_from(sorted(annotations)))
    annotations[key] = data.draw(st.text(max_size=20) | JSON.map(json.dumps) | st.just("[" * 100_000))
    assert_read_or_refused(tmp_path_factory.getbasetemp(), oci_spec(annotations=annotations))


def assert_read_or_refused(directory: Path, spec: object) -> None:
    """Reading raises nothing but InvalidArgument, and what is read can be stored."""
    with suppress(InvalidArgument):
        sandbox, container = described(directory, spec)
        for value in (sandbox.config, sandbox.front, container.config):
            assert msgspec.json.decode(msgspec.json.encode(value), type=type(value)) == value


@given(
    JSON | st.builds(lambda key, value: {key: value}, st.sampled_from(["memory", "cpu", "pids", "devices"]), JSON)
)
def test_any_json_of_an_update_is_read_or_refused(value: Any) -> None:
    with suppress(InvalidArgument):
        assert decode_resources(json.dumps(value).encode()) == value


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'{"memory": 5}', b'{"pids": {"limit": "x"}}'])
def test_malformed_resources_are_refused(text: bytes) -> None:
    with pytest.raises(InvalidArgument, match="--resources: it is not"):
        decode_resources(text)
