# SPDX-License-Identifier: Apache-2.0
"""Layers as the helper unpacks them, hostile ones included. Needs root."""

from __future__ import annotations

import os
import stat
import struct
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from support.image_builder import LayerBuilder, digest_of, plain, zstd

from pvecri.images.manifest import BadImage
from pvecri.images.unpacker import Job, Unpacked, unpacker

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="unpacking needs root")

CAPABILITY = struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0)  # cap_net_bind_service=ep, VFS_CAP_REVISION_2


def jobs_for(area: Path, *blobs: bytes, max_size: int = 1 << 30, max_entries: int = 10_000) -> list[Job]:
    jobs = []
    for number, blob in enumerate(blobs):
        (area / f"blob{number}").write_bytes(blob)
        (area / f"layer{number}").mkdir()
        place, directory = str(area / f"blob{number}"), str(area / f"layer{number}")
        jobs.append(Job(blob=place, directory=directory, max_size=max_size, max_entries=max_entries))
    return jobs


def tar(file: Path, style: str) -> bytes:
    """An archive of a sparse file as GNU tar writes it."""
    command = ["tar", "--create", "--sparse", f"--format={style}", "-C", str(file.parent), file.name]
    return subprocess.run(command, capture_output=True, check=True).stdout


async def unpack(area: Path, *blobs: bytes) -> list[Unpacked]:
    async with unpacker() as helper:
        return await helper.run(jobs_for(area, *blobs))


async def unpacked(area: Path, layer: LayerBuilder) -> Path:
    await unpack(area, layer.build())
    return area / "layer0"


async def test_owner_mode_and_time_are_the_archives(tmp_path: Path) -> None:
    builder = LayerBuilder().directory("d", mode=0o1777, mtime=5).file("d/f", "x", mode=0o4711, uid=7, gid=8)
    builder.file("late", mtime=0, pax_headers={"mtime": "1234567890.5"})
    top = await unpacked(tmp_path, builder)
    found = (top / "d/f").stat()
    assert (found.st_mode, found.st_uid, found.st_gid) == (stat.S_IFREG | 0o4711, 7, 8)
    assert ((top / "d").stat().st_mode, (top / "d").stat().st_mtime) == (stat.S_IFDIR | 0o1777, 5)
    assert (top / "late").stat().st_mtime_ns == 1_234_567_890_500_000_000


async def test_links_devices_and_pipes_are_made(tmp_path: Path) -> None:
    builder = LayerBuilder().file("f", "x").hardlink("h", "f").symlink("s", "/etc/passwd", uid=3)
    top = await unpacked(tmp_path, builder.device("dev", 1, 3, mode=0o666).fifo("pipe"))
    assert (top / "h").samefile(top / "f")
    assert ((top / "s").readlink(), (top / "s").lstat().st_uid) == (Path("/etc/passwd"), 3)
    assert (top / "dev").stat().st_rdev == os.makedev(1, 3)
    assert stat.S_ISFIFO((top / "pipe").stat().st_mode)


async def test_capabilities_and_user_attributes_are_kept_and_overlayfs_own_are_not(tmp_path: Path) -> None:
    attributes = {
        "SCHILY.xattr.security.capability": CAPABILITY.decode("utf-8", "surrogateescape"),
        "SCHILY.xattr.user.note": "hello",
        "SCHILY.xattr.user.overlay.opaque": "y",
        "SCHILY.xattr.trusted.overlay.redirect": "/other",
        "SCHILY.xattr.security.selinux": "label",
    }
    top = await unpacked(tmp_path, LayerBuilder().file("f", uid=5, pax_headers=attributes))
    found = {name: os.getxattr(top / "f", name) for name in os.listxattr(top / "f")}
    assert found == {"security.capability": CAPABILITY, "user.note": b"hello"}


