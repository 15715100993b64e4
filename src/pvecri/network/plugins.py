# SPDX-License-Identifier: Apache-2.0
"""Running CNI plugins: one, and a network's chain of them (CNI specification, sections 2 to 4)."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

import msgspec

from pvecri import metrics
from pvecri.concurrency import ended
from pvecri.config import NetworkConfig
from pvecri.network.attachment import Attachment
from pvecri.network.capabilities import runtime_config
from pvecri.network.conflist import Network, Plugin
from pvecri.network.errors import PluginError

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""For the programs that plugins run, such as iptables, when the daemon has no PATH."""


ATTACHMENTS_KEY = "cni.dev/valid-attachments"


class _VersionResult(msgspec.Struct, rename="camel"):
    """What VERSION answers."""

    supported_versions: list[str] = []


class _ErrorResult(msgspec.Struct):
    """What a plugin writes when it fails."""

    code: int = 0
    msg: str = ""
    details: str = ""


class PluginRunner:
    """Runs the chain of an attachment's network."""

    def __init__(self, config: NetworkConfig) -> None:
        self._bin_dirs = config.bin_dirs
        self._timeout = config.plugin_timeout

    async def add(self, attachment: Attachment) -> bytes:
        """ADD through the chain; the last plugin's result. PluginError at the first that fails."""
        result = b""
        for plugin in attachment.network.plugins:
            result = await self._run("ADD", plugin, attachment, result)
        return result

    async def delete(self, attachment: Attachment, *, best_effort: bool = False) -> None:
        """DEL through the chain, last plugin first. PluginError at the first that fails.

        `best_effort` goes on after a failure and raises it in the end.
        """
        failure: PluginError | None = None
        previous = attachment.result if attachment.network.has_version("0.4.0") else b""
        for plugin in reversed(attachment.network.plugins):
            try:
                await self._run("DEL", plugin, attachment, previous)
            except PluginError as error:
                failure = failure or error
                if not best_effort:
                    break
        if failure is not None:
            raise failure

    async def check(self, attachment: Attachment) -> None:
        """CHECK through the chain, where the network's version has it. PluginError at the first that fails."""
        if attachment.network.disable_check or not attachment.network.has_version("0.4.0"):
            return
        for plugin in attachment.network.plugins:
            await self._run("CHECK", plugin, attachment, attachment.result)

    async def status(self, network: Network) -> None:
        """Ask every plugin whether it is ready for an ADD, where the network's version has STATUS (1.1).

        PluginError for the first that is not, or that does not speak the network's version.
        """
        if not network.has_version("1.1.0"):
            return
        for plugin in network.plugins:
            await self._check_version(plugin, network)
        for plugin in network.plugins:
            await self._execute("STATUS", plugin, network, {}, _base_config(plugin, network))

    async def collect(self, network: Network, valid: Iterable[Attachment]) -> None:
        """Have every plugin free what belongs to none of these attachments (GC), where the network has it (1.1).

        No ADD and no DEL may run meanwhile. All plugins are asked; the first PluginError is raised in the end.
        """
        if network.disable_gc or not network.has_version("1.1.0"):
            return
        attachments = [{"containerID": each.sandbox_id, "ifname": each.interface} for each in valid]
        failure: PluginError | None = None
        for plugin in network.plugins:
            config = _base_config(plugin, network) | {ATTACHMENTS_KEY: attachments}
            try:
                await self._execute("GC", plugin, network, {}, config)
            except PluginError as error:
                failure = failure or error
        if failure is not None:
            raise failure

    async def _check_version(self, plugin: Plugin, network: Network) -> None:
        answer = await self._execute("VERSION", plugin, network, {}, {"cniVersion": network.version})
        try:
            spoken = msgspec.json.decode(answer, type=_VersionResult).supported_versions
        except msgspec.DecodeError as error:
            problem = f"not a version result: {error}"
            raise PluginError(plugin.type, "VERSION", network.path, problem) from error
        if network.version not in spoken:
            problem = (
                f"does not speak the network's cniVersion {network.version}, but {', '.join(spoken) or 'none'}"
            )
            raise PluginError(plugin.type, "VERSION", network.path, problem)

    def missing(self, network: Network) -> list[str]:
        """The plugins of a network that are not installed."""
        return [plugin.type for plugin in network.plugins if self._find(plugin.type) is None]

    def searched(self) -> str:
        """Where plugins are looked for, for messages."""
        return ", ".join(map(str, self._bin_dirs))

    async def _run(self, command: str, plugin: Plugin, attachment: Attachment, previous: bytes) -> bytes:
        """A command that is about an attachment."""
        variables = {
            "CNI_CONTAINERID": attachment.sandbox_id,
            "CNI_NETNS": attachment.netns,
            "CNI_IFNAME": attachment.interface,
            "CNI_ARGS": attachment.args,
        }
        config = _attachment_config(plugin, attachment, previous)
        return await self._execute(command, plugin, attachment.network, variables, config)

    async def _execute(
        self,
        command: str,
        plugin: Plugin,
        network: Network,
        variables: Mapping[str, str],
        config: Mapping[str, object],
    ) -> bytes:
        origin = network.path
        program = self._find(plugin.type)
        if program is None:
            problem = f"not found in {self.searched()} (network.bin_dirs)"
            raise PluginError(plugin.type, command, origin, problem)
        path = ":".join(map(str, self._bin_dirs))
        environment = {"PATH": DEFAULT_PATH, **os.environ, "CNI_COMMAND": command, "CNI_PATH": path, **variables}
        try:
            with metrics.measured(metrics.CNI_CALLS, metrics.CNI_SECONDS, plugin.type, command):
                status, output, words = await _execute(
                    program, environment, msgspec.json.encode(config), self._timeout
                )
                if status != 0:
                    code, problem = read_failure(status, output, words)
                    raise PluginError(plugin.type, command, origin, problem, code)
        except TimeoutError as error:
            problem = f"killed after {self._timeout:g} s (network.plugin_timeout)"
            raise PluginError(plugin.type, command, origin, problem) from error
        except OSError as error:
            raise PluginError(plugin.type, command, origin, f"{program}: {error.strerror}") from error
        return output

    def _find(self, name: str) -> Path | None:
        candidates = (directory / name for directory in self._bin_dirs)
        return next((path for path in candidates if path.is_file() and os.access(path, os.X_OK)), None)


