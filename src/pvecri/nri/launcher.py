# SPDX-License-Identifier: Apache-2.0
"""Pre-installed plugins: discovered in nri.plugin_dir, launched, and killed when they disconnect.

A plugin is an executable named `NN-name`, where NN is its index. Its environment has NRI's variables alone, and
nothing of the daemon's.
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

from pvecri.config.settings import NriConfig
from pvecri.linux.processes import Process
from pvecri.nri.errors import PluginError
from pvecri.nri.plugin import Plugin, Update

log = logging.getLogger(__name__)

_FILE_NAME = re.compile(r"([0-9]{2})-([A-Za-z0-9_.+-]+)")
_PLUGIN_FD = 3


@dataclass(frozen=True)
class Program:
    """A plugin's executable; `configuration` is the content of its file in nri.plugin_config_dir."""

    path: Path
    index: str
    name: str
    configuration: str


def discover(config: NriConfig) -> list[Program]:
    """The pre-installed plugins, by index and name. Executables with another name are logged and skipped."""
    if not config.plugin_dir.is_dir():
        return []
    found: list[Program] = []
    for path in sorted(config.plugin_dir.iterdir()):
        if not path.is_file() or not os.access(path, os.X_OK):
            continue
        match = _FILE_NAME.fullmatch(path.name)
        if match is None:
            log.error("NRI: %s is skipped: a plugin's file name must be NN-name", path)
            continue
        configuration = _configuration(config.plugin_config_dir, path.name, match[2])
        found.append(Program(path, match[1], match[2], configuration))
    return found


def _configuration(directory: Path, full_name: str, name: str) -> str:
    """The content of `NN-name.conf`, else of `name.conf`; empty without either."""
    for path in (directory / f"{full_name}.conf", directory / f"{name}.conf"):
        if path.exists():
            return path.read_text()
    return ""


class LaunchedPlugin(Plugin):
    """A plugin that is a child process; it is killed when its connection closes."""

    process: Process

    async def reap(self) -> None:
        """Kill the process, if it has not exited, and reap it."""
        self.process.send(signal.SIGKILL)
        await self.process.wait()
        os.waitpid(self.process.pid, 0)  # noqa: ASYNC222, it has exited
        self.process.close()


def _spawn(program: Program, plugin_socket: socket.socket) -> int:
    """Start the program with its socket as descriptor 3; its PID.

    posix_spawn, as subprocess cannot renumber a descriptor: pass_fds keeps the parent's numbers.
    """
    environment = {
        "NRI_PLUGIN_NAME": program.name,
        "NRI_PLUGIN_IDX": program.index,
        "NRI_PLUGIN_SOCKET": str(_PLUGIN_FD),
    }
    # The other descriptors of the daemon are close-on-exec, as Python opens all.
    descriptors = [(os.POSIX_SPAWN_DUP2, plugin_socket.fileno(), _PLUGIN_FD)]
    return os.posix_spawn(program.path, [str(program.path)], environment, file_actions=descriptors)


async def launch(program: Program, config: NriConfig, update: Update) -> LaunchedPlugin:
    """Launch a plugin; PluginError if it cannot be executed."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with theirs:
        try:
            pid = _spawn(program, theirs)
        except OSError as error:
            ours.close()
            raise PluginError(f"NRI plugin {program.path} cannot be launched: {error.strerror}") from error
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
