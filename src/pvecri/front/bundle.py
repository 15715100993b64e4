# SPDX-License-Identifier: Apache-2.0
"""Reads a front's bundle: which pod a container belongs to, and its spec as it runs in that pod's CT.

The spec stays a table of JSON: the front decides what is in it, and the OCI runtime reads it; only the entries
that depend on the CT are replaced.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from pvecri.errors import InvalidArgument
from pvecri.front.spec import decode_spec
from pvecri.model import (
    ContainerConfig,
    ContainerId,
    ContainerMetadata,
    FrontKind,
    FrontSandbox,
    NamespaceMode,
    NamespaceOptions,
    Resources,
    SandboxConfig,
    SandboxId,
    SandboxMetadata,
    SandboxSecurity,
)
from pvecri.pods.front.wanted import WantedContainer, WantedSandbox
from pvecri.pods.sandbox.kubelet_cgroups import expand_slice

_CRIO: Final = "io.kubernetes.cri-o."
_CRIO_RESOURCES: Final = ("pod-linux-resources.crio.io", f"{_CRIO}PodLinuxResources")
_CRIO_OVERHEAD: Final = ("pod-linux-overhead.crio.io", f"{_CRIO}PodLinuxOverhead")
"""From 1.35 on, and before."""
_CONTAINERD: Final = "io.kubernetes.cri."
_LABEL: Final = "io.kubernetes."
_ID: Final = re.compile(r"[0-9a-f]{64}")
_SANDBOX: Final = "sandbox"
_SANDBOX_CONTAINER: Final = "POD"
"""The name of a pod's own container; no container of Kubernetes can have it."""
_NO_NAMESPACE: Final = "oci"
"""The namespace of pods of a front without namespaces: CRI clients refuse a pod that has none."""
_INT64_MAX: Final = (1 << 63) - 1


def internal_id(front_id: str, root: str, *, sandbox: bool = False) -> ContainerId:
    """The id by which pvecri knows a container: the front's, if that is one of Kubernetes' fronts.

    Others choose any name, which is unique below their --root only. A pod's own container has the pod's id in the
    front; here every id is one thing's.
    """
    if _ID.fullmatch(front_id) and not sandbox:
        return ContainerId(front_id)
    return ContainerId(hashlib.sha256(f"{root}\0{front_id}\0{sandbox}".encode()).hexdigest())


@dataclass(frozen=True)
class Bundle:
    """A bundle as its front wrote it."""

    directory: Path
    spec: dict[str, Any]

    @property
    def annotations(self) -> Mapping[str, str]:
        """The spec's `annotations`."""
        return self.spec.get("annotations") or {}


def read(directory: Path) -> Bundle:
    """Read a bundle; InvalidArgument if its config.json is missing or is not a spec."""
    return Bundle(directory, decode_spec(directory / "config.json"))


def wanted(bundle: Bundle, front_id: str, root: str) -> tuple[WantedSandbox, WantedContainer]:
    """The container that a bundle describes, and the pod that it belongs to."""
    annotations = bundle.annotations
    kind = _kind(annotations)
    prefix = _CRIO if kind is FrontKind.CRIO else _CONTAINERD
    if kind is FrontKind.CRIO:
        is_sandbox = annotations[f"{prefix}ContainerType"] == _SANDBOX
        sandbox_id = annotations.get(f"{prefix}SandboxID", "")
        pod = annotations if is_sandbox else _crio_sandbox(bundle, sandbox_id)
        sandbox, container = _of_crio(annotations, pod, front_id)
    elif kind is FrontKind.CONTAINERD:
        is_sandbox = annotations[f"{prefix}container-type"] == _SANDBOX
        sandbox_id = annotations.get(f"{prefix}sandbox-id", "")
        sandbox, container = _of_containerd(annotations, front_id)
    else:
        is_sandbox, sandbox_id = False, front_id
        sandbox, container = _of_others(bundle, front_id)
    if not sandbox_id:
        raise InvalidArgument("--bundle", f"the annotations of {bundle.directory} name no sandbox")
    alone = kind is FrontKind.NONE
    cgroup_parent, cgroup = _cgroup(bundle, front_id)
    if is_sandbox:
        container = replace(container, metadata=ContainerMetadata(name=_SANDBOX_CONTAINER))
    sandbox = replace(
        sandbox,
        cgroup_parent=cgroup_parent,
        security=SandboxSecurity(namespaces=_namespaces(bundle), privileged=True),
    )
    return (
        WantedSandbox(
            id=SandboxId(internal_id(sandbox_id, root, sandbox=alone)),
            config=sandbox,
            front=FrontSandbox(
                kind=kind,
                namespace="" if is_sandbox or alone else _kept_namespace(bundle),
                has_container=is_sandbox or alone,
            ),
        ),
        WantedContainer(
            id=internal_id(front_id, root, sandbox=is_sandbox),
            front_id=front_id,
            root=root,
            bundle=bundle.directory,
            spec=bundle.spec,
            config=container,
            cgroup=cgroup,
            image_id=annotations.get(f"{_CRIO}ImageRef", ""),
            is_sandbox=is_sandbox,
        ),
    )


