# SPDX-License-Identifier: Apache-2.0
"""The sandbox template: the root filesystem of every pod's CT, as a Proxmox CT template (decision 0022).

It contains an init that reaps orphaned processes, and a shell for `pct enter`; containers have root filesystems of
their own. Both are the static busybox of the node's Debian, so that it needs no libraries.

The archive is reproducible and its name contains a hash of the content: a storage that has a file of that name has
this template, and a new version never replaces one that is in use.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import shutil
import struct
import tarfile
from collections.abc import Iterator
from pathlib import Path

import msgspec

from pvecri.errors import FailedPrecondition

BUSYBOX_PACKAGE = "busybox-static"

INIT = b"#!/bin/sh\nexec /sbin/linuxrc\n"
"""busybox's init by its second name, so that /proc/1/comm differs from that of other CTs (pods/sandbox/ct.py)."""

SHUTDOWN_PIPE = "run/shutdown"
"""A FIFO below the CT's root, by which the CT asks the daemon to end the pod (pods/sandbox/shutdown.py)."""

INITTAB = b"""\
# LXC asks for a shutdown by SIGPWR and for a reboot by SIGINT. The pod ends in the same way.
::ctrlaltdel:/bin/kill -PWR 1
::shutdown:/sbin/shutdown
"""

SHUTDOWN = b"""#!/bin/sh
# The daemon ends the containers, each by its stop signal and its grace period, and then this CT.
# It has the FIFO open for reading; while nobody has, opening it for writing blocks.
PATH=/bin:/sbin
while timeout 10 sh -c 'echo >/run/shutdown'; do sleep 1; done
# There is no daemon. After SIGTERM init itself would wait for one second only.
kill -TERM -1
while set -- /proc/[0-9]*; [ $# -gt 2 ]; do sleep 1; done
"""

APPLETS = (
    *("ash", "cat", "chmod", "chown", "cp", "cut", "date", "df", "dmesg", "du", "echo", "env", "find", "free"),
    *("grep", "head", "hostname", "id", "ip", "kill", "less", "ln", "ls", "mkdir", "mount", "mv", "nc", "netstat"),
    *("nslookup", "ping", "ps", "pwd", "rm", "route", "sed", "sh", "sleep", "sort", "stat", "tail", "tar", "test"),
    *("top", "touch", "tr", "umount", "uname", "uptime", "vi", "wc", "wget", "which", "xargs"),
)
"""Symlinks to busybox in /bin."""

DIRECTORIES = {
    "bin": 0o755,
    "dev": 0o755,
    "etc": 0o755,
    "proc": 0o555,
    "root": 0o700,
    "run": 0o755,
    "sbin": 0o755,
    "sys": 0o555,
    "tmp": 0o1777,
    "var": 0o755,
    "var/tmp": 0o1777,
}

FILES = {
    "etc/inittab": INITTAB,
    "etc/passwd": b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\n",
    "etc/group": b"root:x:0:\nnogroup:x:65534:\n",
    "etc/os-release": b'ID=pvecri-sandbox\nNAME="pvecri sandbox"\nPRETTY_NAME="pvecri pod sandbox"\n',
}

# EM_386, EM_ARM, EM_X86_64, EM_AARCH64, EM_RISCV (elf(5)).
_ELF_MACHINES = {3: "i386", 40: "armhf", 62: "amd64", 183: "arm64", 243: "riscv64"}
_PT_INTERP = 3


class SandboxTemplate(msgspec.Struct, frozen=True, kw_only=True):
    """The template before it is compressed; `arch` is Proxmox's name of the architecture."""

    arch: str
    tar: bytes

    @property
    def name(self) -> str:
        """The file name on a storage."""
        return f"pvecri-sandbox_{hashlib.sha256(self.tar).hexdigest()[:12]}_{self.arch}.tar.gz"

    def archive(self) -> bytes:
        """The file's content. Takes some 60 ms: call it in a thread."""
        return gzip.compress(self.tar, compresslevel=6, mtime=0)  # a timestamp would differ in each build


