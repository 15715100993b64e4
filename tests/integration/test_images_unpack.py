# SPDX-License-Identifier: Apache-2.0
"""Extracting layers, hostile ones included. Needs root."""

from __future__ import annotations

import asyncio
import os
import stat
import struct
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from support.image_builder import LayerBuilder, digest_of, gzipped, plain, zstd

from pvecri.concurrency import all_of
from pvecri.images.manifest import BadImage
from pvecri.images.unpacking.client import Job, Unpacked, Unpacker, unpacker

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="unpacking needs root")

CAPABILITY = struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0)  # cap_net_bind_service=ep, VFS_CAP_REVISION_2


def jobs_for(area: Path, *blobs: bytes, max_size: int = 1 << 30, max_entries: int = 10_000) -> list[Job]:
    jobs = []
    area.mkdir(exist_ok=True)
    for number, blob in enumerate(blobs):
        (area / f"blob{number}").write_bytes(blob)
        (area / f"layer{number}").mkdir()
        directory = str(area / f"layer{number}")
        jobs.append(Job(layer=f"blob{number}", directory=directory, max_size=max_size, max_entries=max_entries))
    return jobs


async def do(worker: Unpacker, area: Path, *jobs: Job) -> list[Unpacked]:
    """Run all jobs concurrently."""
    return await all_of(worker.run(job, os.open(area / job.layer, os.O_RDONLY)) for job in jobs)


def tar(file: Path, style: str) -> bytes:
    """An archive of a sparse file as GNU tar writes it."""
    command = ["tar", "--create", "--sparse", f"--format={style}", "-C", str(file.parent), file.name]
    return subprocess.run(command, capture_output=True, check=True).stdout


async def unpack(area: Path, *blobs: bytes) -> list[Unpacked]:
    async with unpacker() as worker:
        return await do(worker, area, *jobs_for(area, *blobs))


async def unpacked(area: Path, layer: LayerBuilder) -> Path:
    await unpack(area, layer.build())
    return area / "layer0"


async def test_owner_mode_and_time_are_applied(tmp_path: Path) -> None:
    builder = LayerBuilder().directory("d", mode=0o1777, mtime=5).file("d/f", "x", mode=0o4711, uid=7, gid=8)
    builder.file("late", mtime=0, pax_headers={"mtime": "1234567890.5"})
    top = await unpacked(tmp_path, builder)
    found = (top / "d/f").stat()
    assert (found.st_mode, found.st_uid, found.st_gid) == (stat.S_IFREG | 0o4711, 7, 8)
    assert ((top / "d").stat().st_mode, (top / "d").stat().st_mtime) == (stat.S_IFDIR | 0o1777, 5)
    assert (top / "late").stat().st_mtime_ns == 1_234_567_890_500_000_000


async def test_links_devices_and_fifos_are_created(tmp_path: Path) -> None:
    builder = LayerBuilder().file("f", "x").hardlink("h", "f").symlink("s", "/etc/passwd", uid=3)
    top = await unpacked(tmp_path, builder.device("dev", 1, 3, mode=0o666).fifo("pipe"))
    assert (top / "h").samefile(top / "f")
    assert ((top / "s").readlink(), (top / "s").lstat().st_uid) == (Path("/etc/passwd"), 3)
    assert (top / "dev").stat().st_rdev == os.makedev(1, 3)
    assert stat.S_ISFIFO((top / "pipe").stat().st_mode)


async def test_capabilities_and_user_attributes_are_applied_and_overlayfs_attributes_ignored(
    tmp_path: Path,
) -> None:
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


async def test_whiteouts_are_converted_to_overlayfs_form(tmp_path: Path) -> None:
    builder = LayerBuilder().directory("d").file("d/.wh..wh..opq").file("d/new").file("x/.wh.gone")
    top = await unpacked(tmp_path, builder.directory(".wh..wh.plnk"))
    assert os.getxattr(top / "d", "trusted.overlay.opaque") == b"y"
    gone = (top / "x/gone").stat()
    assert (stat.S_ISCHR(gone.st_mode), gone.st_rdev) == (True, 0)
    assert sorted(path.name for path in top.iterdir()) == ["d", "x"]


@pytest.mark.parametrize("whiteout_first", [True, False])
async def test_directory_beside_its_whiteout_is_opaque(tmp_path: Path, whiteout_first: bool) -> None:
    builder = LayerBuilder()
    if whiteout_first:
        builder.file(".wh.d")
    builder.directory("d").file("d/new")
    if not whiteout_first:
        builder.file(".wh.d")
    top = await unpacked(tmp_path, builder)
    assert os.getxattr(top / "d", "trusted.overlay.opaque") == b"y"
    assert (top / "d/new").exists()


