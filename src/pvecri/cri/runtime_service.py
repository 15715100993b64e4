# SPDX-License-Identifier: Apache-2.0
"""RuntimeService: one method for each CRI call, named after it. A call that has no method is UNIMPLEMENTED."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict

from msgspec.structs import replace

import pvecri
from pvecri.config.settings import Config
from pvecri.cri import requests, responses
from pvecri.cri.filters import given
from pvecri.cri.list_calls import ListCalls
from pvecri.cri.monitoring_calls import MonitoringCalls
from pvecri.cri.proto import cri_pb2 as pb
from pvecri.cri.streaming_calls import StreamingCalls
from pvecri.cri.translated import Translated
from pvecri.images.manager import ImageManager
from pvecri.model import Container, Sandbox
from pvecri.oci.pod_cgroups import PodCgroups
from pvecri.pods import user_namespaces
from pvecri.pods.health import Condition
from pvecri.pods.manager import PodManager
from pvecri.streaming.server import StreamingServer

log = logging.getLogger(__name__)

RUNTIME_NAME = "pvecri"
CRI_VERSION = "v1"
KUBELET_VERSION = "0.1.0"
"""VersionResponse.version: the kubelet runtime API version, constant in CRI-O and containerd too."""


class RuntimeService(ListCalls, MonitoringCalls, StreamingCalls):
    """Answers queries from memory; the Pod Manager carries out everything else."""

    def __init__(
        self,
        config: Config,
        pods: PodManager,
        images: ImageManager,
        streaming: StreamingServer,
    ) -> None:
        ListCalls.__init__(self, pods)
        MonitoringCalls.__init__(self, pods)
        StreamingCalls.__init__(self, pods, streaming)
        self._config = config
        self._images = images
        self._version = pb.VersionResponse(
            version=KUBELET_VERSION,
            runtime_name=RUNTIME_NAME,
            runtime_version=pvecri.__version__,
            runtime_api_version=CRI_VERSION,
        ).SerializeToString()
        self._status: tuple[list[Condition], bytes] = ([], b"")
        """The conditions of the last Status, and its response."""
        self._sandbox_statuses = Translated(_sandbox_status)
        self._container_statuses = Translated(_container_status)

    # -- the runtime ------------------------------------------------------------------------------------------

    async def version(self, _: pb.VersionRequest) -> bytes:
        """Version."""
        return self._version

    async def status(self, request: pb.StatusRequest) -> pb.StatusResponse | bytes:
        """Status: RuntimeReady depends on Proxmox and the image store, which have conditions of their own too."""
        conditions = await self._pods.conditions()
        if request.verbose:
            return self._verbose_status(conditions)
        if conditions != self._status[0]:
            self._status = (conditions, self._status_of(conditions).SerializeToString())
        return self._status[1]

    def _status_of(self, conditions: Sequence[Condition]) -> pb.StatusResponse:
        return pb.StatusResponse(
            status=pb.RuntimeStatus(conditions=[responses.condition(each) for each in conditions]),
            runtime_handlers=[
                pb.RuntimeHandler(name=name, features=self._handler_features(name))
                for name in user_namespaces.handlers(self._config.user_namespaces)
            ],
            # Without it a kubelet refuses pods with supplementalGroupsPolicy: Strict.
            features=pb.RuntimeFeatures(supplemental_groups_policy=True),
        )

    def _verbose_status(self, conditions: Sequence[Condition]) -> pb.StatusResponse:
        response = self._status_of(conditions)
        response.info["config"] = json.dumps(self._described())
        response.info["failing"] = json.dumps([asdict(each) for each in self._pods.failing])
        foreign = [{**asdict(each), "reason": each.reason.value} for each in self._pods.foreign_cts.found]
        response.info["removals"] = json.dumps([asdict(each) for each in self._pods.removals.pending()])
        response.info["pulls"] = json.dumps({"running": self._images.pulls_running})
        response.info["foreignCts"] = json.dumps(foreign)
        return response

    def _handler_features(self, name: str) -> pb.RuntimeHandlerFeatures:
        return pb.RuntimeHandlerFeatures(
            recursive_read_only_mounts=self._pods.recursive_readonly_mounts,
            # For a handler without it, a kubelet refuses pods with hostUsers: false.
            user_namespaces=name != user_namespaces.NODE_HANDLER,
        )

    def _described(self) -> dict[str, object]:
        settings = self._config
        return {
            "proxmox": {
                "url": settings.proxmox.url,
                "node": settings.proxmox.node_name,
                "version": self._pods.health.version,
                "storage": settings.proxmox.storage,
            },
            "images": {"root": str(settings.images_root), "driver": settings.images.driver},
            "runtime": {"stateDir": str(settings.runtime.state_dir), "runDir": str(settings.runtime.run_dir)},
        }

    async def runtime_config(self, _: pb.RuntimeConfigRequest) -> pb.RuntimeConfigResponse:
        """RuntimeConfig: Proxmox and pvecri create cgroups themselves, not as systemd slices."""
        return pb.RuntimeConfigResponse(linux=pb.LinuxRuntimeConfiguration(cgroup_driver=pb.CGROUPFS))

    async def update_runtime_config(
        self, request: pb.UpdateRuntimeConfigRequest
    ) -> pb.UpdateRuntimeConfigResponse:
        """UpdateRuntimeConfig: the CNI configuration determines pod addresses, so the pod CIDR is only logged."""
        if cidr := request.runtime_config.network_config.pod_cidr:
            log.info("the kubelet's pod CIDR is %s; pods get addresses by the CNI configuration", cidr)
        return pb.UpdateRuntimeConfigResponse()

    # -- pod sandboxes ----------------------------------------------------------------------------------------

    async def run_pod_sandbox(self, request: pb.RunPodSandboxRequest) -> pb.RunPodSandboxResponse:
        """RunPodSandbox."""
        config = requests.sandbox_config(request.config)
        if self._ignores_selinux(config.security.selinux_label, config.metadata.name):
            config = replace(config, security=replace(config.security, selinux_label=""))
        return pb.RunPodSandboxResponse(
            pod_sandbox_id=await self._pods.sandbox_runner.run(config, request.runtime_handler)
        )

    async def stop_pod_sandbox(self, request: pb.StopPodSandboxRequest) -> pb.StopPodSandboxResponse:
        """StopPodSandbox."""
        await self._pods.sandbox_teardown.stop(given("pod_sandbox_id", request.pod_sandbox_id))
        return pb.StopPodSandboxResponse()

    async def remove_pod_sandbox(self, request: pb.RemovePodSandboxRequest) -> pb.RemovePodSandboxResponse:
        """RemovePodSandbox."""
        await self._pods.sandbox_teardown.remove(given("pod_sandbox_id", request.pod_sandbox_id))
        return pb.RemovePodSandboxResponse()

    async def pod_sandbox_status(self, request: pb.PodSandboxStatusRequest) -> pb.PodSandboxStatusResponse | bytes:
        """PodSandboxStatus; verbose adds the CT's VMID and its config in Proxmox."""
        registry = self._pods.registry
        sandbox = registry.pod(given("pod_sandbox_id", request.pod_sandbox_id)).value
        if not request.verbose:
            return self._sandbox_statuses.message(sandbox, alive=registry.number_of_pods)
        response = pb.PodSandboxStatusResponse(status=responses.sandbox_status(sandbox))
        response.info["info"] = json.dumps(
            {
                "vmid": sandbox.vmid,
                "node": self._config.proxmox.node_name,
                "privileged": sandbox.privileged,
                "userNamespace": responses.user_namespace(sandbox),
                "cgroup": PodCgroups(sandbox.vmid).ct,
                "config": await self._pods.ct_config(sandbox.id),
            }
        )
        return response

    async def update_pod_sandbox_resources(
        self, request: pb.UpdatePodSandboxResourcesRequest
    ) -> pb.UpdatePodSandboxResourcesResponse:
        """UpdatePodSandboxResources: the CT is resized through the Proxmox API."""
        await self._pods.sandbox_updater.update(
            given("pod_sandbox_id", request.pod_sandbox_id),
            requests.resources(request.resources),
            requests.resources(request.overhead),
        )
        return pb.UpdatePodSandboxResourcesResponse()

    # -- containers -------------------------------------------------------------------------------------------

    async def create_container(self, request: pb.CreateContainerRequest) -> pb.CreateContainerResponse:
        """CreateContainer."""
        pod = self._pods.registry.ready_pod(given("pod_sandbox_id", request.pod_sandbox_id))
        config = requests.container_config(request.config)
        if self._ignores_selinux(config.security.selinux_label, config.metadata.name):
            config = replace(config, security=replace(config.security, selinux_label=""))
        return pb.CreateContainerResponse(container_id=await self._pods.container_creator.create(pod, config))

    def _ignores_selinux(self, selinux_label: str, name: str) -> bool:
        """Whether to drop an SELinux label, with a log message (decision 0054)."""
        if not selinux_label or not self._config.runtime.ignore_selinux_options:
            return False
        log.info("%s: ignoring the SELinux options %s: Proxmox VE has AppArmor", name, selinux_label)
        return True

    async def start_container(self, request: pb.StartContainerRequest) -> pb.StartContainerResponse:
        """StartContainer."""
        await self._pods.container_starter.start(given("container_id", request.container_id))
        return pb.StartContainerResponse()

    async def stop_container(self, request: pb.StopContainerRequest) -> pb.StopContainerResponse:
        """StopContainer."""
        await self._pods.container_stopper.stop(given("container_id", request.container_id), request.timeout)
        return pb.StopContainerResponse()

    async def remove_container(self, request: pb.RemoveContainerRequest) -> pb.RemoveContainerResponse:
        """RemoveContainer."""
        await self._pods.container_remover.remove(given("container_id", request.container_id))
        return pb.RemoveContainerResponse()

    async def container_status(self, request: pb.ContainerStatusRequest) -> pb.ContainerStatusResponse | bytes:
        """ContainerStatus; verbose adds the pod, its VMID and the OCI spec."""
        registry = self._pods.registry
        container = registry.container(given("container_id", request.container_id)).value
        if not request.verbose:
            return self._container_statuses.message(container, alive=registry.number_of_containers)
        response = pb.ContainerStatusResponse(status=responses.container_status(container))
        sandbox = registry.pod(container.sandbox_id).value
        response.info["info"] = json.dumps(
            {
                "sandboxID": sandbox.id,
                "vmid": sandbox.vmid,
                "cgroup": PodCgroups(sandbox.vmid).container(container.id),
                "runtimeSpec": json.loads(self._pods.oci_spec(container.id)),
            }
        )
        return response

    async def update_container_resources(
        self, request: pb.UpdateContainerResourcesRequest
    ) -> pb.UpdateContainerResourcesResponse:
        """UpdateContainerResources."""
        container_id = given("container_id", request.container_id)
        await self._pods.container_updater.update(container_id, requests.resources(request.linux))
        return pb.UpdateContainerResourcesResponse()

    async def checkpoint_container(self, request: pb.CheckpointContainerRequest) -> pb.CheckpointContainerResponse:
        """CheckpointContainer."""
        container_id = given("container_id", request.container_id)
        await self._pods.checkpoints.write(container_id, request.location, request.timeout)
        return pb.CheckpointContainerResponse()

    async def exec_sync(self, request: pb.ExecSyncRequest) -> pb.ExecSyncResponse:
        """ExecSync."""
        container_id = given("container_id", request.container_id)
        result = await self._pods.container_exec.exec_sync(container_id, list(request.cmd), request.timeout)
        return responses.exec_result(result)

    async def reopen_container_log(self, request: pb.ReopenContainerLogRequest) -> pb.ReopenContainerLogResponse:
        """ReopenContainerLog."""
        await self._pods.container_exec.reopen_log(given("container_id", request.container_id))
        return pb.ReopenContainerLogResponse()


def _sandbox_status(value: Sandbox) -> bytes:
    return pb.PodSandboxStatusResponse(status=responses.sandbox_status(value)).SerializeToString()


def _container_status(value: Container) -> bytes:
    return pb.ContainerStatusResponse(status=responses.container_status(value)).SerializeToString()
