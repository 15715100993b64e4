# SPDX-License-Identifier: Apache-2.0
"""Reads the command line of an OCI runtime, as runc and crun have it.

There is no specification of it that all follow: the options are those that CRI-O, conmon, containerd's shim and
podman send, and those that people use. What pvecri does not act on itself is passed on to the OCI runtime.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from pvecri.errors import InvalidArgument

DEFAULT_ROOT: Final = "/run/pvecri-runtime"
"""--root of a caller that names none: it only tells the ids of several callers apart."""

_GLOBAL: Final = {
    "root": True,
    "log": True,
    "log-format": True,
    "debug": False,
    "systemd-cgroup": False,
    "rootless": True,
    "criu": True,
    "cgroup-manager": True,
}
"""Whether an option has a value."""

_CREATE: Final = {
    "bundle": True,
    "pid-file": True,
    "console-socket": True,
    "no-pivot": False,
    "no-new-keyring": False,
    "preserve-fds": True,
}

_COMMANDS: Final[Mapping[str, Mapping[str, bool]]] = {
    "create": _CREATE,
    "start": {},
    "state": {},
    "kill": {"all": False, "signal": True},
    "delete": {"force": False},
    "exec": {
        "pid-file": True,
        "process": True,
        "detach": False,
        "console-socket": True,
        "tty": False,
        "cwd": True,
        "env": True,
        "user": True,
        "additional-gids": True,
        "process-label": True,
        "apparmor": True,
        "no-new-privs": False,
        "cap": True,
        "preserve-fds": True,
        "cgroup": True,
        "ignore-paused": False,
    },
    "update": {
        "resources": True,
        "blkio-weight": True,
        "cpu-period": True,
        "cpu-quota": True,
        "cpu-burst": True,
        "cpu-rt-period": True,
        "cpu-rt-runtime": True,
        "cpu-share": True,
        "cpu-shares": True,
        "cpu-idle": True,
        "cpuset-cpus": True,
        "cpuset-mems": True,
        "memory": True,
        "memory-reservation": True,
        "memory-swap": True,
        "kernel-memory": True,
        "kernel-memory-tcp": True,
        "pids-limit": True,
        "l3-cache-schema": True,
        "mem-bw-schema": True,
    },
    "pause": {},
    "resume": {},
    "ps": {"format": True},
    "events": {"interval": True, "stats": False},
    "checkpoint": {
        "image-path": True,
        "work-path": True,
        "parent-path": True,
        "leave-running": False,
        "tcp-established": False,
        "tcp-skip-in-flight": False,
        "link-remap": False,
        "ext-unix-sk": False,
        "shell-job": False,
        "lazy-pages": False,
        "status-fd": True,
        "page-server": True,
        "file-locks": False,
        "pre-dump": False,
        "manage-cgroups-mode": True,
        "empty-ns": True,
        "auto-dedup": False,
        "help": False,
    },
    "restore": {
        **_CREATE,
        "detach": False,
        "image-path": True,
        "work-path": True,
        "tcp-established": False,
        "ext-unix-sk": False,
        "shell-job": False,
        "file-locks": False,
        "manage-cgroups-mode": True,
        "no-subreaper": False,
        "empty-ns": True,
        "auto-dedup": False,
        "lazy-pages": False,
        "lsm-profile": True,
        "lsm-mount-context": True,
    },
    "features": {},
}

_SHORT: Final = {
    "b": "bundle",
    "a": "all",
    "s": "signal",
    "f": "force",
    "d": "detach",
    "t": "tty",
    "p": "process",
    "e": "env",
    "u": "user",
    "g": "additional-gids",
    "c": "cap",
    "r": "resources",
}
_SHORT_OF: Final[Mapping[str, Mapping[str, str]]] = {"ps": {"f": "format"}, "update": {"r": "resources"}}


@dataclass(frozen=True)
class Option:
    """An option by its long name, without dashes; `value` is None for one that takes none."""

    name: str
    value: str | None = None

    def __str__(self) -> str:
        return f"--{self.name}" if self.value is None else f"--{self.name}={self.value}"


@dataclass(frozen=True)
class CommandLine:
    """`pvecri-runtime GLOBAL… COMMAND OPTIONS… ARGUMENTS…`."""

    command: str
    globals: tuple[Option, ...] = ()
    options: tuple[Option, ...] = ()
    arguments: tuple[str, ...] = ()

    @property
    def root(self) -> str:
        """--root: the caller's directory, in which ids are unique."""
        return next((each.value for each in self.globals if each.name == "root" and each.value), DEFAULT_ROOT)

    @property
    def id(self) -> str:
        """The container's id, the first argument; InvalidArgument if there is none."""
        if not self.arguments or not self.arguments[0]:
            raise InvalidArgument(self.command, "the container's id is missing")
        return self.arguments[0]

    def value(self, name: str) -> str:
        """The last value of an option; empty if it is not given."""
        return next((each.value or "" for each in reversed(self.options) if each.name == name), "")

    def has(self, name: str) -> bool:
        """Whether an option is given."""
        return any(each.name == name for each in self.options)

    def passed(self, *without: str) -> list[str]:
        """The options for the OCI runtime, all but `without`."""
        return [str(each) for each in self.options if each.name not in without]

    def log_options(self) -> list[str]:
        """The global options that say where the OCI runtime's errors go."""
        return [str(each) for each in self.globals if each.name in ("log", "log-format", "debug")]


def parse(words: Sequence[str]) -> CommandLine:
    """Read a command line, without the program; InvalidArgument names the option or the command."""
    reader = _Reader(list(words))
    options = tuple(reader.options(_GLOBAL, {}, "pvecri-runtime"))
    if not reader.words:
        raise InvalidArgument("pvecri-runtime", "no command is given")
    command = reader.words.pop(0)
    known = _COMMANDS.get(command)
    if known is None:
        raise InvalidArgument("pvecri-runtime", f"there is no command {command!r}: {', '.join(_COMMANDS)}")
    short = {**_SHORT, **_SHORT_OF.get(command, {})}
    own = tuple(reader.options(known, short, command))
    return CommandLine(command, options, own, tuple(reader.words))


@dataclass
class _Reader:
    words: list[str] = field(default_factory=list)

    def options(self, known: Mapping[str, bool], short: Mapping[str, str], command: str) -> Iterator[Option]:
        """The options up to the first word that is none, in the ways of Go's and of glibc's parsers."""
        while self.words and self.words[0].startswith("-") and self.words[0] != "-":
            word = self.words.pop(0)
            if word == "--":
                return
            name, equals, value = word.lstrip("-").partition("=")
            name = name if name in known else short.get(name, name)
            if name not in known:
                raise InvalidArgument(command, f"the option {word.partition('=')[0]} is not known")
            if not known[name]:
                if value != "false":
                    yield Option(name)
                continue
            if not equals:
                if not self.words:
                    raise InvalidArgument(command, f"the option {word} needs a value")
                value = self.words.pop(0)
            yield Option(name, value)
