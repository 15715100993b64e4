# SPDX-License-Identifier: Apache-2.0
"""`pvecri check`: finds what will fail before it does."""

from __future__ import annotations

import argparse
from pathlib import Path

DESCRIPTION = """\
Finds what will keep pods from running: in the configuration, in this machine, in Proxmox. Changes nothing.
Each finding is a line: a problem, which keeps pods from running, or a warning, and what to do. The exit status is
1 if there is a problem, else 0; 2 for wrong usage."""


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `check`, and `check-config`, its former name."""
    command = commands.add_parser(
        "check",
        aliases=["check-config"],
        help="check whether pods can run: configuration, this machine, Proxmox",
        description=DESCRIPTION,
    )
    extent = command.add_mutually_exclusive_group()
    extent.add_argument("--offline", action="store_true", help="only read the configuration")
    extent.add_argument("--startup", action="store_true", help="only what the daemon needs to start; no Proxmox")
    command.add_argument("--json", action="store_true", help="print the findings as JSON")
    command.add_argument("--strict", action="store_true", help="a warning counts as a problem for the exit status")
    command.add_argument(
        "--kubelet-config",
        type=Path,
        metavar="FILE",
        help="the kubelet's configuration (default: kubeadm's, /var/lib/kubelet/config.yaml, if there is one)",
    )


def run(options: argparse.Namespace) -> int:
    """Run the command; returns the exit status. ConfigError for an invalid configuration, unless with --json."""
    # Only here: the daemon has no use for it.
    from pvecri.checks import report

    return report.run(options)
