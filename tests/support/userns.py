# SPDX-License-Identifier: Apache-2.0
"""User namespaces for tests, each held by a child process that does nothing else."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def user_namespace(first_id: int = 100_000, length: int = 65_536) -> Iterator[Path]:
    """The path of a user namespace whose ids 0… are `first_id`… outside, while the context lasts."""
    child = subprocess.Popen(
        ["unshare", "--user", "sh", "-c", "echo ready; exec cat"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        child.stdout.readline()
        for name in ("uid_map", "gid_map"):
            Path(f"/proc/{child.pid}/{name}").write_text(f"0 {first_id} {length}\n")
        yield Path(f"/proc/{child.pid}/ns/user")
    finally:
        child.stdin.close()
        child.wait()
        child.stdout.close()
