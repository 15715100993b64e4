# SPDX-License-Identifier: Apache-2.0
"""Network namespaces for tests: a pod's, and one that stands for the node so that nothing outside is touched."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pvecri.linux import libc, namespaces


@contextmanager
def network_namespace() -> Iterator[Path]:
    """The path of a new network namespace, held by a child process that does nothing else."""
    child = subprocess.Popen(
        ["unshare", "--net", "sh", "-c", "echo ready; exec cat"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        child.stdout.readline()
        yield Path(f"/proc/{child.pid}/ns/net")
    finally:
        child.stdin.close()
        child.wait()
        child.stdout.close()


@contextmanager
def own_network_namespace() -> Iterator[None]:
    """Moves this thread, and with it the children that it starts, to a new network namespace for the context.

    Bridges and packet filter rules that are made there are gone with it.
    """
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        libc.call("unshare", namespaces.CLONE_NEWNET)
        try:
            subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
            yield
        finally:
            namespaces.setns(Path(f"/proc/self/fd/{before}"))
    finally:
        os.close(before)
