# SPDX-License-Identifier: Apache-2.0
"""Starts and stops the embedded node and the daemon, and removes all that they made."""

from __future__ import annotations

import fcntl
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from pvecri.linux.mounts import umount_below
from trial.account import Administrator, make_account
from trial.cri import CriClient
from trial.plan import NodeDescriptor, Plan, prepare, write_config
from trial.programs import START_TIMEOUT, StartError, log_end, running


class InUse(Exception):
    """The installation's directory or socket is another process's now."""


def end_on_signals() -> None:
    """From now on SIGTERM and SIGHUP raise KeyboardInterrupt as Ctrl-C does; a second one is ignored."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def interrupt(*_: object) -> None:
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    for number in numbers:
        signal.signal(number, interrupt)


@contextmanager
def running_node(plan: Plan) -> Iterator[NodeDescriptor]:
    """The embedded node; its CTs run on when the context ends. Writes the daemon's configuration, too.

    Raises InUse when the installation runs already.
    """
    prepare(plan)
    log = plan.state / "node.log"
    command = [sys.executable, "-m", "pvecri_embedded", "--listen", "127.0.0.1:0"]
    command += ["--state-dir", str(plan.node_state), "--lxc-path", str(plan.lxc_path)]
    with _locked(plan.state / "lock"), running(command, log, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        if not process.stdout.readline():
            raise StartError(f"the embedded node did not start; {log} ends with:\n{log_end(log)}")
        descriptor = (plan.node_state / "node.json").read_bytes()
        node = with_account(plan, msgspec.json.decode(descriptor, type=NodeDescriptor))
        write_config(plan, node)
        yield node


def with_account(plan: Plan, node: NodeDescriptor) -> NodeDescriptor:
    """The node with the token of the documented account, which is made with that of the node's root."""
    tls = ssl.create_default_context(cafile=plan.node_state / "pve/local/pve-ssl.crt")
    root = Administrator(node.url, node.token_id, node.token_secret, tls)
    names = {"NODE": node.node, "local-lvm": node.storage, "local": node.template_storage}
    account = make_account(root, names)
    return msgspec.structs.replace(node, token_id=account.token_id, token_secret=account.token_secret)


@contextmanager
def running_daemon(plan: Plan) -> Iterator[CriClient]:
    """The daemon, answering; pods and containers run on when the context ends.

    Raises InUse when another runtime listens on the socket: its pods are not ours to touch.
    """
    _check_unused(plan.socket)
    log = plan.state / "daemon.log"
    command = [sys.executable, "-m", "pvecri", "--config", str(plan.config), "serve"]
    with running(command, log) as process, CriClient(plan.socket) as client:
        _wait_until_answering(process, client, log)
        yield client


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InUse(f"{path.parent} is in use: stop the script/serve that runs there first") from None
        yield


def _check_unused(path: Path) -> None:
    if accepts(path):
        raise InUse(f"another process listens on {path}; choose another one with --socket")


def accepts(path: Path) -> bool:
    """Whether a process listens on a unix socket: what a crashed one has left is there, and refuses."""
    with socket.socket(socket.AF_UNIX) as probe, suppress(ConnectionRefusedError, FileNotFoundError):
        probe.connect(str(path))
        return True
    return False


def _wait_until_answering(process: subprocess.Popen[bytes], client: CriClient, log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise StartError(
                f"the daemon ended with status {process.returncode}; {log} ends with:\n{log_end(log)}"
            )
        # gRPC tries a connection that is refused again only after a second.
        if accepts(client.socket):
            client.wait_until_ready(START_TIMEOUT)
            return
        time.sleep(0.02)
    raise StartError(f"the daemon did not answer within {START_TIMEOUT:g} s; {log} ends with:\n{log_end(log)}")


def remove_pods(client: CriClient) -> None:
    """Stop and remove every pod, by the CRI, and wait for the end of their CTs. TimeoutError."""
    for sandbox in client.pods():
        client.stop_pod(sandbox)
        client.remove_pod(sandbox)
    client.wait_for_removals(START_TIMEOUT)


def remove_everything(plan: Plan) -> None:
    """Remove what is left when the programs have ended: CTs that none of them could remove, mounts, the bridge,
    the directories. Idempotent, and touches nothing that is not the plan's.
    """
    for conf in plan.node_state.glob("pve/nodes/*/lxc/*.conf"):
        _quietly("lxc-stop", "--kill", "--lxcpath", str(plan.lxc_path), "--name", conf.stem)
    _quietly("ip", "link", "delete", plan.bridge)
    for directory in (plan.run, plan.state):
        umount_below(directory)
        shutil.rmtree(directory, ignore_errors=True)
    for socket_file in (plan.socket, plan.runtime_socket):
        socket_file.unlink(missing_ok=True)
    with suppress(OSError):
        plan.socket.parent.rmdir()


def _quietly(*command: str) -> None:
    subprocess.run(command, check=False, capture_output=True)
