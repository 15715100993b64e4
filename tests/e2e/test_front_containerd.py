# SPDX-License-Identifier: Apache-2.0
"""Debian's containerd with pvecri-runtime as a runtime handler, beside one of runc."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from e2e.front_conformance import FrontConformance, KubeletClient, ready_client
from support.front import Front
from support.processes import Program, need
from support.tools import tools_image

from pvecri.linux import mounts


class Containerd:
    """containerd with directories and sockets of its own; the pods of its default handler are CTs."""

    def __init__(self, front: Front, directory: Path) -> None:
        machine = front.machine
        self._image = machine.image
        pause = machine.registry.push("tests/pause", "1", tools_image(Cmd=["/bin/sleep", "1000000"]))
        hosts = directory / "certs.d" / machine.registry.address
        hosts.mkdir(parents=True)
        (hosts / "hosts.toml").write_text(f'server = "http://{machine.registry.address}"\n')
        self._socket = directory / "s"
        (directory / "config.toml").write_text(config(front, directory, self._socket, pause))
        command = ["containerd", "--config", str(directory / "config.toml")]
        self.program = Program(command, directory / "log")
        self._logs = directory / "logs"

    def start(self) -> KubeletClient:
        """See Runtime."""
        return ready_client(self.program, self._socket, self._logs, self._image)


def config(front: Front, directory: Path, socket: Path, pause: str) -> str:
    """As Debian's, with all paths below `directory`. The plugin `opt` would make a directory in /opt."""
    cri = 'plugins."io.containerd.grpc.v1.cri"'
    return f"""\
version = 2
root = "{directory}/root"
state = "{directory}/state"
disabled_plugins = ["io.containerd.internal.v1.opt"]
[grpc]
  address = "{socket}"
[ttrpc]
  address = "{socket}.ttrpc"
[{cri}]
  sandbox_image = "{pause}"
  stream_server_address = "127.0.0.1"
  stream_server_port = "0"
  netns_mounts_under_state_dir = true
  disable_apparmor = true
  disable_hugetlb_controller = true
  tolerate_missing_hugetlb_controller = true
  restrict_oom_score_adj = true
[{cri}.cni]
  bin_dir = "{front.machine.node.cni_plugins}"
  conf_dir = "{front.machine.conf_dir}"
[{cri}.registry]
  config_path = "{directory}/certs.d"
[{cri}.containerd]
  snapshotter = "overlayfs"
  default_runtime_name = "pvecri"
[{cri}.containerd.runtimes.pvecri]
  runtime_type = "io.containerd.runc.v2"
[{cri}.containerd.runtimes.pvecri.options]
  BinaryName = "{front.wrapper()}"
  Root = "{directory}/pvecri"
[{cri}.containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
[{cri}.containerd.runtimes.runc.options]
  Root = "{directory}/runc"
"""


class TestContainerd(FrontConformance):
    @pytest.fixture
    def runtime(self, front: Front) -> Iterator[Containerd]:
        need("containerd", "containerd")
        need("runc", "runc")
        directory = front.directory / "containerd"
        directory.mkdir()
        with ExitStack() as undo:
            undo.callback(mounts.umount_below, directory)
            containerd = Containerd(front, directory)
            undo.callback(containerd.program.end)
            yield containerd
