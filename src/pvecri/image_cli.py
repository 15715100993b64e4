# SPDX-License-Identifier: Apache-2.0
"""`pvecri image …`: look after the images of a node.

`list`, `pull` and `remove` ask the daemon when it runs. Without it, and for `import`, `export` and `check` always,
the command opens the image store itself, as the daemon does: one at a time. Pods run on without the daemon.
"""

# What a command is for is what it prints.
# ruff: noqa: T201
from __future__ import annotations

import argparse
import asyncio
import os
import socket
import sys
import tarfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

from pvecri import daemon
from pvecri.config import Config, ConfigError
from pvecri.cri import client
from pvecri.errors import AlreadyExists, FailedPrecondition, InternalError, NotFound
from pvecri.images import placement
from pvecri.images.export import write_archive
from pvecri.images.manager import ImageManager
from pvecri.images.pull.progress import Progress
from pvecri.model import Image, ImageId

T = TypeVar("T")

REDRAW = 0.2
"""Seconds between two looks at how far something is."""
BAR = 24
"""Characters of the bar that shows it."""
_EXPORT = "e" * 64
"""The container that an image is mounted for while it is exported; real ones have random ids."""


class _Images(Protocol):
    """What the daemon and an open store have in common."""

    async def list(self) -> tuple[Image, ...]: ...
    async def pull(self, reference: str) -> ImageId: ...
    async def remove(self, reference: str) -> None: ...


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `image` with all its own."""
    image = commands.add_parser("image", help="look after images", description=__doc__)
    actions = image.add_subparsers(dest="action", required=True)
    actions.add_parser("list", help="show all images")
    pull = actions.add_parser("pull", help="fetch an image from its registry")
    pull.add_argument("reference", help="such as docker.io/library/busybox:1.36")
    remove = actions.add_parser("remove", help="remove an image with all its names")
    remove.add_argument("reference", help="a name, or the beginning of an id")
    load = actions.add_parser("import", help="take in an image from an archive")
    load.add_argument("file", type=Path, help="an OCI archive, or one that `docker save` wrote")
    load.add_argument("reference", help="the name that it gets")
    export = actions.add_parser("export", help="write an image to an OCI archive, its files in one layer")
    export.add_argument("reference")
    export.add_argument("file", type=Path, help="is made; must not exist")
    check = actions.add_parser("check", help="read all images and say what is damaged")
    check.add_argument("--repair", action="store_true", help="remove damaged images, so that they are pulled anew")


def run(config: Config, options: argparse.Namespace) -> int:
    """Do what was asked for; the exit status, 1 when `check` has found something that is not repaired."""
    if sys.version_info < (3, 12):
        asyncio.set_child_watcher(asyncio.PidfdChildWatcher())
    try:
        return asyncio.run(_ACTIONS[options.action](config, options))
    except OSError as error:
        raise InternalError(str(error)) from error


async def _list(config: Config, _: argparse.Namespace) -> int:
    async with _images(config) as (images, _progress):
        found = await images.list()
    rows = [(_name(image), image.id.removeprefix("sha256:")[:13], _size(image.size)) for image in found]
    for row in [("IMAGE", "ID", "SIZE"), *sorted(rows)]:
        print("{:<60} {:<14} {:>10}".format(*row))
    return 0


async def _pull(config: Config, options: argparse.Namespace) -> int:
    async with _images(config) as (images, progress):
        print(await _shown(images.pull(options.reference), options.reference, progress))
    return 0


async def _remove(config: Config, options: argparse.Namespace) -> int:
    async with _images(config) as (images, _progress):
        await images.remove(options.reference)
    return 0


async def _import(config: Config, options: argparse.Namespace) -> int:
    async with _store(config) as manager:
        kind = "docker-archive" if await asyncio.to_thread(_is_docker_archive, options.file) else "oci-archive"
        loading = manager.load(f"{kind}:{options.file.resolve()}", options.reference)
        print((await _shown(loading, options.reference, lambda: manager.progress)).id)
    return 0


async def _export(config: Config, options: argparse.Namespace) -> int:
    async with _store(config) as manager, AsyncExitStack() as undo:
        image = manager.find(options.reference)
        if image is None:
            raise NotFound(f"image {options.reference} is not in the store")
        undo.push_async_callback(manager.remove_rootfs, _EXPORT)
        root = await manager.prepare_rootfs(_EXPORT, image.id, userns=None, root_uid=0, root_gid=0)
        name = image.tags[0] if image.tags else options.reference
        writing = asyncio.to_thread(write_archive, root, manager.raw_config(image.id), name, options.file)
        try:
            await _shown(writing, options.reference, Progress)
        except FileExistsError as error:
            raise AlreadyExists(f"{options.file} exists already") from error
        except BaseException:
            options.file.unlink(missing_ok=True)
            raise
    return 0


async def _check(config: Config, options: argparse.Namespace) -> int:
    left = 0
    async with _store(config) as manager:
        async for found, repaired in manager.check(repair=options.repair):
            left += not repaired
            print(f"{found.problem}: {'repaired' if repaired else 'damaged'}")
            for what, names in (("image", found.images), ("used by container", found.containers)):
                print("".join(f"  {what} {name}\n" for name in names), end="")
    print(f"{left} damaged" if left else "all images are whole")
    return 1 if left else 0


_ACTIONS: dict[str, Callable[[Config, argparse.Namespace], Coroutine[Any, Any, int]]] = {
    "list": _list,
    "pull": _pull,
    "remove": _remove,
    "import": _import,
    "export": _export,
    "check": _check,
}


# -- the daemon or the store --------------------------------------------------------------------------------------


class _OpenStore:
    """An image store in this process."""

    def __init__(self, manager: ImageManager) -> None:
        self._manager = manager

    async def list(self) -> tuple[Image, ...]:
        return self._manager.list()

    async def pull(self, reference: str) -> ImageId:
        return (await self._manager.pull(reference)).id

    async def remove(self, reference: str) -> None:
        await self._manager.remove(reference)


@asynccontextmanager
async def _images(config: Config) -> AsyncIterator[tuple[_Images, Callable[[], Progress]]]:
    """The daemon's images, or those of the store, and how far a pull is: the CRI cannot tell, a store can."""
    async with AsyncExitStack() as stack:
        if _answers(config.runtime.socket):
            yield await stack.enter_async_context(client.connected(config.runtime.socket)), Progress
        else:
            manager = await stack.enter_async_context(_store(config))
            yield _OpenStore(manager), lambda: manager.progress


