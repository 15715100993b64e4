# SPDX-License-Identifier: Apache-2.0
"""The program that extracts layers: standard library only, one process for all pulls (decision 0012).

Each message on its standard input, a SOCK_SEQPACKET socket, is a job in JSON, with the descriptor of the layer's
blob, a file or a pipe; or the number of a job to cancel. Each job is answered by one line of JSON on standard
output; before that, lines report its progress.

Every job gets a forked process. It chroots into the layer's directory before it reads the archive's first header,
so that no name and no link in the archive leads out of the directory; its address space is limited; and it opens
only files that it has just created. A layer by itself is written by overlay_layer.py, one that is applied to those
below by stacked_layer.py, an artifact's by blob_file.py.
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

from pvecri.images.unpacking import blob_file
from pvecri.images.unpacking.overlay_layer import LayerTree
from pvecri.images.unpacking.stacked_layer import StackedTree
from pvecri.images.unpacking.tar_stream import Archive, LayerError, counted, decompressed, members

MAX_JOB: Final = 64 << 10
MAX_MEMORY: Final = 1 << 30
PROGRESS_INTERVAL: Final = 0.2
"""Seconds between two lines about one job's progress."""

_PR_SET_PDEATHSIG: Final = 1
# For lockf(3): its locks belong to a process, so that forked ones exclude each other. Those of flock(2) they would
# share.
_STDOUT_LOCK: Final = os.memfd_create("answers")


def unpack(job: dict[str, Any], blob: int) -> dict[str, Any]:
    """Confine this process to the layer's directory for good, and extract the blob there; the answer."""
    chunks = _reporting(job["job"], blob, decompress=not job["file"])
    os.chroot(job["directory"])
    # chroot(2) leaves the working directory, by which `..` would lead out.
    os.chdir("/")
    kind = StackedTree if job["stacked"] else LayerTree
    if kind is LayerTree:
        os.chmod("/", 0o755)  # mkdtemp(3) made it 0700; a stacked layer starts with its parent's mode
    if job["file"]:
        return {"result": blob_file.write(job["file"], chunks, job["max_size"])}
    archive = Archive(chunks, job["max_size"])
    tree = kind(job["max_size"], job["max_entries"])
    tree.add_lower_links(job["links"])
    for member in members(archive):
        tree.add(member, archive)
    tree.finish()
    implicit = [path.decode("utf-8", "replace").lstrip("/") or "." for path in sorted(tree.implicit)]
    result = {
        "diff_id": archive.digest(),
        "bytes": tree.allocated,
        "inodes": tree.inodes,
        "implicit": implicit,
        "high_ids": sorted(tree.high_ids),
    }
    return {"result": result}


def _reporting(number: int, blob: int, *, decompress: bool) -> Iterator[bytes]:
    """The chunks of a blob, with a line about the progress every PROGRESS_INTERVAL."""
    progress = {"fetched": 0, "unpacked": 0}
    # Opened here, before the caller's chroot: zstd(1) is not in the layer.
    chunks = (decompressed if decompress else counted)(blob, lambda fetched: progress.update(fetched=fetched))

    def generate() -> Iterator[bytes]:
        reported = time.monotonic()
        for chunk in chunks:
            progress["unpacked"] += len(chunk)
            if time.monotonic() - reported > PROGRESS_INTERVAL:
                reported = time.monotonic()
                _answer(number, progress)
            yield chunk
        _answer(number, progress)

    return generate()


def _answer(number: int, result: dict[str, Any]) -> None:
    line = memoryview(json.dumps({"job": number, **result}).encode() + b"\n")
    # All processes write to this pipe, and writes of more than PIPE_BUF (4096) bytes are not atomic: pipe(7).
    os.lockf(_STDOUT_LOCK, os.F_LOCK, 0)
    while line:
        line = line[os.write(1, line) :]
    os.lockf(_STDOUT_LOCK, os.F_ULOCK, 0)


def _child(job: dict[str, Any], blob: int, parent: int) -> NoReturn:
    try:
        _die_with_parent(parent)
        resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY, MAX_MEMORY))
        answer = unpack(job, blob)
    except LayerError as error:
        answer = {"error": str(error)}
    except OSError as error:
        name = os.fsdecode(error.filename) if error.filename else ""
        answer = {"error": f"{name}: {error.strerror}".removeprefix(": ")}
    except Exception as error:  # tarfile raises many kinds on a hostile archive; all of them refuse this layer
        answer = {"error": f"{type(error).__name__}: {error}"}
    _answer(job["job"], answer)
    os._exit(0)  # without the parent's atexit handlers and buffers


def _die_with_parent(parent: int) -> None:
    # Not pvecri.linux.libc, for the reason given in tar_stream.py.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # The parent may have ended before prctl(2), which then sends no signal.
    if os.getppid() != parent:
        os._exit(1)


class Worker:
    """The running jobs: a process for each number."""

    def __init__(self, jobs: socket.socket) -> None:
        self._jobs = jobs
        self._running: dict[int, int] = {}
        self._selector = selectors.DefaultSelector()
        self._selector.register(jobs, selectors.EVENT_READ)

    def run(self) -> None:
        """Serve until the other end of the socket is closed."""
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
            self._jobs.close()  # it has one job
            _child(job, blob, parent)
        self._running[job["job"]] = pid
        self._selector.register(os.pidfd_open(pid), selectors.EVENT_READ, job["job"])

    def _reap(self, pidfd: int, number: int) -> None:
        """Reap a job's process, and answer for one that was killed before it could."""
        self._selector.unregister(pidfd)
        os.close(pidfd)
        _, status = os.waitpid(self._running.pop(number), 0)
        if status != 0:
            code = os.waitstatus_to_exitcode(status)
            _answer(number, {"error": f"the unpacking process ended with {code}"})


def main() -> None:
    """Serve jobs on standard input."""
    _die_with_parent(os.getppid())
    os.umask(0)  # the archive's modes count
    Worker(socket.socket(fileno=0)).run()
