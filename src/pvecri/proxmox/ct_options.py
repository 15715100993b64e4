# SPDX-License-Identifier: Apache-2.0
"""The options of a CT that its pod decides, whatever somebody sets in Proxmox: its name and its limits. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from pvecri.proxmox.answers import CtConfig, CtEntry
from pvecri.proxmox.ctspec import CtSpec, ParameterValue, ct_name, size_parameters, wire
from pvecri.proxmox.sizing import MIB, CtSize

UNSET = {"memory": 512.0, "swap": 0.0, "cpulimit": 0.0, "cpuunits": 100.0}
"""What Proxmox takes for an option that a config lacks (PVE::LXC, PVE::CGroup)."""


def of_spec(spec: CtSpec) -> dict[str, str]:
    """The options with which a CT is created."""
    return {"hostname": ct_name(spec.hostname), **of_size(spec.size)}


def of_size(size: CtSize) -> dict[str, str]:
    """The options of its size."""
    return {name: wire(value) for name, value in size_parameters(size).items()}


def entry_differs(entry: CtEntry, options: Mapping[str, str], node_cpus: int) -> bool:
    """Whether the list of CTs shows other values than `options`.

    It lacks `cpuunits`, and `cpulimit` if there is an option `cores`.
    """
    return (
        entry.name != options["hostname"]
        or entry.maxmem != int(options["memory"]) * MIB
        or entry.maxswap != int(options["swap"]) * MIB
        or entry.cpus != (float(options["cpulimit"]) or node_cpus)
    )


def changes(config: CtConfig, options: Mapping[str, str]) -> dict[str, ParameterValue | None]:
    """What to set in a CT's config so that it has `options` again, and no `cores`; None removes an option."""
    wanted: dict[str, ParameterValue | None] = {
        name: value for name, value in options.items() if not _same(name, config.raw.get(name), value)
    }
    return wanted | ({"cores": None} if "cores" in config.raw else {})


def _same(name: str, found: str | None, wanted: str) -> bool:
    if name not in UNSET:
        return found == wanted
    return (UNSET[name] if found is None else float(found)) == float(wanted)


def missing_tags(found: str, own: tuple[str, ...]) -> str:
    """The value of `tags` with our own, and what others have added; empty if none of ours is missing."""
    tags = [tag for tag in found.replace(",", ";").split(";") if tag]
    return "" if set(own) <= set(tags) else ";".join(dict.fromkeys([*own, *tags]))
