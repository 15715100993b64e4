# SPDX-License-Identifier: Apache-2.0
"""A whole machine for tests: a Proxmox node (support/machine_node.py), a registry and the daemon, as processes.

They run in a network namespace of their own, which the test process enters too: addresses, bridges and packet
filter rules of two test runs never meet, and what is left of them at the end is plain to see.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sqlite3
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

from support import leaks
from support.cri_client import TIMEOUT, CriClient, eventually
from support.leaks import VMIDS
from support.machine_node import OVS_DIR, Node, machine_node
from support.netns import own_network_namespace
from support.processes import SOURCES, Program
from support.registry import Registry, running_registry
from support.tools import tools_image

from pvecri.cri.proto import cri_pb2 as pb
from pvecri.linux import cgroups, mounts

BRIDGE = "pvt0"
SUBNET = "10.209.0.0/16"


class Machine:
    """See the module. `client` talks to the daemon that runs now."""

    client: CriClient
    vmids = VMIDS

    def __init__(self, directory: Path, registry: Registry, node: Node) -> None:
        self.directory = directory
        self.node = node
        self.registry = registry
        self.run_dir, self.state_dir = directory / "run", directory / "state"
        self.lxc_path, self.leases = node.lxc_path, directory / "leases"
        self.conf_dir, self.logs, self.plugins = directory / "net.d", directory / "logs", directory / "plugins"
        for path in (self.conf_dir, self.logs, self.plugins, self.run_dir):
            path.mkdir()
        # As systemd has /run: nothing there can be executed.
        flags = mounts.MS_NOSUID | mounts.MS_NODEV | mounts.MS_NOEXEC
        mounts.mount("run", self.run_dir, "tmpfs", flags, "mode=755")
        self.ovs_dir = directory / OVS_DIR
        insecure = f'[[registry]]\nlocation = "{registry.address}"\ninsecure = true\n'
        (directory / "registries.conf").write_text(insecure)
        command = [sys.executable, "-m", "pvecri", "--config", str(directory / "config.toml"), "serve"]
        self.daemon = Program(command, directory / "daemon.log")
        self.image = ""
        self.usual: set[str] = set()
        """What `leftovers` finds before the first pod."""

    # -- the daemon -------------------------------------------------------------------------------------------

    def start(self, **settings: str) -> None:
        """Start the daemon and wait until it serves. `settings` are lines of TOML for a section of that name."""
        self.write_config(**settings)
        self.daemon.start()
        eventually(self._serves, f"the daemon serves; see {self.daemon.log}")
        self.client = CriClient(self.socket, self.logs, self.image)

    def _serves(self) -> bool:
        assert self.daemon.running, self.daemon.log.read_text()[-4000:]
        with socket.socket(socket.AF_UNIX) as probe:
            if probe.connect_ex(str(self.socket)):
                return False
            # One that was killed while it started a process seems to listen until that process runs.
            listener = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
            return int(struct.unpack("3i", listener)[0]) == self.daemon.pid

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """End the daemon by a signal; its exit status. Pods go on. Idempotent."""
        if not self.daemon.running:
            return 0
        self.client.close()
        return self.daemon.end(number)

    def kill(self) -> None:
        """End the daemon without a warning, as a crash does."""
        self.stop(signal.SIGKILL)

    def restart(self, **settings: str) -> None:
        """End the daemon properly and start it again."""
        assert self.stop() == 0, self.daemon.log.read_text()[-4000:]
        self.start(**settings)

    @contextmanager
    def restarted(self, **settings: str) -> Iterator[CriClient]:
        """The daemon with other settings while the context lasts; they still hold when its pods are removed."""
        try:
            self.restart(**settings)
            yield self.client
            for pod in self.client.pods():
                self.client.remove_pod(pod.id)
            self.wait_for_removals()
        finally:
            self.restart()

    @property
    def socket(self) -> Path:
        """The CRI's."""
        return self.run_dir / "pvecri.sock"

    @property
    def runtime_socket(self) -> Path:
        """Where pvecri-runtime reaches it."""
        return self.run_dir / "runtime.sock"

    @property
    def nri_socket(self) -> Path:
        """Where NRI plugins connect."""
        return self.run_dir / "nri.sock"

    def ready(self) -> bool:
        """Whether the runtime says that it is ready."""
        response = self.client.runtime.Status(pb.StatusRequest())
        needed = ("RuntimeReady", "NetworkReady")
        return all(condition.status for condition in response.status.conditions if condition.type in needed)

    def installation(self) -> str:
        """The id by which the daemon marks its CTs."""
        return str(self._select("SELECT id FROM installation")[0][0])

    def _has_undone_cancelled_pods(self) -> bool:
        """Whether the client is shown every pod that the daemon knows: others are being undone."""
        return {str(row[0]) for row in self._select("SELECT id FROM sandboxes")} <= {
            pod.id for pod in self.client.pods()
        }

    def _select(self, query: str) -> list[Sequence[object]]:
        with closing(sqlite3.connect(self.state_dir / "pods.db")) as connection:
            return connection.execute(query).fetchall()

    def processes(self, pod: str, container: str) -> list[int]:
        """A running container's processes, as the node numbers them."""
        return cgroups.detect().processes(f"/lxc/{self.client.vmid(pod)}/{container}")

    def processes_of(self, container: str) -> list[int]:
        """A container's processes, whether the daemon runs or not."""
        trees = cgroups.detect()
        return [pid for vmid in VMIDS for pid in trees.processes(f"/lxc/{vmid}/{container}")]

    def run_second_daemon(self) -> subprocess.CompletedProcess[str]:
        """What another daemon with the same configuration says, which must end by itself."""
        environment = {**os.environ, "PYTHONPATH": SOURCES}
        return subprocess.run(self.daemon.command, env=environment, capture_output=True, text=True, check=False)

    def forget_run_dir(self) -> None:
        """As a reboot does: all that lies in the run directory, and is mounted there, is gone."""
        mounts.umount_below(self.run_dir)
        shutil.rmtree(self.run_dir)
        for rootfs in self.state_dir.glob("images/*/rootfs/*"):
            mounts.umount_below(rootfs)

    # -- configuration ----------------------------------------------------------------------------------------

    def write_config(self, **extra: str) -> None:
        """The daemon's configuration; lines of `extra` come after those of the section of their name."""
        sections: dict[str, dict[str, object]] = {
            "proxmox": {**self.node.proxmox_settings(self.directory), "vmid_range": VMIDS},
            "runtime": {
                "socket": str(self.socket),
                "state_dir": str(self.state_dir),
                "run_dir": str(self.run_dir),
                **self.node.runtime_settings(),
            },
            "user_namespaces": {},
            "images": {
                "insecure_registries": [self.registry.address],
                "policy": str(self.directory / "policy.json"),
            },
            "network": {
                "conf_dir": str(self.conf_dir),
                "cache_dir": str(self.directory / "cni"),
                "bin_dirs": [str(path) for path in (self.plugins, *self.node.cni_dirs)],
            },
            "oci": {"socket": str(self.runtime_socket)},
            "nri": {
                "socket": str(self.nri_socket),
                "plugin_dir": str(self.directory / "nri-plugins"),
                "plugin_config_dir": str(self.directory / "nri-conf"),
            },
            "metrics": {},
            "tracing": {},
            "log": {"level": "debug"},
        }
        (self.directory / "policy.json").write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
        text = "\n".join(_section(name, values, extra.get(name, "")) for name, values in sections.items())
        (self.directory / "config.toml").write_text(text)

    def write_network(self, *more: dict[str, object]) -> None:
        """The CNI network of pods: a bridge, host ports, and the plugins of `more` after them."""
        ipam = {"type": "host-local", "dataDir": str(self.leases), "ranges": [[{"subnet": SUBNET}]]}
        bridge = {"type": "bridge", "bridge": BRIDGE, "isGateway": True, "hairpinMode": True}
        bridge["ipam"] = {**ipam, "routes": [{"dst": "0.0.0.0/0"}]}
        plugins = [bridge, {"type": "portmap", "capabilities": {"portMappings": True}}, *more]
        conflist = {"cniVersion": "1.0.0", "name": "pvt", "plugins": plugins}
        (self.conf_dir / "10-pvt.conflist").write_text(json.dumps(conflist))

    def write_plugin(self, name: str, script: str) -> dict[str, object]:
        """A CNI plugin that is a shell script; how a network configuration calls it."""
        path = self.plugins / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        return {"type": name}

    # -- cleaning ---------------------------------------------------------------------------------------------

    def clean(self) -> None:
        """Back to how it was when it was new: all running, no fault, no pod; whatever a test did to it."""
        self.node.restore()
        self.write_network()
        if not self.daemon.running:
            self.start()
        eventually(self.ready, "the runtime is ready")
        eventually(self._has_undone_cancelled_pods, "pods whose RunPodSandbox was cancelled are gone")
        for pod in self.client.pods():
            self.client.remove_pod(pod.id)
        self.wait_for_removals()
        for vmid in self.node.cts() & set(VMIDS):
            self.node.remove_ct(vmid)

    def leftovers(self) -> list[str]:
        """All that should not be there when there is no pod."""
        return leaks.of_machine(self.directory, self.run_dir, self.state_dir, self.lxc_path, self.leases, VMIDS)

    def left(self) -> set[str]:
        """What `leftovers` finds and did not find before the first pod."""
        return set(self.leftovers()) - self.usual

    def wait_until_nothing_left(self) -> None:
        """Wait for what the daemon, or an ending process, removes without a pod that could be asked for."""
        deadline = time.monotonic() + TIMEOUT
        while left := self.left():
            assert time.monotonic() < deadline, f"still left: {sorted(left)}"
            time.sleep(0.1)

    def wait_for_removals(self) -> None:
        """Wait until the CTs of removed pods are destroyed, which the daemon does in the background."""
        if self.daemon.running:
            eventually(lambda: not self.client.removals(), "the CTs of removed pods are destroyed")

    def assert_nothing_left(self) -> None:
        """No pod has left anything: CT, process, cgroup, mount, namespace, address, link, row or file.

        Waits for what the daemon does in the background.
        """
        self.wait_for_removals()
        assert not (left := self.left()), sorted(left)
        assert not (cts := self.node.cts() & set(VMIDS)), cts