async def test_later_member_replaces_an_earlier_one(tmp_path: Path) -> None:
    builder = LayerBuilder().file("a", "1").file("a", "2").directory("b").file("b/x").symlink("b", "a")
    top = await unpacked(tmp_path, builder.directory("c").file("c/x").directory("c", mode=0o700))
    assert (top / "a").read_text() == (top / "b").read_text() == "2"
    assert (top / "c/x").exists()
    assert (top / "c").stat().st_mode & 0o777 == 0o700


def below_links(*links: tuple[str, str]) -> LayerBuilder:
    builder = LayerBuilder()
    for name, target in links:
        builder.symlink(name, target)
    return builder


BELOW_LINKS = {
    "relative": (below_links(("lib", "usr/lib")).file("lib/x"), "usr/lib/x"),
    "absolute": (below_links(("lib", "/usr/lib")).file("lib/x"), "usr/lib/x"),
    "upwards": (below_links(("a/lib", "../../usr/lib")).file("a/lib/x"), "usr/lib/x"),
    "nested": (below_links(("lib", "usr/lib")).file("lib/a/b/x"), "usr/lib/a/b/x"),
    "directory": (below_links(("lib", "usr/lib")).directory("lib/d", mode=0o700), "usr/lib/d"),
    "directory and file": (below_links(("lib", "usr/lib")).directory("lib/d").file("lib/d/x"), "usr/lib/d/x"),
    "symlink": (below_links(("lib", "usr/lib")).symlink("lib/x", "old"), "usr/lib/x"),
    "hard link": (below_links(("lib", "usr/lib")).file("y").hardlink("lib/x", "y"), "usr/lib/x"),
    "hard link to one below": (
        below_links(("lib", "usr/lib")).file("lib/y").hardlink("x", "lib/y"),
        "x",
    ),
    "whiteout": (below_links(("lib", "usr/lib")).file("lib/.wh.x"), "usr/lib/x"),
    "chain": (below_links(("lib", "lib64"), ("lib64", "usr/lib")).file("lib/x"), "usr/lib/x"),
    "target later": (
        below_links(("lib", "usr/lib")).file("lib/x").directory("usr/lib", mode=0o700),
        "usr/lib/x",
    ),
    "device": (below_links(("lib", "usr/lib")).device("lib/x", 1, 3), "usr/lib/x"),
}


@pytest.mark.parametrize("shape", BELOW_LINKS)
async def test_file_below_a_symlink_is_extracted_to_the_links_target(tmp_path: Path, shape: str) -> None:
    """In merged-/usr images `lib` leads to `usr/lib`, which only a lower layer may have."""
    builder, place = BELOW_LINKS[shape]
    (result,) = await unpack(tmp_path, builder.build())
    assert os.path.lexists(tmp_path / "layer0" / place)
    assert ("usr/lib" in result.implicit) == (shape != "target later")


async def test_opaque_mark_below_a_symlink_hides_the_links_target(tmp_path: Path) -> None:
    top = await unpacked(tmp_path, below_links(("lib", "usr/lib")).file("lib/.wh..wh..opq").file("lib/x"))
    assert os.getxattr(top / "usr/lib", "trusted.overlay.opaque") == b"y"
    assert (top / "usr/lib/x").exists()


async def test_whiteout_through_a_symlink_keeps_the_layers_own_file(tmp_path: Path) -> None:
    """`lib/x` and `usr/lib/x` are one file."""
    base = LayerBuilder().directory("usr/lib").file("usr/lib/x", "old").symlink("lib", "usr/lib")
    tree = await stack(tmp_path, base, LayerBuilder().file("lib/x", "new").file("usr/lib/.wh.x"))
    assert (tree / "usr/lib/x").read_text() == "new"


async def test_left_out_directory_over_its_whiteout_is_opaque(tmp_path: Path) -> None:
    top = await unpacked(tmp_path, LayerBuilder().file(".wh.d").file("d/new"))
    assert (top / "d/new").exists()
    assert os.getxattr(top / "d", "trusted.overlay.opaque") == b"y"


async def test_symlink_loop_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadImage, match=r"Too many levels of symbolic links"):
        await unpacked(tmp_path, below_links(("a", "b"), ("b", "a")).file("a/x"))


