# SPDX-License-Identifier: Apache-2.0
"""`pvecri config`: shows the defaults, the configuration in effect, and what differs."""

from __future__ import annotations

import argparse

from pvecri.config import files


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `config` to the parser of `pvecri`."""
    command = commands.add_parser("config", help="show the configuration")
    shown = command.add_subparsers(dest="shown", required=True)
    shown.add_parser("default", help="every setting with its default, as a commented file to begin with")
    shown.add_parser("dump", help="the configuration in effect, of all files together")
    shown.add_parser("diff", help="the settings that differ from their defaults, each with the file it is from")


def run(options: argparse.Namespace) -> int:
    """Run the command; returns the exit status. Errors are raised."""
    if options.shown == "default":
        print(files.default_toml(), end="")
        return 0
    loaded = files.load(options.config)
    if options.shown == "dump":
        print(files.dump(loaded.config), end="")
    else:
        for line in files.differences(loaded):
            print(line)
    return 0
