# SPDX-License-Identifier: Apache-2.0
"""What CRI-O and containerd must do with pvecri-runtime as their default handler, as one suite.

A front's tests are a subclass of FrontConformance with a fixture `runtime`, which is not started yet.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import grpc
import pytest
from support.cri_client import CALL_TIMEOUT, CriClient, eventually, pod_security, security
from support.front import Front
from support.processes import Program

from pvecri.cri.proto import cri_pb2 as pb

MIB = 1 << 20


class KubeletClient(CriClient):
    """A client like the kubelet: it sends a pod's configuration with each of its containers, too.

    containerd reads it there. The containers of a pod have PID namespaces of their own by default.
    """

    def __init__(self, socket: Path, logs: Path, image: str) -> None:
        super().__init__(socket, logs, image)
        self._configs: dict[str, pb.PodSandboxConfig] = {}

    def run_pod(
        self, config: pb.PodSandboxConfig | None = None, timeout: float = CALL_TIMEOUT, handler: str = ""
    ) -> str:
        """RunPodSandbox, by a handler; empty is the default one."""
        own_pids = pb.NamespaceOption(pid=pb.CONTAINER)
        config = config or self.pod_config(linux=pod_security(namespace_options=own_pids))
        request = pb.RunPodSandboxRequest(config=config, runtime_handler=handler)
        pod = str(self.runtime.RunPodSandbox(request, timeout=timeout).pod_sandbox_id)
        self._configs[pod] = config
        return pod

    def stop_pod(self, pod: str) -> None:
        """StopPodSandbox, again if containerd was just closing the connection to a shim that ended by itself."""
        stop = super().stop_pod

        def stopped() -> bool:
            try:
                stop(pod)
            except grpc.RpcError as error:
                if "ttrpc: closed" not in str(error):
                    raise
                return False
            return True

        eventually(stopped, "the pod is stopped")

    def create(self, pod: str, config: pb.ContainerConfig) -> str:
        """CreateContainer."""
        config.image.user_specified_image = config.image.image  # CRI-O refuses to check signatures without
        request = pb.CreateContainerRequest(pod_sandbox_id=pod, config=config, sandbox_config=self._configs[pod])
        return str(self.runtime.CreateContainer(request, timeout=CALL_TIMEOUT).container_id)


class Runtime(Protocol):
    """A front; its handler `runc` is the usual one."""

    program: Program

    def start(self) -> KubeletClient:
        """Start it; its client, which runs pods of the default handler. The client's image is there."""
        ...


def ready_client(program: Program, socket: Path, logs: Path, image: str) -> KubeletClient:
    """Start a front's program, and wait until it is ready, with this image."""
    socket.unlink(missing_ok=True)
    program.start()
    eventually(socket.is_socket, f"the front serves; see {program.log}")
    client = KubeletClient(socket, logs, image)

    def ready() -> bool:
        try:
            status = client.runtime.Status(pb.StatusRequest(), timeout=CALL_TIMEOUT).status
        except grpc.RpcError:  # it does not listen yet, or answers that it is not initialized
            return False
        return all(each.status for each in status.conditions)

    eventually(ready, "the front is ready")
    client.pull(image)
    return client


