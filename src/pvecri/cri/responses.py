# SPDX-License-Identifier: Apache-2.0
"""Translates the model's values into CRI messages."""

from __future__ import annotations

from collections.abc import Iterable

from pvecri.cri.proto import cri_pb2 as pb
from pvecri.model import (
    Container,
    ContainerState,
    FilesystemUsage,
    IdMapping,
    Image,
    Mount,
    NamespaceMode,
    NamespaceOptions,
    Propagation,
    Resources,
    Sandbox,
    SandboxMetadata,
    SandboxState,
)
from pvecri.oci.runtime import ExecResult
from pvecri.oci.users import numeric_id
from pvecri.pods.health import Condition

_SANDBOX_STATES = {SandboxState.READY: pb.SANDBOX_READY, SandboxState.NOTREADY: pb.SANDBOX_NOTREADY}
_CONTAINER_STATES = {
    ContainerState.CREATED: pb.CONTAINER_CREATED,
    ContainerState.RUNNING: pb.CONTAINER_RUNNING,
    ContainerState.EXITED: pb.CONTAINER_EXITED,
    ContainerState.UNKNOWN: pb.CONTAINER_UNKNOWN,
}
_MODES = {
    NamespaceMode.POD: pb.POD,
    NamespaceMode.CONTAINER: pb.CONTAINER,
    NamespaceMode.NODE: pb.NODE,
    NamespaceMode.TARGET: pb.TARGET,
}
_PROPAGATIONS = {
    Propagation.PRIVATE: pb.PROPAGATION_PRIVATE,
    Propagation.HOST_TO_CONTAINER: pb.PROPAGATION_HOST_TO_CONTAINER,
    Propagation.BIDIRECTIONAL: pb.PROPAGATION_BIDIRECTIONAL,
}


# -- sandboxes ------------------------------------------------------------------------------------------------


def sandbox_state(sandbox: Sandbox) -> pb.PodSandboxState:
    """READY or NOTREADY."""
    return _SANDBOX_STATES[sandbox.state]


def sandbox(value: Sandbox) -> pb.PodSandbox:
    """An entry of ListPodSandbox."""
    return pb.PodSandbox(
        id=value.id,
        metadata=sandbox_metadata(value.config.metadata),
        state=sandbox_state(value),
        created_at=value.created_at,
        labels=value.config.labels,
        annotations=value.config.annotations,
        runtime_handler=value.runtime_handler,
    )


def sandbox_status(value: Sandbox) -> pb.PodSandboxStatus:
    """PodSandboxStatusResponse.status."""
    return pb.PodSandboxStatus(
        id=value.id,
        metadata=sandbox_metadata(value.config.metadata),
        state=sandbox_state(value),
        created_at=value.created_at,
        # Without an address in the node's network: there a kubelet takes the node's.
        network=pb.PodSandboxNetworkStatus(
            ip=next(iter(value.ips), ""), additional_ips=[pb.PodIP(ip=ip) for ip in value.ips[1:]]
        ),
        linux=pb.LinuxPodSandboxStatus(
            namespaces=pb.Namespace(options=_namespaces(value.config.security.namespaces))
        ),
        labels=value.config.labels,
        annotations=value.config.annotations,
        runtime_handler=value.runtime_handler,
    )


def user_namespace(value: Sandbox) -> dict[str, object]:
    """The pod's user namespace in PodSandboxStatus' verbose info."""
    decision = value.user_namespace
    return {
        "kind": decision.kind.value,
        "reason": decision.reason.value,
        "detail": decision.detail,
        "mappings": [
            {"containerID": each.container_id, "hostID": each.host_id, "size": each.length}
            for each in value.mappings
        ],
    }


def sandbox_metadata(value: SandboxMetadata) -> pb.PodSandboxMetadata:
    """PodSandboxMetadata."""
    return pb.PodSandboxMetadata(name=value.name, uid=value.uid, namespace=value.namespace, attempt=value.attempt)


def _namespaces(value: NamespaceOptions) -> pb.NamespaceOption:
    described = pb.NamespaceOption(
        network=_MODES[value.network], pid=_MODES[value.pid], ipc=_MODES[value.ipc], target_id=value.target_id
    )
    if value.user is not None:
        described.userns_options.CopyFrom(
            pb.UserNamespace(
                mode=_MODES[value.user.mode], uids=_mappings(value.user.uids), gids=_mappings(value.user.gids)
            )
        )
    return described


def _mappings(values: Iterable[IdMapping]) -> list[pb.IDMapping]:
    return [
        pb.IDMapping(host_id=each.host_id, container_id=each.container_id, length=each.length) for each in values
    ]


# -- containers -----------------------------------------------------------------------------------------------


def container_state(value: Container) -> pb.ContainerState:
    """CREATED, RUNNING, EXITED or UNKNOWN."""
    return _CONTAINER_STATES[value.state]


