# SPDX-License-Identifier: Apache-2.0
"""Kinds of damage to a node, each done and undone, for `pvecri check` to find: script/damaged-node."""

from __future__ import annotations

import json
import sqlite3
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path

import msgspec

from trial.account import Administrator
from trial.plan import NodeDescriptor, Plan

TASK_TIMEOUT = 60.0


class Site:
    """The damaged node: its files, and its API with root's rights."""

    def __init__(self, plan: Plan, vmid: int) -> None:
        self.plan = plan
        self.vmid = vmid
        self.node = msgspec.json.decode((plan.node_state / "node.json").read_bytes(), type=NodeDescriptor)
        tls = ssl.create_default_context(cafile=plan.node_state / "pve/local/pve-ssl.crt")
        self._root = Administrator(self.node.url, self.node.token_id, self.node.token_secret, tls)

    def ask(self, method: str, path: str, **parameters: object) -> object:
        """One request of the API. Raises urllib.error.HTTPError."""
        return self._root.ask(method, path, {name: str(value) for name, value in parameters.items()})

    def task(self, method: str, path: str, **parameters: object) -> None:
        """A request that starts a task on the node; returns when it has succeeded, else RuntimeError."""
        upid = self.ask(method, f"/nodes/{self.node.node}{path}", **parameters)
        deadline = time.monotonic() + TASK_TIMEOUT
        while time.monotonic() < deadline:
            status = self.ask("GET", f"/nodes/{self.node.node}/tasks/{upid}/status")
            assert isinstance(status, Mapping)
            if status["status"] == "stopped":
                if status["exitstatus"] != "OK":
                    raise RuntimeError(f"{method} {path}: {status['exitstatus']}")
                return
            time.sleep(0.1)
        raise RuntimeError(f"{method} {path}: no end after {TASK_TIMEOUT:g} s")

    @contextmanager
    def drop_in(self, text: str) -> Iterator[None]:
        """A drop-in of the configuration."""
        folder = self.plan.config.parent / "conf.d"
        folder.mkdir(exist_ok=True)
        (folder / "damage.toml").write_text(text)
        yield
        (folder / "damage.toml").unlink()

    @contextmanager
    def replaced(self, path: Path, text: str | None) -> Iterator[None]:
        """A file with another text; None is without it."""
        before, mode = path.read_text(), path.stat().st_mode
        path.unlink() if text is None else path.write_text(text)
        yield
        path.write_text(before)
        path.chmod(mode & 0o7777)

    @property
    def network(self) -> Path:
        """The file of the pods' network."""
        return self.plan.state / "cni/net.d/10-pvecri.conflist"


class Damage(msgspec.Struct, frozen=True):
    """`done` is what an administrator did; one finding's line must have `subject` and `word`.

    `damaged` does it and undoes it. With `without_daemon` the daemon is stopped before: it would notice at once.
    """

    title: str
    done: str
    subject: str
    word: str
    damaged: Callable[[Site], AbstractContextManager[None]]
    options: tuple[str, ...] = ()
    without_daemon: bool = False


@contextmanager
def _mode(site: Site) -> Iterator[None]:
    token = site.plan.state / "token"
    token.chmod(0o644)
    yield
    token.chmod(0o600)


@contextmanager
def _privilege(site: Site) -> Iterator[None]:
    roles = site.ask("GET", "/access/roles/KubePods")
    assert isinstance(roles, Mapping)
    privileges = [name for name in roles if name != "VM.Allocate"]
    site.ask("PUT", "/access/roles/KubePods", privs=",".join(privileges))
    yield
    site.ask("PUT", "/access/roles/KubePods", privs=",".join([*privileges, "VM.Allocate"]))


@contextmanager
def _disabled_storage(site: Site) -> Iterator[None]:
    site.ask("PUT", f"/storage/{site.node.storage}", disable=1)
    yield
    site.ask("PUT", f"/storage/{site.node.storage}", disable=0)


def _plugin(site: Site) -> AbstractContextManager[None]:
    network = json.loads(site.network.read_text())
    network["plugins"][0]["type"] = "calico"
    return site.replaced(site.network, json.dumps(network))


@contextmanager
def _full(site: Site) -> Iterator[None]:
    images = site.plan.state / "full"
    images.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "full", images], check=True)
    try:
        with site.drop_in(f'[images]\nroot = "{images}"\n'):
            yield
    finally:
        subprocess.run(["umount", images], check=True)
        images.rmdir()


