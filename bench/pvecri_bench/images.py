# SPDX-License-Identifier: Apache-2.0
"""The images that are pulled and run, made here from Debian's busybox-static and catatonit, each time the same."""

from __future__ import annotations

import io
import random
import shutil
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from trial.image import push, write_layout

APPLETS = ("sh", "sleep", "true", "cat", "echo", "ls", "ps")
SMALL_TAGS = 5
"""Different in every layer, so that none is there already when another one was pulled."""
MEDIUM_BYTES = 40 << 20
MEDIUM_LAYERS = 6
MEDIUM_FILES = 100
"""A layer. Half of what is in each file cannot be compressed."""


@dataclass(frozen=True)
class Images:
    """References in the registry. `base` is what containers run, `pause` the peer's pods."""

    base: str
    pause: str
    small: tuple[str, ...]
    medium: str


@dataclass(frozen=True)
class _Entry:
    """A file with its content, or a symbolic link with its target."""

    data: bytes = b""
    target: str = ""


Tree = Mapping[str, _Entry]


def publish(registry: str, directory: Path) -> Images:
    """Make all images below `directory` and push them; subprocess.CalledProcessError has skopeo's words."""
    images = Images(
        base=f"{registry}/bench/base:1",
        pause=f"{registry}/bench/pause:1",
        small=tuple(f"{registry}/bench/small:{number}" for number in range(SMALL_TAGS)),
        medium=f"{registry}/bench/medium:1",
    )
    pause = {"pause": _Entry(_program("catatonit"))}
    _push(directory / "base", [_busybox("base"), _etc("base")], ("sh",), images.base)
    _push(directory / "pause", [pause], ("/pause", "-P"), images.pause)
    for number, reference in enumerate(images.small):
        layers = [_busybox(reference), _etc(reference)]
        _push(directory / f"small{number}", layers, ("sh",), reference)
    _push(directory / "medium", [_bulk(number) for number in range(MEDIUM_LAYERS)], ("sh",), images.medium)
    return images


def _push(directory: Path, layers: Sequence[Tree], command: Sequence[str], reference: str) -> None:
    write_layout(directory, [_archive(layer) for layer in layers], command)
    push(directory, reference)
    shutil.rmtree(directory)


def _busybox(mark: str) -> Tree:
    links = {f"bin/{applet}": _Entry(target="busybox") for applet in APPLETS}
    return {"bin/busybox": _Entry(_program("busybox")), **links, "etc/image": _Entry(mark.encode())}


def _etc(mark: str) -> Tree:
    return {
        "etc/passwd": _Entry(b"root:x:0:0:root:/:/bin/sh\n"),
        "etc/group": _Entry(b"root:x:0:\n"),
        "etc/mark": _Entry(mark.encode()),
    }


def _bulk(number: int) -> Tree:
    size = MEDIUM_BYTES // MEDIUM_LAYERS // MEDIUM_FILES
    numbers = random.Random(number)
    return {
        f"opt/{number}/{file % 4}/{file}": _Entry(numbers.randbytes(size // 2) + bytes(size - size // 2))
        for file in range(MEDIUM_FILES)
    }


def _program(name: str) -> bytes:
    path = shutil.which(name)
    if path is None:
        raise FileNotFoundError(f"{name} is not installed; script/bootstrap installs it")
    return Path(path).read_bytes()


def _archive(tree: Tree) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for directory in sorted({str(parent) for name in tree for parent in Path(name).parents} - {"."}):
            entry = tarfile.TarInfo(directory)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(entry)
        for name, content in tree.items():
            entry = tarfile.TarInfo(name)
            entry.mode, entry.size, entry.linkname = 0o755, len(content.data), content.target
            entry.type = tarfile.SYMTYPE if content.target else tarfile.REGTYPE
            tar.addfile(entry, io.BytesIO(content.data))
    return buffer.getvalue()
