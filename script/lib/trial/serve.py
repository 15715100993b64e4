# SPDX-License-Identifier: Apache-2.0
"""Runs pvecri until Ctrl-C: in front of an embedded Proxmox node, or, with --config, of a real one.

Pods outlive the two programs: the next start finds them again. --purge removes everything.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from contextlib import ExitStack
from pathlib import Path

import grpc

from pvecri.config import files
from pvecri.errors import PvecriError
from trial.plan import Plan, make_plan
from trial.programs import StartError
from trial.stack import (
    InUse,
    end_on_signals,
    remove_everything,
    remove_pods,
    running_daemon,
    running_node,
)

STATE = Path("/var/lib/pvecri-demo")
SOCKET = Path("/run/pvecri/pvecri.sock")


def main() -> int:
    """The exit status is 0, or 1 for an error that was explained."""
    options = _parser().parse_args()
    try:
        if options.config is not None:
            if options.purge:
                raise PvecriError(
                    "--purge removes an embedded node; on a node of your own: crictl rmp --all --force"
                )
            return _serve_real(options.config)
        if os.geteuid() != 0:
            raise PvecriError("root is needed: pods are LXC containers of this machine")
        plan = make_plan(options.state_dir.resolve(), options.socket, tuple(options.insecure_registry))
        end_on_signals()
        _purge(plan) if options.purge else _serve(plan)
    except KeyboardInterrupt:
        print("\nserve: stopped")
    except (PvecriError, StartError, InUse, OSError) as error:
        print(f"serve: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="script/serve", description=__doc__)
    parser.add_argument("--config", type=Path, help="serve a real Proxmox node with this configuration file")
    parser.add_argument("--state-dir", type=Path, default=STATE, help="where all is kept (default: %(default)s)")
    parser.add_argument("--socket", type=Path, default=SOCKET, help="the CRI's socket (default: %(default)s)")
    parser.add_argument(
        "--insecure-registry", action="append", default=[], metavar="HOST:PORT",
        help="a registry to be spoken to without TLS (repeatable)",
    )  # fmt: skip
    parser.add_argument("--purge", action="store_true", help="remove every pod and everything else, and end")
    return parser


def _serve(plan: Plan) -> None:
    with ExitStack() as stack:
        node = stack.enter_context(running_node(plan))
        client = stack.enter_context(running_daemon(plan))
        print(f"embedded Proxmox node  {node.url}  (node {node.node}, token {node.token_id})")
        print(f"pvecri {client.version().runtime_version}           unix://{plan.socket}")
        print(f"pvecri-runtime         --socket {plan.runtime_socket}")
        print(f"configuration          {plan.config}")
        print(f"logs                   {plan.state}/daemon.log, {plan.state}/node.log")
        print(f"pods here              {len(client.pods())}")
        crictl = plan.state / "crictl.yaml"
        crictl.write_text(f"runtime-endpoint: unix://{plan.socket}\nimage-endpoint: unix://{plan.socket}\n")
        _print_clients(f"crictl --config {crictl}", plan.socket)
        print("\nCtrl-C stops both programs; pods go on. `script/serve --purge` removes everything.", flush=True)
        while True:
            signal.pause()


def _serve_real(path: Path) -> int:
    """Become the daemon."""
    settings = files.load(path).config
    print(f"Proxmox node           {settings.proxmox.url}  (node {settings.proxmox.node_name})")
    endpoint = f"unix://{settings.runtime.socket}"
    _print_clients(f"crictl --runtime-endpoint {endpoint} --image-endpoint {endpoint}", settings.runtime.socket)
    print(flush=True)
    os.execv(sys.executable, [sys.executable, "-m", "pvecri", "--config", str(path), "serve"])


def _print_clients(crictl: str, socket: Path) -> None:
    print(f"\n    {crictl} pods")
    print(f"    {crictl} run --with-pull examples/container.json examples/pod.json")
    print(f"    kubelet --container-runtime-endpoint=unix://{socket} …")


def _purge(plan: Plan) -> None:
    """Remove pods through the CRI, as any client would, so that Proxmox and CNI let go of them too."""
    if plan.config.exists():
        try:
            with running_node(plan), running_daemon(plan) as client:
                remove_pods(client)
        except (StartError, TimeoutError, grpc.RpcError) as error:
            print(f"serve: {error}\nserve: removing by force", file=sys.stderr)
    remove_everything(plan)
    print(f"serve: nothing is left of {plan.state}")


if __name__ == "__main__":
    sys.exit(main())
