# SPDX-License-Identifier: Apache-2.0
"""The Proxmox node that is there already, should the tests of pods run on one: PVECRI_TEST_CONFIG names a file.

It is a configuration of the daemon. Taken from it are how to reach the node, as whom, and where things are there.
Sockets, directories, networks and all else are the tests' own.
"""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

from pvecri.config import files
from pvecri.config.settings import Config, ConfigError

VMIDS_OF_A_RUN = 20
START_TIMEOUT = 600.0
"""Seconds for a CT's start, unless the file says otherwise: a node under emulation and load needs minutes."""

_PROXMOX = (
    *("url", "node", "token_id", "token_secret_file", "fingerprint", "ca_file", "pool"),
    *("rootfs_size_gib", "request_timeout", "task_timeout"),
)
_RUNTIME = ("oci_runtime", "conmon", "seccomp_profile", "start_timeout")


class Existing:
    """What the file says. Raises ConfigError for one that the tests cannot use."""

    def __init__(self, path: Path) -> None:
        self.settings: Config = files.load(path).config
        self._tables = tomllib.loads(path.read_text())
        proxmox, vmids = self.settings.proxmox, self.settings.proxmox.vmid_range
        if not (proxmox.token_id and proxmox.pool):
            raise ConfigError(f"{path}: tests need proxmox.token_id and proxmox.pool, so as to reach no other CT")
        if vmids.last - vmids.first + 1 < VMIDS_OF_A_RUN:
            raise ConfigError(f"{path}: proxmox.vmid_range: tests need {VMIDS_OF_A_RUN} VMIDs")

    def proxmox(self) -> dict[str, object]:
        """Of the section [proxmox]: node, account, pool and storages; not the VMIDs."""
        storages = {name: getattr(self.settings.proxmox, name) for name in ("storage", "template_storage")}
        return {**self._taken("proxmox", _PROXMOX), **storages}

    def runtime(self) -> dict[str, object]:
        """Of the section [runtime]: the programs, and the time for a CT's start."""
        return {"start_timeout": START_TIMEOUT, **self._taken("runtime", _RUNTIME)}

    def _taken(self, section: str, keys: tuple[str, ...]) -> dict[str, object]:
        return {key: value for key, value in self._tables.get(section, {}).items() if key in keys}


def _named() -> Existing | None:
    path = os.environ.get("PVECRI_TEST_CONFIG")
    return Existing(Path(path)) if path else None


EXISTING = _named()
"""None: pods run on an embedded node, as they do unless told otherwise."""
