# SPDX-License-Identifier: Apache-2.0
"""Debian's containerd, with directories, a socket, a CNI network and cgroups of its own."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trial.cri import CriClient
from trial.plan import Plan, prepare
from trial.programs import START_TIMEOUT, StartError, log_end, running

from pvecri_bench.session import CommandLines

NAME = "containerd"
HANDLER = "pvecri"
"""The runtime handler of pods that are CTs."""


def helpers(plan: Plan) -> CommandLines:
    """The shims: below each are the pod's pause process and its containers."""
    return lambda command: Path(command[0]).name.startswith("containerd-shim") and str(plan.socket) in command


@contextmanager
def running_containerd(plan: Plan, registry: str, pause: str, pvecri: Path | None) -> Iterator[None]:
    """containerd, answering on the plan's socket; pods and their shims run on when the context ends.

    `pause` is the image of pods, `registry` the address that is spoken to without TLS; `pvecri` is the socket of
    pvecri-runtime for the handler HANDLER. Raises StartError when it does not come up, OSError when it is not
    installed.
    """
    prepare(plan)
    log = plan.state / "containerd.log"
    runtime = None if pvecri is None else _write_runtime(plan, pvecri)
    config = _write_config(plan, registry, pause, runtime)
    with running(["containerd", "--config", str(config)], log) as process:
        _wait(process, plan.socket, log)
        yield


def _write_runtime(plan: Plan, socket: Path) -> Path:
    """A program that is pvecri-runtime with another socket than the usual one: containerd passes no options."""
    path = plan.state / "pvecri-runtime"
    path.write_text(
        f'#!/bin/sh\nexec "{Path(sys.executable).with_name("pvecri-runtime")}" --socket "{socket}" "$@"\n'
    )
    path.chmod(0o755)
    return path


def _write_config(plan: Plan, registry: str, pause: str, runtime: Path | None) -> Path:
    hosts = plan.state / "certs.d" / registry
    hosts.mkdir(parents=True)
    (hosts / "hosts.toml").write_text(f'server = "http://{registry}"\n')
    path = plan.state / "containerd.toml"
    text = _config(plan, pause, apparmor=Path("/sys/kernel/security/apparmor").exists())
    path.write_text(text + ("" if runtime is None else _handler(plan, runtime)))
    return path


def _handler(plan: Plan, runtime: Path) -> str:
    section = f'plugins."io.containerd.grpc.v1.cri".containerd.runtimes.{HANDLER}'
    return f"""\
[{section}]
  runtime_type = "io.containerd.runc.v2"
[{section}.options]
  BinaryName = "{runtime}"
  Root = "{plan.run / HANDLER}"
  SystemdCgroup = false
"""


def _config(plan: Plan, pause: str, *, apparmor: bool) -> str:
    """As Debian's, with all paths below the plan's. The plugin `opt` would make a directory in /opt."""
    cri = 'plugins."io.containerd.grpc.v1.cri"'
    return f"""\
version = 2
root = "{plan.state / "containerd"}"
state = "{plan.run / "containerd"}"
disabled_plugins = [
  "io.containerd.internal.v1.opt",
  "io.containerd.snapshotter.v1.aufs",
  "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs",
]
[grpc]
  address = "{plan.socket}"
[ttrpc]
  address = "{plan.socket}.ttrpc"
[{cri}]
  sandbox_image = "{pause}"
  stream_server_address = "127.0.0.1"
  stream_server_port = "0"
  netns_mounts_under_state_dir = true
  disable_apparmor = {str(not apparmor).lower()}
  disable_hugetlb_controller = true
  tolerate_missing_hugetlb_controller = true
  restrict_oom_score_adj = true
[{cri}.cni]
  bin_dir = "{_cni_directory()}"
  conf_dir = "{plan.state / "cni/net.d"}"
  max_conf_num = 1
[{cri}.registry]
  config_path = "{plan.state / "certs.d"}"
[{cri}.containerd]
  snapshotter = "overlayfs"
  default_runtime_name = "runc"
[{cri}.containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
[{cri}.containerd.runtimes.runc.options]
  Root = "{plan.run / "runc"}"
  SystemdCgroup = false
"""


def _cni_directory() -> Path:
    """Where the plugins are: Debian's place, else everybody else's."""
    debian = Path("/usr/lib/cni")
    return debian if (debian / "bridge").exists() else Path("/opt/cni/bin")


def _wait(process: subprocess.Popen[bytes], socket: Path, log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    while not socket.is_socket():
        if process.poll() is not None or time.monotonic() > deadline:
            raise StartError(f"containerd did not come up; {log} ends with:\n{log_end(log)}")
        time.sleep(0.02)
    with CriClient(socket) as client:
        client.wait_until_ready(START_TIMEOUT)
