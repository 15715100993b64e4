# SPDX-License-Identifier: Apache-2.0
"""CNI network configurations (CNI specification, section 1).

The first valid file of the directory, by name, is the pods' network, as in CRI-O and containerd. A file is a list
of plugins (`.conflist`) or a single plugin (`.conf`, `.json`). The `.conf` files of a subdirectory with the
network's name add plugins to a list, unless `loadOnlyInlinedPlugins` is set.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from pvecri.network.errors import NetworkNotReady

SUFFIXES = (".conf", ".conflist", ".json")
VERSIONS = ("0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
"""The supported versions of the specification; results before 0.3.0 have a different structure."""

PluginOptions = dict[str, object]
"""A plugin's configuration; each plugin defines keys of its own."""


class Plugin(msgspec.Struct, frozen=True, kw_only=True):
    """One plugin of a network; `options` is its whole object in the file."""

    type: str
    capabilities: dict[str, bool] = {}
    options: PluginOptions = {}

    def can(self, capability: str) -> bool:
        """Whether the plugin accepts this capability's arguments."""
        return self.capabilities.get(capability, False)


class Network(msgspec.Struct, frozen=True, kw_only=True):
    """A network configuration; `path` is its file."""

    name: str
    version: str
    plugins: tuple[Plugin, ...]
    disable_gc: bool = False
    path: str = ""

    def has_version(self, wanted: str) -> bool:
        """Whether its cniVersion is `wanted` or later."""
        return VERSIONS.index(self.version) >= VERSIONS.index(wanted)


class _File(msgspec.Struct):
    """A configuration file; without `plugins` the whole object is the only plugin."""

    name: str
    cni_version: str = msgspec.field(name="cniVersion", default="0.3.1")
    cni_versions: list[str] = msgspec.field(name="cniVersions", default_factory=list)
    disable_gc: bool = msgspec.field(name="disableGC", default=False)
    only_inlined: bool = msgspec.field(name="loadOnlyInlinedPlugins", default=False)
    type: str = ""
    plugins: list[PluginOptions] | None = None


class _Plugin(msgspec.Struct):
    type: str
    capabilities: dict[str, bool] = msgspec.field(default_factory=dict)


def parse(text: bytes, path: str, folder: Path | None = None) -> Network:
    """Parse a configuration; ValueError if it is invalid, OSError if a part cannot be read.

    `folder` contains the subdirectories that add plugins to lists; None if the text is complete.
    """
    try:
        file = msgspec.json.decode(text, type=_File, strict=False)  # libcni accepts strings for booleans too
        plugins = _plugin_options(file, text, folder)
        return Network(
            name=_checked_name(file.name),
            version=_version(file),
            plugins=tuple(_plugin(options) for options in plugins),
            disable_gc=file.disable_gc,
            path=path,
        )
    except msgspec.DecodeError as error:
        raise ValueError(str(error)) from error


def to_json(network: Network) -> bytes:
    """The network as a configuration that `parse` reads, for the cache."""
    file = {
        "cniVersion": network.version,
        "name": network.name,
        "disableGC": network.disable_gc,
        "plugins": [plugin.options for plugin in network.plugins],
    }
    return msgspec.json.encode(file)


class ConfigDirectory:
    """network.conf_dir, read again after a change."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[tuple[str, int, int, int], ...] | None = None
        self._network: Network | None = None
        self._problem = ""

    def network(self) -> Network:
        """The pods' network. NetworkNotReady if no file is valid, with the error in each."""
        # Taken before the files are read: a change meanwhile makes the next one differ.
        seen = self._fingerprint()
        if seen != self._seen:
            self._read([name for name, *_ in seen if "/" not in name])
            self._seen = seen
        if self._network is None:
            raise NetworkNotReady(self._problem)
        return self._network

    def _fingerprint(self) -> tuple[tuple[str, int, int, int], ...]:
        """Changes with every edited, added or removed file; costs one stat a file.

        In the order of names; those of subdirectories have a `/` and come last. Not with pathlib: every Status
        asks for it.
        """
        found = []
        try:
            for name, entry in _entries(self._path):
                if name.endswith(SUFFIXES):
                    found.append((name, entry.stat()))
                if entry.is_dir():
                    parts = (part for part in _entries(entry.path) if part[0].endswith(".conf"))
                    found += [(f"{name}/{part}", inner.stat()) for part, inner in parts]
        # The directory need not exist yet: many CNI plugins come with a DaemonSet.
        except OSError:
            return ()
        found.sort(key=lambda each: ("/" in each[0], each[0]))
        return tuple((name, stat.st_mtime_ns, stat.st_size, stat.st_ino) for name, stat in found)

    def _read(self, names: list[str]) -> None:
        problems = []
        for name in names:
            path = self._path / name
            try:
                self._network = parse(path.read_bytes(), str(path), self._path)
            except (OSError, ValueError) as error:
                problems.append(f"{name}: {error}")
            else:
                return
        self._network = None
        found = "; ".join(problems) or "no .conflist, .conf or .json file"
        self._problem = f"no CNI network in {self._path} (network.conf_dir): {found}"


def _entries(directory: str | Path) -> list[tuple[str, os.DirEntry[str]]]:
    with os.scandir(directory) as entries:
        return [(entry.name, entry) for entry in entries]


def _plugin_options(file: _File, text: bytes, folder: Path | None) -> list[PluginOptions]:
    """The plugins of a file, in order: its single one, or its list and then those of its subdirectory."""
    if file.plugins is None and file.type:
        return [msgspec.json.decode(text, type=PluginOptions)]
    plugins = list(file.plugins or [])
    if folder is not None and not file.only_inlined:
        # `name` is a directory here: _checked_name keeps it below `folder`.
        paths = sorted((folder / _checked_name(file.name)).glob("*.conf"))
        plugins += [msgspec.json.decode(path.read_bytes(), type=PluginOptions) for path in paths]
    if not plugins:
        raise msgspec.ValidationError("it contains no plugin")
    return plugins


def _plugin(options: PluginOptions) -> Plugin:
    known = msgspec.convert(options, _Plugin, strict=False)
    if not known.type or "/" in known.type:
        raise msgspec.ValidationError(f"{known.type!r} is not a valid plugin name")
    return Plugin(type=known.type, capabilities=known.capabilities, options=options)


def _version(file: _File) -> str:
    """The latest version that the file offers and pvecri supports."""
    offered = [version for version in (file.cni_version, *file.cni_versions) if version in VERSIONS]
    if not offered:
        raise msgspec.ValidationError(f"cniVersion {file.cni_version} is not one of {', '.join(VERSIONS)}")
    return max(offered, key=VERSIONS.index)


def _checked_name(name: str) -> str:
    if not name or "/" in name or name in (".", ".."):
        raise msgspec.ValidationError(f"{name!r} is not a valid network name")
    return name
