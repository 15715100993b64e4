# SPDX-License-Identifier: Apache-2.0
"""The `pvecri` command."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pvecri
from pvecri import config, config_cli, config_files, daemon, image_cli, repair_cli
from pvecri.checks import command as check
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
    if options.command in ("check", "check-config"):
        return check.run(options)
    settings = config_files.load(options.config).config
    if options.command == "repair":
        return repair_cli.run(settings, options)
    if options.command == "image":
        return image_cli.run(settings, options)
    daemon.run(settings, options.config)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="pvecri", description=pvecri.__doc__)
    parser.add_argument("--version", action="version", version=f"pvecri {pvecri.__version__}")
    parser.add_argument(
        "--config", type=Path, default=config.DEFAULT_PATH, help="configuration file (default: %(default)s)"
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("serve", help="run the daemon: serve the CRI until SIGTERM")
    check.add_commands(commands)
    config_cli.add_command(commands)
    image_cli.add_commands(commands)
    repair_cli.add_command(commands)
    setup.add_command(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