class FrontConformance:
    """See the module."""

    def need_sandbox_container(self) -> None:
        """Skip the test if the front cannot create a container for the sandbox itself here."""

    def sees_usage(self) -> bool:
        """Whether the front can read the usage of a container here."""
        return True

    @pytest.fixture
    def client(self, runtime: Runtime) -> Iterator[KubeletClient]:
        """A client of the front, whose pods are removed at the end."""
        client = runtime.start()
        try:
            yield client
        finally:
            for container in client.containers():
                client.stop(container.id)  # CRI-O gives those of a pod all the time that the call has
            for pod in client.pods():
                client.stop_pod(pod.id)
                client.remove_pod(pod.id)
            client.close()

    def test_pod_has_the_life_of_the_cri_in_a_ct(
        self, client: KubeletClient, front: Front, cri: CriClient
    ) -> None:
        pod = client.run_pod()
        assert client.pod_status(pod).network.ip.startswith("10.")
        container = client.run(pod, "sh", "-c", "echo hello; sleep 1000")
        # CRI-O has no container for the sandbox itself: the CT is made with the first of the pod's.
        assert [(each.id, each.metadata.namespace) for each in cri.pods()] == [(pod, "tests")]
        assert [each.id for each in cri.containers()] == [container]
        assert client.output(container, "echo", "from exec") == "from exec\n"
        assert client.exec(container, "sh", "-c", "exit 5").exit_code == 5
        eventually(lambda: client.text(container) == "hello\n", "its output is logged")
        client.stop(container)
        assert client.wait_for_exit(container).exit_code == 137
        client.remove(container)
        client.stop_pod(pod)
        assert client.pod_status(pod).state == pb.SANDBOX_NOTREADY
        client.remove_pod(pod)
        front.wait_until_nothing_left()

    def test_exit_codes_and_signals(self, client: KubeletClient) -> None:
        pod = client.run_pod()
        for number, (command, code) in enumerate({"exit 3": 3, "true": 0, "kill -9 $$; sleep 1": 0}.items()):
            container = client.run(pod, "sh", "-c", command, name=f"c{number}")
            assert client.wait_for_exit(container).exit_code == code
        graceful = client.run(pod, "sh", "-c", "trap 'exit 7' TERM; echo ready; while true; do usleep 10000; done")
        eventually(lambda: "ready" in client.text(graceful), "it listens")
        client.stop(graceful, timeout=60)
        assert client.wait_for_exit(graceful).exit_code == 7

    def test_pods_of_both_handlers_run_side_by_side(self, client: KubeletClient, cri: CriClient) -> None:
        usual = client.run_pod(handler="runc")
        ours = client.run_pod()
        for pod in (usual, ours):
            assert client.finish(pod, "echo", "hello") == "hello\n"
        assert [each.id for each in cri.pods()] == [ours]

    def test_containers_share_the_pods_pids(self, client: KubeletClient) -> None:
        self.need_sandbox_container()
        shared = pb.NamespaceOption(pid=pb.POD)
        pod = client.run_pod(client.pod_config(linux=pod_security(namespace_options=shared)))
        container = client.run(pod, "sleep", "1000", linux=security(namespace_options=shared))
        assert client.output(container, "cat", "/proc/1/cmdline") != "sleep\0001000\0"

    def test_ct_stopped_in_proxmox_ends_the_pods_containers(self, client: KubeletClient, front: Front) -> None:
        pod = client.run_pod()
        container = client.run(pod, "sleep", "1000")
        front.stop_ct()
        assert client.wait_for_exit(container).exit_code == 137
        client.stop_pod(pod)
        client.remove_pod(pod)
        front.wait_until_nothing_left()

    def test_limits_and_statistics(self, client: KubeletClient, front: Front) -> None:
        resources = pb.LinuxContainerResources(
            cpu_period=100_000, cpu_quota=50_000, memory_limit_in_bytes=64 * MIB
        )
        pod = client.run_pod()
        linux = security()
        linux.resources.CopyFrom(resources)
        container = client.run(pod, "sleep", "1000", linux=linux)
        resources.memory_limit_in_bytes = 128 * MIB
        client.runtime.UpdateContainerResources(
            pb.UpdateContainerResourcesRequest(container_id=container, linux=resources)
        )
        request = pb.ContainerStatsRequest(container_id=container)
        used = client.runtime.ContainerStats(request).stats.memory.working_set_bytes.value
        assert (used > 0) is self.sees_usage()
        assert front.machine.client.output(container, "echo", "here") == "here\n"

    @pytest.mark.parametrize("who", ["pvecri", "front"])
    def test_pod_outlives_a_crash(self, client: KubeletClient, runtime: Runtime, front: Front, who: str) -> None:
        pod = client.run_pod()
        container = client.run(pod, "sleep", "1000")
        if who == "pvecri":
            front.machine.kill()
            front.machine.start()
        else:
            runtime.program.end()
            runtime.start().close()
        eventually(lambda: client.status(container).state == pb.CONTAINER_RUNNING, "the container is known")
        assert client.output(container, "echo", "hello") == "hello\n"
        client.stop(container)
        client.stop_pod(pod)
        client.remove_pod(pod)
        front.wait_until_nothing_left()

    def test_without_pvecri_the_pod_says_what_to_do(self, client: KubeletClient, front: Front) -> None:
        front.machine.stop()
        with pytest.raises(Exception, match=r"cannot reach pvecri .*systemctl start pvecri"):
            client.run(client.run_pod(), "true")  # CRI-O starts nothing for the pod alone
        front.machine.start()
