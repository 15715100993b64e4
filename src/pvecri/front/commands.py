# SPDX-License-Identifier: Apache-2.0
"""The commands of an OCI runtime, as CRI-O, containerd's shim and podman use them.

Sources: the OCI runtime command line interface, runc(8); docs/crio.md and docs/containerd.md say who sends what.
"""

from __future__ import annotations

import asyncio
import datetime
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec

from pvecri.errors import FailedPrecondition, InvalidArgument
from pvecri.front import bundle
from pvecri.front.options import CommandLine
from pvecri.front.protocol import Call, Connection
from pvecri.front.spec import decode_resources
from pvecri.linux import signals
from pvecri.oci.runtime_spec import OCI_VERSION
from pvecri.pods.front.container import FrontContainers

STDIN_MAX = 1 << 20
"""Bytes of the resources on the standard input of `update`."""

Handler = Callable[[CommandLine, Call, Connection], Awaitable[None]]


class Commands:
    """Carries out one command line after the other; any number at once."""

    def __init__(self, containers: FrontContainers) -> None:
        self._containers = containers
        self._handlers: dict[str, Handler] = {
            "create": self._create,
            "restore": self._create,
            "start": self._start,
            "state": self._state,
            "kill": self._kill,
            "delete": self._delete,
            "exec": self._pass,
            "events": self._pass,
            "checkpoint": self._pass,
            "update": self._update,
            "pause": self._switch,
            "resume": self._switch,
            "ps": self._ps,
            "features": self._features,
        }

    async def run(self, line: CommandLine, call: Call, client: Connection) -> None:
        """Carry out a command; what it raises is for the client's standard error."""
        await self._handlers[line.command](line, call, client)

    async def _create(self, line: CommandLine, call: Call, client: Connection) -> None:
        directory = call.directory / (line.value("bundle") or ".")
        found = await asyncio.to_thread(bundle.read, directory)
        sandbox, container = bundle.wanted(found, line.id, line.root)
        monitor = await self._containers.create(
            sandbox, container, line.command, line.passed("bundle", "pid-file"), line.log_options(), client
        )
        if line.has("pid-file"):
            _write_pid(call.directory / line.value("pid-file"), monitor)
        await client.exit(0)

    async def _start(self, line: CommandLine, _: Call, client: Connection) -> None:
        container = self._containers.find(line.id, line.root)
        await self._containers.start(container, line.log_options(), client)
        await client.exit(0)

    async def _state(self, line: CommandLine, _: Call, client: Connection) -> None:
        state = self._containers.state(self._containers.find(line.id, line.root))
        created = datetime.datetime.fromtimestamp(state.created / 1e9, datetime.UTC)
        await client.write(
            msgspec.json.encode(
                {
                    "ociVersion": OCI_VERSION,
                    "id": state.id,
                    "pid": state.pid,
                    "status": state.status,
                    "bundle": state.bundle,
                    "rootfs": state.rootfs,
                    # RFC 3339: CRI-O decodes it.
                    "created": created.isoformat().replace("+00:00", "Z"),
                    "annotations": state.annotations,
                    "owner": "",
                }
            )
            + b"\n"
        )
        await client.exit(0)

    async def _kill(self, line: CommandLine, _: Call, client: Connection) -> None:
        container = self._containers.find(line.id, line.root)
        wanted = line.value("signal") or (line.arguments[1] if len(line.arguments) > 1 else "SIGTERM")
        await self._containers.kill(container, signal_number(wanted), everything=line.has("all"))
        await client.exit(0)

    async def _delete(self, line: CommandLine, _: Call, client: Connection) -> None:
        await self._containers.delete(line.id, line.root, force=line.has("force"))
        await client.exit(0)

    async def _pass(self, line: CommandLine, _: Call, client: Connection) -> None:
        """The OCI runtime itself takes the place of the client: its streams, its exit code."""
        if line.has("help"):  # CRI-O asks so whether checkpoints are supported
            await client.execute(self._containers.runtime_command(line.command, "--help"))
            return
        container = self._containers.find(line.id, line.root)
        rest = line.arguments[1:]
        command = self._containers.command(
            container, *line.log_options(), line.command, *line.passed(), container.id, *rest
        )
        await client.execute(command)

    async def _update(self, line: CommandLine, call: Call, client: Connection) -> None:
        container = self._containers.find(line.id, line.root)
        resources = None
        passed = line.passed()
        if line.has("resources"):
            source = line.value("resources")
            if source == "-":
                text = await asyncio.to_thread(_read, call.stdin)
            else:
                path = call.directory / source
                try:
                    text = await asyncio.to_thread(path.read_bytes)
                except OSError as error:
                    raise InvalidArgument("--resources", f"{path}: {error.strerror}") from error
            resources = decode_resources(text)
            passed = [*line.passed("resources"), "--resources=-"]
        await self._containers.update(container, passed, resources)
        await client.exit(0)

    async def _switch(self, line: CommandLine, _: Call, client: Connection) -> None:
        await self._containers.switch(self._containers.find(line.id, line.root), line.command)
        await client.exit(0)

    async def _ps(self, line: CommandLine, _: Call, client: Connection) -> None:
        container = self._containers.find(line.id, line.root)
        pids = self._containers.processes(container)
        if (line.value("format") or "table") == "json":
            await client.write(msgspec.json.encode(pids) + b"\n")
            await client.exit(0)
        elif pids:
            arguments = line.arguments[1:] or ("-f",)
            await client.execute(["/bin/ps", *arguments, "-p", ",".join(map(str, pids))])
        else:
            raise FailedPrecondition("container not running")

    async def _features(self, _line: CommandLine, _call: Call, client: Connection) -> None:
        await client.execute(self._containers.runtime_command("features"))


def signal_number(name: str) -> int:
    """The signal of `kill`, 0 included; InvalidArgument if there is none of the name."""
    found = signals.number(name)
    if found is None:
        raise InvalidArgument("kill", f"there is no signal {name!r}")
    return found


def _read(stdin: int) -> bytes:
    """All of a client's standard input, up to STDIN_MAX."""
    if stdin < 0:
        return b""
    with os.fdopen(os.dup(stdin), "rb") as file:
        return file.read(STDIN_MAX)


def _write_pid(path: Path, pid: int) -> None:
    """Write a PID file as the OCI runtimes do: who waits for it never reads a part."""
    fresh = path.with_name(f".{path.name}.new")
    try:
        fresh.write_text(str(pid))
        fresh.replace(path)
    except OSError as error:
        raise InvalidArgument("--pid-file", f"{path}: {error.strerror}") from error
