# SPDX-License-Identifier: Apache-2.0
"""The `pvecri` command."""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
from pathlib import Path

import pvecri
from pvecri import config, config_cli, config_files, daemon, image_cli, repair_cli
from pvecri.errors import PvecriError
from pvecri.setup import command as setup


def main(arguments: list[str] | None = None) -> int:
    """Run one command. Exit status: 0, 1 after a reported error, 2 for wrong usage."""
    options = _parser().parse_args(arguments)
    try:
        return _run(options)
    except PvecriError as error:
        print(f"pvecri: {error}", file=sys.stderr)
        return 1


def _run(options: argparse.Namespace) -> int:
    if options.command == "config":
        return config_cli.run(options)
    if options.command == "setup":  # which writes the configuration
        return setup.run(options)
    settings = config_files.load(options.config).config
    if options.command == "check-config":
        return _check(options.config, settings, offline=options.offline)
    if options.command == "repair":
        return repair_cli.run(settings, options)
    if options.command == "image":
        return image_cli.run(settings, options)
    daemon.run(settings, options.config)
    return 0


def _check(path: Path, settings: config.Config, *, offline: bool) -> int:
    """Print the problems of a valid configuration, one a line; returns the exit status."""
    logging.getLogger("pvecri").addHandler(logging.NullHandler())  # the problems are printed below, once
    config.require_account(settings)
    problems = [] if offline else asyncio.run(daemon.check(settings))
    for problem in problems:
        print(f"{path}: {problem}", file=sys.stderr)
    if not problems and not offline:
        for foreign in asyncio.run(repair_cli.find(settings)):  # keeps no pod from running
            print(f"note: {foreign} (pvecri repair)")
    if not problems:
        print(f"{path}: OK{'; Proxmox and this machine were not checked' if offline else ''}")
    return 1 if problems else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="pvecri", description=pvecri.__doc__)
    parser.add_argument("--version", action="version", version=f"pvecri {pvecri.__version__}")
    parser.add_argument(
        "--config", type=Path, default=config.DEFAULT_PATH, help="configuration file (default: %(default)s)"
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("serve", help="run the daemon: serve the CRI until SIGTERM")
    checking = commands.add_parser(
        "check-config",
        help="check whether pods can run: read the configuration, and check Proxmox and this machine",
    )
    checking.add_argument("--offline", action="store_true", help="only read the configuration")
    config_cli.add_command(commands)
    image_cli.add_commands(commands)
    repair_cli.add_command(commands)
    setup.add_command(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
