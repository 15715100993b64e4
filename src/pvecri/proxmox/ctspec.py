# SPDX-License-Identifier: Apache-2.0
"""The specification of a pod's CT, and its parameters for the API (POST /nodes/{node}/lxc)."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable

import msgspec

from pvecri.model import ProxmoxInterface, Vmid
from pvecri.proxmox.sizing import CtSize

DESCRIPTION_MAX = 8192
"""Maximum characters of a description (PVE::LXC::Config)."""

CT_NAME_MAX = 63
"""Characters of a CT's hostname; a label of a DNS name has as many."""

ParameterValue = str | int | float | bool
"""A parameter before it is encoded."""


class CtSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A CT to be created.

    `template` is a volume id (`local:vztmpl/pvecri-sandbox_….tar.gz`); `rootfs_size_gib` 0 means a plain directory
    (or subvolume) on the storage, without a quota; `arch` is Proxmox's name of the architecture. A privileged CT
    needs the privilege Sys.Modify on /.
    """

    vmid: Vmid
    hostname: str
    template: str
    storage: str
    size: CtSize
    arch: str
    rootfs_size_gib: int = 0
    unprivileged: bool = True
    description: str = ""
    pool: str = ""
    interfaces: tuple[ProxmoxInterface, ...] = ()
    start: bool = True


def create_parameters(spec: CtSpec) -> dict[str, ParameterValue]:
    """The parameters of the create call.

    Without `netN` LXC still creates a network namespace, with lo only, for CNI to configure.
    """
    parameters: dict[str, ParameterValue] = {
        "vmid": spec.vmid,
        "ostemplate": spec.template,
        "rootfs": f"{spec.storage}:{spec.rootfs_size_gib}",
        "unprivileged": spec.unprivileged,
        "ostype": "unmanaged",  # any other value makes Proxmox edit /etc in the CT
        "arch": spec.arch,
        "console": False,  # each console and tty would cost a pty
        "tty": 0,
        # At the node's shutdown pve-guests would give a CT 180 seconds, a few CTs at a time. pvecri, which ends a
        # pod in order, may have ended before.
        "startup": "down=1",
        **assignable_parameters(spec),
        "start": spec.start,
    }
    optional: dict[str, ParameterValue] = {
        "pool": spec.pool,
        **{f"net{index}": interface_parameter(each) for index, each in enumerate(spec.interfaces)},
    }
    # An empty `pool` or `netN` does not pass Proxmox's schema.
    return parameters | {name: value for name, value in optional.items() if value}


def assignable_parameters(spec: CtSpec) -> dict[str, ParameterValue]:
    """Those of `create_parameters` that differ from pod to pod and that PUT …/config changes on a running CT.

    Proxmox shows the new hostname at once; inside the CT it is to be set with sethostname(2).
    """
    parameters: dict[str, ParameterValue] = {"hostname": ct_name(spec.hostname), **size_parameters(spec.size)}
    if spec.description:  # an empty one does not pass Proxmox's schema
        parameters["description"] = spec.description[:DESCRIPTION_MAX]
    return parameters


def fingerprint(spec: CtSpec) -> str:
    """Identifies the parameters of a create other than the VMID and `assignable_parameters`."""
    assignable = {"vmid", "hostname", "description", *assignable_parameters(spec)}
    fixed = {name: wire(value) for name, value in create_parameters(spec).items() if name not in assignable}
    return hashlib.sha256(msgspec.json.encode(fixed, order="sorted")).hexdigest()[:16]


def tags_parameter(tags: Iterable[str]) -> str:
    """The value of `tags`."""
    return ";".join(ct_tag(tag) for tag in tags)


def interface_parameter(interface: ProxmoxInterface) -> str:
    """The value of `netN`.

    Proxmox does not configure the addresses of an unmanaged CT; it shows them, and the firewall's `ipfilter` uses
    them. With `host-managed` (Proxmox VE 9.1 and later) it runs a DHCP client on the node; it refuses to combine
    that with `ip6=auto`, which the kernel does by itself.
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
    # 0 is "unset" here and out of range there: `tag` begins at 1, `mtu` at 64 (PVE::LXC::Config).
    return ",".join(f"{name}={wire(value)}" for name, value in options.items() if value)


def size_parameters(size: CtSize) -> dict[str, ParameterValue]:
    """The size parameters, for create and PUT …/config; all take effect on a running CT."""
    return {
        "memory": size.memory_mib,
        # Always sent: unset means 512 MiB.
        "swap": size.swap_mib,
        "cpulimit": size.cpulimit,
        "cpuunits": size.cpuunits,
    }


def ct_name(text: str) -> str:
    """`text` reduced to a hostname that Proxmox and the kernel accept: format `dns-name`, CT_NAME_MAX characters.

    Proxmox accepts 255 characters, but LXC sets the name with sethostname(2), and the start fails above 64 bytes.
    """
    labels = (re.sub(r"[^A-Za-z0-9-]+", "-", label).strip("-")[:63].strip("-") for label in text.split("."))
    return ".".join(label for label in labels if label)[:CT_NAME_MAX].strip(".-") or "pod"


def ct_tag(text: str) -> str:
    """`text` reduced to a tag that Proxmox accepts (format `pve-tag`)."""
    return re.sub(r"[^a-z0-9_+.-]+", "-", text.lower()).lstrip("-+.") or "_"


def wire(value: ParameterValue) -> str:
    """A value in the API's form encoding: booleans as 0 or 1, decimals without an exponent."""
    if isinstance(value, bool):
        return "1" if value else "0"
    if isinstance(value, float):
        return f"{value:.2f}".rstrip("0").rstrip(".")
    return str(value)
