# SPDX-License-Identifier: Apache-2.0
"""UpdatePodSandboxResources: the pod's CT is resized in place."""

from __future__ import annotations

from msgspec.structs import replace

from pvecri.model import Resources
from pvecri.pods import validation
from pvecri.pods.hooks import Hooks
from pvecri.pods.registry import Registry
from pvecri.pods.sandbox.ct import SandboxCts


class SandboxUpdater:
    """Changes the limits of running pods."""

    def __init__(self, registry: Registry, cts: SandboxCts, hooks: Hooks) -> None:
        self._registry = registry
        self._cts = cts
        self._hooks = hooks

    async def update(self, sandbox_id: str, resources: Resources, overhead: Resources) -> None:
        """Resize a pod's CT (CRI UpdatePodSandboxResources); unset fields keep their values.

        InvalidArgument for values out of range, NotFound, FailedPrecondition unless the sandbox is READY.
        """
        validation.check_resources("resources", resources)
        validation.check_resources("overhead", overhead)
        pod = self._registry.ready_pod(sandbox_id)
        async with pod.lock:
            config = replace(
                pod.value.config,
                resources=self._cts.pod_resources(pod).updated(resources),
                overhead=pod.value.config.overhead.updated(overhead),
            )
            await self._hooks.update_pod(pod, resources, overhead)
            await self._cts.resize(pod, config.resources, config.overhead)
            self._registry.save_pod(pod, replace(pod.value, config=config))
            await self._hooks.updated_pod(pod)
