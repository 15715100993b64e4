# SPDX-License-Identifier: Apache-2.0
"""The list calls of pods and containers, unary and streamed. Answered from memory.

A list is the concatenation of serialized lists of one entry each, which is how protobuf merges messages.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

from pvecri.cri import filters, responses
from pvecri.cri.answers import Answers
from pvecri.cri.chunks import chunks
from pvecri.cri.proto import cri_pb2 as pb
from pvecri.cri.translated import Translated
from pvecri.model import Container, Sandbox
from pvecri.pods.manager import PodManager


class ListCalls:
    """A part of RuntimeService."""

    def __init__(self, pods: PodManager) -> None:
        self._pods = pods
        self._sandbox_messages = Translated(responses.sandbox)
        self._container_messages = Translated(responses.container)
        self._sandbox_lists = Translated(_list_of_sandbox)
        self._container_lists = Translated(_list_of_container)
        self._sandbox_answers = Answers(lambda: pods.registry.generation)
        self._container_answers = Answers(lambda: pods.registry.generation)

    async def list_pod_sandbox(self, request: pb.ListPodSandboxRequest) -> bytes:
        """ListPodSandbox."""

        def build() -> bytes:
            known = self._pods.list_sandboxes()
            shown = filter(filters.sandboxes(request.filter), known)
            return b"".join(self._sandbox_lists.messages(shown, alive=len(known)))

        return self._sandbox_answers.answer(request, build)

    async def stream_pod_sandboxes(
        self, request: pb.StreamPodSandboxesRequest
    ) -> AsyncIterator[pb.StreamPodSandboxesResponse]:
        """StreamPodSandboxes."""
        for chunk in chunks(self._sandboxes(request.filter)):
            yield pb.StreamPodSandboxesResponse(pod_sandboxes=chunk)

    def _sandboxes(self, wanted: pb.PodSandboxFilter) -> list[pb.PodSandbox]:
        known = self._pods.list_sandboxes()
        return self._sandbox_messages.messages(filter(filters.sandboxes(wanted), known), alive=len(known))

    async def list_containers(self, request: pb.ListContainersRequest) -> bytes:
        """ListContainers."""

        def build() -> bytes:
            known = self._pods.list_containers()
            shown = filter(filters.containers(request.filter), known)
            return b"".join(self._container_lists.messages(shown, alive=len(known)))

        return self._container_answers.answer(request, build)

    async def stream_containers(
        self, request: pb.StreamContainersRequest
    ) -> AsyncIterator[pb.StreamContainersResponse]:
        """StreamContainers."""
        for chunk in chunks(self._containers(request.filter)):
            yield pb.StreamContainersResponse(containers=chunk)

    def _containers(self, wanted: pb.ContainerFilter) -> list[pb.Container]:
        known = self._pods.list_containers()
        return self._container_messages.messages(filter(filters.containers(wanted), known), alive=len(known))


def _list_of_sandbox(value: Sandbox) -> bytes:
    return pb.ListPodSandboxResponse(items=[responses.sandbox(value)]).SerializeToString()


def _list_of_container(value: Container) -> bytes:
    return pb.ListContainersResponse(containers=[responses.container(value)]).SerializeToString()
