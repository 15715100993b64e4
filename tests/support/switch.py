# SPDX-License-Identifier: Apache-2.0
"""Open vSwitch for tests: a switch of its own in one network namespace, all in user space.

It needs no kernel module, and so shows VLANs where the kernel's bridge knows none.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from support.cri_client import TIMEOUT, eventually
from support.processes import Program

PROGRAMS = ("ovsdb-tool", "ovsdb-server", "ovs-vswitchd", "ovs-vsctl", "ovs-appctl", "ethtool")
_SCHEMA = Path("/usr/share/openvswitch/vswitch.ovsschema")


@dataclass(frozen=True)
class Switch:
    """A switch that runs. Bridges and ports are changed when the calls return."""

    directory: Path
    """Its $OVS_RUNDIR."""
    prefix: Sequence[str] = ()
    """The command before its programs, which leads into its network namespace."""

    def ask(self, *words: str) -> str:
        """What ovs-vsctl says."""
        command = [*self.prefix, "ovs-vsctl", "--retry", f"--timeout={TIMEOUT:.0f}", *words]
        environment = {**os.environ, "OVS_RUNDIR": str(self.directory)}
        return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout

    def add_bridge(self, name: str) -> None:
        """A bridge, up."""
        self.ask("add-br", name, "--", "set", "Bridge", name, "datapath_type=netdev")
        subprocess.run([*self.prefix, "ip", "link", "set", name, "up"], check=True)

    def add_port(self, bridge: str, name: str, tag: int = 0) -> None:
        """A port of that link: an access port of a VLAN, or a trunk of all of them."""
        # User space reads packets whole: their checksums must be in them.
        subprocess.run([*self.prefix, "ethtool", "-K", name, "tx", "off"], check=True, stdout=subprocess.DEVNULL)
        self.ask("add-port", bridge, name, *([f"tag={tag}"] if tag else []))

    def ports(self, bridge: str) -> list[str]:
        """The names of a bridge's ports."""
        return self.ask("list-ports", bridge).split()


@contextmanager
def running_switch(directory: Path, netns: Path | None = None) -> Iterator[Switch]:
    """A switch in a network namespace, this one by default. Its files and its links are gone with the context."""
    prefix = [] if netns is None else ["nsenter", f"--net={netns}"]
    with ExitStack() as undo:
        directory.mkdir()
        undo.callback(shutil.rmtree, directory)
        database, socket = directory / "conf.db", directory / "db.sock"
        subprocess.run(["ovsdb-tool", "create", database, _SCHEMA], check=True)
        own = ["env", f"OVS_RUNDIR={directory}", f"OVS_LOGDIR={directory}"]
        server = ["ovsdb-server", str(database), f"--remote=punix:{socket}", f"--unixctl={directory}/server.ctl"]
        _start(undo, [*own, *prefix, *server], directory / "server.log")
        eventually(socket.exists, "ovsdb-server listens")
        switch = Switch(directory, prefix)
        switch.ask("--no-wait", "init")
        daemon = ["ovs-vswitchd", f"unix:{socket}", f"--unixctl={directory}/switch.ctl", "--disable-system"]
        undo.callback(_clean_up, directory, _start(undo, [*own, *prefix, *daemon], directory / "switch.log"))
        yield switch


def _start(undo: ExitStack, command: list[str], log: Path) -> Program:
    program = Program(command, log)
    undo.callback(program.end)
    program.start()
    return program


def _clean_up(directory: Path, daemon: Program) -> None:
    """End ovs-vswitchd so that it removes its links, which a signal does not make it do."""
    subprocess.run(["ovs-appctl", "-t", f"{directory}/switch.ctl", "exit", "--cleanup"], check=True)
    eventually(lambda: not daemon.running, "ovs-vswitchd has ended")
