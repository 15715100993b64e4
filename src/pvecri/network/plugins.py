# SPDX-License-Identifier: Apache-2.0
"""Executes CNI plugins, singly and as a network's chain (CNI specification, sections 2 to 4)."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import msgspec

from pvecri.config.settings import NetworkConfig
from pvecri.errors import CommandError, DeadlineExceeded
from pvecri.linux import programs
from pvecri.network.attachment import Attachment
from pvecri.network.capabilities import runtime_config
from pvecri.network.conflist import Network, Plugin
from pvecri.network.errors import PluginError
from pvecri.observability import correlation, metrics

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""For programs that plugins execute, such as iptables, if the daemon has no PATH."""
RESULT_LIMIT = 4 << 20
"""Bytes of a plugin's result; a plugin that writes more is killed."""

ATTACHMENTS_KEY = "cni.dev/valid-attachments"


FileIdentity = tuple[int, ...]
"""Device, inode, size and times of a file."""


class _VersionResult(msgspec.Struct, rename="camel"):
    """The result of VERSION."""

    supported_versions: list[str] = []


class _ErrorResult(msgspec.Struct):
    """The error result (CNI specification, section 5, Error)."""

    code: int = 0
    msg: str = ""
    details: str = ""


class PluginRunner:
    """Runs the chain of an attachment's network."""

    def __init__(self, config: NetworkConfig) -> None:
        self._bin_dirs = config.bin_dirs
        self._timeout = config.plugin_timeout
        self._supported: set[tuple[FileIdentity, str]] = set()
        """The versions that a program supports by its own answer to VERSION."""

    async def add(self, attachment: Attachment) -> bytes:
        """ADD through the chain; returns the last plugin's result. PluginError for the first that fails."""
        result = b""
        for plugin in attachment.network.plugins:
            result = await self._run("ADD", plugin, attachment, result)
        return result

    async def delete(self, attachment: Attachment, *, best_effort: bool = False) -> None:
        """DEL through the chain, last plugin first. PluginError for the first that fails.

        With `best_effort` the others run all the same before the error is raised.
        """
        failure: PluginError | None = None
        # Before 0.4.0 DEL has no prevResult.
        previous = attachment.result if attachment.network.has_version("0.4.0") else b""
        for plugin in reversed(attachment.network.plugins):
            try:
                await self._run("DEL", plugin, attachment, previous)
            except PluginError as error:
                failure = failure or error
                # An address must not be free while a host port still leads to it (decision 0023).
                if not best_effort:
                    break
        if failure is not None:
            raise failure

    async def status(self, network: Network) -> None:
        """STATUS of every plugin, if the network's version has it (1.1).

        PluginError for the first that is not ready for an ADD or does not support the network's version.
        """
        if not network.has_version("1.1.0"):
            return
        for plugin in network.plugins:
            # First: a plugin that is too old for STATUS fails it with an error that does not name the version.
            await self._check_version(plugin, network)
        for plugin in network.plugins:
            await self._execute("STATUS", plugin, network, {}, _base_config(plugin, network))

    async def collect(self, network: Network, valid: Iterable[Attachment]) -> None:
        """GC of every plugin, if the network's version has it (1.1): frees what belongs to no `valid` attachment.

        No ADD and no DEL may run meanwhile. All plugins run before the first PluginError is raised.
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

    async def supported_versions(self, plugin: Plugin, network: Network) -> Sequence[str]:
        """The versions of the CNI specification that a plugin supports (VERSION). PluginError."""
        answer = await self._execute("VERSION", plugin, network, {}, {"cniVersion": network.version})
        try:
            return msgspec.json.decode(answer, type=_VersionResult).supported_versions
        except msgspec.DecodeError as error:
            problem = f"not a version result: {error}"
            raise PluginError(plugin.type, "VERSION", network.path, problem) from error

    async def _check_version(self, plugin: Plugin, network: Network) -> None:
        """VERSION, unless the program has answered before that it supports the network's version. PluginError."""
        wanted = _identity(self._find(plugin.type)), network.version
        if wanted in self._supported:
            return
        supported = await self.supported_versions(plugin, network)
        if network.version not in supported:
            problem = (
                f"does not support the network's cniVersion {network.version}; it supports "
                f"{', '.join(supported) or 'none'}"
            )
            raise PluginError(plugin.type, "VERSION", network.path, problem)
        # A refusal is not kept: the program may execute another one, which an upgrade replaces.
        self._supported.add(wanted)

    def missing(self, network: Network) -> list[str]:
        """The plugins of a network that are not installed."""
        return [plugin.type for plugin in network.plugins if self._find(plugin.type) is None]

    def search_path(self) -> str:
        """The directories that are searched for plugins, for messages."""
        return ", ".join(map(str, self._bin_dirs))

    async def _run(self, command: str, plugin: Plugin, attachment: Attachment, previous: bytes) -> bytes:
        """Execute a command with the parameters of an attachment."""
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
            problem = f"not found in {self.search_path()} (network.bin_dirs)"
            raise PluginError(plugin.type, command, origin, problem)
        path = ":".join(map(str, self._bin_dirs))
        environment = {"PATH": DEFAULT_PATH, **os.environ, "CNI_COMMAND": command, "CNI_PATH": path, **variables}
        try:
            with (
                correlation.span(f"CNI {command} {plugin.type}", {"pvecri.network": network.name}),
                metrics.measured(metrics.CNI_CALLS, metrics.CNI_SECONDS, plugin.type, command),
            ):
                ended = await programs.run(
                    [program],
                    timeout=self._timeout,
                    stdin=msgspec.json.encode(config),
                    env=environment,
                    stdout_limit=RESULT_LIMIT,
                )
                if ended.returncode != 0:
                    code, problem = read_failure(ended.returncode, ended.stdout, ended.stderr)
                    raise PluginError(plugin.type, command, origin, problem, code)
        except DeadlineExceeded as error:
            problem = f"killed after {self._timeout:g} s (network.plugin_timeout)"
            raise PluginError(plugin.type, command, origin, problem) from error
        except CommandError as error:
            raise PluginError(plugin.type, command, origin, str(error)) from error
        except OSError as error:
            raise PluginError(plugin.type, command, origin, f"{program}: {error.strerror}") from error
        return ended.stdout

    def _find(self, name: str) -> Path | None:
        candidates = (directory / name for directory in self._bin_dirs)
        return next((path for path in candidates if path.is_file() and os.access(path, os.X_OK)), None)