def _kind(annotations: Mapping[str, str]) -> FrontKind:
    if f"{_CRIO}ContainerType" in annotations:
        return FrontKind.CRIO
    if f"{_CONTAINERD}container-type" in annotations:
        return FrontKind.CONTAINERD
    return FrontKind.NONE


def _crio_sandbox(bundle: Bundle, sandbox_id: str) -> Mapping[str, str]:
    """The annotations of a container's pod; none if CRI-O has no spec of it.

    By default (`drop_infra_ctr`) a pod has no container of its own, but CRI-O writes its spec all the same.
    """
    if not _ID.fullmatch(sandbox_id):
        return {}
    try:
        return read(bundle.directory.parent.parent / sandbox_id / bundle.directory.name).annotations
    except InvalidArgument:
        return {}


def _of_crio(
    annotations: Mapping[str, str], pod: Mapping[str, str], front_id: str
) -> tuple[SandboxConfig, ContainerConfig]:
    """The pod and the container; `pod` has the annotations of the pod's own spec."""
    metadata = _table(annotations.get(f"{_CRIO}Metadata"))
    labels = _table(annotations.get(f"{_CRIO}Labels"))
    pod_labels = _table(pod.get(f"{_CRIO}Labels")) or _pod_labels(labels)
    # k8s_NAME_NAMESPACE_UID_ATTEMPT
    parts = annotations.get(f"{_CRIO}SandboxName", "").removeprefix("k8s_").split("_")
    name, namespace, uid, attempt = parts if len(parts) == 4 else (front_id[:12], "", "", "0")
    sandbox = SandboxConfig(
        metadata=SandboxMetadata(
            name=pod_labels.get(f"{_LABEL}pod.name", name),
            namespace=pod_labels.get(f"{_LABEL}pod.namespace", namespace),
            uid=pod_labels.get(f"{_LABEL}pod.uid", uid),
            attempt=_number(attempt),
        ),
        hostname=annotations.get(f"{_CRIO}HostName", ""),
        labels=pod_labels,
        annotations=_table(pod.get(f"{_CRIO}Annotations")),
        resources=_crio_resources(pod, _CRIO_RESOURCES),
        overhead=_crio_resources(pod, _CRIO_OVERHEAD),
    )
    container = ContainerConfig(
        metadata=ContainerMetadata(
            name=metadata.get("name") or front_id[:12], attempt=_number(metadata.get("attempt", "0"))
        ),
        image=annotations.get(f"{_CRIO}Image", annotations.get(f"{_CRIO}ImageName", "")),
        labels=labels,
        annotations=_table(annotations.get(f"{_CRIO}Annotations")),
    )
    return sandbox, container


def _of_containerd(annotations: Mapping[str, str], front_id: str) -> tuple[SandboxConfig, ContainerConfig]:
    named = {key.removeprefix(_CONTAINERD): value for key, value in annotations.items()}
    metadata = SandboxMetadata(
        name=named.get("sandbox-name", front_id[:12]),
        namespace=named.get("sandbox-namespace", ""),
        uid=named.get("sandbox-uid", ""),
    )
    labels = {
        f"{_LABEL}pod.name": metadata.name,
        f"{_LABEL}pod.namespace": metadata.namespace,
        f"{_LABEL}pod.uid": metadata.uid,
    }
    pod = SandboxConfig(
        metadata=metadata,
        labels=labels,
        resources=Resources(
            cpu_period=_number(named.get("sandbox-cpu-period", "")),
            cpu_quota=_number(named.get("sandbox-cpu-quota", "")),
            cpu_shares=_number(named.get("sandbox-cpu-shares", "")),
            memory_limit=_number(named.get("sandbox-memory", "")),
        ),
    )
    container = ContainerConfig(
        metadata=ContainerMetadata(name=named.get("container-name", front_id[:12])),
        image=named.get("image-name", named.get("podsandbox.image-name", "")),
        labels={**labels, f"{_LABEL}container.name": named.get("container-name", "")},
    )
    return pod, container


