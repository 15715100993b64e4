# SPDX-License-Identifier: Apache-2.0
"""Paths in an untrusted root never resolve outside of it."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pvecri.linux.openat2 import open_in_root, open_without_links, read_in_root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A container's root beside a file of the node."""
    (tmp_path / "passwd").write_text("of the node")
    directory = tmp_path / "root"
    (directory / "etc").mkdir(parents=True)
    (directory / "etc/passwd").write_text("of the image")
    (directory / "passwd").write_text("at the image's root")
    return directory


@pytest.mark.parametrize(
    "path", ["etc/passwd", "/etc/passwd", "etc/../etc/passwd", "../../etc/passwd", "//etc//passwd"]
)
def test_paths_resolve_below_the_root(root: Path, path: str) -> None:
    assert read_in_root(root, path) == "of the image"


@pytest.mark.parametrize(
    "target",
    ["/passwd", "../passwd", "../../passwd", "../../../../../../passwd", "/../passwd", "/etc/../../passwd"],
)
def test_escaping_symlinks_resolve_below_the_root(root: Path, target: str) -> None:
    (root / "etc/link").symlink_to(target)
    assert read_in_root(root, "/etc/link") == "at the image's root"


RESTLESS = """
import os
open("one", "w").close()
print("ready", flush=True)
while True:
    os.rename("one", "two")
    os.rename("two", "one")
"""


def test_concurrent_renames_are_retried(root: Path, tmp_path: Path) -> None:
    (root / "etc/link").symlink_to("../" * 100 + "passwd")
    with subprocess.Popen(
        [sys.executable, "-S", "-c", RESTLESS], cwd=tmp_path, stdout=subprocess.PIPE
    ) as restless:
        assert restless.stdout is not None
        restless.stdout.readline()
        try:
            for _ in range(3000):
                os.close(open_in_root(root, "/etc/link"))
        finally:
            restless.kill()


def test_symlinked_directory_resolves_below_the_root(root: Path, tmp_path: Path) -> None:
    (root / "out").symlink_to(tmp_path)
    assert read_in_root(root, "/out/passwd") == ""
    (root / "all").symlink_to("/")
    assert read_in_root(root, "/all/all/etc/passwd") == "of the image"


@pytest.mark.parametrize("link", ["/proc/self/root", "/proc/self/cwd"])
def test_magic_links_are_refused(link: str) -> None:
    with pytest.raises(OSError, match=link) as caught:
        open_in_root(Path("/"), f"{link}/etc/passwd")
    assert caught.value.errno == errno.ELOOP


def test_symlink_loop_fails(root: Path) -> None:
    (root / "one").symlink_to("two")
    (root / "two").symlink_to("one")
    with pytest.raises(OSError, match="one") as caught:
        open_in_root(root, "/one")
    assert caught.value.errno == errno.ELOOP
    assert read_in_root(root, "/one") == ""


def test_new_file_is_created_below_the_root(root: Path) -> None:
    (root / "etc/link").symlink_to("../../new")
    fd = open_in_root(root, "etc/link", os.O_WRONLY | os.O_CREAT, 0o600)
    os.close(fd)
    assert (root / "new").is_file()
    assert not (root.parent / "new").exists()


def test_descriptor_is_close_on_exec(root: Path) -> None:
    fd = open_in_root(root, "etc/passwd")
    assert not os.get_inheritable(fd)
    os.close(fd)


def test_no_descriptor_leaks(root: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    read_in_root(root, "/etc/passwd")
    read_in_root(root, "/etc/nothing")
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_missing_file_error_has_the_path(root: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"/etc/shadow"):
        open_in_root(root, "/etc/shadow")
    assert read_in_root(root, "/etc/shadow") == ""


def test_read_in_root_honours_the_limit(root: Path) -> None:
    (root / "huge").write_text("x" * 100)
    assert read_in_root(root, "huge", limit=10) == "x" * 10


def test_read_in_root_replaces_invalid_utf8(root: Path) -> None:
    (root / "bytes").write_bytes(b"a\xffb")
    assert read_in_root(root, "bytes") == "a\N{REPLACEMENT CHARACTER}b"


@pytest.mark.parametrize(("path", "error"), [("etc/link/passwd", errno.ELOOP), ("../passwd", errno.EXDEV)])
def test_paths_with_links_or_outside_are_refused(root: Path, path: str, error: int) -> None:
    (root / "etc/link").symlink_to(".")
    base = os.open(root, os.O_PATH)
    try:
        os.close(open_without_links(base, "etc/passwd"))
        with pytest.raises(OSError, match=path) as raised:
            open_without_links(base, path)
    finally:
        os.close(base)
    assert raised.value.errno == error
