# SPDX-License-Identifier: Apache-2.0
"""The Proxmox node of a machine for tests: an embedded one, or one that is there already (support/existing.py)."""

from __future__ import annotations

import hashlib
import http.client
import json
import socket
import ssl
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from urllib.parse import urlencode, urlsplit

import msgspec
from support import leaks, task_times
from support.cri_client import eventually
from support.existing import EXISTING, Existing
from support.leaks import VMIDS
from support.netns import forwarded
from support.node import Descriptor
from support.processes import Program
from trial.account import Account, give_roles, make_account

from pvecri.linux import cgroups
from pvecri.pods.sandbox import ct_notes

CNI_PLUGINS = Path("/usr/lib/cni")
OVS_DIR = "ovs"
"""Where the embedded node looks for Open vSwitch, should a test start one: below the machine's directory."""
SECOND_STORAGE = "second"
"""A storage of the embedded node besides `local`, for CTs and not for templates."""

OWN_SYSFS = """
set -e
mount --rbind /sys "$0"
mount -t sysfs sysfs /sys
for kept in fs/cgroup kernel/security; do
    ! mountpoint -q "$0/$kept" || mount --rbind "$0/$kept" "/sys/$kept"
done
umount --lazy "$0"
exec "$@"
"""
"""For sh: run a program that sees the bridges of its own network namespace, where LXC looks for them: in /sys."""


class Node(ABC):
    """What tests may do with any Proxmox node: ask its API about their CTs, stop and remove these, make others."""

    lxc_path: Path
    storage: str
    template_storage: str
    rootfs_size_gib = 0
    cni_dirs: tuple[Path, ...] = (CNI_PLUGINS,)
    installation = ""
    """By this id, in their notes, the daemon knows its CTs; set once there is a daemon."""

    @property
    def cni_plugins(self) -> Path:
        """The one of `cni_dirs` that has the plugins: containerd 1 searches a single directory."""
        return next((each for each in self.cni_dirs if (each / "bridge").exists()), self.cni_dirs[0])

    @property
    @abstractmethod
    def name(self) -> str:
        """In Proxmox."""

    # -- what the machine needs -------------------------------------------------------------------------------

    @abstractmethod
    def serving(self, outside: Path) -> AbstractContextManager[None]:
        """It answers in this network namespace as long as the context lasts; then no CT of the tests is left.

        `outside` is the network namespace that the tests have left.
        """

    @abstractmethod
    def restore(self) -> None:
        """Undo what a test may have done to the node itself."""

    @abstractmethod
    def proxmox_settings(self, directory: Path) -> dict[str, object]:
        """The daemon's section [proxmox], without VMIDs. A secret file is made in `directory`."""

    def runtime_settings(self) -> dict[str, object]:
        """What the daemon's section [runtime] has besides the tests' own directories."""
        return {}

    # -- what tests do ----------------------------------------------------------------------------------------

    def request(self, method: str, path: str, **parameters: object) -> object:
        """The `data` of a call of the API."""
        status, reason, body = self._send(method, path, parameters)
        assert status == 200, (method, path, status, reason, body)
        answer: dict[str, object] = json.loads(body)
        return answer["data"]

    def task(self, method: str, path: str, **parameters: object) -> None:
        """Make a call that starts a task of the node, and wait until it has succeeded."""
        upid = self.request(method, f"/nodes/{self.name}{path}", **parameters)
        self._finished(upid)
        status = self.request("GET", f"/nodes/{self.name}/tasks/{upid}/status")
        assert isinstance(status, dict)
        assert status["exitstatus"] == "OK", (method, path, status)

    def tasks(self, vmid: int, kind: str = "", source: str = "all") -> dict[str, str]:
        """The statuses of a VMID's tasks by UPID; the list may show one that has ended as RUNNING for a while."""
        parameters = {"vmid": vmid, "source": source} | ({"typefilter": kind} if kind else {})
        listed = self.request("GET", f"/nodes/{self.name}/tasks?{urlencode(parameters)}")
        assert isinstance(listed, list)
        return {task["upid"]: task["status"] for task in listed}

    def ct(self, vmid: int, what: str) -> dict[str, object]:
        """What the API says of a CT: its `config`, its `status/current`, …"""
        answer = self.request("GET", f"/nodes/{self.name}/lxc/{vmid}/{what}")
        assert isinstance(answer, dict)
        return answer

    def make_ct(self, vmid: int) -> None:
        """A CT that is none of the daemon's."""
        self._make_ct(vmid, {})

    def _make_ct(self, vmid: int, options: dict[str, object]) -> None:
        contents = self.request(
            "GET", f"/nodes/{self.name}/storage/{self.template_storage}/content?content=vztmpl"
        )
        assert isinstance(contents, list)
        template = next(each["volid"] for each in contents if "pvecri-sandbox" in each["volid"])
        rootfs = f"{self.storage}:{self.rootfs_size_gib}"
        wanted = {"vmid": vmid, "ostemplate": template, "ostype": "unmanaged", "rootfs": rootfs, **options}
        self._finished(self.request("POST", f"/nodes/{self.name}/lxc", **wanted))

    def remove_ct(self, vmid: int) -> None:
        """Destroy a CT of the tests, even one that runs."""
        self._finished(self.request("DELETE", f"/nodes/{self.name}/lxc/{vmid}?force=1"))
        eventually(lambda: vmid not in self.cts(), f"CT {vmid} is gone")

    @abstractmethod
    def cts(self) -> set[int]:
        """The VMIDs of the CTs that have a config."""

    def _finished(self, upid: object) -> None:
        path = f"/nodes/{self.name}/tasks/{upid}/status"

        def status() -> dict[str, object]:
            answer = self.request("GET", path)
            assert isinstance(answer, dict)
            return answer

        eventually(lambda: status()["status"] == "stopped", f"task {upid} has ended")

    @abstractmethod
    def _send(self, method: str, path: str, parameters: dict[str, object]) -> tuple[int, str, bytes]:
        """A call's HTTP status, reason phrase and body."""