def execution_config(plugin: Plugin, attachment: Attachment, previous: bytes) -> bytes:
    """What a plugin reads: its configuration with what the runtime adds and takes out (section 3). Pure."""
    return msgspec.json.encode(_attachment_config(plugin, attachment, previous))


def _base_config(plugin: Plugin, network: Network) -> dict[str, object]:
    config: dict[str, object] = {key: value for key, value in plugin.options.items() if key != "capabilities"}
    return config | {"name": network.name, "cniVersion": network.version}


def _attachment_config(plugin: Plugin, attachment: Attachment, previous: bytes) -> dict[str, object]:
    config = _base_config(plugin, attachment.network)
    if arguments := runtime_config(plugin, attachment.arguments):
        config["runtimeConfig"] = arguments
    if previous:
        config["prevResult"] = msgspec.Raw(previous)
    return config


def read_failure(status: int, output: bytes, words: bytes) -> tuple[int, str]:
    """The code and the reason of a plugin that failed: its error result, else what it wrote to stderr. Pure."""
    ending = f"signal {-status}" if status < 0 else f"status {status}"
    try:
        error = msgspec.json.decode(output, type=_ErrorResult)
    except msgspec.DecodeError:
        error = _ErrorResult()
    if not error.msg:
        said = (words or output).decode(errors="replace").strip()
        return error.code, f"ended with {ending}: {said[-1000:] or 'no output'}"
    return error.code, "; ".join(part for part in (error.msg, error.details) if part)


async def _execute(
    program: Path, environment: dict[str, str], config: bytes, timeout: float
) -> tuple[int, bytes, bytes]:
    """Run a plugin: its status, output and error output.

    It gets a process group of its own, which is killed when the time is over or the caller is cancelled.
    """
    starting = asyncio.create_task(
        asyncio.create_subprocess_exec(
            program,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=environment,
            start_new_session=True,
        )
    )
    # Cut short, asyncio would kill the plugin alone, and leave the programs that it has started.
    cancelled = await ended(starting)
    process = starting.result()
    try:
        if cancelled is not None:
            raise cancelled
        async with asyncio.timeout(timeout):
            output, words = await process.communicate(config)
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await ended(asyncio.create_task(process.wait()))
    assert process.returncode is not None
    return process.returncode, output, words
