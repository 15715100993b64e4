# SPDX-License-Identifier: Apache-2.0
"""`python -m pvecri_bench.spans FILE OPTION…`: the daemon, which writes to FILE what it does and for how long.

Each line is a JSON list: the kind of work, its begin and its end in nanoseconds of CLOCK_MONOTONIC.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import json
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

FORK = "fork and exec"
SQLITE = "SQLite"
CALL = "call"

_lock = threading.Lock()


class Recorder:
    """Writes spans to a file, one line each at its end."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def add(self, kind: str, begin: int, end: int) -> None:
        """A span that is over. Thread-safe."""
        with _lock:
            self._file.write(json.dumps([kind, begin, end]) + "\n")

    @contextmanager
    def span(self, kind: str) -> Iterator[None]:
        """The context's body."""
        begin = time.monotonic_ns()
        try:
            yield
        finally:
            self.add(kind, begin, time.monotonic_ns())

    def wrap(self, owner: Any, name: str, kind: str) -> None:
        """Record each call of a function or coroutine function, an attribute of `owner`."""
        inner = getattr(owner, name)

        @functools.wraps(inner)
        async def awaited(*arguments: Any, **options: Any) -> Any:
            with self.span(kind):
                return await inner(*arguments, **options)

        @functools.wraps(inner)
        def called(*arguments: Any, **options: Any) -> Any:
            with self.span(kind):
                return inner(*arguments, **options)

        setattr(owner, name, awaited if inspect.iscoroutinefunction(inner) else called)

    def wrap_all(self, owner: type, kind: Callable[[str], str], wanted: Callable[[str], bool]) -> None:
        """`wrap` for all methods of a class with wanted names."""
        for name, value in list(vars(owner).items()):
            if inspect.isfunction(value) and wanted(name):
                self.wrap(owner, name, kind(name))


def program(command: Sequence[str]) -> str:
    """The kind of a program's time: itself, and of the OCI runtime also the command."""
    names = [Path(each).name for each in command]
    if "conmon" in names:
        return "conmon: runc create"
    for runtime in ("runc", "crun"):
        if runtime in names:
            rest = command[names.index(runtime) + 1 :]
            verbs = {"create", "start", "exec", "delete", "state", "kill", "run", "update"}
            return f"{runtime} {next((each for each in rest if each in verbs), '')}".strip()
    return f"{names[0]} {os.environ.get('CNI_COMMAND', '')}".strip()


def record_programs(recorder: Recorder) -> None:
    """Record each program, from its start until it ends, and the start by itself."""
    start = subprocess.Popen.__init__

    def started(process: Any, command: Any, *arguments: Any, **options: Any) -> None:
        words = [os.fsdecode(each) for each in command] if isinstance(command, list | tuple) else [str(command)]
        kind = program(words)
        verb = (options.get("env") or {}).get("CNI_COMMAND")
        begin = time.monotonic_ns()
        start(process, command, *arguments, **options)
        recorder.add(FORK, begin, time.monotonic_ns())
        watch = threading.Thread(
            target=_wait, args=(recorder, f"CNI {verb}: {kind}" if verb else kind, process.pid)
        )
        watch.daemon = True
        watch.start()

    subprocess.Popen.__init__ = started  # type: ignore[method-assign,assignment]


def _wait(recorder: Recorder, kind: str, pid: int) -> None:
    begin = time.monotonic_ns()
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        select.select([fd], [], [])
    finally:
        os.close(fd)
    recorder.add(kind, begin, time.monotonic_ns())


def record(recorder: Recorder) -> None:
    """Record programs, requests to Proxmox, worker threads, the stores and whole calls."""
    from pvecri.cri.runtime_service import RuntimeService
    from pvecri.images import store as images_store
    from pvecri.oci import runtime
    from pvecri.pods import store
    from pvecri.proxmox.api import ProxmoxApi
    from pvecri.proxmox.tasks import Tasks

    record_programs(recorder)
    recorder.wrap_all(ProxmoxApi, lambda name: f"Proxmox: {name}", lambda name: not name.startswith("_"))
    for owner in (store.Store, images_store.Store):
        recorder.wrap_all(owner, lambda _: SQLITE, lambda name: name.startswith(("save", "delete", "put")))
    recorder.wrap(Tasks, "wait", "Proxmox: task")
    recorder.wrap(runtime, "_read_line", "conmon: runc create")
    recorder.wrap_all(RuntimeService, lambda _: CALL, lambda name: name in CALLS)
    to_thread = asyncio.to_thread

    async def in_thread(function: Any, /, *arguments: Any, **options: Any) -> Any:
        inner = function
        while isinstance(inner, functools.partial):
            inner = inner.func
        with recorder.span(f"thread: {getattr(inner, '__qualname__', inner)}"):
            return await to_thread(function, *arguments, **options)

    asyncio.to_thread = in_thread


CALLS = frozenset(
    {
        "run_pod_sandbox",
        "create_container",
        "start_container",
        "exec_sync",
        "stop_container",
        "remove_container",
        "stop_pod_sandbox",
        "remove_pod_sandbox",
    }
)


def main() -> int:
    """Become the daemon."""
    from pvecri.cli import command_line

    with Path(sys.argv[1]).open("a", buffering=1) as file:
        record(Recorder(file))
        return command_line.main(sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())
