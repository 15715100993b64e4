# SPDX-License-Identifier: Apache-2.0
"""An embedded Proxmox node for a test: started on a free port, ended and cleaned up after it."""

from __future__ import annotations

import os
import shutil
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
from support.processes import SOURCES
from support.vmids import claim
from trial.account import Account, Administrator, give_roles, make_account

from pvecri.config.settings import ProxmoxConfig, VmidRange

_CLAIMED = claim(91_000, 91_999, 10)
VMIDS = VmidRange(first=_CLAIMED[0], last=_CLAIMED[-1])
"""The VMIDs of this test process."""

LXC_PATH = Path("/var/lib/lxc")


class Descriptor(msgspec.Struct):
    """What node.json says."""

    url: str
    node: str
    token_id: str
    token_secret: str
    root_password: str
    fingerprint: str
    storage: str
    template_storage: str

    def administrator(self, state_dir: Path) -> Administrator:
        """The node's root."""
        tls = ssl.create_default_context(cafile=state_dir / "pve/local/pve-ssl.crt")
        return Administrator(self.url, self.token_id, self.token_secret, tls)

    def names(self) -> dict[str, str]:
        """What stands for the documentation's names of the node and its storages."""
        return {"NODE": self.node, "local-lvm": self.storage, "local": self.template_storage}


@dataclass(frozen=True)
class EmbeddedNode:
    """A running node and how to reach it."""

    state_dir: Path
    descriptor: Descriptor

    account: Account
    """The documented one."""

    def config(self) -> ProxmoxConfig:
        """The settings of a client with the documented account."""
        secret = self._secret("token", self.account.token_secret)
        return self._config(token_id=self.account.token_id, token_secret_file=secret, pool=self.account.pool)

    def allow(self, *roles: str, **names: str) -> None:
        """Give the account further roles of the documentation; `names` as in trial/account.py."""
        give_roles(self.descriptor.administrator(self.state_dir), {**self.descriptor.names(), **names}, roles)

    def password_config(self) -> ProxmoxConfig:
        """The settings of a client that logs in as root."""
        return self._config(
            username="root@pam", password_file=self._secret("password", self.descriptor.root_password)
        )

    def _config(self, **account: str | Path) -> ProxmoxConfig:
        settings = {
            "url": self.descriptor.url,
            "node": self.descriptor.node,
            "fingerprint": self.descriptor.fingerprint,
            "storage": self.descriptor.storage,
            "template_storage": self.descriptor.template_storage,
            "vmid_range": VMIDS,
        }
        return msgspec.structs.replace(ProxmoxConfig(), **settings, **account)

    def _secret(self, name: str, value: str) -> Path:
        path = self.state_dir / f"test-{name}"
        path.write_text(f"{value}\n")
        path.chmod(0o600)
        return path


@contextmanager
def embedded_node(state_dir: Path) -> Iterator[EmbeddedNode]:
    """A node with its state in `state_dir` and the documented account; its CTs are gone when the context ends."""
    with new_node(state_dir) as descriptor:
        account = make_account(descriptor.administrator(state_dir), descriptor.names())
        yield EmbeddedNode(state_dir, descriptor, account)


@contextmanager
def new_node(state_dir: Path) -> Iterator[Descriptor]:
    """A node as it is after Proxmox's installation, without an account for pvecri."""
    with (state_dir / "node.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "pvecri_embedded", "--state-dir", str(state_dir), "--listen", "127.0.0.1:0"],
            env={**os.environ, "PYTHONPATH": SOURCES},
            stdout=subprocess.PIPE,
            stderr=log,
        )
    assert process.stdout is not None
    try:
        answers = process.stdout.readline()
        assert answers, f"the embedded node did not start: {(state_dir / 'node.log').read_text()}"
        yield msgspec.json.decode((state_dir / "node.json").read_bytes(), type=Descriptor)
    finally:
        remove_cts(state_dir)
        process.terminate()
        process.wait()
        process.stdout.close()


def remove_cts(state_dir: Path) -> None:
    """Kill and forget the CTs that the node's configs name, and remove what Proxmox leaves of destroyed ones."""
    for conf in state_dir.glob("pve/nodes/*/lxc/*.conf"):
        subprocess.run(["lxc-stop", "--kill", "--name", conf.stem], check=False, capture_output=True)
        shutil.rmtree(LXC_PATH / conf.stem, ignore_errors=True)
    for vmid in range(VMIDS.first, VMIDS.last + 1):
        if not (LXC_PATH / str(vmid) / "config").exists():
            shutil.rmtree(LXC_PATH / str(vmid), ignore_errors=True)
