# SPDX-License-Identifier: Apache-2.0
"""Layers that no image should have and some have, on every storage. Needs root."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.image_builder import LayerBuilder, build_image
from support.images import DRIVERS, files_of, image_manager, image_root, image_storage
from support.registry import Registry

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="unpacking needs root")

END = b"\0" * 1024
"""The end-of-archive mark."""


def layer() -> LayerBuilder:
    return LayerBuilder()


def header(name: str, *, gnu: bool = False) -> bytes:
    return tarfile.TarInfo(name).tobuf(tarfile.GNU_FORMAT if gnu else tarfile.USTAR_FORMAT)


def with_global_header() -> bytes:
    """As `git archive` makes it."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT, pax_headers={"comment": "0123"}) as tar:
        tar.addfile(tarfile.TarInfo("a"))
    return buffer.getvalue()


def directory_of_old_tar() -> bytes:
    """Before POSIX a directory was a file whose name ends with a slash."""
    entry = bytearray(header("d/"))
    entry[156:157] = b"\0"  # typeflag
    entry[148:156] = b" " * 8
    entry[148:156] = b"%06o\0 " % sum(entry[:512])
    return bytes(entry) + header("d/f") + END


LONG = "/".join(["l" * 40] * 4)

SHAPES: dict[str, tuple[tuple[bytes, ...], dict[str, str]]] = {
    "entries named as the root": (
        (layer().symlink("..", "/etc").symlink("", "/etc").file(".", "x").file("a", "b").build(),),
        {"a": "b"},
    ),
    "directory replaced by a link and back": (
        (
            layer()
            .directory("d/t")
            .file("d/t/x", "1")
            .symlink("d", "/")
            .file("d/t/x", "2")
            .directory("d")
            .file("d/t/x", "3")
            .build(),
        ),
        {"t/x": "2", "d/t/x": "3"},
    ),
    "file emptied through a link": (
        (layer().file("etc/f", "full").symlink("l", "/etc").file("/l/f").build(),),
        {"etc/f": "", "l": "-> /etc"},
    ),
    "links over links and upwards": (
        (
            layer()
            .directory("etc")
            .symlink("d/etc", "/etc")
            .symlink("l", "d/../d/etc")
            .file("l/f", "x")
            .hardlink("h", "../../../l/f")
            .build(),
        ),
        {"d/etc": "-> /etc", "l": "-> d/../d/etc", "etc/f": "x", "h": "x"},
    ),
    "hard link to a link": (
        (layer().symlink("s", "/f").hardlink("h", "s").file("f", "x").build(),),
        {"s": "-> /f", "h": "-> /f", "f": "x"},
    ),
    "directory named as a whiteout": (
        (layer().file("etc/f", "x").build(), layer().file(".wh.etc/f", "y").build()),
        {"etc/f": "x", ".wh.etc/f": "y"},
    ),
    "whiteout by a path upwards": (
        (layer().file("etc/f").file("a").build(), layer().file("none/../.wh.etc").build()),
        {"a": ""},
    ),
    "whiteout of a link": (
        (layer().file("etc/f", "x").symlink("l", "/etc").build(), layer().file(".wh.l").build()),
        {"etc/f": "x"},
    ),
    "link over a directory": (
        (layer().file("etc/f", "x").file("d/f").build(), layer().symlink("d", "/etc").build()),
        {"etc/f": "x", "d": "-> /etc"},
    ),
    "directory over a link to the same files": (
        (layer().file("etc/f", "x").symlink("l", "etc").build(), layer().directory("l").file("l/f", "y").build()),
        {"etc/f": "x", "l/f": "y"},
    ),
    "hard links kept by aufs": (
        (layer().directory(".wh..wh.plnk").file(".wh..wh.plnk/1", "x").hardlink("f", ".wh..wh.plnk/1").build(),),
        {".wh..wh.plnk/1": "x", "f": "x"},
    ),
    "no end of the archive": ((header("a"), header("b") + END[:512]), {"a": "", "b": ""}),
    "global header": ((with_global_header(),), {"a": ""}),
    "old tar": ((directory_of_old_tar(),), {"d/f": ""}),
    "long names": (
        (header(LONG + "/ustar") + END, header(LONG + "/gnu", gnu=True) + END),
        {LONG + "/ustar": "", LONG + "/gnu": ""},
    ),
    "names that are not UTF-8": ((layer().file("caf\udce9/x", "1").build(),), {"caf\udce9/x": "1"}),
    "attributes of a link": (
        (layer().symlink("l", "x", pax_headers={"SCHILY.xattr.user.a": "1"}).build(),),
        {"l": "-> x"},
    ),
}


@pytest.fixture
def root() -> Iterator[Path]:
    with image_root() as directory:
        yield directory


@pytest.mark.parametrize("driver", DRIVERS)
async def test_odd_layers_are_the_same_files_on_every_storage(
    root: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch, driver: str
) -> None:
    found = {}
    with image_storage(driver, root, monkeypatch) as storage:
        async with image_manager(Path(str(storage.pop("root"))), registry, **storage) as manager:
            for number, (shape, (layers, _)) in enumerate(SHAPES.items()):
                reference = registry.push(f"shape{number}", "1", build_image(*layers))
                found[shape] = await files_of(manager, await manager.pull(reference))
    assert found == {shape: expected for shape, (_, expected) in SHAPES.items()}


@pytest.mark.parametrize("driver", DRIVERS)
async def test_opaque_mark_leaves_the_directory_its_attributes(
    root: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch, driver: str
) -> None:
    """Of a directory that the archive left out; one that was whited out is new."""
    base = layer().directory("tmp", mode=0o1777, uid=7).file("tmp/old").directory("d", mode=0o1777).file("d/old")
    top = layer().file("tmp/.wh..wh..opq").file("tmp/new").file(".wh.d").file("d/new")
    reference = registry.push("opaque", "1", build_image(base.build(), top.build()))
    with image_storage(driver, root, monkeypatch) as storage:
        async with image_manager(Path(str(storage.pop("root"))), registry, **storage) as manager:
            image = await manager.pull(reference)
            path = await manager.prepare_rootfs("c" * 64, image.id, userns=None, root_uid=0, root_gid=0)
            found = {each.name: (each.stat().st_mode & 0o7777, each.stat().st_uid) for each in path.iterdir()}
            assert found == {"tmp": (0o1777, 7), "d": (0o755, 0)}
            assert [each.name for each in path.glob("*/*")] == ["new", "new"]
            await manager.remove_rootfs("c" * 64)