def forget_pods(database: Path) -> None:
    """Delete all rows of pods and containers, as a restored or damaged `pods.db` may lack them."""
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("DELETE FROM containers")
        connection.execute("DELETE FROM sandboxes")


def _section(name: str, values: dict[str, object], extra: str) -> str:
    lines = [f"[{name}]", *(f"{key} = {_toml(value)}" for key, value in values.items() if f"{key} =" not in extra)]
    return "\n".join([*lines, extra, ""])


def _toml(value: object) -> str:
    if isinstance(value, range):
        return f"{{first = {value.start}, last = {value.stop - 1}}}"
    return json.dumps(value)


@contextmanager
def machine() -> Iterator[Machine]:
    """A machine with a ready runtime and its usual image; gone with all that it made when the context ends."""
    with ExitStack() as undo:
        directory = Path(tempfile.mkdtemp(prefix=leaks.PREFIX))
        undo.callback(shutil.rmtree, directory)
        undo.callback(shutil.rmtree, leaks.LXC_LOCKS / directory.name, ignore_errors=True)
        directory.chmod(0o755)
        outside = undo.enter_context(own_network_namespace())
        undo.callback(mounts.umount_below, directory)
        registry = undo.enter_context(running_registry(directory))
        made = Machine(directory, registry, machine_node(directory))
        undo.enter_context(made.node.serving(outside))
        made.write_network()
        undo.callback(made.stop)
        made.image = registry.push("tests/tools", "1", tools_image())
        made.start()
        made.node.installation = made.installation()
        eventually(made.ready, "the runtime is ready")
        made.client.pull(made.image)
        made.usual = set(made.leftovers())
        yield made


class Machines:
    """The machine that all tests of a run use one after the other; a context that ends it."""

    def __init__(self) -> None:
        self._undo = ExitStack()
        self._machine: Machine | None = None

    def __enter__(self) -> Machines:
        return self

    def __exit__(self, *_: object) -> None:
        self._machine = None
        self._undo.close()

    @contextmanager
    def clean(self) -> Iterator[Machine]:
        """The machine, for a test that must leave nothing; after one that does, the next gets a new machine."""
        if self._machine is None:
            self._machine = self._undo.enter_context(machine())
        yield self._machine
        try:
            self._machine.clean()
            self._machine.assert_nothing_left()
        except BaseException:
            self.__exit__()
            raise
