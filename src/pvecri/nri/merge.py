# SPDX-License-Identifier: Apache-2.0
"""Merges the adjustments and updates of several plugins. Two settings of one field are a conflict.

A plugin may remove an earlier plugin's setting and set the field itself, without conflict. The request that each
plugin gets shows the adjustments of the plugins before it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from typing import Any

from google.protobuf.message import Message

from pvecri.nri.errors import Conflict, PluginError
from pvecri.nri.proto import nri_pb2 as pb

REMOVAL = "-"
"""The prefix of a name that is to be removed (NRI, MarkForRemoval)."""

_MEMORY: dict[str, int] = {
    "limit": pb.FIELD_MEM_LIMIT,
    "reservation": pb.FIELD_MEM_RESERVATION,
    "swap": pb.FIELD_MEM_SWAP_LIMIT,
    "kernel": pb.FIELD_MEM_KERNEL_LIMIT,
    "kernel_tcp": pb.FIELD_MEM_TCP_LIMIT,
    "swappiness": pb.FIELD_MEM_SWAPPINESS,
    "disable_oom_killer": pb.FIELD_MEM_DISABLE_OOM_KILLER,
    "use_hierarchy": pb.FIELD_MEM_USE_HIERARCHY,
}
_CPU: dict[str, int] = {
    "shares": pb.FIELD_CPU_SHARES,
    "quota": pb.FIELD_CPU_QUOTA,
    "period": pb.FIELD_CPU_PERIOD,
    "realtime_runtime": pb.FIELD_CPU_REALTIME_RUNTIME,
    "realtime_period": pb.FIELD_CPU_REALTIME_PERIOD,
    "cpus": pb.FIELD_CPU_SET_CPUS,
    "mems": pb.FIELD_CPU_SET_MEMS,
}
_OTHER_LIMITS: dict[str, int] = {
    "blockio_class": pb.FIELD_BLOCKIO_CLASS,
    "rdt_class": pb.FIELD_RDT_CLASS,
    "pids": pb.FIELD_PIDS_LIMIT,
}
_WHOLE: dict[str, int] = {
    "cgroups_path": pb.FIELD_CGROUPS_PATH,
    "oom_score_adj": pb.FIELD_OOM_SCORE_ADJ,
    "io_priority": pb.FIELD_IO_PRIORITY,
    "seccomp_policy": pb.FIELD_SECCOMP_POLICY,
    "scheduler": pb.FIELD_LINUX_SCHED,
    "memory_policy": pb.FIELD_MEMORY_POLICY,
}
"""Fields of `linux` that are set as a whole."""
_RDT: dict[str, int] = {
    "clos_id": pb.FIELD_RDT_CLOS_ID,
    "schemata": pb.FIELD_RDT_SCHEMATA,
    "enable_monitoring": pb.FIELD_RDT_ENABLE_MONITORING,
}


class Owners:
    """The plugin that has set each field of each container."""

    def __init__(self) -> None:
        self._by_field: dict[tuple[str, int, str | None], str] = {}

    def claim(self, plugin: str, container: str, field: int, key: str | None = None) -> None:
        """Record that a plugin sets a field, or its entry `key`; Conflict if another one has."""
        self.check(plugin, container, field, key)
        self._by_field[container, field, key] = plugin

    def check(self, plugin: str, container: str, field: int, key: str | None = None) -> None:
        """Raise the Conflict that `claim` would."""
        owner = self._by_field.get((container, field, key))
        if owner is None or owner == REMOVAL + plugin:
            return
        what = pb.Field.Name(field).removeprefix("FIELD_").lower().replace("_", " ") + (f" {key!r}" if key else "")
        raise Conflict(
            f"NRI plugins {owner.removeprefix(REMOVAL)} and {plugin} both set the {what} of container {container}"
        )

    def clear(self, plugin: str, container: str, field: int, key: str | None = None) -> None:
        """Record that a plugin removes a setting, which it may then set itself."""
        self._by_field[container, field, key] = REMOVAL + plugin

    def join(self, plugin: str, container: str, field: int) -> None:
        """Record that a plugin appends to a field that several may append to."""
        owner = self._by_field.get((container, field, None))
        self._by_field[container, field, None] = f"{owner},{plugin}" if owner else plugin

    def message(self) -> pb.OwningPlugins:
        """The owners for ValidateContainerAdjustment."""
        message = pb.OwningPlugins()
        for (container, field, key), plugin in self._by_field.items():
            owners = message.owners[container]
            if key is None:
                owners.simple[field] = plugin
            else:
                owners.compound[field].owners[key] = plugin
        return message


class Updates:
    """Merged updates of existing containers; `merged` is by container ID, in the order of the first update."""

    def __init__(self, creating: str = "") -> None:
        """`creating` is the container under creation, which takes adjustments and no updates."""
        self.merged: dict[str, pb.ContainerUpdate] = {}
        self.owners = Owners()
        self._creating = creating

    def add(self, updates: Iterable[pb.ContainerUpdate], plugin: str) -> None:
        """Add a plugin's updates; Conflict, unless the update ignores failure: it is skipped then."""
        for update in updates:
            if update.container_id == self._creating:
                raise PluginError(f"NRI plugin {plugin} asks to update {update.container_id} while it is created")
            try:
                self._claim(update, plugin)
            except Conflict:
                if update.ignore_failure:
                    continue
                raise
            entry = self._entry(update)
            copy_resources(update.linux.resources, entry.linux.resources)

    def _claim(self, update: pb.ContainerUpdate, plugin: str) -> None:
        fields = list(_fields(update.linux.resources))
        for field, key in fields:
            self.owners.check(plugin, update.container_id, field, key)
        for field, key in fields:
            self.owners.claim(plugin, update.container_id, field, key)

    def _entry(self, update: pb.ContainerUpdate) -> pb.ContainerUpdate:
        entry = self.merged.get(update.container_id)
        if entry is None:
            entry = pb.ContainerUpdate(container_id=update.container_id, ignore_failure=True)
            self.merged[update.container_id] = entry
        # One update for all plugins: its failure is ignored only if all of them ignore it.
        entry.ignore_failure = entry.ignore_failure and update.ignore_failure
        return entry