def _of_others(bundle: Bundle, front_id: str) -> tuple[SandboxConfig, ContainerConfig]:
    """A container that belongs to no pod is one: its limits are the pod's."""
    name = front_id[:12] if _ID.fullmatch(front_id) else front_id
    limits = (bundle.spec.get("linux") or {}).get("resources") or {}
    memory, cpu = limits.get("memory") or {}, limits.get("cpu") or {}
    pod = SandboxConfig(
        metadata=SandboxMetadata(name=name, namespace=_NO_NAMESPACE, uid=front_id),
        hostname=str(bundle.spec.get("hostname") or ""),
        resources=Resources(
            cpu_period=_number(cpu.get("period")),
            cpu_quota=_number(cpu.get("quota")),
            cpu_shares=_number(cpu.get("shares")),
            memory_limit=_number(memory.get("limit")),
        ),
    )
    return pod, ContainerConfig(metadata=ContainerMetadata(name=name), image="")


def _pod_labels(labels: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in labels.items() if key.startswith(f"{_LABEL}pod.")}


def _crio_resources(annotations: Mapping[str, str], names: Sequence[str]) -> Resources:
    """Kubernetes' LinuxContainerResources as JSON, as CRI-O has it in a sandbox's annotations."""
    found = _values(next((annotations[name] for name in names if name in annotations), None))
    return Resources(
        cpu_period=_number(found.get("cpu_period")),
        cpu_quota=_number(found.get("cpu_quota")),
        cpu_shares=_number(found.get("cpu_shares")),
        memory_limit=_number(found.get("memory_limit_in_bytes")),
    )


def _values(text: str | None) -> dict[str, Any]:
    try:
        found = msgspec.json.decode(text or "{}")
    except (msgspec.DecodeError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _table(text: str | None) -> dict[str, str]:
    return {str(key): str(value) for key, value in _values(text).items() if value is not None}


def _number(value: object) -> int:
    """A whole number; 0 for what is none, which is "unset" in Resources."""
    try:
        return min(max(0, int(str(value))), _INT64_MAX)
    except ValueError:
        return 0


def _namespaces(bundle: Bundle) -> NamespaceOptions:
    paths = namespace_paths(bundle.spec)
    modes = {
        kind: NamespaceMode.POD if kind in paths else NamespaceMode.NODE for kind in ("network", "ipc", "pid")
    }
    return NamespaceOptions(network=modes["network"], ipc=modes["ipc"], pid=modes["pid"])


def namespace_paths(spec: Mapping[str, Any]) -> dict[str, str]:
    """The namespaces of a spec by type; the path is empty for a new one. One that is missing is the caller's."""
    entries = (spec.get("linux") or {}).get("namespaces") or ()
    return {str(each.get("type")): str(each.get("path") or "") for each in entries if isinstance(each, dict)}


def _kept_namespace(bundle: Bundle) -> str:
    """A namespace that CRI-O pins for as long as the pod exists; empty if the pod has none of its own."""
    paths = namespace_paths(bundle.spec)
    pinned = (paths.get(kind, "") for kind in ("network", "ipc", "uts"))
    return next((path for path in pinned if path and not path.startswith("/proc/")), "")


def _cgroup(bundle: Bundle, front_id: str) -> tuple[str, str]:
    """The parent and the path of the cgroup that the front would have for the container (`linux.cgroupsPath`).

    `PARENT/NAME`, or with systemd's manager `SLICE:PREFIX:NAME`.
    """
    path = str((bundle.spec.get("linux") or {}).get("cgroupsPath") or "")
    match path.split(":"):
        case [parent, prefix, name]:
            unit = f"{prefix}-{name}.scope" if prefix else f"{name}.scope"
            # runc's and crun's default
            return parent, f"{expand_slice(parent or 'system.slice')}/{unit}"
        case [plain] if plain:
            parent, _, name = plain.rpartition("/")
            return parent, plain
    return "", ""
