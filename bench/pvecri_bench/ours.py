# SPDX-License-Identifier: Apache-2.0
"""pvecri in front of an embedded node, both as processes of their own, in a directory of their own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import msgspec
from trial.plan import NodeDescriptor, Plan, prepare, write_config
from trial.programs import StartError, log_end, running
from trial.proxmox import ProxmoxView
from trial.stack import running_daemon, with_account

from pvecri_bench.ledger import Ledger
from pvecri_bench.session import CommandLines

NAME = "pvecri"


def helpers(plan: Plan) -> CommandLines:
    """The monitors of CTs, as Proxmox runs them: below each are the CT's init and its containers' monitors."""
    return lambda command: Path(command[0]).name == "lxc-start" and str(plan.lxc_path) in command


@contextmanager
def running_pvecri(plan: Plan, node_options: Sequence[str] = (), settings: str = "") -> Iterator[Ledger]:
    """The node and the daemon, which answers; gives the node's ledger. Pods run on when the context ends.

    `node_options` are the embedded node's, `settings` lines of TOML after those of the daemon's configuration.
    Raises trial.stack.StartError when one does not come up.
    """
    prepare(plan)
    access_log = plan.state / "access.log"
    with ExitStack() as stack:
        node = stack.enter_context(_running_node(plan, access_log, node_options))
        write_config(plan, node)
        with plan.config.open("a") as config:
            config.write(settings)
        stack.enter_context(running_daemon(plan))
        yield Ledger(access_log, ProxmoxView(plan, node), node.node)


@contextmanager
def _running_node(plan: Plan, access_log: Path, options: Sequence[str]) -> Iterator[NodeDescriptor]:
    log = plan.state / "node.log"
    command = [sys.executable, "-m", "pvecri_bench.node", str(access_log), "--listen", "127.0.0.1:0"]
    command += ["--state-dir", str(plan.node_state), "--lxc-path", str(plan.lxc_path), *options]
    with running(command, log, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        if not process.stdout.readline():
            raise StartError(f"the embedded node did not start; {log} ends with:\n{log_end(log)}")
        descriptor = (plan.node_state / "node.json").read_bytes()
        yield with_account(plan, msgspec.json.decode(descriptor, type=NodeDescriptor))