class Creation:
    """The merged responses to CreateContainer: `adjustment` of the new container, `updates` of others."""

    def __init__(self, request: pb.CreateContainerRequest) -> None:
        """`request` is modified by each adjustment, for the next plugin to see."""
        self.adjustment = pb.ContainerAdjustment()
        self.updates = Updates(creating=request.container.id)
        self.owners = self.updates.owners
        self._seen = request.container
        self._id = request.container.id

    def add(self, response: pb.CreateContainerResponse, plugin: str) -> None:
        """Add a plugin's response; Conflict."""
        self._add_adjustment(response.adjust, plugin)
        self.updates.add(response.update, plugin)

    def _add_adjustment(self, wanted: pb.ContainerAdjustment, plugin: str) -> None:
        total, seen = self.adjustment, self._seen
        self._map(plugin, pb.FIELD_ANNOTATIONS, wanted.annotations, (total.annotations, seen.annotations))
        self._list(plugin, pb.FIELD_MOUNTS, "destination", wanted.mounts, (total.mounts, seen.mounts))
        self._list(plugin, pb.FIELD_ENV, "key", wanted.env, (total.env,))
        _show_env(wanted.env, seen.env)
        self._args(plugin, list(wanted.args))
        self._hooks(plugin, wanted.hooks)
        for limit in wanted.rlimits:
            self.owners.claim(plugin, self._id, pb.FIELD_RLIMITS, limit.type)
            total.rlimits.add().CopyFrom(limit)
            seen.rlimits.add().CopyFrom(limit)
        for device in wanted.CDI_devices:
            self.owners.claim(plugin, self._id, pb.FIELD_CDI_DEVICES, device.name)
            total.CDI_devices.add().CopyFrom(device)
        if wanted.HasField("linux"):
            self._linux(plugin, wanted.linux)

    def _linux(self, plugin: str, wanted: pb.LinuxContainerAdjustment) -> None:
        total, seen = self.adjustment.linux, self._seen.linux
        self._list(plugin, pb.FIELD_DEVICES, "path", wanted.devices, (total.devices, seen.devices))
        self._list(plugin, pb.FIELD_NAMESPACE, "type", wanted.namespaces, (total.namespaces, seen.namespaces))
        self._map(plugin, pb.FIELD_SYSCTL, wanted.sysctl, (total.sysctl, seen.sysctl))
        nets = (total.net_devices, seen.net_devices)
        self._map(plugin, pb.FIELD_LINUX_NET_DEVICES, wanted.net_devices, nets)
        for name, field in _WHOLE.items():
            if _is_set(wanted, name):
                self.owners.claim(plugin, self._id, field)
                _copy(name, wanted, total)
                # NRI has a memory policy in adjustments only.
                if name in seen.DESCRIPTOR.fields_by_name:
                    _copy(name, wanted, seen)
        self._rdt(plugin, wanted.rdt)
        for field, key in _fields(wanted.resources):
            self.owners.claim(plugin, self._id, field, key)
        for target in (total.resources, seen.resources):
            copy_resources(wanted.resources, target)
            if wanted.resources.devices:  # an empty extend would make `devices` present
                target.devices.extend(wanted.resources.devices)

    def _rdt(self, plugin: str, wanted: pb.LinuxRdt) -> None:
        total = self.adjustment.linux
        if wanted.remove:
            for field in _RDT.values():
                self.owners.clear(plugin, self._id, field)
            total.rdt.CopyFrom(pb.LinuxRdt(remove=True))
        for name, field in _RDT.items():
            if wanted.HasField(name):
                self.owners.claim(plugin, self._id, field)
                _copy(name, wanted, total.rdt)

    def _args(self, plugin: str, wanted: list[str]) -> None:
        """An empty first argument removes those that an earlier plugin has set (NRI, UpdateArgs)."""
        if not wanted:
            return
        if not wanted[0]:
            self.owners.clear(plugin, self._id, pb.FIELD_ARGS)
            wanted = wanted[1:]
        self.owners.claim(plugin, self._id, pb.FIELD_ARGS)
        self.adjustment.args[:] = wanted
        self._seen.args[:] = wanted

    def _hooks(self, plugin: str, wanted: pb.Hooks) -> None:
        if not wanted.ListFields():
            return
        self.owners.join(plugin, self._id, pb.FIELD_OCI_HOOKS)
        for target in (self.adjustment.hooks, self._seen.hooks):
            target.MergeFrom(wanted)  # repeated fields are appended

    def _map(
        self, plugin: str, field: int, wanted: Mapping[str, Any], targets: Iterable[MutableMapping[str, Any]]
    ) -> None:
        removed, names = _split(wanted)
        for name in removed:
            self.owners.clear(plugin, self._id, field, name)
        for name in names:
            self.owners.claim(plugin, self._id, field, name)
        for number, target in enumerate(targets):
            for name in removed:
                _discard(target, name)
                if number == 0:
                    target[REMOVAL + name]  # a read creates a protobuf map's entry
            for name in names:
                _discard(target, REMOVAL + name)
                _put(target, name, wanted[name])

    def _list(self, plugin: str, field: int, key: str, wanted: Iterable[Any], targets: Iterable[Any]) -> None:
        """As `_map`, for a repeated field whose entries are named by their field `key`."""
        entries = {getattr(entry, key): entry for entry in wanted}
        removed, names = _split(entries)
        for name in removed:
            self.owners.clear(plugin, self._id, field, name)
        for name in names:
            self.owners.claim(plugin, self._id, field, name)
        replaced = {*removed, *names} | {REMOVAL + name for name in (*removed, *names)}
        for number, target in enumerate(targets):
            if not entries:
                continue
            kept = [entry for entry in target if getattr(entry, key) not in replaced]
            added = [entries[name] for name in names]
            if number == 0:
                added += [entries[REMOVAL + name] for name in removed if name not in names]
            del target[:]
            target.extend([*kept, *added])