@asynccontextmanager
async def _store(config: Config) -> AsyncIterator[ImageManager]:
    """The image store, opened as the daemon would; FailedPrecondition while the daemon runs."""
    async with AsyncExitStack() as stack:
        try:
            await daemon.lock(config, stack)
        except ConfigError as error:
            raise FailedPrecondition(f"{error}; stop it for this command: pods run on without it") from None
        manager = ImageManager(placement.remembered(config))
        await manager.start()
        stack.push_async_callback(manager.close)
        stack.push_async_callback(manager.idle)
        yield manager


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


def _is_docker_archive(file: Path) -> bool:
    """`docker save` writes a manifest.json, which an OCI archive has no use for, besides what else it writes."""
    try:
        with tarfile.open(file) as archive:
            names: Iterable[str] = archive.getnames()
    except (OSError, tarfile.TarError) as error:
        raise FailedPrecondition(f"{file}: not an archive that can be read: {error}") from error
    return "manifest.json" in names and "oci-layout" not in names


# -- what is shown ------------------------------------------------------------------------------------------------


async def _shown(work: Awaitable[T], what: str, progress: Callable[[], Progress]) -> T:
    """Wait for `work`; a terminal is told how far it is, and in the end what it came to."""
    task = asyncio.ensure_future(work)
    if not sys.stderr.isatty():
        return await task
    begin = time.monotonic()
    while not task.done():
        line = bar(what, progress(), time.monotonic() - begin)
        _draw(line[: os.get_terminal_size(sys.stderr.fileno()).columns - 1])
        await asyncio.wait([task], timeout=REDRAW)
    _draw("")
    result = await task
    print(summary(what, progress(), time.monotonic() - begin), file=sys.stderr)
    return result


def _draw(line: str) -> None:
    """In place of what was there."""
    print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)


def bar(what: str, progress: Progress, seconds: float) -> str:
    """How far a pull is, as one line; only the time where nothing else is known. Pure."""
    if not progress.layers:
        return f"{seconds:.0f} s  {what}"
    part = progress.fetched / progress.total if progress.total else 1.0
    filled = "#" * int(part * BAR)
    size = f"{_size(progress.fetched)} of {_size(progress.total)}"
    return f"[{filled:<{BAR}}] {size}, {progress.done} of {progress.layers} layers, {seconds:.0f} s  {what}"


def summary(what: str, progress: Progress, seconds: float) -> str:
    """What a pull came to, as one line. Pure."""
    parts = [f"{seconds:.1f} s"]
    if progress.layers:
        parts.insert(0, f"{progress.layers} layers with {_size(progress.total)}")
    if progress.present:
        parts.insert(-1, f"{progress.present} there already")
    return f"{what}: {', '.join(parts)}"


def _name(image: Image) -> str:
    return next(iter((*image.tags, *image.digests)), "<none>")


def _size(size: float) -> str:
    units = ["GiB", "MiB", "KiB"]
    if size < 1024:
        return f"{size:.0f} B"
    size /= 1024
    while size >= 1024 and len(units) > 1:
        size /= 1024
        units.pop()
    return f"{size:.1f} {units[-1]}"