class EmbeddedNode(Node):
    """A node of the tests' own, asked as root. It keeps its port, so that it can be ended and started again."""

    storage = template_storage = "local"

    def __init__(self, directory: Path) -> None:
        self.state_dir = directory / "node"
        self.state_dir.mkdir()
        self.lxc_path = directory / "lxc"
        self.lxc_path.mkdir()
        self.address = ("127.0.0.1", _free_port())
        aside = directory / "cgroup"
        aside.mkdir()
        # What it pulls, it pulls from the registry of the machine, in plain HTTP.
        command = ["env", f"OVS_RUNDIR={directory / OVS_DIR}"]
        command += [f"CONTAINERS_REGISTRIES_CONF={directory / 'registries.conf'}"]
        command += ["unshare", "--mount", "sh", "-c", OWN_SYSFS, str(aside)]
        command += [sys.executable, "-m", "pvecri_embedded", "--state-dir", str(self.state_dir), "--faults"]
        command += ["--listen", "{}:{}".format(*self.address), "--lxc-path", str(self.lxc_path)]
        command += ["--vm-storage", f"{SECOND_STORAGE}=btrfs"]
        command += task_times.OPTIONS
        self._program = Program(command, directory / "node.log")
        self._account: Account | None = None

    @property
    def descriptor(self) -> Descriptor:
        """How to reach it."""
        return msgspec.json.decode((self.state_dir / "node.json").read_bytes(), type=Descriptor)

    @property
    def name(self) -> str:
        """See Node."""
        return self.descriptor.node

    @property
    def account(self) -> Account:
        """The documented account, which is the daemon's. Made by the documented calls when first asked for."""
        if self._account is None:
            descriptor = self.descriptor
            self._account = make_account(descriptor.administrator(self.state_dir), descriptor.names())
        return self._account

    def allow(self, *roles: str, **names: str) -> None:
        """Give the account further roles of the documentation; `names` as in trial/account.py."""
        descriptor = self.descriptor
        give_roles(descriptor.administrator(self.state_dir), {**descriptor.names(), **names}, roles)

    def proxmox_settings(self, directory: Path) -> dict[str, object]:
        """See Node."""
        (directory / "token").write_text(self.account.token_secret)
        return {
            "url": self.descriptor.url,
            "node": self.descriptor.node,
            "token_id": self.account.token_id,
            "token_secret_file": str(directory / "token"),
            "fingerprint": self.descriptor.fingerprint,
            "pool": self.account.pool,
            "storage": self.descriptor.storage,
            "template_storage": self.descriptor.template_storage,
        }

    # -- its process ------------------------------------------------------------------------------------------

    @contextmanager
    def serving(self, outside: Path) -> Iterator[None]:
        """See Node. `outside` is of no use: the node runs in this network namespace."""
        try:
            self.start()
            yield
        finally:
            self.stop()
            _kill_cts()

    def start(self) -> None:
        """Start it and wait until it answers. Idempotent."""
        if not self._program.running:
            self._program.start()
            eventually(self._answers, f"the embedded node answers; see {self._program.log}")

    def _answers(self) -> bool:
        assert self._program.running, self._program.log.read_text()
        with socket.socket() as probe:
            return probe.connect_ex(self.address) == 0

    def stop(self) -> None:
        """End it; its CTs go on. Idempotent."""
        if self._program.running:
            self._program.end()

    def restore(self) -> None:
        """It runs, and without faults."""
        self.start()
        self.clear_faults()

    # -- its API ----------------------------------------------------------------------------------------------

    def make_ct(self, vmid: int, **options: object) -> None:
        """See Node; `options` as the API has them."""
        self._make_ct(vmid, options)

    def cts(self) -> set[int]:
        """See Node."""
        return {int(path.stem) for path in self.state_dir.glob("pve/nodes/*/lxc/*.conf")}

    def fault(self, **fault: object) -> None:
        """Set a fault; docs/embedded-node.md says what there is."""
        self._control("POST", json.dumps(fault).encode())

    def clear_faults(self) -> None:
        """No more faults; what was held goes on."""
        self._control("DELETE", b"")

    def awaited(self) -> int:
        """How many faults are still to happen, or hold something."""
        return len(self._control("GET", b""))

    def holds(self) -> bool:
        """Whether a task or request is held by a fault now."""
        return any(fault["hold"] and fault["times"] == 0 for fault in self._control("GET", b""))

    def _control(self, method: str, body: bytes) -> list[dict[str, object]]:
        headers = {"Content-Type": "application/json"} if body else {}
        status, reason, answer = _exchange(self._connection(), method, "/pvecri-embedded/fault", body, headers)
        assert status == 200, (reason, answer)
        faults: list[dict[str, object]] = json.loads(answer)
        return faults

    def _send(self, method: str, path: str, parameters: dict[str, object]) -> tuple[int, str, bytes]:
        token = f"{self.descriptor.token_id}={self.descriptor.token_secret}"
        return _call(self._connection(), token, method, path, parameters)

    def _connection(self) -> http.client.HTTPSConnection:
        context = ssl._create_unverified_context()  # our own node, on loopback
        return http.client.HTTPSConnection(*self.address, context=context, timeout=60)


