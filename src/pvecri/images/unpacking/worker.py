# SPDX-License-Identifier: Apache-2.0
"""The helper program that unpacks layers: standard library only, one for all pulls.

Each message on its standard input, a SOCK_SEQPACKET socket, is a job in JSON, with the descriptor of the layer's
blob, a file or a pipe; or the number of a job to give up. Each job is answered by one line of JSON on standard
output, and while it lasts lines tell how much of the blob has come in, and out of it.

Every job gets a process of its own. That process chroots into the layer's directory before it reads the first byte
of the archive, so that no name and no link in it, however made, leads out; its address space is limited; and it
opens only files that it has just created. A layer by itself is written by layer_tree.py, one that is applied to
those below by stacked_tree.py.
"""

# ruff: noqa: PTH101
from __future__ import annotations

import ctypes
import json
import os
import resource
import selectors
import signal
import socket
import time
from collections.abc import Iterator
from typing import Any, Final, NoReturn

from pvecri.images.unpacking.overlay_layer import LayerTree
from pvecri.images.unpacking.stacked_layer import StackedTree
from pvecri.images.unpacking.tar_stream import Archive, LayerError, decompressed, members

MAX_JOB: Final = 64 << 10
MAX_MEMORY: Final = 1 << 30
TELL_AFTER: Final = 0.2
"""How many seconds lie between two lines about one job's progress."""

_PR_SET_PDEATHSIG: Final = 1
_LOCK: Final = os.memfd_create("answers")


def unpack(job: dict[str, Any], blob: int) -> dict[str, Any]:
    """Confine this process to the layer's directory and unpack the blob there. Does not come back out."""
    fetched = Reached()
    chunks = _told(job["job"], decompressed(blob, fetched.reach), fetched)
    os.chroot(job["directory"])
    os.chdir("/")
    kind = StackedTree if job["stacked"] else LayerTree
    if kind is LayerTree:
        os.chmod("/", 0o755)
    archive = Archive(chunks, job["max_size"])
    tree = kind(job["max_size"], job["max_entries"])
    for member in members(archive):
        tree.add(member, archive)
    tree.finish()
    implicit = [path.decode("utf-8", "replace").lstrip("/") or "." for path in sorted(tree.implicit)]
    return {
        "diff_id": archive.digest(),
        "bytes": tree.allocated,
        "inodes": tree.inodes,
        "implicit": implicit,
        "high_ids": sorted(tree.high_ids),
    }


class Reached:
    """How far something has come, in bytes."""

    size = 0

    def reach(self, size: int) -> None:
        self.size = size


def _told(number: int, chunks: Iterator[bytes], fetched: Reached) -> Iterator[bytes]:
    """The chunks; now and then a line says how much has come in and out so far."""
    size, told = 0, time.monotonic()
    for chunk in chunks:
        size += len(chunk)
        if time.monotonic() - told > TELL_AFTER:
            told = time.monotonic()
            _answer(number, {"fetched": fetched.size, "unpacked": size})
        yield chunk
    _answer(number, {"fetched": fetched.size, "unpacked": size})


def _answer(number: int, result: dict[str, Any]) -> None:
    """A line by itself: the processes share the pipe, so each locks it."""
    line = memoryview(json.dumps({"job": number, **result}).encode() + b"\n")
    os.lockf(_LOCK, os.F_LOCK, 0)
    while line:
        line = line[os.write(1, line) :]
    os.lockf(_LOCK, os.F_ULOCK, 0)


def _child(job: dict[str, Any], blob: int, parent: int) -> NoReturn:
    try:
        _die_with_parent(parent)
        resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY, MAX_MEMORY))
        result = unpack(job, blob)
    except LayerError as error:
        result = {"error": str(error)}
    except OSError as error:
        name = os.fsdecode(error.filename) if error.filename else ""
        result = {"error": f"{name}: {error.strerror}".removeprefix(": ")}
    except Exception as error:  # whatever a hostile archive makes the parser do ends this layer, not the pull
        result = {"error": f"{type(error).__name__}: {error}"}
    _answer(job["job"], {"done": True, **result})
    os._exit(0)


def _die_with_parent(parent: int) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


class Helper:
    """The jobs under way: process by number, and what to watch."""

    def __init__(self, jobs: socket.socket) -> None:
        self._jobs = jobs
        self._running: dict[int, int] = {}
        self._selector = selectors.DefaultSelector()
        self._selector.register(jobs, selectors.EVENT_READ)

    def run(self) -> None:
        """Until nobody can send jobs any more."""
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is not self._jobs:
                    self._reap(key.fd, key.data)
                elif not self._take():
                    return

    def _take(self) -> bool:
        message, fds, _, _ = socket.recv_fds(self._jobs, MAX_JOB, 1)
        if not message:
            return False
        job = json.loads(message)
        if isinstance(job, int):
            if job in self._running:
                os.kill(self._running[job], signal.SIGKILL)
        else:
            self._begin(job, fds[0])
            os.close(fds[0])
        return True

    def _begin(self, job: dict[str, Any], blob: int) -> None:
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            self._jobs.close()
            _child(job, blob, parent)
        self._running[job["job"]] = pid
        self._selector.register(os.pidfd_open(pid), selectors.EVENT_READ, job["job"])

    def _reap(self, pidfd: int, number: int) -> None:
        """Answer for a process that died without an answer."""
        self._selector.unregister(pidfd)
        os.close(pidfd)
        _, status = os.waitpid(self._running.pop(number), 0)
        if status != 0:
            code = os.waitstatus_to_exitcode(status)
            _answer(number, {"done": True, "error": f"the unpacking process ended with {code}"})


def main() -> None:
    """Do the jobs that come in on standard input."""
    _die_with_parent(os.getppid())
    os.umask(0)
    Helper(socket.socket(fileno=0)).run()
