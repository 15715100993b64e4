# SPDX-License-Identifier: Apache-2.0
"""The pods' network: its configuration, and its plugins."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from pvecri.checks.finding import Finding
from pvecri.config.settings import Config, NetworkConfig
from pvecri.network.conflist import ConfigDirectory, Network
from pvecri.network.errors import NetworkNotReady

SUBJECT = "cni"


def check(config: Config) -> Iterator[Finding]:
    """Whether a network is configured, and each of its plugins can be executed."""
    try:
        network = ConfigDirectory(config.network.conf_dir).network()
    except NetworkNotReady as error:
        yield Finding("problem", SUBJECT, str(error), "install the cluster's network, or write one there")
        return
    for name in _plugins(network):
        if not any(_executable(directory / name) for directory in config.network.bin_dirs):
            yield Finding("problem", SUBJECT, _missing(name, network, config.network), "install it")


def _plugins(network: Network) -> list[str]:
    """The programs of a network, those for addresses included."""
    names = []
    for plugin in network.plugins:
        names.append(plugin.type)
        ipam = plugin.options.get("ipam")
        if isinstance(ipam, dict) and isinstance(ipam.get("type"), str):
            names.append(ipam["type"])
    return list(dict.fromkeys(names))


def _missing(name: str, network: Network, config: NetworkConfig) -> str:
    directories = ", ".join(map(str, config.bin_dirs))
    return f"{network.path} needs the plugin {name}, and {directories} have no such executable"


def _executable(path: Path) -> bool:
    return path.is_file() and os.access(path, os.X_OK)