class ExistingNode(Node):
    """A node that is there already, asked with the account of the configuration that names it.

    On it there are others' CTs, and in the range of VMIDs, too. What is made or removed is in the pool, among the
    VMIDs of this run, which were free when it began, and its notes name the run or the run's daemon.
    """

    def __init__(self, existing: Existing) -> None:
        self._existing = existing
        proxmox = existing.settings.proxmox
        self.lxc_path = Path("/var/lib/lxc")  # as Proxmox has it
        self.storage, self.template_storage = proxmox.storage, proxmox.template_storage
        self.rootfs_size_gib, self.cni_dirs = proxmox.rootfs_size_gib, existing.settings.network.bin_dirs
        url = urlsplit(proxmox.url)
        self._host, self._port = url.hostname or "", url.port or 443
        self._mark = f"pvecri test run {leaks.RUN_ID}"

    @property
    def name(self) -> str:
        """See Node."""
        return self._existing.settings.proxmox.node_name

    @contextmanager
    def serving(self, outside: Path) -> Iterator[None]:
        """See Node. Fails when a VMID of this run is another guest's."""
        with forwarded(self._host, self._port, outside):
            taken = [vmid for vmid in VMIDS if self._is_taken(vmid)]
            assert not taken, f"VMIDs {taken} are in use: run the tests again, or give them a range of their own"
            try:
                yield
            finally:
                for vmid in self.cts() & set(VMIDS):
                    if self._is_ours(vmid):
                        self.remove_ct(vmid)
            taken = [vmid for vmid in VMIDS if self._is_taken(vmid)]
            assert not taken, f"CTs {taken} are left, or were made by others meanwhile"

    def restore(self) -> None:
        """Nothing: tests that change the node itself ask for an embedded one."""

    def proxmox_settings(self, directory: Path) -> dict[str, object]:
        """See Node."""
        return self._existing.proxmox()

    def runtime_settings(self) -> dict[str, object]:
        """See Node."""
        return self._existing.runtime()

    def make_ct(self, vmid: int) -> None:
        """See Node. Unprivileged, in the pool and with notes that name the run."""
        assert vmid in VMIDS
        pool = self._existing.settings.proxmox.pool
        self._make_ct(vmid, {"pool": pool, "description": self._mark, "unprivileged": 1})

    def remove_ct(self, vmid: int) -> None:
        """See Node. Fails for a CT that is not of this run."""
        assert self._is_ours(vmid), f"CT {vmid} was not made by this run of the tests: it stays"
        super().remove_ct(vmid)

    def cts(self) -> set[int]:
        """See Node. Those in the pool, whose members alone the account sees."""
        guests = self.request("GET", "/cluster/resources?type=vm")
        assert isinstance(guests, list)
        return {guest["vmid"] for guest in guests if (guest["type"], guest["node"]) == ("lxc", self.name)}

    def _is_ours(self, vmid: int) -> bool:
        if vmid not in VMIDS:
            return False
        notes = str(self.ct(vmid, "config").get("description", ""))
        return notes.strip() == self._mark or "" != ct_notes.owner(notes).installation == self.installation

    def _is_taken(self, vmid: int) -> bool:
        status, reason, body = self._send("GET", f"/cluster/nextid?vmid={vmid}", {})
        assert status in (200, 400), (status, reason, body)
        return status == 400

    def _send(self, method: str, path: str, parameters: dict[str, object]) -> tuple[int, str, bytes]:
        proxmox = self._existing.settings.proxmox
        assert proxmox.token_secret_file is not None
        token = f"{proxmox.token_id}={proxmox.token_secret_file.read_text().strip()}"
        return _call(self._connection(), token, method, path, parameters)

    def _connection(self) -> http.client.HTTPSConnection:
        """One whose certificate is the one that the configuration tells to trust."""
        proxmox = self._existing.settings.proxmox
        if not proxmox.fingerprint:
            trusted = ssl.create_default_context(cafile=proxmox.ca_file)
            return http.client.HTTPSConnection(self._host, self._port, context=trusted, timeout=600)
        unverified = ssl._create_unverified_context()  # by its fingerprint instead
        connection = http.client.HTTPSConnection(self._host, self._port, context=unverified, timeout=600)
        connection.connect()
        certificate = connection.sock.getpeercert(binary_form=True) or b""
        found = hashlib.sha256(certificate).hexdigest()
        assert found == proxmox.fingerprint.replace(":", "").lower(), (
            "another certificate than proxmox.fingerprint's"
        )
        return connection


