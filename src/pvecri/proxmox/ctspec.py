# SPDX-License-Identifier: Apache-2.0
"""What a pod's CT is to be, and how Proxmox wants to be told (POST /nodes/{node}/lxc)."""

from __future__ import annotations

import re
from collections.abc import Iterable

import msgspec

from pvecri.model import ProxmoxInterface, Vmid
from pvecri.proxmox.sizing import CtSize

ARCHITECTURES = {
    "x86_64": "amd64",
    "aarch64": "arm64",
    "armv7l": "armhf",
    "i686": "i386",
    "riscv64": "riscv64",
}
"""Proxmox's names for what uname(2) says."""

DESCRIPTION_MAX = 8192
"""Characters that Proxmox accepts as a description."""

ParameterValue = str | int | float | bool
"""A parameter before it is written for the wire."""


class CtSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A CT to be made.

    `template` is a volume id (`local:vztmpl/pvecri-sandbox_….tar.gz`); `rootfs_size_gib` 0 means a plain directory
    (or subvolume) on the storage, without a quota; `arch` is Proxmox's name of the architecture. An unprivileged
    CT is the default; a privileged one needs Sys.Modify on /.
    """

    vmid: Vmid
    hostname: str
    template: str
    storage: str
    size: CtSize
    arch: str = "amd64"
    rootfs_size_gib: int = 0
    unprivileged: bool = True
    cores: int = 0
    description: str = ""
    pool: str = ""
    interfaces: tuple[ProxmoxInterface, ...] = ()
    start: bool = True


def create_parameters(spec: CtSpec) -> dict[str, ParameterValue]:
    """The parameters of the create call.

    `ostype=unmanaged` keeps Proxmox from editing files in the CT. No console and no tty: nobody logs in to a pod,
    and each would cost a pty. `startup=down=1` is for the shutdown of the node: Proxmox asks each CT's init to end
    and kills it after 180 seconds by default, a few CTs at a time, and a pod's init has nothing to end. Without
    `netN` the CT comes up with a network namespace of its own that holds only lo, for CNI to fill.
    """
    parameters: dict[str, ParameterValue] = {
        "vmid": spec.vmid,
        "ostemplate": spec.template,
        "hostname": ct_name(spec.hostname),
        "rootfs": f"{spec.storage}:{spec.rootfs_size_gib}",
        "unprivileged": spec.unprivileged,
        "ostype": "unmanaged",
        "arch": spec.arch,
        "console": False,
        "tty": 0,
        "startup": "down=1",
        **size_parameters(spec.size),
        "start": spec.start,
    }
    optional: dict[str, ParameterValue] = {
        "cores": spec.cores,
        "description": spec.description[:DESCRIPTION_MAX],
        "pool": spec.pool,
        **{f"net{index}": interface_parameter(each) for index, each in enumerate(spec.interfaces)},
    }
    return parameters | {name: value for name, value in optional.items() if value}


def tags_parameter(tags: Iterable[str]) -> str:
    """The value of `tags`."""
    return ";".join(ct_tag(tag) for tag in tags)


def interface_parameter(interface: ProxmoxInterface) -> str:
    """The value of `netN`.

    The addresses of an unmanaged CT are for the record, and for the firewall's `ipfilter`. Only with
    `host-managed`, which Proxmox VE has since 9.1, does it see to them: a DHCP client runs on the node. It refuses
    to manage `ip6=auto`, which is the kernel's own doing and needs nobody.
    """
    managed = interface.ip == "dhcp"
    options: dict[str, ParameterValue] = {
        "name": interface.name,
        "bridge": interface.bridge,
        "tag": interface.tag,
        "rate": interface.rate,
        "mtu": interface.mtu,
        "hwaddr": interface.mac,
        "ip": interface.ip,
        "gw": interface.gateway,
        "ip6": "" if managed and interface.ip6 == "auto" else interface.ip6,
        "gw6": interface.gateway6,
        "firewall": interface.firewall is not None,
        "host-managed": managed,
    }
    return ",".join(f"{name}={wire(value)}" for name, value in options.items() if value)


def size_parameters(size: CtSize) -> dict[str, ParameterValue]:
    """The parameters that size a CT, on create and on PUT …/config alike; all take effect on a running CT."""
    return {
        "memory": size.memory_mib,
        "swap": size.swap_mib,
        "cpulimit": size.cpulimit,
        "cpuunits": size.cpuunits,
    }


def ct_name(text: str) -> str:
    """A hostname that Proxmox accepts (format `dns-name`), as near to `text` as that goes."""
    labels = (re.sub(r"[^A-Za-z0-9-]+", "-", label).strip("-")[:63].strip("-") for label in text.split("."))
    return ".".join(label for label in labels if label)[:255].strip(".-") or "pod"


def ct_tag(text: str) -> str:
    """A tag that Proxmox accepts (format `pve-tag`), as near to `text` as that goes."""
    return re.sub(r"[^a-z0-9_+.-]+", "-", text.lower()).lstrip("-+.") or "_"


def wire(value: ParameterValue) -> str:
    """A value as the API's form encoding has it: truth as 0 or 1, decimals without an exponent."""
    if isinstance(value, bool):
        return "1" if value else "0"
    if isinstance(value, float):
        return f"{value:.2f}".rstrip("0").rstrip(".")
    return str(value)