@pytest.mark.parametrize("style", ["gnu", "posix"])
async def test_sparse_file_keeps_its_holes(tmp_path: Path, style: str) -> None:
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(50 << 20)
        file.seek(20 << 20)
        file.write(b"in the middle")
    await unpack(tmp_path, tar(tmp_path / "sparse", style))
    found = tmp_path / "layer0/sparse"
    assert found.read_bytes() == (tmp_path / "sparse").read_bytes()
    assert found.stat().st_blocks * 512 < 1 << 20


async def test_disk_usage_of_a_layer_is_counted(tmp_path: Path) -> None:
    data = LayerBuilder().directory("d").file("d/f", "x" * 5000).hardlink("h", "d/f").build()
    (result,) = await unpack(tmp_path, data)
    assert result == Unpacked(diff_id=digest_of(data), bytes=4 * 4096, inodes=3, implicit=(".",))


async def test_directories_left_out_of_the_archive_are_reported(tmp_path: Path) -> None:
    names = [f"made/up/{number}-{'x' * 100}/f" for number in range(1000)]
    builder = LayerBuilder().directory(".")
    for name in names:
        builder.file(name)
    (result,) = await unpack(tmp_path, builder.directory("made").build())
    assert result.implicit == ("made/up", *sorted(name.removesuffix("/f") for name in names))


@pytest.mark.parametrize("compress", [plain, zstd])
async def test_results_are_in_the_order_of_the_jobs(tmp_path: Path, compress: Callable[[bytes], bytes]) -> None:
    layers = [LayerBuilder().file(f"f{number}", os.urandom(1000 * number)).build() for number in range(7)]
    results = await unpack(tmp_path, *map(compress, layers))
    assert [result.diff_id for result in results] == [digest_of(layer) for layer in layers]
    assert all((tmp_path / f"layer{number}/f{number}").exists() for number in range(7))


@pytest.mark.parametrize("compress", [plain, gzipped, zstd])
async def test_layer_is_extracted_while_it_arrives_through_a_pipe(
    tmp_path: Path, compress: Callable[[bytes], bytes]
) -> None:
    archive = LayerBuilder().file("f", os.urandom(300_000)).build()
    (job,) = jobs_for(tmp_path, compress(archive))
    receive, send = os.pipe()
    writing = asyncio.to_thread(write_slowly, send, compress(archive))
    async with unpacker() as worker:
        result, _ = await asyncio.gather(worker.run(job, receive), writing)
    assert result.diff_id == digest_of(archive)


def write_slowly(fd: int, data: bytes) -> None:
    with os.fdopen(fd, "wb", buffering=0) as pipe:
        for start in range(0, len(data), 1000):
            pipe.write(data[start : start + 1000])


async def test_cancelled_job_no_longer_writes_to_its_directory(tmp_path: Path) -> None:
    (job,) = jobs_for(tmp_path, b"")
    receive, send = os.pipe()
    async with unpacker() as worker:
        work = asyncio.ensure_future(worker.run(job, receive))
        os.write(send, LayerBuilder().file("f", b"x" * 1000).build()[:1024])
        while not (tmp_path / "layer0/f").exists() and not work.done():
            await asyncio.sleep(0)
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
        with pytest.raises(BrokenPipeError):
            os.write(send, b"x")
        assert (await do(worker, tmp_path, *jobs_for(tmp_path / "other", LayerBuilder().build()))) != []
    os.close(send)


# -- layers applied to those below -----------------------------------------------------------------------------


async def stack(area: Path, *layers: LayerBuilder) -> Path:
    """Apply all layers to one directory, in order."""
    top = area / "tree"
    top.mkdir(exist_ok=True)
    async with unpacker() as worker:
        for number, layer in enumerate(layers):
            (area / f"stacked{number}").write_bytes(layer.build())
            job = Job(
                layer=f"stacked{number}", directory=str(top), max_size=1 << 30, max_entries=1000, stacked=True
            )
            await do(worker, area, job)
    return top


def names(top: Path) -> list[str]:
    return sorted(str(path.relative_to(top)) for path in top.rglob("*"))


@pytest.mark.parametrize("last", [True, False])
async def test_whiteout_removes_lower_files_and_not_those_of_its_own_layer(tmp_path: Path, last: bool) -> None:
    base = LayerBuilder().directory("d").file("d/old").directory("d/sub").file("d/sub/old").file("f", "old")
    top = LayerBuilder()
    if not last:
        top.file(".wh.d").file(".wh.f").file(".wh.none/.wh.none")
    top.directory("d").file("d/new").file("d/sub/new").file("f", "new")
    if last:
        top.file(".wh.d").file(".wh.f").file(".wh.none")
    tree = await stack(tmp_path, base, top)
    assert [name for name in names(tree) if "none" not in name] == ["d", "d/new", "d/sub", "d/sub/new", "f"]
    assert (tree / "f").read_text() == "new"


