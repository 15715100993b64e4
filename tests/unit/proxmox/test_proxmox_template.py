# SPDX-License-Identifier: Apache-2.0
"""The sandbox template is the same for the same programs, and holds what a CT needs."""

from __future__ import annotations

import gzip
import hashlib
import struct
import tarfile
from io import BytesIO

import pytest

from pvecri.errors import FailedPrecondition
from pvecri.proxmox import template


def elf(machine: int = 62, segments: tuple[int, ...] = (1,), content: bytes = b"") -> bytes:
    """A 64-bit little-endian ELF file with these program header types."""
    header = b"\x7fELF\x02\x01\x01".ljust(16, b"\0") + struct.pack("<HH", 2, machine)
    header = header.ljust(32, b"\0") + struct.pack("<Q", 64)
    header = header.ljust(54, b"\0") + struct.pack("<HH", 56, len(segments))
    return (
        header.ljust(64, b"\0") + b"".join(struct.pack("<I", each).ljust(56, b"\0") for each in segments) + content
    )


@pytest.fixture
def archive() -> tarfile.TarFile:
    built = template.build(elf(content=b"busybox"))
    return tarfile.open(fileobj=BytesIO(built.archive()))


def test_archive_is_reproducible() -> None:
    first = template.build(elf())
    second = template.build(elf())

    assert first.archive() == second.archive()
    assert first.name == second.name


def test_the_name_carries_a_hash_of_the_content() -> None:
    built = template.build(elf())
    other = template.build(elf(content=b"new"))

    digest = hashlib.sha256(gzip.decompress(built.archive())).hexdigest()
    assert built.name == f"pvecri-sandbox_{digest[:12]}_amd64.tar.gz"
    assert other.name != built.name


def test_init_is_busyboxs_and_runs_a_script_at_a_shutdown(archive: tarfile.TarFile) -> None:
    init = archive.extractfile("./sbin/init")

    assert init is not None
    assert init.read() == b"#!/bin/sh\nexec /sbin/linuxrc\n"
    assert archive.getmember("./sbin/init").mode == archive.getmember("./sbin/shutdown").mode == 0o755
    assert archive.getmember("./bin/sh").linkname == "busybox"
    assert archive.getmember("./sbin/linuxrc").linkname == "/bin/busybox"
    assert archive.getmember("./run/shutdown").isfifo()


def test_there_are_mountpoints_and_a_root_user(archive: tarfile.TarFile) -> None:
    names = archive.getnames()
    passwd = archive.extractfile("./etc/passwd")

    assert {"./dev", "./proc", "./sys", "./tmp", "./run"} <= set(names)
    assert names == sorted(names)
    assert passwd is not None
    assert passwd.read().startswith(b"root:x:0:0:")


def test_entries_belong_to_root_and_have_no_mtime(archive: tarfile.TarFile) -> None:
    assert {(entry.uid, entry.gid, entry.mtime) for entry in archive} == {(0, 0, 0)}


@pytest.mark.parametrize(
    ("program", "static"),
    [
        (elf(), True),
        (elf(segments=(1, 2)), True),
        (elf(segments=(1, 3)), False),
        (b"#!/bin/sh", False),
        (b"\x7fELF", False),
    ],
)
def test_a_program_with_an_interpreter_is_not_static(program: bytes, *, static: bool) -> None:
    assert template.is_static(program) is static


def test_error_for_a_missing_program_names_its_package() -> None:
    with pytest.raises(FailedPrecondition, match="needs no-such-program: install the package some-package"):
        template.find_static("no-such-program", "some-package")


def test_a_dynamic_program_is_refused() -> None:
    with pytest.raises(FailedPrecondition, match="needs a static ls"):
        template.find_static("ls", "some-package")


@pytest.mark.parametrize(("machine", "arch"), [(62, "amd64"), (183, "arm64"), (3, "i386")])
def test_the_architecture_is_the_programs(machine: int, arch: str) -> None:
    assert template.build(elf(machine)).arch == arch


def test_an_unknown_architecture_is_refused() -> None:
    with pytest.raises(FailedPrecondition, match="ELF machine 1"):
        template.elf_architecture(elf(machine=1))
