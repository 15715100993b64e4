# SPDX-License-Identifier: Apache-2.0
"""`pvecri image …`: manage the images of a node.

`list`, `pull` and `remove` call the daemon if it runs. Otherwise, and for `import`, `export` and `check` always,
the command opens the image store itself and needs the daemon stopped. Pods keep running without the daemon.
"""

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
from pvecri.errors import AlreadyExists, FailedPrecondition, InternalError, NotFound
from pvecri.images import placement
from pvecri.images.export import write_archive
from pvecri.images.manager import ImageManager
from pvecri.images.pull.progress import Progress
from pvecri.model import Image, ImageId

T = TypeVar("T")

REDRAW = 0.2
"""Seconds between two updates of the progress bar."""
BAR = 24
"""Characters of the progress bar."""
_EXPORT = "e" * 64
"""The container ID of an export's root filesystem; real ones are random."""


class _Images(Protocol):
    """Images, by the daemon or in an open store."""

    async def list(self) -> tuple[Image, ...]: ...
    async def exists(self, reference: str) -> bool: ...
    async def pull(self, reference: str) -> ImageId: ...
    async def remove(self, reference: str) -> None: ...


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `image` with its subcommands."""
    image = commands.add_parser("image", help="manage images", description=__doc__)
    actions = image.add_subparsers(dest="action", required=True)
    actions.add_parser("list", help="show all images, by each of their names")
    pull = actions.add_parser("pull", help="fetch an image from its registry")
    pull.add_argument("reference", help="such as docker.io/library/busybox:1.36")
    remove = actions.add_parser("remove", help="remove an image with all its names")
    remove.add_argument("reference", help="a name, or the prefix of an ID")
    load = actions.add_parser("import", help="import an image from an archive")
    load.add_argument("file", type=Path, help="an OCI archive, or one of `docker save`")
    load.add_argument("reference", help="the image's name in the store")
    export = actions.add_parser("export", help="write an image to an OCI archive, its files in one layer")
    export.add_argument("reference")
    export.add_argument("file", type=Path, help="the archive to create; must not exist")
    check = actions.add_parser("check", help="read all images and report damaged ones")
    check.add_argument(
        "--repair", action="store_true", help="remove damaged images, so that they are pulled again"
    )


def run(config: Config, options: argparse.Namespace) -> int:
    """Run a subcommand; the exit status is 1 if `check` has found damage that is not repaired."""
    # Later versions watch children by pidfd by themselves; before, asyncio starts a thread for each.
    if sys.version_info < (3, 12):
        asyncio.set_child_watcher(asyncio.PidfdChildWatcher())
    try:
        return asyncio.run(_ACTIONS[options.action](config, options))
    except OSError as error:
        raise InternalError(str(error)) from error


async def _list(config: Config, _: argparse.Namespace) -> int:
    async with _images(config) as (images, _progress):
        found = await images.list()
    rows = [
        (name, image.id.removeprefix("sha256:")[:13], _size(image.size))
        for image in found
        for name in image.tags or image.digests or ("<none>",)
    ]
    for row in [("IMAGE", "ID", "SIZE"), *sorted(rows)]:
        print("{:<60} {:<14} {:>10}".format(*row))
    return 0


async def _pull(config: Config, options: argparse.Namespace) -> int:
    async with _images(config) as (images, progress):
        print(await _with_progress(images.pull(options.reference), options.reference, progress))
    return 0


async def _remove(config: Config, options: argparse.Namespace) -> int:
    async with _images(config) as (images, _progress):
        if not await images.exists(options.reference):  # the CRI's RemoveImage succeeds
            raise NotFound(f"image {options.reference} is not in the store")
        await images.remove(options.reference)
    return 0


async def _import(config: Config, options: argparse.Namespace) -> int:
    async with _store(config) as manager:
        kind = "docker-archive" if await asyncio.to_thread(_is_docker_archive, options.file) else "oci-archive"
        loading = manager.load(f"{kind}:{options.file.resolve()}", options.reference)
        print((await _with_progress(loading, options.reference, lambda: manager.progress)).id)
    return 0


async def _export(config: Config, options: argparse.Namespace) -> int:
    async with _store(config) as manager, AsyncExitStack() as undo:
        image = manager.find(options.reference)
        if image is None:
            raise NotFound(f"image {options.reference} is not in the store")
        if image.artifact_type:
            raise FailedPrecondition(f"{options.reference} is an OCI artifact, not an image; use `skopeo copy`")
        # Before it is made: this also removes what an export that was killed has left.
        undo.push_async_callback(manager.remove_rootfs, _EXPORT)
        root = await manager.prepare_rootfs(_EXPORT, image.id, userns=None, root_uid=0, root_gid=0)
        name = image.tags[0] if image.tags else options.reference
        writing = asyncio.to_thread(write_archive, root, manager.raw_config(image.id), name, options.file)
        try:
            await _with_progress(writing, options.reference, Progress)
        except FileExistsError as error:
            # Somebody else's file, which stays; after other errors the file is ours.
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
    print(f"{left} damaged" if left else "no image is damaged")
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

    async def exists(self, reference: str) -> bool:
        return self._manager.find(reference) is not None

    async def pull(self, reference: str) -> ImageId:
        return (await self._manager.pull(reference)).id

    async def remove(self, reference: str) -> None:
        await self._manager.remove(reference)


@asynccontextmanager
async def _images(config: Config) -> AsyncIterator[tuple[_Images, Callable[[], Progress]]]:
    """The daemon's images, or those of the store, and a pull's progress, which the CRI does not report."""
    async with AsyncExitStack() as stack:
        if _listens(config.runtime.socket):
            from pvecri.cri import client  # only here: the daemon has no use for the stubs

            yield await stack.enter_async_context(client.connected(config.runtime.socket)), Progress
        else:
            manager = await stack.enter_async_context(_store(config))
            yield _OpenStore(manager), lambda: manager.progress


@asynccontextmanager
async def _store(config: Config) -> AsyncIterator[ImageManager]:
    """The image store, opened as by the daemon; FailedPrecondition while the daemon runs."""
    async with AsyncExitStack() as stack:
        try:
            await daemon.lock(config, stack)
        except ConfigError as error:
            raise FailedPrecondition(f"{error}; stop it for this command: pods keep running without it") from None
        manager = ImageManager(placement.remembered(config))
        await manager.start()
        stack.push_async_callback(manager.close)
        # Runs before `close`: what the command has removed is deleted from the disk when it returns.
        stack.push_async_callback(manager.idle)
        yield manager


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


def _is_docker_archive(file: Path) -> bool:
    # Newer versions of `docker save` write an OCI layout with a manifest.json beside it.
    try:
        with tarfile.open(file) as archive:
            names: Iterable[str] = archive.getnames()
    except (OSError, tarfile.TarError) as error:
        raise FailedPrecondition(f"{file}: not a readable tar archive: {error}") from error
    return "manifest.json" in names and "oci-layout" not in names


# -- output -------------------------------------------------------------------------------------------------------


async def _with_progress(work: Awaitable[T], what: str, progress: Callable[[], Progress]) -> T:
    """Wait for `work`; on a terminal show a progress bar, and a summary in the end."""
    task = asyncio.ensure_future(work)
    if not sys.stderr.isatty():
        return await task
    begin = time.monotonic()
    while not task.done():
        line = bar(what, progress(), time.monotonic() - begin)
        # A line as wide as the terminal would wrap, and \r would return to its second half.
        _draw(line[: os.get_terminal_size(sys.stderr.fileno()).columns - 1])
        await asyncio.wait([task], timeout=REDRAW)
    _draw("")
    result = await task
    print(summary(what, progress(), time.monotonic() - begin), file=sys.stderr)
    return result


def _draw(line: str) -> None:
    # Erase the line (CSI K) and draw it again.
    print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)


def bar(what: str, progress: Progress, seconds: float) -> str:
    """The progress of a pull, as one line; the elapsed time only, if nothing else is known."""
    if not progress.layers:
        return f"{seconds:.0f} s  {what}"
    part = progress.fetched / progress.total if progress.total else 1.0
    filled = "#" * int(part * BAR)
    size = f"{_size(progress.fetched)} of {_size(progress.total)}"
    return f"[{filled:<{BAR}}] {size}, {progress.done} of {progress.layers} layers, {seconds:.0f} s  {what}"


def summary(what: str, progress: Progress, seconds: float) -> str:
    """The result of a pull, as one line."""
    parts = [f"{seconds:.1f} s"]
    if progress.layers:
        parts.insert(0, f"{progress.layers} layers with {_size(progress.total)}")
    if progress.present:
        parts.insert(-1, f"{progress.present} already present")
    return f"{what}: {', '.join(parts)}"


def _size(size: float) -> str:
    units = ["GiB", "MiB", "KiB"]
    if size < 1024:
        return f"{size:.0f} B"
    size /= 1024
    while size >= 1024 and len(units) > 1:
        size /= 1024
        units.pop()
    return f"{size:.1f} {units[-1]}"
