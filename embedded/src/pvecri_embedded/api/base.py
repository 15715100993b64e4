# SPDX-License-Identifier: AGPL-3.0-or-later
"""What the parts of the embedded node share: fakepve's server under them, and each other's methods."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from fakepve import FakeCt, FakePve, PveError

from pvecri_embedded import ctconf
from pvecri_embedded.faults import Faults
from pvecri_embedded.layout import Layout, write_atomically
from pvecri_embedded.lxc.cgroup import CgroupTree
from pvecri_embedded.lxc.monitor import Monitor
from pvecri_embedded.storage.template import TemplateStore
from pvecri_embedded.storage.volumes import Storage
from pvecri_embedded.times import TaskTimes


def parameter_error(name: str, text: str) -> PveError:
    """Proxmox's 400 for a parameter."""
    return PveError(400, "Parameter verification failed.", {name: text})


def message_of(error: Exception) -> str:
    """What Proxmox says of an error, be it an answer's or a task's."""
    return str(error.message) if isinstance(error, PveError) else str(error)


class Ct(FakeCt):  # type: ignore[misc]
    """A CT whose config is a file and whose status is that of its monitor."""

    monitor: Monitor | None = None
    cpu_sample: tuple[float, int] = (0.0, 0)
    """When its CPU time was last read (monotonic seconds), and what it was (nanoseconds)."""

    @property
    def status(self) -> str:
        return "running" if self.monitor is not None else "stopped"

    @status.setter
    def status(self, _modelled: str) -> None:
        """fakepve sets what its model says; the monitor knows better."""

    def conf(self) -> ctconf.CtConf:
        return ctconf.CtConf(self.config, self.pending, self.snapshots)

    def digest(self) -> str:
        """The SHA-1 of the config file, which clients hand back to detect a change in between."""
        return ctconf.digest(ctconf.dump(self.conf()))


class Base(FakePve):  # type: ignore[misc]
    """fakepve's server with the node's directories; the ground of the API's parts."""

    layout: Layout
    port: int
    disks: Mapping[str, Storage]
    cgroups: CgroupTree
    templates: TemplateStore

    def __init__(self, layout: Layout, *, host: str, port: int, root_password: str) -> None:
        super().__init__(user="root@pam", password=root_password, host=host, port=port)
        self.layout = layout
        self.cgroups = CgroupTree()
        self.templates = TemplateStore()
        self.faults = Faults()
        self.times = TaskTimes()
        # fakepve models no times: what takes time here is real, or is added by `times`.
        self.time_scale = 0.0
        self.nodes = {layout.node: {"online": True}}

    @property
    def node(self) -> str:
        return self.layout.node

    def save(self, ct: Ct) -> None:
        """Write the CT's config file; the options then read as the file holds them."""
        text = ctconf.dump(ct.conf())
        write_atomically(self.layout.conf(ct.vmid), text, 0o640)
        stored = ctconf.parse(text)
        ct.config, ct.pending, ct.snapshots = stored.config, stored.pending, stored.snapshots

    def forget_guest(self, vmid: int) -> None:
        """Take all rights on a guest back, as its destroy does before its config goes."""
        raise NotImplementedError

    def check_tags(self, user: str, old: str, new: str) -> None:
        """Raise Proxmox's 403 for a tag that the account may not add or remove."""
        raise NotImplementedError

    def publish_figures(self) -> None:
        """Tell the cluster of the state of this node's guests, as pvestatd does in its rounds."""
        raise NotImplementedError

    def activate_storage(self, name: str) -> None:
        """Raise Proxmox's 500 unless the storage exists, is enabled and is there."""
        raise NotImplementedError

    def load(self) -> None:
        """Read the config files of the CTs made before, and of those in other nodes' directories.

        Those are CTs of the cluster, whose state is unknown as long as their node does not run.
        """
        for path in sorted(self.layout.conf_dir.parent.parent.glob("*/lxc/[0-9]*.conf")):
            node = path.parent.parent.name
            self.nodes.setdefault(node, {"online": False})
            stored = ctconf.parse(path.read_text())
            ct = Ct(int(path.stem), node=node, config=stored.config, pending=stored.pending, defaults=False)
            ct.snapshots = stored.snapshots
            self.cts.append(ct)

    def own_cts(self) -> list[Ct]:
        """The CTs of this node, without those of other nodes."""
        return [ct for ct in self.cts if ct.node == self.node]

    def storage_path(self, volid: str) -> Path:
        """The path of a volume (``STORAGE:NAME``)."""
        storage, _, name = volid.partition(":")
        return self.disks[storage].volume_path(name)
