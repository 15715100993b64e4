# SPDX-License-Identifier: Apache-2.0
"""The `pvecri` command."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pvecri
from pvecri.config import files, settings
from pvecri.errors import PvecriError


def main(arguments: list[str] | None = None) -> int:
    """Run one command. Exit status: 0, 1 after a reported error, 2 for wrong usage, 130 after Ctrl-C."""
    given = sys.argv[1:] if arguments is None else arguments
    # The daemon keeps what is imported: the other commands' modules are not.
    options = _only_serve(given) or _parser().parse_args(given)
    try:
        return _run(options)
    except PvecriError as error:
        print(f"pvecri: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # Ctrl-C, after which everything is undone
        return 128 + signal.SIGINT


def _only_serve(arguments: list[str]) -> argparse.Namespace | None:
    """The options of `serve`; None for any other command line."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    _add_config(parser)
    try:
        options, others = parser.parse_known_args(arguments)
    except argparse.ArgumentError:  # which the whole parser reports
        return None
    return argparse.Namespace(command="serve", config=options.config) if others == ["serve"] else None


def _run(options: argparse.Namespace) -> int:
    if options.command == "serve":
        from pvecri import daemon

        daemon.run(files.load(options.config).config, options.config)
        return 0
    run: Callable[..., int] = options.run
    # These do without a valid configuration, or report an invalid one themselves.
    if options.command in _WITHOUT_CONFIGURATION:
        return run(options)
    return run(files.load(options.config).config, options)


_WITHOUT_CONFIGURATION = frozenset({"config", "setup", "check", "check-config", "completion", "version"})


def _parser() -> argparse.ArgumentParser:
    from pvecri.checks import command as check
    from pvecri.cli import config, image, repair, status, stop_pods
    from pvecri.setup import command as setup

    parser = argparse.ArgumentParser(prog="pvecri", description=pvecri.__doc__)
    parser.add_argument("--version", action="version", version=f"pvecri {pvecri.__version__}")
    _add_config(parser)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("serve", help="run the daemon: serve the CRI until SIGTERM")
    check.add_commands(commands)
    config.add_command(commands)
    image.add_commands(commands)
    repair.add_command(commands)
    status.add_commands(commands)
    stop_pods.add_command(commands)
    setup.add_command(commands)
    completion = commands.add_parser(
        "completion",
        help="print the completions of a shell",
        description="Print what a shell sources.",
    )
    completion.add_argument("shell", choices=["bash", "zsh", "fish"])
    _accept_config_after_command(parser)
    runs: dict[str, Callable[..., int]] = {
        "config": config.run,
        "completion": _complete,
        "setup": setup.run,
        "check": check.run,
        "check-config": check.run,
        "repair": repair.run,
        "image": image.run,
        "stop-pods": stop_pods.run,
        "version": status.version,
        **dict.fromkeys(status.COMMANDS, status.run),
    }
    for name, run in runs.items():
        commands.choices[name].set_defaults(run=run)
    return parser


def _complete(options: argparse.Namespace) -> int:
    """Print the completions of a shell."""
    import shtab

    print(shtab.complete(_parser(), options.shell))
    return 0


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config", type=Path, default=settings.DEFAULT_PATH, help="configuration file (default: %(default)s)"
    )


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