async def test_opaque_directory_removes_lower_files_at_any_depth(tmp_path: Path) -> None:
    base = LayerBuilder().file("d/old").file("d/sub/old").file("d/sub/deep/old").file("other")
    top = LayerBuilder().file("d/sub/new").file("d/.wh..wh..opq")
    assert names(await stack(tmp_path, base, top)) == ["d", "d/sub", "d/sub/new", "other"]


async def test_repeated_directory_has_the_attributes_of_the_upper_layer_only(tmp_path: Path) -> None:
    base = LayerBuilder().directory("d", pax_headers={"SCHILY.xattr.user.old": "1"}, uid=5).file("d/f")
    top = LayerBuilder().directory("d", mode=0o700, pax_headers={"SCHILY.xattr.user.new": "2"})
    tree = await stack(tmp_path, base, top)
    found = (tree / "d").stat()
    assert (found.st_mode & 0o7777, found.st_uid, os.listxattr(tree / "d")) == (0o700, 0, ["user.new"])
    assert (tree / "d/f").exists()


async def test_replacing_a_file_keeps_its_other_hard_links(tmp_path: Path) -> None:
    base = LayerBuilder().file("a", "old").hardlink("b", "a")
    tree = await stack(tmp_path, base, LayerBuilder().file("a", "new").hardlink("c", "b"))
    assert [(tree / name).read_text() for name in "abc"] == ["new", "old", "old"]


@pytest.mark.parametrize("target", ["/", "..", "../../..", "{outside}"])
async def test_symlinks_of_a_lower_layer_do_not_lead_outside(tmp_path: Path, outside: Path, target: str) -> None:
    link = target.format(outside=outside.parent)
    base = LayerBuilder().directory(str(outside.parent).lstrip("/")).symlink("link", link)
    top = LayerBuilder().file("link/outside", "evil").file("link/.wh.stacked0").file("link/.wh..wh..opq")
    await stack(tmp_path, base, top)
    assert outside.read_text() == "untouched"
    assert (tmp_path / "stacked0").stat().st_size > 0


async def test_whiteout_through_a_symlink_removes_nothing_outside(tmp_path: Path, outside: Path) -> None:
    base = LayerBuilder().symlink("link", str(outside)).symlink("up", "..")
    tree = await stack(tmp_path, base, LayerBuilder().file(".wh.link").file("up/.wh.outside"))
    assert outside.read_text() == "untouched"
    assert names(tree) == ["up"]


