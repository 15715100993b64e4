# SPDX-License-Identifier: AGPL-3.0-or-later
"""The node as it stood when each file was recorded: users, storages, templates, CTs.

The records leave steps out. ``CTS`` is what exists before a file's first record, ``BEFORE`` what has to be
done right before a record.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .node import ReplayNode

TEMPLATE = "local:vztmpl/busybox-rig_1.0_amd64.tar.gz"
PASSWORDS = {"cri@pve": "rigcripass", "alice@pve": "rigalice"}
TOKENS = {
    "root@pam!cri": ("00000000-0000-4000-8000-000000000001", False),
    "root@pam!sep": ("00000000-0000-4000-8000-000000000002", True),
    "cri@pve!t1": ("00000000-0000-4000-8000-000000000003", False),
    "cri@pve!sep": ("00000000-0000-4000-8000-000000000004", True),
    "alice@pve!none": ("00000000-0000-4000-8000-000000000005", False),
}
ROLE = (
    "VM.Allocate", "VM.Audit", "VM.Clone", "VM.Config.CPU", "VM.Config.Disk", "VM.Config.Memory",
    "VM.Config.Network", "VM.Config.Options", "VM.Console", "VM.PowerMgmt", "VM.Snapshot",
    "Datastore.Audit", "Datastore.AllocateSpace", "SDN.Use", "Sys.Audit", "Pool.Audit",
)  # fmt: skip
STORAGES = {
    "dir2": ("dir", "images,snippets,rootdir,vztmpl"),
    "tmplonly": ("dir", "vztmpl"),
    "local-lvm": ("lvmthin", "rootdir,images"),
    "btr": ("btrfs", "images,rootdir"),
}


@dataclass(frozen=True)
class Prepared:
    """A CT that exists before a file's first record."""

    vmid: int
    running: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    raw: tuple[tuple[str, str], ...] = ()
    """Lines of its config that no request can set."""

    def parameters(self) -> dict[str, Any]:
        """Those of its create call."""
        plain = {"rootfs": "local:1", "hostname": f"ct{self.vmid}", "memory": 128, "swap": 0, "unprivileged": 1}
        return {"vmid": self.vmid, "ostemplate": TEMPLATE, **plain, **self.options}


NET = {"net0": "name=eth0,bridge=vmbr0,ip=10.78.0.2/24,gw=10.78.0.1"}
BIND = {"mp0": "/mnt/share,mp=/share,ro=1"}
FULL = {
    "cmode": "console",
    "console": 1,
    "tty": 0,
    "description": "text",
    "entrypoint": "/bin/sleep 1000",
    "env": "A=1",
    "features": "nesting=1",
    "protection": 0,
    "tags": "b;k8s.io_x-y.z",
}

CTS: dict[str, tuple[Prepared, ...]] = {
    "01-auth.json": (Prepared(100),),
    "02-cluster-node.json": (Prepared(100, running=True, options={"hostname": "bb", "swap": 512}),),
    "03-storage.json": (Prepared(100, running=True),),
    "04b-create-oci.json": (),
    "05-config.json": (
        Prepared(201),
        Prepared(202, options={**NET, "tags": "k8s;pod", "description": "a\nmultiline & desc"}),
        Prepared(203, running=True),
        Prepared(204),
        Prepared(207, options={"unprivileged": 0}),
        Prepared(
            213,
            options={"cmode": "console", "env": "PATH=/usr/bin:/bin", "entrypoint": "/bin/sh"},
            raw=(("lxc.signal.halt", "SIGTERM"),),
        ),
        Prepared(215, options={"entrypoint": '/bin/sh -c "echo hi; sleep 1000"', "env": "A=1\0B=two words"}),
        Prepared(216, options={"env": "A=1"}),
        Prepared(229, options={**NET, "features": "nesting=1"}),
        Prepared(235, options={"dev0": "/dev/fuse"}),
    ),
    "06-status.json": (
        Prepared(201),
        Prepared(202),
        Prepared(203, running=True, options={"hostname": "newname", "memory": 160}),
        Prepared(204),
        Prepared(205),
        Prepared(206),
        Prepared(212, options={"entrypoint": "/bin/sleep 1000"}),
        Prepared(229),
        Prepared(238, options={"entrypoint": "/nosuch"}),
    ),
    "07-tasks.json": (
        Prepared(203, running=True),
        Prepared(229, running=True, options={"entrypoint": "/bin/sleep 1000"}),
    ),
    "08-clone-template-snapshot.json": (
        Prepared(201, options=FULL),
        Prepared(202),
        Prepared(205, options={"rootfs": "local-lvm:1"}),
        Prepared(206, running=True, options={"rootfs": "local:0"}),
        Prepared(217, options=BIND),
        Prepared(243, options={**FULL, "rootfs": "local-lvm:1"}),
    ),
    "09-delete.json": (
        Prepared(202),
        Prepared(213, running=True),
        Prepared(217, options=BIND),
        Prepared(241),
        Prepared(245),
    ),
}

