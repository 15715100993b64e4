# SPDX-License-Identifier: Apache-2.0
"""Applies an NRI adjustment (oci/adjustment.py) to a container's plan: CDI devices and mounts of this node."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path

from msgspec.structs import replace

from pvecri.errors import FailedPrecondition, InvalidArgument
from pvecri.linux import mounts
from pvecri.model import ContainerConfig, Propagation
from pvecri.oci import cdi
from pvecri.oci.adjustment import Adjustment
from pvecri.oci.cdi import Edits
from pvecri.oci.devices import HostDevice
from pvecri.oci.plan import Plan
from pvecri.oci.runtime_spec import Mount
from pvecri.pods.container import volumes


def adjusted(plan: Plan, adjustment: Adjustment, staging: Path | None, spec_dirs: Iterable[Path]) -> Plan:
    """The plan with an adjustment applied; CDI devices are looked up in `spec_dirs`.

    With a `staging` directory its bind mounts will be idmapped clones below it (`sources`, volumes.stage).
    FailedPrecondition if a mount's source or a CDI device does not exist.
    """
    edits, found = _cdi_devices(adjustment, spec_dirs)
    devices: dict[str, HostDevice | None] = {each.container_path: each for each in (*plan.devices, *found)}
    # Last, and None for a removal: a plugin's decision replaces the request's.
    devices |= adjustment.devices
    return dataclasses.replace(
        plan,
        config=_config(plan.config, adjustment),
        devices=tuple(each for each in devices.values() if each is not None),
        edits=(*plan.edits, *edits),
        adjustment=replace(adjustment, mounts=_mounts(adjustment, staging)),
    )


def sources(adjustment: Adjustment) -> tuple[str, ...]:
    """The sources of an adjustment's bind mounts, in order."""
    return tuple(each.source for each in adjustment.mounts.values() if each is not None and each.is_bind)


def _config(config: ContainerConfig, adjustment: Adjustment) -> ContainerConfig:
    resources = config.resources.updated(adjustment.resources)
    if adjustment.oom_score_adj is not None:
        resources = replace(resources, oom_score_adj=adjustment.oom_score_adj)
    return replace(config, resources=resources)


def _cdi_devices(
    adjustment: Adjustment, spec_dirs: Iterable[Path]
) -> tuple[tuple[Edits, ...], tuple[HostDevice, ...]]:
    try:
        edits = cdi.find(adjustment.cdi_devices, spec_dirs)
        return edits, cdi.devices(edits)
    except InvalidArgument as error:
        # Not InvalidArgument: it is in no field of the client's request.
        raise FailedPrecondition(f"a CDI device that an NRI plugin adds: {error.problem}") from error


def _mounts(adjustment: Adjustment, staging: Path | None) -> dict[str, Mount | None]:
    resolved = dict(adjustment.mounts)
    binds = [each for each in adjustment.mounts.values() if each is not None and each.is_bind]
    for index, mount in enumerate(binds):
        resolved[mount.destination] = _bind(mount, volumes.added(staging, index) if staging else None)
    return resolved


def _bind(mount: Mount, clone: Path | None) -> Mount:
    """The checked mount, from its `clone` if it will have one."""
    what = f"the mount at {mount.destination} that an NRI plugin adds"
    source = Path(mount.source)
    if not source.is_absolute() or not source.exists():
        raise FailedPrecondition(f"{what}: {mount.source!r} does not exist on the node")
    try:
        volumes.check_propagation(what, source.resolve(), mount.propagation)
    except InvalidArgument as error:
        raise FailedPrecondition(str(error)) from error
    if clone is None:
        return mount
    if mount.propagation is Propagation.BIDIRECTIONAL:
        raise FailedPrecondition(f"{what}: rshared needs a privileged pod")
    # A user namespace may not clear nosuid, nodev and noexec in a remount: "ro" has to repeat them.
    options = dict.fromkeys((*mount.options, *(mounts.restrictions(source) if "ro" in mount.options else ())))
    return replace(mount, source=str(clone), options=tuple(options))
