# SPDX-License-Identifier: Apache-2.0
"""The check for leftovers of a test run finds leftovers."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from support import leaks
from support.netns import own_network_namespace

from pvecri.linux import cgroups, mounts


@contextmanager
def a_mount(directory: Path) -> Iterator[str]:
    mounts.mount("left", directory, "tmpfs")
    yield f"mount {directory}"
    mounts.umount(directory, detach=False)


@contextmanager
def a_process(_: Path) -> Iterator[str]:
    process = subprocess.Popen(["sleep", "1000"])
    yield f"process {process.pid}: sleep 1000"
    process.kill()
    process.wait()


@contextmanager
def a_link(_: Path) -> Iterator[str]:
    with own_network_namespace():
        subprocess.run(["ip", "link", "add", "pvtleft", "type", "bridge"], check=True)
        yield "link pvtleft"


@contextmanager
def a_packet_filter_chain(_: Path) -> Iterator[str]:
    comment = ["-m", "comment", "--comment", 'dnat name: "pvt" id: "left"']
    with own_network_namespace():
        subprocess.run(["iptables", "-t", "nat", "-A", "OUTPUT", *comment], check=True)
        yield 'rule -A OUTPUT -m comment --comment "dnat name: \\"pvt\\" id: \\"left\\""'


@contextmanager
def a_cgroup(_: Path) -> Iterator[str]:
    trees, group = cgroups.detect(), f"/lxc.monitor/{leaks.VMIDS[-1]}"
    trees.make("/lxc.monitor")
    trees.make(group)
    yield f"cgroup {group} with []"
    trees.remove(group)


@contextmanager
def a_loop_device(directory: Path) -> Iterator[str]:
    image = directory / "image"
    image.write_bytes(bytes(1 << 20))
    run = subprocess.run(["losetup", "--find", "--show", str(image)], capture_output=True, text=True, check=True)
    device = run.stdout.strip()
    yield f"loop device {Path(device).name} of {image}"
    subprocess.run(["losetup", "--detach", device], check=True)


@contextmanager
def a_directory(_: Path) -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix=leaks.PREFIX) as path:
        yield f"directory {path}"


@contextmanager
def a_shared_memory_segment(_: Path) -> Iterator[str]:
    run = subprocess.run(["ipcmk", "--shmem", "4096"], capture_output=True, text=True, check=True)
    identity = run.stdout.split()[-1]
    yield f"shared memory segment {identity}"
    subprocess.run(["ipcrm", "--shmem-id", identity], check=True)


@pytest.mark.parametrize(
    "leave",
    [
        a_mount,
        a_process,
        a_link,
        a_packet_filter_chain,
        a_cgroup,
        a_loop_device,
        a_directory,
        a_shared_memory_segment,
    ],
)
def test_leak_is_reported_until_it_is_removed(
    leave: Callable[[Path], AbstractContextManager[str]], tmp_path: Path
) -> None:
    before = leaks.before()
    with leave(tmp_path) as left:
        assert left in leaks.of_run([tmp_path], leaks.VMIDS, before)
    assert left not in leaks.of_run([tmp_path], leaks.VMIDS, before)
