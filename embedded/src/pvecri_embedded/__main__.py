# SPDX-License-Identifier: AGPL-3.0-or-later
"""``python -m pvecri_embedded``: serve an embedded Proxmox VE node until SIGTERM or SIGINT."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import signal
import sys
from pathlib import Path

from pvecri_embedded.identity import TOKEN_ID, Certificate, Identity
from pvecri_embedded.layout import Layout, write_atomically
from pvecri_embedded.node import EmbeddedNode
from pvecri_embedded.times import TaskTimes


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m pvecri_embedded", description=__doc__)
    parser.add_argument(
        "--state-dir", type=Path, required=True, help="where configs, volumes and secrets are kept"
    )
    parser.add_argument("--listen", default="127.0.0.1:8006", help="ADDRESS:PORT; port 0 takes a free one")
    parser.add_argument("--node", default="pve", help="the node's name (default: pve)")
    parser.add_argument("--lxc-path", type=Path, default=Path("/var/lib/lxc"), help="LXC's own directory")
    parser.add_argument(
        "--vm-storage", action="append", default=[], metavar="NAME=TYPE",
        help="another storage for CTs, of type dir, btrfs or lvmthin (repeatable)",
    )  # fmt: skip
    parser.add_argument(
        "--task-times", type=TaskTimes.parse, default=TaskTimes(), metavar="SECONDS",
        help="how long tasks take: SECONDS of a create, others in proportion; or create=5,start=3,…",
    )  # fmt: skip
    parser.add_argument("--faults", action="store_true", help="serve the control interface for faults on demand")
    return parser.parse_args(arguments)


def describe(node: EmbeddedNode, identity: Identity, certificate: Certificate) -> dict[str, object]:
    """What a client needs to connect, as node.json holds it."""
    return {
        "url": node.url,
        "node": node.node,
        "token_id": TOKEN_ID,
        "token_secret": identity.token_secret,
        "root_password": identity.root_password,
        "fingerprint": certificate.fingerprint(),
        "storage": "local",
        "template_storage": "local",
        "pid": os.getpid(),
    }


async def serve(arguments: argparse.Namespace) -> None:
    """Serve until a signal asks to end."""
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    layout = Layout(arguments.state_dir.resolve(), arguments.node, arguments.lxc_path.resolve())
    layout.make_directories()
    with layout.exclusive():
        await serve_layout(layout, arguments, ended)


async def serve_layout(layout: Layout, arguments: argparse.Namespace, ended: asyncio.Event) -> None:
    """Serve from this state directory until ``ended``."""
    host, _, port = arguments.listen.rpartition(":")
    identity = Identity.load_or_make(layout)
    certificate = Certificate.load_or_make(layout, host)
    node = EmbeddedNode(layout, identity, host=host, port=int(port), serve_faults=arguments.faults)
    node.times = arguments.task_times
    for option in arguments.vm_storage:
        name, _, kind = option.partition("=")
        node.add_storage(name, kind or "dir", "images,rootdir")
    await node.serve(str(certificate.certificate), str(certificate.key))
    write_atomically(layout.descriptor, json.dumps(describe(node, identity, certificate), indent=2), 0o600)
    sys.stdout.write(f"embedded node {node.node} answers at {node.url}\n")
    sys.stdout.flush()
    await ended.wait()
    await node.shut_down()


def main() -> None:
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    arguments = parse_arguments()
    try:
        asyncio.run(serve(arguments))
    except BlockingIOError:
        sys.exit(f"another embedded node serves from {arguments.state_dir}")


if __name__ == "__main__":
    main()
