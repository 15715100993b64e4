# SPDX-License-Identifier: Apache-2.0
"""Lifting the device filter that LXC puts on a CT's version 2 cgroup."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from pvecri.linux import cgroups, device_filter

BPF_PROG_LOAD = 5
BPF_PROG_ATTACH = 8
BPF_PROG_TYPE_CGROUP_DEVICE = 15
BPF_F_ALLOW_MULTI = 2
DENY_ALL = struct.pack("=BBhi", 0xB7, 0, 0, 0) + struct.pack("=BBhi", 0x95, 0, 0, 0)  # r0 = 0; exit


@pytest.fixture
def group() -> Iterator[Path]:
    """An empty group in the unified tree, which hybrid machines have too."""
    tree = cgroups.detect().v2
    if tree is None:
        pytest.skip("this machine has no version 2 cgroup tree")
    directory = tree / f"pvecri-test-{os.getpid()}"
    directory.mkdir()
    yield directory
    directory.rmdir()


def attach_program(group: Path, instructions: bytes) -> None:
    code, licence = ctypes.create_string_buffer(instructions), ctypes.create_string_buffer(b"GPL")
    load = struct.pack(
        "=IIQQIIQI", BPF_PROG_TYPE_CGROUP_DEVICE, len(instructions) // 8, ctypes.addressof(code),
        ctypes.addressof(licence), 0, 0, 0, 0,
    )  # fmt: skip
    try:
        program = device_filter.bpf(BPF_PROG_LOAD, bytearray(load))
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.ENOSYS, errno.EPERM):
            pytest.skip(f"this kernel does not load device programs: {error.strerror}")
        raise
    target = os.open(group, os.O_RDONLY | os.O_DIRECTORY)
    try:
        request = struct.pack("=IIII", target, program, device_filter.BPF_CGROUP_DEVICE, BPF_F_ALLOW_MULTI)
        device_filter.bpf(BPF_PROG_ATTACH, bytearray(request))
    finally:
        os.close(target)
        os.close(program)


def can_open_null_inside(group: Path) -> bool:
    child = os.fork()
    if child == 0:
        (group / "cgroup.procs").write_text("0")
        try:
            os.close(os.open("/dev/null", os.O_RDONLY))
        except PermissionError:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_removed_filter_allows_devices(group: Path) -> None:
    attach_program(group, DENY_ALL)
    assert not can_open_null_inside(group)

    assert device_filter.lift(group) == 1

    assert can_open_null_inside(group)


def test_cgroup_without_a_filter_is_unchanged(group: Path) -> None:
    assert device_filter.lift(group) == 0
