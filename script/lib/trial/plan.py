# SPDX-License-Identifier: Apache-2.0
"""Where everything of one installation lies, and the configuration files that say so."""

from __future__ import annotations

import errno
import json
import secrets
import subprocess
from ipaddress import IPv4Network
from pathlib import Path

import msgspec

from pvecri.linux.mounts import mounts
from trial.account import POOL

VMIDS_PER_STACK = 1000
CANDIDATE_VMIDS = range(900_000, 1_000_000, VMIDS_PER_STACK)
CANDIDATE_SUBNETS = tuple(IPv4Network("10.213.0.0/16").subnets(new_prefix=24))


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What is this installation's own: it uses nothing else, and removes all of it in the end."""

    state: Path
    run: Path
    socket: Path
    network: str
    bridge: str
    subnet: str
    first_vmid: int
    insecure_registries: tuple[str, ...] = ()

    @property
    def node_state(self) -> Path:
        """The embedded node's directory."""
        return self.state / "node"

    @property
    def lxc_path(self) -> Path:
        """Where LXC's tools find the CTs (`lxc-ls -P`)."""
        return self.state / "lxc"

    @property
    def runtime_socket(self) -> Path:
        """Where pvecri-runtime reaches the daemon: beside the CRI's socket."""
        return self.socket.with_name("runtime.sock")

    @property
    def config(self) -> Path:
        """The daemon's configuration file."""
        return self.state / "config.toml"

    @property
    def leases(self) -> Path:
        """The addresses that the CNI plugin host-local has given out, a file each."""
        return self.state / "cni/leases"

    @property
    def vmids(self) -> range:
        """The VMIDs that pods get."""
        return range(self.first_vmid, self.first_vmid + VMIDS_PER_STACK)


class NodeDescriptor(msgspec.Struct, frozen=True):
    """What node.json says of the node, with root's token, or with the daemon's (`trial.stack.with_account`)."""

    url: str
    node: str
    token_id: str
    token_secret: str
    fingerprint: str
    storage: str
    template_storage: str


def make_plan(state: Path, socket: Path | None = None, insecure_registries: tuple[str, ...] = ()) -> Plan:
    """The plan kept in `state` from an earlier start, else a new one of names that nothing here uses yet.

    FileExistsError when the directory is someone else's: in the end it is removed with all that is in it.
    """
    if (state / "plan.json").exists():
        plan = _read(state / "plan.json")
    elif state.exists() and any(state.iterdir()):
        raise FileExistsError(errno.EEXIST, "not empty, and not made by this script", str(state))
    else:
        plan = _new_plan(state)
    return msgspec.structs.replace(
        plan, socket=socket or plan.socket, insecure_registries=insecure_registries or plan.insecure_registries
    )


def _new_plan(state: Path) -> Plan:
    label, others = secrets.token_hex(3), _other_plans()
    run = Path("/run") / f"pvecri-{label}"
    return Plan(
        state=state,
        run=run,
        socket=run / "pvecri.sock",
        network=f"pvecri-{label}",
        bridge=f"pve{label}",
        subnet=str(_free_subnet(others)),
        first_vmid=_free_vmids(others),
    )


def prepare(plan: Plan) -> None:
    """Make the directories, and write the plan and the CNI network. Idempotent."""
    for directory in (plan.state, plan.run, plan.state / "cni/net.d", plan.lxc_path, plan.node_state):
        directory.mkdir(mode=0o755, parents=True, exist_ok=True)
    plan.state.chmod(0o711)  # root of a pod's user namespace passes through
    text = msgspec.json.format(msgspec.json.encode(plan, enc_hook=str))
    for path in (plan.state / "plan.json", plan.run / "plan.json"):
        path.write_bytes(text)
    (plan.state / "cni/net.d/10-pvecri.conflist").write_text(json.dumps(conflist(plan), indent=2))


def conflist(plan: Plan) -> dict[str, object]:
    """A CNI network with a bridge of its own; pods reach the outside by masquerading."""
    bridge = {
        "type": "bridge",
        "bridge": plan.bridge,
        "isGateway": True,
        "ipMasq": True,
        "hairpinMode": True,
        "ipam": {
            "type": "host-local",
            "dataDir": str(plan.leases),
            "ranges": [[{"subnet": plan.subnet}]],
            "routes": [{"dst": "0.0.0.0/0"}],
        },
    }
    portmap = {"type": "portmap", "capabilities": {"portMappings": True}}
    return {"cniVersion": "1.0.0", "name": plan.network, "plugins": [bridge, portmap]}


def write_config(plan: Plan, node: NodeDescriptor) -> None:
    """Write the daemon's configuration for this node and the token in it."""
    secret = plan.state / "token"
    secret.touch(mode=0o600)
    secret.write_text(f"{node.token_secret}\n")
    registries = ", ".join(f'"{registry}"' for registry in plan.insecure_registries)
    plan.config.write_text(f"""\
[proxmox]
url = "{node.url}"
node = "{node.node}"
token_id = "{node.token_id}"
token_secret_file = "{secret}"
fingerprint = "{node.fingerprint}"
pool = "{POOL}"
storage = "{node.storage}"
template_storage = "{node.template_storage}"
vmid_range = {{ first = {plan.vmids[0]}, last = {plan.vmids[-1]} }}

[runtime]
socket = "{plan.socket}"
state_dir = "{plan.state / "pvecri"}"
run_dir = "{plan.run}"

[images]
insecure_registries = [{registries}]

[network]
conf_dir = "{plan.state / "cni/net.d"}"
cache_dir = "{plan.state / "cni/cache"}"

[oci]
socket = "{plan.runtime_socket}"

[nri]
socket = "{plan.run / "nri.sock"}"
plugin_dir = "{plan.state / "nri/plugins"}"
""")


def _free_subnet(others: list[Plan]) -> IPv4Network:
    """One that no route of this machine leads to, and that no other installation has put by."""
    command = ["ip", "-4", "-json", "route", "show", "table", "all"]
    answer = subprocess.run(command, capture_output=True, check=True)
    routes = msgspec.json.decode(answer.stdout, type=list[_Route])
    taken = [IPv4Network(route.dst, strict=False) for route in routes if route.dst != "default"]
    taken += [IPv4Network(plan.subnet) for plan in others]
    return next(subnet for subnet in CANDIDATE_SUBNETS if not any(map(subnet.overlaps, taken)))


class _Route(msgspec.Struct):
    dst: str


def _free_vmids(others: list[Plan]) -> int:
    """The first number of a range in which no CT of this machine has its cgroup, whoever made it."""
    taken = {int(path.name) for path in vmid_cgroups()}
    taken.update(plan.first_vmid for plan in others)
    return next(
        first for first in CANDIDATE_VMIDS if not taken.intersection(range(first, first + VMIDS_PER_STACK))
    )


def _other_plans() -> list[Plan]:
    """Those of the installations of this kind that were started since the machine was."""
    return [_read(path) for path in Path("/run").glob("pvecri-*/plan.json")]


def _read(path: Path) -> Plan:
    return msgspec.json.decode(path.read_bytes(), type=Plan, dec_hook=lambda kind, value: kind(value))


def vmid_cgroups() -> list[Path]:
    """The cgroups of all CTs of this machine, `lxc/VMID` in each hierarchy."""
    roots = {entry.mountpoint for entry in mounts() if entry.fstype in {"cgroup", "cgroup2"}}
    return [path for root in sorted(roots) for path in root.glob("lxc/[0-9]*") if path.name.isdigit()]
