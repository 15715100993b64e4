# SPDX-License-Identifier: Apache-2.0
"""The list calls of pods and containers, unary and streamed. Answered from memory."""

from __future__ import annotations

from collections.abc import AsyncIterator

from pvecri.cri import filters, responses
from pvecri.cri.chunks import chunks
from pvecri.cri.proto import cri_pb2 as pb
from pvecri.cri.translated import Translated
from pvecri.pods.manager import PodManager


class ListCalls:
    """A part of RuntimeService."""

    def __init__(self, pods: PodManager) -> None:
        self._pods = pods
        self._sandbox_messages = Translated(responses.sandbox)
        self._container_messages = Translated(responses.container)

    async def list_pod_sandbox(self, request: pb.ListPodSandboxRequest) -> pb.ListPodSandboxResponse:
        """ListPodSandbox."""
        return pb.ListPodSandboxResponse(items=self._sandboxes(request.filter))

    async def stream_pod_sandboxes(
        self, request: pb.StreamPodSandboxesRequest
    ) -> AsyncIterator[pb.StreamPodSandboxesResponse]:
        """StreamPodSandboxes."""
        for chunk in chunks(self._sandboxes(request.filter)):
            yield pb.StreamPodSandboxesResponse(pod_sandboxes=chunk)

    def _sandboxes(self, wanted: pb.PodSandboxFilter) -> list[pb.PodSandbox]:
        known = self._pods.list_sandboxes()
        return self._sandbox_messages.messages(filter(filters.sandboxes(wanted), known), alive=len(known))

    async def list_containers(self, request: pb.ListContainersRequest) -> pb.ListContainersResponse:
        """ListContainers."""
        return pb.ListContainersResponse(containers=self._containers(request.filter))

    async def stream_containers(
        self, request: pb.StreamContainersRequest
    ) -> AsyncIterator[pb.StreamContainersResponse]:
        """StreamContainers."""
        for chunk in chunks(self._containers(request.filter)):
            yield pb.StreamContainersResponse(containers=chunk)

    def _containers(self, wanted: pb.ContainerFilter) -> list[pb.Container]:
        known = self._pods.list_containers()
        return self._container_messages.messages(filter(filters.containers(wanted), known), alive=len(known))