def copy_resources(wanted: pb.LinuxResources, target: pb.LinuxResources) -> None:
    """Copy the set fields of `wanted` to `target`, all but the device rules."""
    for group in ("memory", "cpu"):
        source = getattr(wanted, group)
        # ListFields has what is set: an unset wrapper must not overwrite a limit with 0.
        for descriptor, _ in source.ListFields():
            _copy(descriptor.name, source, getattr(target, group))
    for name in _OTHER_LIMITS:
        if wanted.HasField(name):
            _copy(name, wanted, target)
    sizes = {limit.page_size for limit in wanted.hugepage_limits}
    if sizes:
        kept = [limit for limit in target.hugepage_limits if limit.page_size not in sizes]
        del target.hugepage_limits[:]
        target.hugepage_limits.extend([*kept, *wanted.hugepage_limits])
    for key, value in wanted.unified.items():
        target.unified[key] = value


def _fields(wanted: pb.LinuxResources) -> Iterator[tuple[int, str | None]]:
    """The fields that are set, with the keys of entries."""
    for group, names in (("memory", _MEMORY), ("cpu", _CPU)):
        for descriptor, _ in getattr(wanted, group).ListFields():
            yield names[descriptor.name], None
    for name, field in _OTHER_LIMITS.items():
        if wanted.HasField(name):
            yield field, None
    for limit in wanted.hugepage_limits:
        yield pb.FIELD_HUGEPAGE_LIMITS, limit.page_size
    for key in wanted.unified:
        yield pb.FIELD_CGROUPS_UNIFIED, key


def _split(names: Iterable[str]) -> tuple[list[str], list[str]]:
    """The names to remove and the names to set."""
    all_names = [name for name in names if name]
    removed = [name.removeprefix(REMOVAL) for name in all_names if name.startswith(REMOVAL)]
    return removed, [name for name in all_names if not name.startswith(REMOVAL)]


def _is_set(message: Any, name: str) -> bool:
    value = getattr(message, name)
    return bool(message.HasField(name)) if isinstance(value, Message) else bool(value)


def _copy(name: str, source: Any, target: Any) -> None:
    """Copy one field; a wrapper with its zero value stays present."""
    value = getattr(source, name)
    if isinstance(value, Message):
        getattr(target, name).CopyFrom(value)
        getattr(target, name).SetInParent()
    else:
        setattr(target, name, value)


def _discard(target: MutableMapping[str, Any], name: str) -> None:
    if name in target:
        del target[name]


def _put(target: MutableMapping[str, Any], name: str, value: Any) -> None:
    if isinstance(value, Message):
        target[name].CopyFrom(value)
    else:
        target[name] = value


def _show_env(wanted: Iterable[pb.KeyValue], seen: Any) -> None:
    """Apply changes to the environment that the next plugin sees; changed entries move to the end."""
    changes = {entry.key.removeprefix(REMOVAL) for entry in wanted}
    if changes:
        kept = [entry for entry in seen if entry.partition("=")[0] not in changes]
        seen[:] = [*kept, *(f"{each.key}={each.value}" for each in wanted if not each.key.startswith(REMOVAL))]
