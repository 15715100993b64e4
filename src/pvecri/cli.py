# SPDX-License-Identifier: Apache-2.0
"""The `pvecri` command."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import pvecri
from pvecri import config, config_cli, config_files, daemon, image_cli, repair_cli, status_cli, stop_pods_cli
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
    # These do without a valid configuration, or report an invalid one themselves.
    if early := _EARLY.get(options.command):
        return early(options)
    settings = config_files.load(options.config).config
    if command := _COMMANDS.get(options.command):
        return command(settings, options)
    daemon.run(settings, options.config)
    return 0


_EARLY: dict[str, Callable[[argparse.Namespace], int]] = {
    "config": config_cli.run,
    "setup": setup.run,
    "check": check.run,
    "check-config": check.run,
}
_COMMANDS: dict[str, Callable[[config.Config, argparse.Namespace], int]] = {
    "repair": repair_cli.run,
    "image": image_cli.run,
    "stop-pods": stop_pods_cli.run,
    **dict.fromkeys(status_cli.COMMANDS, status_cli.run),
}


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
    status_cli.add_commands(commands)
    stop_pods_cli.add_command(commands)
    setup.add_command(commands)
    _accept_config_after_command(parser)
    return parser


def _accept_config_after_command(parser: argparse.ArgumentParser) -> None:
    """Let --config stand after each command, too, and its subcommands."""
    for action in parser._actions:  # argparse has no public way to its subparsers
        if isinstance(action, argparse._SubParsersAction):
            for command in set(action.choices.values()):  # an alias is the same parser
                # SUPPRESS as default: without the option, the value before the command stays.
                command.add_argument("--config", type=Path, default=argparse.SUPPRESS, help=argparse.SUPPRESS)
                _accept_config_after_command(command)


if __name__ == "__main__":
    sys.exit(main())