def _identity(program: Path | None) -> FileIdentity:
    """Changes when the file is replaced or written; empty if there is none."""
    if program is None:
        return ()
    try:
        found = program.stat()
    except OSError:
        return ()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _base_config(plugin: Plugin, network: Network) -> dict[str, object]:
    # `capabilities` is for the runtime; plugins get runtimeConfig instead (section 3).
    config: dict[str, object] = {key: value for key, value in plugin.options.items() if key != "capabilities"}
    return config | {"name": network.name, "cniVersion": network.version}


def _attachment_config(plugin: Plugin, attachment: Attachment, previous: bytes) -> dict[str, object]:
    """The execution configuration that a plugin reads from stdin (section 3, Deriving requests)."""
    config = _base_config(plugin, attachment.network)
    if arguments := runtime_config(plugin, attachment.arguments):
        config["runtimeConfig"] = arguments
    if previous:
        config["prevResult"] = msgspec.Raw(previous)
    return config


def read_failure(status: int, stdout: bytes, stderr: str) -> tuple[int, str]:
    """Code and message of a failed plugin: from its error result, else from stderr. Pure."""
    ending = f"signal {-status}" if status < 0 else f"status {status}"
    try:
        error = msgspec.json.decode(stdout, type=_ErrorResult)
    except msgspec.DecodeError:
        error = _ErrorResult()
    if not error.msg:
        output = (stderr or stdout.decode(errors="replace")).strip()
        return error.code, f"ended with {ending}: {output[-1000:] or 'no output'}"
    return error.code, "; ".join(part for part in (error.msg, error.details) if part)
