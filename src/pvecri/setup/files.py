# SPDX-License-Identifier: Apache-2.0
"""The files that a setup writes. No I/O. Those that are also in examples/ and packaging/ have the same content."""

from __future__ import annotations

import json
from collections.abc import Mapping

from pvecri.setup.choice import Choice

CRICTL = """\
# For crictl: copy to /etc/crictl.yaml.
runtime-endpoint: unix:///run/pvecri/pvecri.sock
image-endpoint: unix:///run/pvecri/pvecri.sock
timeout: 60
"""

KUBELET = """\
# The kubelet uses pvecri: /etc/systemd/system/kubelet.service.d/20-pvecri.conf
# KUBELET_CONFIG_ARGS is a variable of kubeadm's unit; --config is its own value. KUBELET_EXTRA_ARGS is left to the
# administrator: /etc/default/kubelet, which Kubernetes' package has, overrides a drop-in. Alternatively set
# `containerRuntimeEndpoint` and `featureGates` in the kubelet's configuration file (examples/kubelet.yaml).
[Unit]
Wants=pvecri.service
After=pvecri.service

[Service]
Environment="KUBELET_CONFIG_ARGS=--config=/var/lib/kubelet/config.yaml \\
    --container-runtime-endpoint=unix:///run/pvecri/pvecri.sock \\
    --feature-gates=PodAndContainerStatsFromCRI=true"
"""

MODULES = "# For pvecri: the root filesystems of containers.\noverlay\n"

_CONFIGURATION = """\
# Written by `pvecri setup`. man pvecri.toml has all settings; `pvecri check` checks this file, the
# account and the storages. After a change: systemctl restart pvecri (pods keep running).

[proxmox]
node = {node}
token_id = {token_id}
token_secret_file = {token_file}
ca_file = "/etc/pve/pve-root-ca.pem"
pool = {pool}
storage = {storage}
rootfs_size_gib = {size}
template_storage = {template_storage}
"""

_BESIDE_A_FRONT = """
# Beside CRI-O or containerd, which have these two themselves.
[nri]
enabled = false

[network]
conf_dir = "/etc/pvecri/cni"
"""


def configuration(choice: Choice) -> str:
    """The daemon's configuration."""
    text = _CONFIGURATION.format(
        node=json.dumps(choice.node),  # a JSON string of these characters is a TOML string, too
        token_id=json.dumps(choice.token_id),
        token_file=json.dumps(str(choice.token_file)),
        pool=json.dumps(choice.pool),
        storage=json.dumps(choice.storage),
        size=choice.rootfs_size_gib,
        template_storage=json.dumps(choice.template_storage),
    )
    return text + (_BESIDE_A_FRONT if choice.front else "")


def sysctls(values: Mapping[str, int]) -> str:
    """Settings for sysctl.d(5)."""
    lines = "".join(f"{name} = {value}\n" for name, value in sorted(values.items()))
    return (
        f"# For pvecri: pods reach other networks through this node, and limits for the number of pods.\n{lines}"
    )


def sysctls_in(text: str) -> dict[str, int]:
    """The settings of a file that `sysctls` made."""
    settings = (line.partition("=")[::2] for line in text.splitlines() if line[:1] != "#" and "=" in line)
    return {name.strip(): int(value) for name, value in settings if value.strip().isdecimal()}


def network(subnet: str) -> str:
    """A CNI network for the pods of one node, a bridge with addresses of `subnet`."""
    bridge = {
        "type": "bridge",
        "bridge": "pods0",
        "isGateway": True,
        "ipMasq": True,
        "hairpinMode": True,
        "ipam": {"type": "host-local", "ranges": [[{"subnet": subnet}]], "routes": [{"dst": "0.0.0.0/0"}]},
    }
    plugins = [bridge, {"type": "portmap", "capabilities": {"portMappings": True}}]
    return json.dumps({"cniVersion": "1.0.0", "name": "pods", "plugins": plugins}, indent=2) + "\n"
