# SPDX-License-Identifier: Apache-2.0
"""The image that the containers of tests are made from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from support.image_builder import BuiltImage, LayerBuilder, build_image, plain

BUSYBOX = Path("/bin/busybox")
APPLETS = (
    "sh cat echo env id ls ps sleep true false kill touch mkdir rm chmod chown stat mount umount grep head tail "
    "wc dd seq yes tr sort hostname ip nc wget nslookup pwd printf readlink sync tty stty ipcs setsid nohup test "
    "mv cp ln date uname usleep mknod ping df vi unshare nsenter"
)
PASSWD = "root:x:0:0:root:/root:/bin/sh\nalice:x:1000:1000::/home/alice:/bin/sh\n"
GROUP = "root:x:0:\nalice:x:1000:\nstaff:x:50:alice\n"


def tools_layer() -> bytes:
    """Busybox with its commands, some users, a world-writable /tmp."""
    layer = LayerBuilder().directory("bin").file("bin/busybox", BUSYBOX.read_bytes(), mode=0o755)
    for applet in APPLETS.split():
        layer.symlink(f"bin/{applet}", "busybox")
    for name in ("etc", "root", "home", "data", "usr", "var"):
        layer.directory(name)
    layer.directory("home/alice", uid=1000, gid=1000).directory("tmp", mode=0o1777)
    return layer.file("etc/passwd", PASSWD, mode=0o644).file("etc/group", GROUP, mode=0o644).build()


def tools_image(**config: Any) -> BuiltImage:
    """An image of these tools; `config` as the OCI image config's `config` object has it."""
    return build_image(tools_layer(), compress=plain, config=config)