def machine_node(directory: Path) -> Node:
    """The node of a machine with this directory. Not started yet, if it has to be."""
    return EmbeddedNode(directory) if EXISTING is None else ExistingNode(EXISTING)


def _call(
    connection: http.client.HTTPSConnection, token: str, method: str, path: str, parameters: dict[str, object]
) -> tuple[int, str, bytes]:
    headers = {"Authorization": f"PVEAPIToken={token}", "Content-Type": "application/x-www-form-urlencoded"}
    return _exchange(connection, method, f"/api2/json{path}", urlencode(parameters).encode(), headers)


def _exchange(
    connection: http.client.HTTPSConnection, method: str, path: str, body: bytes, headers: dict[str, str]
) -> tuple[int, str, bytes]:
    try:
        connection.request(method, path, body or None, headers)
        response = connection.getresponse()
        return response.status, response.reason, response.read()
    finally:
        connection.close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _kill_cts() -> None:
    """Should a test have left CTs, and what is in them."""
    groups = [f"/{kind}/{vmid}" for vmid in VMIDS for kind in ("lxc", "lxc.monitor")]
    trees = cgroups.detect()
    for group in groups:
        trees.kill(group)
    eventually(lambda: not any(trees.processes(group) for group in groups), "the CTs' processes are gone")
    for group in groups:
        trees.remove(group)
