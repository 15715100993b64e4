# SPDX-License-Identifier: Apache-2.0
"""The calls for statistics, metrics and events (docs/monitoring.md)."""

from __future__ import annotations

from collections.abc import AsyncIterator

from pvecri.cri import filters, responses_stats
from pvecri.cri.chunks import chunks
from pvecri.cri.filters import given
from pvecri.cri.proto import cri_pb2 as pb
from pvecri.pods.events import Subscription
from pvecri.pods.manager import PodManager
from pvecri.pods.usage.cadvisor_names import DESCRIPTORS


class MonitoringCalls:
    """A part of RuntimeService."""

    def __init__(self, pods: PodManager) -> None:
        self._statistics = pods.statistics
        self._metrics = pods.metrics
        self._events = pods.events

    # -- containers -------------------------------------------------------------------------------------------

    async def container_stats(self, request: pb.ContainerStatsRequest) -> pb.ContainerStatsResponse:
        """ContainerStats; a container that does not run has only its writable layer."""
        usage = await self._statistics.container(given("container_id", request.container_id))
        return pb.ContainerStatsResponse(stats=responses_stats.container_stats(usage))

    async def list_container_stats(self, request: pb.ListContainerStatsRequest) -> pb.ListContainerStatsResponse:
        """ListContainerStats: of running containers."""
        return pb.ListContainerStatsResponse(stats=await self._container_stats(request.filter))

    async def stream_container_stats(
        self, request: pb.StreamContainerStatsRequest
    ) -> AsyncIterator[pb.StreamContainerStatsResponse]:
        """StreamContainerStats."""
        for chunk in chunks(await self._container_stats(request.filter)):
            yield pb.StreamContainerStatsResponse(container_stats=chunk)

    async def _container_stats(self, wanted: pb.ContainerStatsFilter) -> list[pb.ContainerStats]:
        found = await self._statistics.containers(filters.container_stats(wanted))
        return [responses_stats.container_stats(each) for each in found]

    # -- pods -------------------------------------------------------------------------------------------------

    async def pod_sandbox_stats(self, request: pb.PodSandboxStatsRequest) -> pb.PodSandboxStatsResponse:
        """PodSandboxStats; a pod that does not run has only its attributes."""
        usage = await self._statistics.pod(given("pod_sandbox_id", request.pod_sandbox_id))
        return pb.PodSandboxStatsResponse(stats=responses_stats.pod_stats(usage))

    async def list_pod_sandbox_stats(
        self, request: pb.ListPodSandboxStatsRequest
    ) -> pb.ListPodSandboxStatsResponse:
        """ListPodSandboxStats: of ready pods."""
        return pb.ListPodSandboxStatsResponse(stats=await self._pod_stats(request.filter))

    async def stream_pod_sandbox_stats(
        self, request: pb.StreamPodSandboxStatsRequest
    ) -> AsyncIterator[pb.StreamPodSandboxStatsResponse]:
        """StreamPodSandboxStats."""
        for chunk in chunks(await self._pod_stats(request.filter)):
            yield pb.StreamPodSandboxStatsResponse(pod_sandbox_stats=chunk)

    async def _pod_stats(self, wanted: pb.PodSandboxStatsFilter) -> list[pb.PodSandboxStats]:
        found = await self._statistics.pods(filters.pod_stats(wanted))
        return [responses_stats.pod_stats(each) for each in found]

    # -- metrics ----------------------------------------------------------------------------------------------

    async def list_metric_descriptors(
        self, _: pb.ListMetricDescriptorsRequest
    ) -> pb.ListMetricDescriptorsResponse:
        """ListMetricDescriptors: a constant list."""
        described = [responses_stats.metric_descriptor(each) for each in DESCRIPTORS]
        return pb.ListMetricDescriptorsResponse(descriptors=described)

    async def list_pod_sandbox_metrics(
        self, _: pb.ListPodSandboxMetricsRequest
    ) -> pb.ListPodSandboxMetricsResponse:
        """ListPodSandboxMetrics: of ready pods and their running containers."""
        return pb.ListPodSandboxMetricsResponse(pod_metrics=await self._pod_metrics())

    async def stream_pod_sandbox_metrics(
        self, _: pb.StreamPodSandboxMetricsRequest
    ) -> AsyncIterator[pb.StreamPodSandboxMetricsResponse]:
        """StreamPodSandboxMetrics."""
        for chunk in chunks(await self._pod_metrics()):
            yield pb.StreamPodSandboxMetricsResponse(pod_sandbox_metrics=chunk)

    async def _pod_metrics(self) -> list[pb.PodSandboxMetrics]:
        return [responses_stats.pod_metrics(each) for each in await self._metrics.collect()]

    # -- events -----------------------------------------------------------------------------------------------

    def get_container_events(self, _: pb.GetEventsRequest) -> AsyncIterator[pb.ContainerEventResponse]:
        """GetContainerEvents: all events from now on, until the client cancels or the daemon stops."""
        # Not an async generator, which would subscribe only when its first message is read.
        return _messages(self._events.subscribe())


async def _messages(subscription: Subscription) -> AsyncIterator[pb.ContainerEventResponse]:
    async for event in subscription:
        yield responses_stats.event(event)
