# SPDX-License-Identifier: Apache-2.0
"""Nothing that an image holds leads to a file of the node."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pvecri.linux.openat2 import open_in_root, read_in_root


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
def test_a_path_means_what_it_means_inside(root: Path, path: str) -> None:
    assert read_in_root(root, path) == "of the image"


@pytest.mark.parametrize(
    "target",
    ["/passwd", "../passwd", "../../passwd", "../../../../../../passwd", "/../passwd", "/etc/../../passwd"],
)
def test_a_link_that_would_lead_out_leads_to_the_root_inside(root: Path, target: str) -> None:
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


def test_what_is_renamed_elsewhere_meanwhile_stops_nobody(root: Path, tmp_path: Path) -> None:
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


def test_a_directory_that_is_a_link_is_followed_inside(root: Path, tmp_path: Path) -> None:
    (root / "out").symlink_to(tmp_path)
    assert read_in_root(root, "/out/passwd") == ""
    (root / "all").symlink_to("/")
    assert read_in_root(root, "/all/all/etc/passwd") == "of the image"


@pytest.mark.parametrize("link", ["/proc/self/root", "/proc/self/cwd"])
def test_a_magic_link_of_the_kernel_is_not_followed(link: str) -> None:
    with pytest.raises(OSError, match=link) as caught:
        open_in_root(Path("/"), f"{link}/etc/passwd")
    assert caught.value.errno == errno.ELOOP


def test_links_in_a_circle_end(root: Path) -> None:
    (root / "one").symlink_to("two")
    (root / "two").symlink_to("one")
    with pytest.raises(OSError, match="one") as caught:
        open_in_root(root, "/one")
    assert caught.value.errno == errno.ELOOP
    assert read_in_root(root, "/one") == ""


def test_a_new_file_is_made_inside(root: Path) -> None:
    (root / "etc/link").symlink_to("../../new")
    fd = open_in_root(root, "etc/link", os.O_WRONLY | os.O_CREAT, 0o600)
    os.close(fd)
    assert (root / "new").is_file()
    assert not (root.parent / "new").exists()


def test_what_is_opened_does_not_pass_to_programs(root: Path) -> None:
    fd = open_in_root(root, "etc/passwd")
    assert not os.get_inheritable(fd)
    os.close(fd)


def test_no_file_descriptor_is_left_open(root: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    read_in_root(root, "/etc/passwd")
    read_in_root(root, "/etc/nothing")
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_file_that_is_not_there_is_told_by_its_path(root: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"/etc/shadow"):
        open_in_root(root, "/etc/shadow")
    assert read_in_root(root, "/etc/shadow") == ""


def test_no_more_is_read_than_the_limit(root: Path) -> None:
    (root / "huge").write_text("x" * 100)
    assert read_in_root(root, "huge", limit=10) == "x" * 10


def test_bytes_that_are_no_text_do_not_stop_the_reader(root: Path) -> None:
    (root / "bytes").write_bytes(b"a\xffb")
    assert read_in_root(root, "bytes") == "a\N{REPLACEMENT CHARACTER}b"
