# SPDX-License-Identifier: Apache-2.0
"""Plugins that lie on the node: found in nri.plugin_dir, started, and ended with their connections.

An executable named `NN-name` is a plugin; NN is its index. It finds its socket by the environment that the NRI
specification gives it, and nothing else of the daemon's environment.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import signal
import socket
from dataclasses import dataclass
from pathlib import Path

from pvecri.config import NriConfig
from pvecri.linux.processes import Process
from pvecri.nri.errors import PluginError
from pvecri.nri.plugin import Plugin, Update

log = logging.getLogger(__name__)

_FILE_NAME = re.compile(r"([0-9]{2})-([A-Za-z0-9_.+-]+)")
_PLUGIN_FD = 3


@dataclass(frozen=True)
class Program:
    """A plugin's executable; `configuration` is what the administrator wrote for it."""

    path: Path
    index: str
    name: str
    configuration: str


def discover(config: NriConfig) -> list[Program]:
    """The plugins of the node, by index and name. Files that cannot be one are named in the log."""
    if not config.plugin_dir.is_dir():
        return []
    found: list[Program] = []
    for path in sorted(config.plugin_dir.iterdir()):
        if not path.is_file() or not os.access(path, os.X_OK):
            continue
        match = _FILE_NAME.fullmatch(path.name)
        if match is None:
            log.error("NRI: %s is not named as a plugin is: NN-name", path)
            continue
        configuration = _configuration(config.plugin_config_dir, path.name, match[2])
        found.append(Program(path, match[1], match[2], configuration))
    return found


def _configuration(directory: Path, full_name: str, name: str) -> str:
    """What `NN-name.conf` says, else `name.conf`; empty when there is neither."""
    for path in (directory / f"{full_name}.conf", directory / f"{name}.conf"):
        if path.exists():
            return path.read_text()
    return ""


class LaunchedPlugin(Plugin):
    """A plugin whose process is ours; it is killed when its connection ends."""

    process: Process

    async def reap(self) -> None:
        """Kill the process, which may have ended, and collect it."""
        self.process.send(signal.SIGKILL)
        await self.process.wait()
        _collect(self.process)


def _collect(process: Process) -> None:
    os.waitpid(process.pid, 0)
    process.close()


def _spawn(program: Program, plugin_socket: socket.socket) -> int:
    """Start the program with its socket as descriptor 3, whatever that is here; its pid."""
    environment = {
        "NRI_PLUGIN_NAME": program.name,
        "NRI_PLUGIN_IDX": program.index,
        "NRI_PLUGIN_SOCKET": str(_PLUGIN_FD),
    }
    descriptors = [(os.POSIX_SPAWN_DUP2, plugin_socket.fileno(), _PLUGIN_FD)]
    return os.posix_spawn(program.path, [str(program.path)], environment, file_actions=descriptors)


async def launch(program: Program, config: NriConfig, update: Update) -> LaunchedPlugin:
    """Start a plugin's program; PluginError when it cannot be executed."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with theirs:
        try:
            pid = _spawn(program, theirs)
        except OSError as error:
            ours.close()
            raise PluginError(f"NRI plugin {program.path} cannot be started: {error.strerror}") from error
    reader, writer = await asyncio.open_unix_connection(sock=ours)
    plugin = LaunchedPlugin(
        reader,
        writer,
        config,
        update,
        identity=(program.index, program.name),
        configuration=program.configuration,
    )
    plugin.process = Process(pid)
    return plugin