async def test_whiteouts_become_what_overlayfs_knows(tmp_path: Path) -> None:
    builder = LayerBuilder().directory("d").file("d/.wh..wh..opq").file("d/new").file("x/.wh.gone")
    top = await unpacked(tmp_path, builder.directory(".wh..wh.plnk"))
    assert os.getxattr(top / "d", "trusted.overlay.opaque") == b"y"
    gone = (top / "x/gone").stat()
    assert (stat.S_ISCHR(gone.st_mode), gone.st_rdev) == (True, 0)
    assert sorted(path.name for path in top.iterdir()) == ["d", "x"]


@pytest.mark.parametrize("whiteout_first", [True, False])
async def test_a_directory_that_replaces_a_removed_one_hides_it(tmp_path: Path, whiteout_first: bool) -> None:
    builder = LayerBuilder()
    if whiteout_first:
        builder.file(".wh.d")
    builder.directory("d").file("d/new")
    if not whiteout_first:
        builder.file(".wh.d")
    top = await unpacked(tmp_path, builder)
    assert os.getxattr(top / "d", "trusted.overlay.opaque") == b"y"
    assert (top / "d/new").exists()


async def test_a_later_member_takes_the_place_of_an_earlier_one(tmp_path: Path) -> None:
    builder = LayerBuilder().file("a", "1").file("a", "2").directory("b").file("b/x").symlink("b", "a")
    top = await unpacked(tmp_path, builder.directory("c").file("c/x").directory("c", mode=0o700))
    assert (top / "a").read_text() == (top / "b").read_text() == "2"
    assert (top / "c/x").exists()
    assert (top / "c").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("style", ["gnu", "posix"])
async def test_a_sparse_file_keeps_its_holes(tmp_path: Path, style: str) -> None:
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(50 << 20)
        file.seek(20 << 20)
        file.write(b"in the middle")
    await unpack(tmp_path, tar(tmp_path / "sparse", style))
    found = tmp_path / "layer0/sparse"
    assert found.read_bytes() == (tmp_path / "sparse").read_bytes()
    assert found.stat().st_blocks * 512 < 1 << 20


async def test_what_a_layer_takes_is_counted(tmp_path: Path) -> None:
    data = LayerBuilder().directory("d").file("d/f", "x" * 5000).hardlink("h", "d/f").build()
    (result,) = await unpack(tmp_path, data)
    assert result == Unpacked(diff_id=digest_of(data), bytes=4 * 4096, inodes=3, implicit=(".",))


async def test_directories_that_the_archive_leaves_out_are_told(tmp_path: Path) -> None:
    names = [f"made/up/{number}-{'x' * 100}/f" for number in range(1000)]
    builder = LayerBuilder().directory(".")
    for name in names:
        builder.file(name)
    (result,) = await unpack(tmp_path, builder.directory("made").build())
    assert result.implicit == ("made/up", *sorted(name.removesuffix("/f") for name in names))


@pytest.mark.parametrize("compress", [plain, zstd])
async def test_layers_are_unpacked_in_the_order_they_are_asked_for(
    tmp_path: Path, compress: Callable[[bytes], bytes]
) -> None:
    layers = [LayerBuilder().file(f"f{number}", os.urandom(1000 * number)).build() for number in range(7)]
    results = await unpack(tmp_path, *map(compress, layers))
    assert [result.diff_id for result in results] == [digest_of(layer) for layer in layers]
    assert all((tmp_path / f"layer{number}/f{number}").exists() for number in range(7))


