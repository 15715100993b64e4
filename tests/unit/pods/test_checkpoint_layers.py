# SPDX-License-Identifier: Apache-2.0
"""What a container has written and removed, as a checkpoint's archive tells it."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import tarfile
import threading
from pathlib import Path

import pytest

from pvecri.pods.container.layer_archive import pack_layer


@pytest.fixture
def upper(tmp_path: Path) -> Path:
    """An overlay's upper directory."""
    directory = tmp_path / "upper"
    directory.mkdir()
    return directory


def whiteout(path: Path) -> None:
    """What overlayfs puts in the place of a file of a lower layer that was removed; the kernel lets anyone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    os.mknod(path, stat.S_IFCHR, os.makedev(0, 0))


def test_written_files_are_packed_unchanged(upper: Path, tmp_path: Path) -> None:
    (upper / "etc").mkdir(mode=0o750)
    (upper / "etc/passwd").write_text("root:x:0:0::/:\n")
    (upper / "etc/passwd").chmod(0o604)
    (upper / "etc/link").symlink_to("../passwd")
    assert pack_layer(upper, tmp_path / "diff.tar") == []
    with tarfile.open(tmp_path / "diff.tar") as tar:
        packed = {member.name: (member.type, member.mode & 0o777) for member in tar if member.name != "./etc/link"}
        assert tar.getmember("./etc/link").linkname == "../passwd"
    assert packed == {
        ".": (tarfile.DIRTYPE, stat.S_IMODE(upper.stat().st_mode)),
        "./etc": (tarfile.DIRTYPE, 0o750),
        "./etc/passwd": (tarfile.REGTYPE, 0o604),
    }


def test_whiteouts_are_returned_as_paths_and_not_packed(upper: Path, tmp_path: Path) -> None:
    whiteout(upper / "etc/motd")
    whiteout(upper / "init")
    assert sorted(pack_layer(upper, tmp_path / "diff.tar")) == ["/etc/motd", "/init"]
    with tarfile.open(tmp_path / "diff.tar") as tar:
        assert sorted(tar.getnames()) == [".", "./etc"]


def test_long_unicode_names_are_preserved(upper: Path, tmp_path: Path) -> None:
    name = "ü" * 120
    (upper / name).write_text("x")
    pack_layer(upper, tmp_path / "diff.tar")
    with tarfile.open(tmp_path / "diff.tar") as tar:
        assert f"./{name}" in tar.getnames()


def test_unchanged_container_has_an_empty_layer(upper: Path, tmp_path: Path) -> None:
    assert pack_layer(upper, tmp_path / "diff.tar") == []
    with tarfile.open(tmp_path / "diff.tar") as tar:
        assert tar.getnames() == ["."]


def test_hard_links_devices_and_fifos_are_packed_and_sockets_are_not(upper: Path, tmp_path: Path) -> None:
    (upper / "one").write_text("text")
    (upper / "two").hardlink_to(upper / "one")
    os.mkfifo(upper / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(upper / "socket"))
    pack_layer(upper, tmp_path / "diff.tar")
    with tarfile.open(tmp_path / "diff.tar") as tar:
        packed = {member.name: (member.type, member.linkname, member.size) for member in tar}
    assert packed.pop(".")[0] == tarfile.DIRTYPE
    assert packed == {
        "./one": (tarfile.REGTYPE, "", 4),
        "./two": (tarfile.LNKTYPE, "./one", 0),
        "./fifo": (tarfile.FIFOTYPE, "", 0),
    }


def test_directories_deeper_than_pythons_stack_are_packed(upper: Path, tmp_path: Path) -> None:
    deep = "/".join(["d"] * 1500)
    subprocess.run(["mkdir", "-p", upper / deep], check=True)
    try:
        pack_layer(upper, tmp_path / "diff.tar")
    finally:
        subprocess.run(["rm", "-r", upper / "d"], check=True)  # pytest's own removal recurses
    with tarfile.open(tmp_path / "diff.tar") as tar:
        assert f"./{deep}" in tar.getnames()


def test_directory_swapped_for_a_symlink_does_not_lead_out(upper: Path, tmp_path: Path) -> None:
    node = tmp_path / "node"
    node.mkdir()
    (node / "secret").write_text("of the node")
    (upper / "data").mkdir()
    (upper / "data/own").write_text("of the container")
    (upper / "link").symlink_to(node)
    ended = threading.Event()

    def swap() -> None:
        while not ended.is_set():
            (upper / "data").rename(upper / "aside")
            (upper / "link").rename(upper / "data")
            (upper / "data").rename(upper / "link")
            (upper / "aside").rename(upper / "data")

    swapping = threading.Thread(target=swap)
    swapping.start()
    try:
        for _ in range(2000):
            pack_layer(upper, tmp_path / "diff.tar")
            assert b"of the node" not in (tmp_path / "diff.tar").read_bytes()
    finally:
        ended.set()
        swapping.join()
