# SPDX-License-Identifier: Apache-2.0
"""The device filter of a version 2 cgroup: a BPF program (bpf(2), BPF_PROG_TYPE_CGROUP_DEVICE).

A process may use a device only if the programs of its group and of all groups above allow it. LXC attaches one to
each CT, and what that denies no container below can be allowed.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
from pathlib import Path

from pvecri.linux import libc

_SYS_BPF = {"x86_64": 321, "aarch64": 280}.get(platform.machine(), 280)
BPF_PROG_DETACH = 9
BPF_PROG_GET_FD_BY_ID = 13
BPF_PROG_QUERY = 16
BPF_CGROUP_DEVICE = 6
_PROGRAMS_MAX = 64  # BPF_CGROUP_MAX_PROGS: the kernel's limit for one group


def bpf(command: int, attributes: bytearray, path: str = "") -> int:
    """bpf(2); `attributes` is a union bpf_attr, which queries write their results to."""
    buffer = (ctypes.c_char * len(attributes)).from_buffer(attributes)
    return libc.syscall(_SYS_BPF, command, ctypes.byref(buffer), ctypes.c_uint(len(attributes)), path=path)


def lift(group: Path) -> int:
    """Detach all device programs of a cgroup; returns how many there were. Idempotent.

    Programs of groups below and above stay in force.
    """
    target = os.open(group, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # A program can be neither changed in place nor overruled by another one: a device is denied if any of them
        # denies it. So the group has no filter afterwards, and its children's decide (decision 0050).
        programs = _attached(target, str(group))
        for program in programs:
            _detach(target, program, str(group))
        return len(programs)
    finally:
        os.close(target)


def _attached(target: int, path: str) -> list[int]:
    """The IDs of the programs that are attached to the group itself."""
    ids = (ctypes.c_uint32 * _PROGRAMS_MAX)()
    # struct { target_fd, attach_type, query_flags, attach_flags; u64 prog_ids; u32 prog_cnt }
    attributes = bytearray(struct.pack("=IIIIQII", target, BPF_CGROUP_DEVICE, 0, 0, ctypes.addressof(ids), 64, 0))
    # query_flags 0: with BPF_F_QUERY_EFFECTIVE it would list the programs of the groups above as well.
    bpf(BPF_PROG_QUERY, attributes, path)
    count: int = struct.unpack_from("=I", attributes, 24)[0]
    return list(ids[:count])


def _detach(target: int, program: int, path: str) -> None:
    fd = bpf(BPF_PROG_GET_FD_BY_ID, bytearray(struct.pack("=III", program, 0, 0)), path)
    try:
        # struct { target_fd, attach_bpf_fd, attach_type, attach_flags }
        bpf(BPF_PROG_DETACH, bytearray(struct.pack("=IIII", target, fd, BPF_CGROUP_DEVICE, 0)), path)
    finally:
        os.close(fd)