# -- hostile layers --------------------------------------------------------------------------------------------


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A file beside the layer that must stay as it is."""
    path = tmp_path / "outside"
    path.write_text("untouched")
    return path


@pytest.mark.parametrize("name", ["../outside", "a/../../outside", "/../../outside"])
async def test_dots_do_not_lead_out(tmp_path: Path, outside: Path, name: str) -> None:
    top = await unpacked(tmp_path, LayerBuilder().file(name, "evil"))
    assert outside.read_text() == "untouched"
    assert (top / "outside").read_text() == "evil"


async def test_an_absolute_name_lies_below_the_layer(tmp_path: Path, outside: Path) -> None:
    top = await unpacked(tmp_path, LayerBuilder().file(str(outside), "evil"))
    assert outside.read_text() == "untouched"
    assert (top / str(outside).lstrip("/")).read_text() == "evil"


@pytest.mark.parametrize("target", ["..", "../..", "/", "{outside}"])
async def test_symlinks_do_not_lead_out(tmp_path: Path, outside: Path, target: str) -> None:
    link = target.format(outside=outside.parent)
    builder = LayerBuilder().directory(str(outside.parent).lstrip("/"))
    await unpacked(tmp_path, builder.symlink("link", link).file("link/outside", "evil").file("link/.wh.blob0"))
    assert outside.read_text() == "untouched"
    assert stat.S_ISREG((tmp_path / "blob0").stat().st_mode)


async def test_a_file_over_a_symlink_replaces_the_link(tmp_path: Path, outside: Path) -> None:
    top = await unpacked(tmp_path, LayerBuilder().symlink("link", str(outside)).file("link", "evil"))
    assert outside.read_text() == "untouched"
    assert not (top / "link").is_symlink()


@pytest.mark.parametrize("target", ["../outside", "/etc/passwd", "missing"])
async def test_hard_links_do_not_lead_out(tmp_path: Path, outside: Path, target: str) -> None:
    with pytest.raises(BadImage, match="No such file"):
        await unpacked(tmp_path, LayerBuilder().hardlink("link", target))
    assert outside.stat().st_nlink == 1


async def test_too_many_entries_are_refused_by_the_settings_name(tmp_path: Path) -> None:
    builder = LayerBuilder()
    for number in range(11):
        builder.file(f"f{number}")
    async with unpacker() as helper:
        with pytest.raises(BadImage, match=r"more than 10 entries \(images\.max_layer_entries\)"):
            await helper.run(jobs_for(tmp_path, builder.build(), max_entries=10))


async def test_a_compression_bomb_is_refused_before_it_fills_the_disk(tmp_path: Path) -> None:
    bomb = zstd(LayerBuilder().file("f", b"\0" * (64 << 20)).build())
    async with unpacker() as helper:
        with pytest.raises(BadImage, match=r"images\.max_layer_size"):
            await helper.run(jobs_for(tmp_path, bomb, max_size=1 << 20))
    assert not (tmp_path / "layer0/f").exists()


async def test_a_sparse_file_larger_than_allowed_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(BadImage, match=r"images\.max_layer_size"):
        await unpack(tmp_path, tar(tmp_path / "huge", "gnu"))


@pytest.mark.parametrize(
    ("builder", "problem"),
    [
        (LayerBuilder().file("f/.wh."), "names nothing"),
        (LayerBuilder().file("f/.wh..."), "names nothing"),
        (LayerBuilder().file("."), "root is not a directory"),
        (LayerBuilder().add("f", b"Z"), "unknown type"),
        (LayerBuilder().file("f").file("f/below"), "Not a directory"),
        (LayerBuilder().file("n" * 300), "File name too long"),
        (LayerBuilder().file("f", pax_headers={"uid": "-2"}), "owner"),
    ],
)
async def test_what_makes_no_sense_is_refused(tmp_path: Path, builder: LayerBuilder, problem: str) -> None:
    with pytest.raises(BadImage, match=problem):
        await unpacked(tmp_path, builder)


async def test_thousands_of_nested_headers_are_refused(tmp_path: Path) -> None:
    header = tarfile.TarInfo("././@LongLink")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 2
    block = header.tobuf(tarfile.GNU_FORMAT) + b"a\0".ljust(512, b"\0")
    with pytest.raises(BadImage, match="not a tar archive"):
        await unpack(tmp_path, block * 5000)


async def test_the_first_bad_layer_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadImage, match="layer blob1 cannot be unpacked: not a tar archive"):
        await unpack(tmp_path, LayerBuilder().file("f").build(), b"x" * 5000)