def sandbox_template() -> SandboxTemplate:
    """Build the template from this node's busybox.

    Reads some 2 MB: call it in a thread. FailedPrecondition names the Debian package if it is not installed or not
    static.
    """
    return build(find_static("busybox", BUSYBOX_PACKAGE))


def find_static(program: str, package: str) -> bytes:
    """The content of a static program; FailedPrecondition names its package."""
    path = shutil.which(program, path="/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
    if path is None:
        raise FailedPrecondition(f"the sandbox template needs {program}: install the package {package}")
    content = Path(path).read_bytes()
    if not is_static(content):
        raise FailedPrecondition(
            f"the sandbox template needs a static {program}, {path} is not: install {package}"
        )
    return content


def build(busybox: bytes) -> SandboxTemplate:
    """The template of a static busybox. Reproducible and pure."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for entry, content in sorted(_entries(busybox), key=_name):  # a fixed order, directories first
            tar.addfile(entry, io.BytesIO(content))
    return SandboxTemplate(arch=elf_architecture(busybox), tar=buffer.getvalue())


def is_static(program: bytes) -> bool:
    """Whether an ELF program needs no interpreter (ld.so); False if it is not an ELF file."""
    try:
        return _PT_INTERP not in set(_segment_types(program))
    except (ValueError, struct.error):
        return False


def elf_architecture(program: bytes) -> str:
    """Proxmox's name of an ELF program's architecture; FailedPrecondition if it has none."""
    machine = struct.unpack_from("<H", program, 18)[0] if program[:4] == b"\x7fELF" else 0
    if machine not in _ELF_MACHINES:
        raise FailedPrecondition(f"the sandbox template cannot be built for ELF machine {machine}")
    return _ELF_MACHINES[machine]


def _segment_types(program: bytes) -> Iterator[int]:
    """The `p_type` of each program header (elf(5)). All of Proxmox's architectures are little-endian."""
    if program[:4] != b"\x7fELF" or program[5:6] != b"\x01":
        raise ValueError("not a little-endian ELF file")
    wide = program[4] == 2  # ELFCLASS64
    # e_phoff; then e_phentsize and e_phnum.
    offset = struct.unpack_from("<Q", program, 32)[0] if wide else struct.unpack_from("<I", program, 28)[0]
    size, count = struct.unpack_from("<HH", program, 54 if wide else 42)
    for index in range(count):
        yield struct.unpack_from("<I", program, offset + index * size)[0]


def _entries(busybox: bytes) -> Iterator[tuple[tarfile.TarInfo, bytes]]:
    for name, mode in DIRECTORIES.items():
        yield _entry(name, tarfile.DIRTYPE, mode), b""
    for name, content in FILES.items():
        yield _entry(name, tarfile.REGTYPE, 0o644, len(content)), content
    for name, content in (("bin/busybox", busybox), ("sbin/init", INIT), ("sbin/shutdown", SHUTDOWN)):
        yield _entry(name, tarfile.REGTYPE, 0o755, len(content)), content
    for applet in APPLETS:
        yield _entry(f"bin/{applet}", tarfile.SYMTYPE, 0o777, target="busybox"), b""
    yield _entry("sbin/linuxrc", tarfile.SYMTYPE, 0o777, target="/bin/busybox"), b""
    yield _entry(SHUTDOWN_PIPE, tarfile.FIFOTYPE, 0o600), b""


def _entry(name: str, kind: bytes, mode: int, size: int = 0, target: str = "") -> tarfile.TarInfo:
    # `mtime` stays 0 and uid and gid too: the same programs make the same archive (decision 0022).
    entry = tarfile.TarInfo(f"./{name}")
    entry.type, entry.mode, entry.size, entry.linkname = kind, mode, size, target
    entry.uname = entry.gname = "root"
    return entry


def _name(entry: tuple[tarfile.TarInfo, bytes]) -> str:
    return entry[0].name
