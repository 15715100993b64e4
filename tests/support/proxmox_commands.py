# SPDX-License-Identifier: Apache-2.0
"""`pveum` and `pvesh` of an embedded node: each command is the request to the API that Proxmox's own makes of it.

The API checks the parameters. A command or an output format that Proxmox's programs do not have is an error:

    python -m support.proxmox_commands STATE_DIR pveum|pvesh ARGUMENT…
"""

from __future__ import annotations

import json
import shlex
import ssl
import stat
import sys
import urllib.error
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

from trial.account import Administrator

TESTS = Path(__file__).resolve().parents[1]

METHODS = {"get": "GET", "create": "POST", "set": "PUT", "delete": "DELETE"}

PVEUM: Mapping[str, tuple[str, str, tuple[str, ...]]] = {
    "pool add": ("POST", "/pools", ("poolid",)),
    "pool delete": ("DELETE", "/pools/{poolid}", ("poolid",)),
    "role add": ("POST", "/access/roles", ("roleid",)),
    "role modify": ("PUT", "/access/roles/{roleid}", ("roleid",)),
    "role delete": ("DELETE", "/access/roles/{roleid}", ("roleid",)),
    "user add": ("POST", "/access/users", ("userid",)),
    "user delete": ("DELETE", "/access/users/{userid}", ("userid",)),
    "acl modify": ("PUT", "/access/acl", ("path",)),
    "acl delete": ("PUT", "/access/acl", ("path",)),
    "user token add": ("POST", "/access/users/{userid}/token/{tokenid}", ("userid", "tokenid")),
    "user token delete": ("DELETE", "/access/users/{userid}/token/{tokenid}", ("userid", "tokenid")),
}
"""Of PVE::CLI::pveum: the method and path of each command, and its positional arguments."""

WITH_OUTPUT = ("user token add", "user token delete")
"""Commands of pveum with --output-format; the others print nothing."""


def install(folder: Path, state_dir: Path) -> None:
    """Put both programs, for the node of `state_dir`, into a folder for $PATH."""
    folder.mkdir(exist_ok=True)
    for name in ("pveum", "pvesh"):
        command = [sys.executable, "-m", "support.proxmox_commands", str(state_dir), name]
        program = folder / name
        path = shlex.quote(f"{TESTS}:{TESTS.parent / 'script/lib'}")
        program.write_text(f'#!/bin/sh\nPYTHONPATH={path} exec {shlex.join(command)} "$@"\n')
        program.chmod(program.stat().st_mode | stat.S_IXUSR)


def main(state_dir: Path, program: str, arguments: list[str]) -> int:
    """Run one command; the exit status is that of Proxmox's programs, 255 after an error."""
    node = json.loads((state_dir / "node.json").read_bytes())
    tls = ssl.create_default_context(cafile=state_dir / "pve/local/pve-ssl.crt")
    administrator = Administrator(node["url"], node["token_id"], node["token_secret"], tls)
    method, path, parameters = pvesh(arguments) if program == "pvesh" else pveum(arguments)
    shown = parameters.pop("output-format", None)
    if method == "GET":  # its parameters are in the URL
        path += "?" + "&".join(f"{name}={quote(value)}" for name, value in parameters.items())
        parameters = {}
    try:
        answer = administrator.ask(method, path, parameters)
    except urllib.error.HTTPError as error:
        print(error.reason, error.read().decode(), file=sys.stderr)
        return 255
    if shown:
        print(json.dumps(answer))
    return 0


def pvesh(arguments: list[str]) -> tuple[str, str, dict[str, str]]:
    """The request of `pvesh VERB PATH --NAME VALUE …`."""
    verb, path, *rest = arguments
    return METHODS[verb], path, options(rest)


def pveum(arguments: list[str]) -> tuple[str, str, dict[str, str]]:
    """The request of `pveum COMMAND POSITIONAL… --NAME VALUE …`."""
    words = 3 if arguments[:2] == ["user", "token"] else 2
    command = " ".join(arguments[:words])
    method, template, names = PVEUM[command]
    rest = arguments[words:]
    positional = dict(zip(names, rest[: len(names)], strict=True))
    parameters = options(rest[len(names) :])
    assert "output-format" not in parameters or command in WITH_OUTPUT, f"{command} has no --output-format"
    if command == "acl delete":
        parameters["delete"] = "1"
    path = template.format(**{name: quote(value) for name, value in positional.items()})
    return (
        method,
        path,
        parameters | {name: value for name, value in positional.items() if f"{{{name}}}" not in template},
    )


def options(words: list[str]) -> dict[str, str]:
    """`--NAME VALUE` pairs."""
    pairs = dict(zip(words[::2], words[1::2], strict=True))
    assert all(name.startswith("--") for name in pairs), words
    return {name.removeprefix("--"): value for name, value in pairs.items()}


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:]))
