# SPDX-License-Identifier: Apache-2.0
"""The helper program that unpacks layers: standard library only, started once a pull.

Each line of its standard input is a JSON list of jobs; each job is answered by a line of JSON on standard output.
Every job gets a process of its own, as many at a time as there are CPUs. That process chroots into the layer's
directory before it reads the first byte of the archive, so that no name and no link in it, however made, leads
out; its address space is limited; and it opens only files that it has just created.

A layer by itself is written by layer_tree.py, one that is applied to those below by stacked_tree.py.
"""

# ruff: noqa: PTH101
from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys
from typing import Any, Final, NoReturn

from pvecri.images.archive import Archive, LayerError, decompressed, members
from pvecri.images.layer_tree import LayerTree
from pvecri.images.stacked_tree import StackedTree

MAX_MEMORY: Final = 1 << 30

_PR_SET_PDEATHSIG: Final = 1
_LOCK: Final = os.memfd_create("answers")


def unpack(job: dict[str, Any]) -> dict[str, Any]:
    """Confine this process to the layer's directory and unpack the blob there. Does not come back out."""
    chunks = decompressed(os.open(job["blob"], os.O_RDONLY | os.O_CLOEXEC))
    os.chroot(job["directory"])
    os.chdir("/")
    kind = StackedTree if job.get("stacked") else LayerTree
    if kind is LayerTree:
        os.chmod("/", 0o755)
    archive = Archive(chunks, job["max_size"])
    tree = kind(job["max_size"], job["max_entries"])
    for member in members(archive):
        tree.add(member, archive)
    tree.finish()
    implicit = [path.decode("utf-8", "replace").lstrip("/") or "." for path in sorted(tree.implicit)]
    return {"diff_id": archive.digest(), "bytes": tree.allocated, "inodes": tree.inodes, "implicit": implicit}


def _answer(number: int, result: dict[str, Any]) -> None:
    """A line by itself: the processes share the pipe, so each locks it."""
    line = memoryview(json.dumps({"job": number, **result}).encode() + b"\n")
    os.lockf(_LOCK, os.F_LOCK, 0)
    while line:
        line = line[os.write(1, line) :]
    os.lockf(_LOCK, os.F_ULOCK, 0)


def _child(number: int, job: dict[str, Any], parent: int) -> NoReturn:
    try:
        _die_with_parent(parent)
        resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY, MAX_MEMORY))
        result = unpack(job)
    except LayerError as error:
        result = {"error": str(error)}
    except OSError as error:
        name = os.fsdecode(error.filename) if error.filename else ""
        result = {"error": f"{name}: {error.strerror}".removeprefix(": ")}
    except Exception as error:  # whatever a hostile archive makes the parser do ends this layer, not the pull
        result = {"error": f"{type(error).__name__}: {error}"}
    _answer(number, result)
    os._exit(0)


def _die_with_parent(parent: int) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def main() -> None:
    """Run the jobs of each line."""
    _die_with_parent(os.getppid())
    os.umask(0)
    for line in sys.stdin:
        _run(json.loads(line))


def _run(jobs: list[dict[str, Any]]) -> None:
    """Run all jobs and report those whose process died without an answer."""
    running: dict[int, int] = {}
    for number, job in enumerate(jobs):
        if len(running) >= (os.cpu_count() or 1):
            _reap(running)
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            _child(number, job, parent)
        running[pid] = number
    while running:
        _reap(running)


def _reap(running: dict[int, int]) -> None:
    pid, status = os.wait()
    number = running.pop(pid, None)
    if number is not None and status != 0:
        _answer(number, {"error": f"the unpacking process ended with {os.waitstatus_to_exitcode(status)}"})
