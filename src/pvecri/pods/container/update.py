# SPDX-License-Identifier: Apache-2.0
"""UpdateContainerResources: the limits of a running or created container."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from msgspec.structs import replace

from pvecri.errors import CommandError, FailedPrecondition, InvalidArgument
from pvecri.linux.files import write_atomically
from pvecri.model import ContainerState, Resources
from pvecri.oci import spec
from pvecri.oci.features import HostFeatures
from pvecri.oci.runtime import OciRuntime
from pvecri.pods import validation
from pvecri.pods.hooks import Hooks
from pvecri.pods.registry import Registry

_INVALID = "invalid argument|numerical result out of range|value too large"


class ContainerUpdater:
    """Changes limits. Calls for one container wait for each other, those for different containers do not."""

    def __init__(self, features: HostFeatures, registry: Registry, runtime: OciRuntime, hooks: Hooks) -> None:
        self._features = features
        self._registry = registry
        self._runtime = runtime
        self._hooks = hooks

    async def update(self, container_id: str, changes: Resources) -> None:
        """Change a container's limits (CRI UpdateContainerResources); unset fields keep their values.

        InvalidArgument for values out of range and for those that the kernel calls invalid, FailedPrecondition for
        an exited container, CommandError with the OCI runtime's message if the kernel refuses them for another
        reason, such as memory in use; the stored limits are unchanged then.
        """
        validation.check_resources("linux", changes)
        container = self._registry.container(container_id)
        pod = self._registry.pod_of(container)
        changes = await self._hooks.update_container(pod, container, changes)
        await self.set_limits(container.id, changes)
        await self._hooks.updated_container(pod, container)

    async def set_limits(self, container_id: str, changes: Resources) -> None:
        """As `update`, without calling the hooks: for updates that NRI plugins request."""
        validation.check_resources("linux", changes)
        container = self._registry.container(container_id)
        async with container.limits_lock:
            wanted = container.value.config.resources.updated(changes)
            if container.value.state is ContainerState.RUNNING:
                pod = self._registry.pod_of(container)
                with _invalid_limits():
                    await self._runtime.update(pod.namespaces, container.id, wanted)
            elif container.value.state is ContainerState.CREATED:
                # The OCI runtime reads the spec at the start, which `limits_lock` keeps away.
                document = spec.with_limits(container.bundle.spec.read_bytes(), wanted, self._features)
                write_atomically(container.bundle.spec, document)
            else:
                raise FailedPrecondition(f"container {container.id} has ended")
            config = replace(container.value.config, resources=wanted)
            self._registry.save_container(container, replace(container.value, config=config))


@contextmanager
def _invalid_limits() -> Iterator[None]:
    """InvalidArgument if the kernel answers a write to a cgroup with EINVAL, ERANGE or EOVERFLOW."""
    try:
        yield
    except CommandError as error:
        if not re.search(_INVALID, error.output, re.IGNORECASE):
            raise
        raise InvalidArgument("linux", f"the kernel refuses a limit: {error.output}") from error