@contextmanager
def _kubelet(site: Site) -> Iterator[None]:
    (site.plan.state / "kubelet.yaml").write_text(
        "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n"
        "containerRuntimeEndpoint: unix:///run/containerd/containerd.sock\npodPidsLimit: 10\n"
    )
    yield


@contextmanager
def _newer_database(site: Site) -> Iterator[None]:
    with closing(sqlite3.connect(site.plan.state / "pvecri/pods.db", isolation_level=None)) as database:
        version = database.execute("PRAGMA user_version").fetchone()[0]
        database.execute(f"PRAGMA user_version = {version + 1}")
        yield
        database.execute(f"PRAGMA user_version = {version}")


@contextmanager
def _destroyed(site: Site) -> Iterator[None]:
    site.task("POST", f"/lxc/{site.vmid}/status/stop")
    site.task("DELETE", f"/lxc/{site.vmid}")
    yield


@contextmanager
def _auth_file(site: Site) -> Iterator[None]:
    auth = site.plan.state / "auth.json"
    auth.write_text("{\n")
    with site.drop_in(f'[images]\nauth_file = "{auth}"\n'):
        yield


DAMAGES = (
    Damage(
        "A setting that does not exist",
        "With `vmid_rang = { first = 900000, last = 900999 }` in a drop-in's `[proxmox]`",
        "proxmox",
        "vmid_rang",
        lambda site: site.drop_in("[proxmox]\nvmid_rang = { first = 900000, last = 900999 }\n"),
    ),
    Damage(
        "The token's file can be read by everyone",
        "After `chmod 644 /etc/pvecri/token`",
        "files",
        "chmod 600",
        _mode,
    ),
    Damage(
        "The token is wrong",
        "After `pveum user token remove kube@pve pve`, and `add` without the new secret in the file",
        "proxmox",
        "token",
        lambda site: site.replaced(site.plan.state / "token", "00000000-0000-0000-0000-000000000000"),
    ),
    Damage(
        "The account lacks a privilege",
        "After `pveum role modify KubePods --privs …` without `VM.Allocate`",
        "proxmox",
        "VM.Allocate",
        _privilege,
    ),
    Damage(
        "The storage is disabled",
        "After `pvesm set local --disable 1`",
        "proxmox",
        "storage",
        _disabled_storage,
    ),
    Damage(
        "The certificate was renewed",
        "After `pvecm updatecerts --force`, with the former one's `proxmox.fingerprint`",
        "proxmox",
        "proxmox.fingerprint",
        lambda site: site.drop_in(f'[proxmox]\nfingerprint = "{":".join(["00"] * 32)}"\n'),
    ),
    Damage(
        "There is no network for pods",
        "After `rm /etc/cni/net.d/10-pvecri.conflist`",
        "cni",
        "net.d",
        lambda site: site.replaced(site.network, None),
    ),
    Damage(
        "A plugin of the network is missing",
        "With a network of Calico, whose agent has not installed its plugin",
        "cni",
        "calico",
        _plugin,
    ),
    Damage(
        "A program is missing",
        "With a path of conmon where there is none",
        "programs",
        "conmon",
        lambda site: site.drop_in('[runtime]\nconmon = "/nonexistent/conmon"\n'),
    ),
    Damage(
        "A file for pulls is not valid",
        "After `echo '{' >/etc/pvecri/auth.json`",
        "files",
        "images.auth_file",
        _auth_file,
    ),
    Damage("The filesystem of images is nearly full", "With 8 MiB at `images.root`", "space", "free", _full),
    Damage(
        "The kubelet is configured for another runtime",
        "With containerd's `containerRuntimeEndpoint`, and `podPidsLimit: 10`",
        "kubelet",
        "podPidsLimit",
        _kubelet,
        options=("--kubelet-config", "kubelet.yaml"),
    ),
    Damage(
        "The database is a newer version's",
        "After a downgrade",
        "databases",
        "newer",
        _newer_database,
    ),
    Damage(
        "A pod's CT was destroyed",
        "After `pct stop VMID; pct destroy VMID`, while pvecri did not run",
        "store",
        "has no CT",
        _destroyed,
        without_daemon=True,
    ),
)
"""In their order: the last one cannot be undone."""