WITHOUT_TASKS = frozenset({"07-tasks.json"})
"""Files whose node must not show the tasks that prepared its CTs."""

WITH_REGISTRY = frozenset({"03-storage.json"})
"""Files whose node pulls images."""

Step = Callable[["ReplayNode"], Any]


def remove(vmid: int) -> Step:
    return lambda node: node.remove(vmid)


def lock(vmid: int) -> Step:
    return lambda node: node.lock(vmid, "backup")


def unlock(vmid: int) -> Step:
    return lambda node: node.lock(vmid, None)


def running(vmid: int) -> Step:
    return lambda node: node.make_running(vmid)


def stopped(vmid: int) -> Step:
    return lambda node: node.make_stopped(vmid)


def hold(kind: str) -> Step:
    return lambda node: node.hold(kind)


def release() -> Step:
    return lambda node: node.release()


def ct(vmid: int, **options: Any) -> Step:
    return lambda node: node.prepare(Prepared(vmid, options=options))


def put(vmid: int, **options: Any) -> Step:
    return lambda node: node.put(vmid, options)


BEFORE: dict[str, tuple[Step, ...]] = {
    "04c-create-more.json: create mp relative path": (remove(230),),
    "04c-create-more.json: create no permission": (remove(230),),
    "04c-create-more.json: create rootfs in MiB fraction 0.05": (remove(230),),
    "04c-create-more.json: create too small rootfs for template": (remove(230),),
    "04c-create-more.json: create rootfs with volume name": (remove(230),),
    "04c-create-more.json: create arch arm64": (remove(230),),
    "04c-create-more.json: create with cores/cpulimit/cpuunits": (remove(230), hold("vzstart")),
    "04c-create-more.json: put cpulimit on running": (release(),),
    "04-create.json: start with unknown bridge": (ct(230, net0="name=eth0,bridge=vmbr77"),),
    "04-create.json: create bad mp0 missing mp": (remove(230),),
    "04-create.json: create no permission": (remove(230),),
    "05-config.json: put delete tags": (put(201, tags="a;b"),),
    "05-config.json: config shows unused": (put(201, mp1="local:1,mp=/data"), put(201, delete="mp1")),
    "05-config.json: put delete lock while locked": (lock(201),),
    "05-config.json: put lock by cri token": (unlock(201),),
    "05-config.json: put features nesting cri": (unlock(201),),
    "05-config.json: config final": (put(201, protection=0, tags="b;k8s.io_x-y.z", env="A=1"),),
    "05-config.json: put on running: mp0 volume hotplug": (put(203, **NET),),
    "06-status.json: stop skiplock by token": (running(206),),
    "06-status.json: interfaces of locked": (running(206), lock(206)),
    "06-status.json: start locked": (stopped(205), lock(205)),
    "06-status.json: concurrent start A": (unlock(205), stopped(205)),
    "07-tasks.json: stop for task": (hold("vzstop"),),
    "07-tasks.json: task status unescaped upid": (release(),),
    "07-tasks.json: abort task": (running(229), lambda node: node.begin_shutdown(229)),
    "08-clone-template-snapshot.json: linked clone of lvmthin template": (lambda node: node.template(243),),
    "08-clone-template-snapshot.json: concurrent clone A (source gets lock disk)": (hold("vzclone"),),
    "08-clone-template-snapshot.json: snapshot list": (
        release(),
        lambda node: node.snapshot(205, "s1"),
    ),
}