def container(value: Container) -> pb.Container:
    """An entry of ListContainers."""
    return pb.Container(
        id=value.id,
        pod_sandbox_id=value.sandbox_id,
        metadata=container_metadata(value),
        image=_image_spec(value),
        image_ref=value.image_reference,
        image_id=value.image_id,
        state=container_state(value),
        created_at=value.created_at,
        labels=value.config.labels,
        annotations=value.config.annotations,
    )


def container_status(value: Container) -> pb.ContainerStatus:
    """ContainerStatusResponse.status."""
    return pb.ContainerStatus(
        id=value.id,
        metadata=container_metadata(value),
        state=container_state(value),
        created_at=value.created_at,
        started_at=value.started_at,
        finished_at=value.finished_at,
        exit_code=value.exit_code,
        # The name that people know it by, as with CRI-O and containerd: a kubelet requests images by their IDs.
        image=_image_spec(value, value.image_name),
        image_ref=value.image_reference,
        image_id=value.image_id,
        reason=value.reason,
        message=value.message,
        labels=value.config.labels,
        annotations=value.config.annotations,
        mounts=[_mount(entry) for entry in value.config.mounts],
        log_path=value.log_path,
        resources=pb.ContainerResources(linux=_resources(value.config.resources)),
        user=pb.ContainerUser(
            linux=pb.LinuxContainerUser(
                uid=value.user.uid, gid=value.user.gid, supplemental_groups=value.user.groups
            )
        ),
        stop_signal=signal_of(value.stop_signal),
    )


def signal_of(name: str) -> str:
    """A signal's name in the CRI's enum; RUNTIME_DEFAULT if the enum lacks it."""
    upper = name.upper()
    text = upper if upper.startswith("SIG") else f"SIG{upper}"
    wanted = text.replace("+", "PLUS").replace("-", "MINUS")
    return wanted if wanted in pb.Signal.keys() else "RUNTIME_DEFAULT"  # noqa: SIM118


def container_metadata(value: Container) -> pb.ContainerMetadata:
    """ContainerMetadata."""
    return pb.ContainerMetadata(name=value.config.metadata.name, attempt=value.config.metadata.attempt)


def _image_spec(value: Container, name: str = "") -> pb.ImageSpec:
    return pb.ImageSpec(image=name or value.config.image, user_specified_image=value.config.user_specified_image)


def _mount(value: Mount) -> pb.Mount:
    described = pb.Mount(
        container_path=value.container_path,
        host_path=value.host_path,
        readonly=value.readonly,
        selinux_relabel=value.selinux_relabel,
        propagation=_PROPAGATIONS[value.propagation],
        uidMappings=_mappings(value.uid_mappings),
        gidMappings=_mappings(value.gid_mappings),
        recursive_read_only=value.recursive_readonly,
        image_sub_path=value.image_sub_path,
    )
    if value.image:
        described.image.CopyFrom(pb.ImageSpec(image=value.image, image_ref=value.image_ref))
    return described


def _resources(value: Resources) -> pb.LinuxContainerResources:
    return pb.LinuxContainerResources(
        cpu_period=value.cpu_period,
        cpu_quota=value.cpu_quota,
        cpu_shares=value.cpu_shares,
        memory_limit_in_bytes=value.memory_limit,
        memory_swap_limit_in_bytes=value.memory_swap_limit,
        oom_score_adj=value.oom_score_adj,
        cpuset_cpus=value.cpuset_cpus,
        cpuset_mems=value.cpuset_mems,
        hugepage_limits=[
            pb.HugepageLimit(page_size=entry.page_size, limit=entry.limit) for entry in value.hugepage_limits
        ],
        unified=value.unified,
    )


def exec_result(value: ExecResult) -> pb.ExecSyncResponse:
    """ExecSyncResponse."""
    return pb.ExecSyncResponse(stdout=value.stdout, stderr=value.stderr, exit_code=value.exit_code)


def _count(value: int) -> pb.UInt64Value:
    return pb.UInt64Value(value=value)


# -- images ---------------------------------------------------------------------------------------------------


def image(value: Image) -> pb.Image:
    """An entry of ListImages."""
    user = value.config.user.partition(":")[0]  # USER[:GROUP]; the kubelet checks runAsNonRoot by it
    uid = numeric_id(user)
    described = pb.Image(
        id=value.id,
        repo_tags=value.tags,
        repo_digests=value.digests,
        size=value.size,
        username=user if uid is None else "",
        spec=pb.ImageSpec(image=value.id),
        pinned=value.pinned,
    )
    if uid is not None:
        described.uid.value = uid
    return described


def filesystem(value: FilesystemUsage) -> pb.FilesystemUsage:
    """FilesystemUsage."""
    return pb.FilesystemUsage(
        timestamp=value.timestamp,
        fs_id=pb.FilesystemIdentifier(mountpoint=value.mountpoint),
        used_bytes=_count(value.used_bytes),
        inodes_used=_count(value.inodes_used),
    )


def condition(value: Condition) -> pb.RuntimeCondition:
    """RuntimeCondition."""
    return pb.RuntimeCondition(type=value.type, status=value.met, reason=value.reason, message=value.message)
