# SPDX-License-Identifier: Apache-2.0
"""`pvecri image` for tests, on a node's directories without a daemon or beside one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from support.image_builder import LayerBuilder
from support.registry import Registry

BASE = LayerBuilder().directory("bin").file("bin/sh", "shell", mode=0o4755, uid=5).hardlink("bin/ash", "bin/sh")
TOP = LayerBuilder().file("etc/motd", "hello").file("bin/.wh.ash")
"""Two layers: a file with a set-user-ID bit and two names, and one that removes a name of it."""


class Node:
    """A node's directories without a daemon."""

    def __init__(self, root: Path, registry: Registry) -> None:
        self.root = root
        self.config = root / "config.toml"
        self.config.write_text(
            f'[runtime]\nstate_dir = "{root}/state"\nsocket = "{root}/pvecri.sock"\n'
            f'[images]\ninsecure_registries = ["{registry.address}"]\n'
        )

    def image(self, *words: str, status: int = 0) -> str:
        """Run `pvecri image`; what it says."""
        return run(self.config, *words, status=status)


def run(config: Path, *words: str, status: int = 0) -> str:
    command = [sys.executable, "-m", "pvecri", "--config", str(config), "image", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == status, (done.returncode, done.stdout, done.stderr)
    return done.stdout + done.stderr
