# SPDX-License-Identifier: Apache-2.0
"""CRI-O with pvecri-runtime as a runtime handler, beside one of runc; Debian 12 has no CRI-O."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from e2e.front_conformance import FrontConformance, KubeletClient, ready_client
from support.front import Front
from support.processes import Program, need
from support.tools import tools_image

from pvecri.linux import cgroups, mounts, processes

CAP_SYS_RESOURCE = 1 << 24


class Crio:
    """CRI-O with directories and sockets of its own; the pods of its default handler are CTs."""

    def __init__(self, front: Front, directory: Path, sockets: Path) -> None:
        machine = front.machine
        self._image = machine.image
        pause = machine.registry.push("tests/pause", "1", tools_image(Cmd=["/bin/sleep", "1000000"]))
        (directory / "policy.json").write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
        (directory / "storage.conf").write_text(STORAGE.format(directory=directory))
        self._socket = sockets / "crio.sock"
        (directory / "crio.conf").write_text(config(front, directory, sockets, pause))
        environment = {
            "CONTAINER_REGISTRIES_CONF": machine.directory / "registries.conf",
            "CONTAINERS_STORAGE_CONF": directory / "storage.conf",
        }
        command = ["env", *(f"{name}={value}" for name, value in environment.items())]
        command += ["crio", "--config", str(directory / "crio.conf"), "--config-dir", ""]
        self.program = Program(command, directory / "log")
        self._logs = directory / "logs"

    def start(self) -> KubeletClient:
        """See Runtime."""
        return ready_client(self.program, self._socket, self._logs, self._image)


STORAGE = """\
[storage]
driver = "overlay"
runroot = "{directory}/runroot"
graphroot = "{directory}/storage"
"""


def config(front: Front, directory: Path, sockets: Path, pause: str) -> str:
    """Like CRI-O's defaults, with all paths below `directory`, and the short ones of sockets below `sockets`."""
    return f"""\
[crio]
root = "{directory}/storage"
runroot = "{directory}/runroot"
storage_driver = "overlay"
log_dir = "{directory}/log.d"
version_file = "{directory}/version"
version_file_persist = "{directory}/version-persist"
clean_shutdown_file = "{directory}/clean-shutdown"
[crio.api]
listen = "{sockets}/crio.sock"
[crio.runtime]
default_runtime = "pvecri"
cgroup_manager = "cgroupfs"
pinns_path = "{shutil.which("pinns") or "pinns"}"
namespaces_dir = "{directory}/namespaces"
container_exits_dir = "{directory}/exits"
container_attach_socket_dir = "{sockets}"
apparmor_profile = "unconfined"
irqbalance_config_restore_file = "disable"
hooks_dir = []
cdi_spec_dirs = ["{directory}/cdi"]
enable_criu_support = false
[crio.runtime.runtimes.pvecri]
runtime_path = "{front.wrapper()}"
runtime_type = "oci"
runtime_root = "{directory}/pvecri"
monitor_path = "{shutil.which("conmon")}"
monitor_cgroup = "pod"
[crio.runtime.runtimes.runc]
runtime_path = "{shutil.which("runc")}"
runtime_type = "oci"
runtime_root = "{directory}/runc"
monitor_path = "{shutil.which("conmon")}"
monitor_cgroup = "pod"
[crio.image]
pause_image = "{pause}"
pause_command = ""
signature_policy = "{directory}/policy.json"
signature_policy_dir = "{directory}/policies"
[crio.network]
network_dir = "{front.machine.conf_dir}"
plugin_dirs = ["{front.machine.node.cni_plugins}"]
[crio.nri]
enable_nri = false
"""


class TestCrio(FrontConformance):
    def need_sandbox_container(self) -> None:
        if not int(processes.status(os.getpid())["CapEff"], 16) & CAP_SYS_RESOURCE:
            pytest.skip("needs CAP_SYS_RESOURCE, for CRI-O lowers the oom_score_adj of a sandbox's container")

    def sees_usage(self) -> bool:
        """Not on cgroup version 2, where its library follows no mount (decision 0091)."""
        return not cgroups.detect().pure_v2

    @pytest.fixture
    def runtime(self, front: Front) -> Iterator[Crio]:
        need("crio", "cri-o")
        need("pinns", "cri-o")
        need("runc", "runc")
        directory = front.directory / "crio"
        directory.mkdir()
        with ExitStack() as undo:
            sockets = undo.enter_context(TemporaryDirectory(prefix="crio-", dir="/run"))
            undo.callback(mounts.umount_below, directory)
            crio = Crio(front, directory, Path(sockets))
            undo.callback(crio.program.end)
            yield crio