# -- hostile layers --------------------------------------------------------------------------------------------


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A file beside the layer, which must not change."""
    path = tmp_path / "outside"
    path.write_text("untouched")
    return path


@pytest.mark.parametrize("name", ["../outside", "a/../../outside", "/../../outside"])
async def test_dotdot_does_not_lead_outside(tmp_path: Path, outside: Path, name: str) -> None:
    top = await unpacked(tmp_path, LayerBuilder().file(name, "evil"))
    assert outside.read_text() == "untouched"
    assert (top / "outside").read_text() == "evil"


async def test_absolute_name_is_extracted_inside_the_layer(tmp_path: Path, outside: Path) -> None:
    top = await unpacked(tmp_path, LayerBuilder().file(str(outside), "evil"))
    assert outside.read_text() == "untouched"
    assert (top / str(outside).lstrip("/")).read_text() == "evil"


@pytest.mark.parametrize("target", ["..", "../..", "/", "{outside}"])
async def test_symlinks_do_not_lead_outside(tmp_path: Path, outside: Path, target: str) -> None:
    link = target.format(outside=outside.parent)
    builder = LayerBuilder().directory(str(outside.parent).lstrip("/"))
    await unpacked(tmp_path, builder.symlink("link", link).file("link/outside", "evil").file("link/.wh.blob0"))
    assert outside.read_text() == "untouched"
    assert stat.S_ISREG((tmp_path / "blob0").stat().st_mode)


async def test_file_replaces_a_symlink_of_its_name(tmp_path: Path, outside: Path) -> None:
    top = await unpacked(tmp_path, LayerBuilder().symlink("link", str(outside)).file("link", "evil"))
    assert outside.read_text() == "untouched"
    assert not (top / "link").is_symlink()


@pytest.mark.parametrize("target", ["../outside", "/etc/passwd", "missing"])
async def test_hard_links_do_not_lead_outside(tmp_path: Path, outside: Path, target: str) -> None:
    with pytest.raises(BadImage, match="No such file"):
        await unpacked(tmp_path, LayerBuilder().hardlink("link", target))
    assert outside.stat().st_nlink == 1


async def test_too_many_entries_are_refused_with_the_setting(tmp_path: Path) -> None:
    builder = LayerBuilder()
    for number in range(11):
        builder.file(f"f{number}")
    async with unpacker() as worker:
        with pytest.raises(BadImage, match=r"more than 10 entries \(images\.max_layer_entries\)"):
            await do(worker, tmp_path, *jobs_for(tmp_path, builder.build(), max_entries=10))


async def test_compression_bomb_is_refused_before_it_fills_the_disk(tmp_path: Path) -> None:
    bomb = zstd(LayerBuilder().file("f", b"\0" * (64 << 20)).build())
    async with unpacker() as worker:
        with pytest.raises(BadImage, match=r"images\.max_layer_size"):
            await do(worker, tmp_path, *jobs_for(tmp_path, bomb, max_size=1 << 20))
    assert not (tmp_path / "layer0/f").exists()


async def test_sparse_file_larger_than_the_limit_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(BadImage, match=r"images\.max_layer_size"):
        await unpack(tmp_path, tar(tmp_path / "huge", "gnu"))


@pytest.mark.parametrize(
    ("builder", "problem"),
    [
        (LayerBuilder().file("f/.wh."), "has no name"),
        (LayerBuilder().file("f/.wh..."), "has no name"),
        (LayerBuilder().file(".wh.."), "has no name"),
        (LayerBuilder().file(".wh..."), "has no name"),
        (LayerBuilder().directory("d").hardlink("f", "d"), "Operation not permitted"),
        (LayerBuilder().hardlink("f", "later").file("later"), "No such file"),
        (LayerBuilder().add("f", b"Z"), "unknown type"),
        (LayerBuilder().file("f").file("f/below"), "Not a directory"),
        (LayerBuilder().file("n" * 300), "File name too long"),
        (LayerBuilder().file("f", pax_headers={"uid": "-2"}), "owner"),
    ],
)
async def test_invalid_member_is_refused(tmp_path: Path, builder: LayerBuilder, problem: str) -> None:
    with pytest.raises(BadImage, match=problem):
        await unpacked(tmp_path, builder)


async def test_extraction_stops_at_the_limit_of_entries(tmp_path: Path) -> None:
    """A few kilobytes compressed; extraction stops at the limit."""
    entry = tarfile.TarInfo("f").tobuf(tarfile.USTAR_FORMAT)
    bomb = zstd(entry * 1_000_000)
    assert len(bomb) < 1 << 20
    async with unpacker() as worker:
        with pytest.raises(BadImage, match=r"more than 10000 entries"):
            await do(worker, tmp_path, *jobs_for(tmp_path, bomb))


async def test_gzip_bomb_is_refused_before_it_fills_the_disk(tmp_path: Path) -> None:
    bomb = gzipped(LayerBuilder().file("f", b"\0" * (64 << 20)).build())
    async with unpacker() as worker:
        with pytest.raises(BadImage, match=r"images\.max_layer_size"):
            await do(worker, tmp_path, *jobs_for(tmp_path, bomb, max_size=1 << 20))


@pytest.mark.parametrize("size", [-1, 1 << 62])
async def test_invalid_size_is_refused(tmp_path: Path, size: int) -> None:
    builder = LayerBuilder().file("f", "x", pax_headers={"size": str(size)})
    with pytest.raises(BadImage, match="layer blob0 cannot be unpacked"):
        await unpacked(tmp_path, builder)


async def test_thousands_of_nested_headers_are_refused(tmp_path: Path) -> None:
    header = tarfile.TarInfo("././@LongLink")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 2
    block = header.tobuf(tarfile.GNU_FORMAT) + b"a\0".ljust(512, b"\0")
    with pytest.raises(BadImage, match="not a tar archive"):
        await unpack(tmp_path, block * 5000)


async def test_error_names_the_bad_layer(tmp_path: Path) -> None:
    with pytest.raises(BadImage, match="layer blob1 cannot be unpacked: not a tar archive"):
        await unpack(tmp_path, LayerBuilder().file("f").build(), b"x" * 5000)
