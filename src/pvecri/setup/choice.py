# SPDX-License-Identifier: Apache-2.0
"""What a setup is for. No I/O."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

POOL = "kubernetes"
USER = "kube@pve"


@dataclass(frozen=True)
class Choice:
    """What a setup is for: the account's names, the storages, and which of the node's programs it configures.

    `user` is `name@realm` and `token` the token's own name. `rootfs_size_gib` is that of the configuration.
    `first_vmid` is the first VMID for pods, `token_file` has the secret. With `front`, CRI-O, containerd or
    podman run pods through pvecri-runtime, and pvecri has neither a network nor a kubelet of its own. `pod_subnet`
    is an IPv4 subnet.
    """

    node: str
    token: str
    storage: str
    template_storage: str
    rootfs_size_gib: int = 0
    user: str = USER
    pool: str = POOL
    first_vmid: int = 900_000
    token_file: Path = Path("/etc/pvecri/token")
    privileged: bool = True
    front: bool = False
    pod_subnet: str = "10.244.0.0/24"

    @property
    def token_id(self) -> str:
        """The token's ID in Proxmox, `user@realm!name`."""
        return f"{self.user}!{self.token}"
