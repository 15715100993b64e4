# SPDX-License-Identifier: Apache-2.0
"""The pods' network: its configuration, and its plugins."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from pvecri.checks.finding import Finding
from pvecri.config.settings import Config, NetworkConfig
from pvecri.network.conflist import VERSIONS, ConfigDirectory, Network, Plugin
from pvecri.network.errors import NetworkNotReady, PluginError
from pvecri.network.plugins import PluginRunner

SUBJECT = "cni"

PACKAGE = "containernetworking-plugins"
PACKAGED = frozenset(
    (
        "bandwidth bridge dhcp firewall host-device host-local ipvlan loopback macvlan portmap ptp sbr static "
        "tuning vlan vrf"
    ).split()
)
"""The plugins of the CNI project, which Debian has in PACKAGE."""


async def check(config: Config) -> AsyncIterator[Finding]:
    """Whether a network is configured, and each of its plugins can be executed and supports its version."""
    try:
        network = ConfigDirectory(config.network.conf_dir).network()
    except NetworkNotReady as error:
        remedy = "install the cluster's network, or let `pvecri setup` write one for this node"
        yield Finding("problem", SUBJECT, str(error), remedy)
        return
    runner = PluginRunner(config.network)
    for plugin in _plugins(network):
        if not any(_executable(directory / plugin.type) for directory in config.network.bin_dirs):
            remedy = (
                f"install {PACKAGE}" if plugin.type in PACKAGED else "install it, or wait for the network's agent"
            )
            yield Finding("problem", SUBJECT, _missing(plugin.type, network, config.network), remedy)
            continue
        try:
            supported = await runner.supported_versions(plugin, network)
        except PluginError as error:
            yield Finding("warning", SUBJECT, str(error), "install it again")
            continue
        if network.version not in supported:
            yield Finding("problem", SUBJECT, *_too_old(plugin.type, network, supported))


def _plugins(network: Network) -> list[Plugin]:
    """The programs of a network, each once, those for addresses included."""
    found: dict[str, Plugin] = {}
    for plugin in network.plugins:
        found.setdefault(plugin.type, plugin)
        ipam = plugin.options.get("ipam")
        if isinstance(ipam, dict) and isinstance(name := ipam.get("type"), str) and name:
            found.setdefault(name, Plugin(type=name, options=plugin.options))
    return list(found.values())


def _too_old(name: str, network: Network, supported: Sequence[str]) -> tuple[str, str]:
    """Message and remedy."""
    known = [version for version in supported if version in VERSIONS]
    message = f"{network.path} has cniVersion {network.version}, and the plugin {name} supports "
    message += f"{', '.join(supported) or 'none'}: pods get no network"
    older = f", or set cniVersion to {max(known, key=VERSIONS.index)}" if known else ""
    return message, f"install a newer {name}{older}"


def _missing(name: str, network: Network, config: NetworkConfig) -> str:
    directories = ", ".join(map(str, config.bin_dirs))
    return f"{network.path} needs the plugin {name}, and {directories} have no such executable"


def _executable(path: Path) -> bool:
    return path.is_file() and os.access(path, os.X_OK)
