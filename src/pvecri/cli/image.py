# SPDX-License-Identifier: Apache-2.0
"""`pvecri image …`: manage the images of a node.

`import`, `export` and `check` open the image store themselves and need the daemon stopped; pods keep running
without it. All other commands call the daemon if it runs.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tarfile
from collections.abc import Callable, Coroutine, Iterable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, TypeVar

from pvecri.cli import image_convert, image_tree
from pvecri.cli.image_access import find, open_images, open_store
from pvecri.cli.image_progress import shown_size, with_progress
from pvecri.config.settings import Config
from pvecri.errors import AlreadyExists, FailedPrecondition, InternalError, NotFound
from pvecri.images.export import write_archive
from pvecri.images.pull.progress import Progress

T = TypeVar("T")

_EXPORT = "e" * 64
"""The container ID of an export's root filesystem; real ones are random."""


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `image` with its subcommands."""
    image = commands.add_parser("image", help="manage images", description=__doc__)
    actions = image.add_subparsers(dest="action", required=True)
    actions.add_parser("list", help="show all images, by each of their names")
    pull = actions.add_parser("pull", help="fetch an image from its registry")
    pull.add_argument("reference", help="such as docker.io/library/busybox:1.36")
    remove = actions.add_parser("remove", help="remove an image with all its names")
    remove.add_argument("reference", help="a name, or the prefix of an ID")
    image_tree.add_commands(actions)
    image_convert.add_commands(actions)
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
        where = f"{error.filename}: " if error.filename else ""
        raise InternalError(f"{where}{error.strerror or error}") from error


async def _list(config: Config, _: argparse.Namespace) -> int:
    async with open_images(config) as (images, _progress):
        found = await images.list()
    rows = [
        (name, image.id.removeprefix("sha256:")[:13], shown_size(image.size))
        for image in found
        for name in image.tags or image.digests or ("<none>",)
    ]
    for row in [("IMAGE", "ID", "SIZE"), *sorted(rows)]:
        print("{:<60} {:<14} {:>10}".format(*row))
    return 0


async def _pull(config: Config, options: argparse.Namespace) -> int:
    async with open_images(config) as (images, progress):
        print(await with_progress(images.pull(options.reference), options.reference, progress))
    return 0


async def _remove(config: Config, options: argparse.Namespace) -> int:
    async with open_images(config) as (images, _progress):
        await find(images, options.reference)  # the CRI's RemoveImage succeeds without one
        await images.remove(options.reference)
    return 0


async def _import(config: Config, options: argparse.Namespace) -> int:
    async with open_store(config) as manager:
        kind = "docker-archive" if await asyncio.to_thread(_is_docker_archive, options.file) else "oci-archive"
        loading = manager.load(f"{kind}:{options.file.resolve()}", options.reference)
        print((await with_progress(loading, options.reference, lambda: manager.progress)).id)
    return 0


async def _export(config: Config, options: argparse.Namespace) -> int:
    async with open_store(config) as manager, AsyncExitStack() as undo:
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
            await with_progress(writing, options.reference, Progress)
        except FileExistsError as error:
            # Somebody else's file, which stays; after other errors the file is ours.
            raise AlreadyExists(f"{options.file} exists already") from error
        except BaseException:
            options.file.unlink(missing_ok=True)
            raise
    return 0


async def _check(config: Config, options: argparse.Namespace) -> int:
    left = 0
    async with open_store(config) as manager:
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
    "convert": image_convert.run,
    **image_tree.ACTIONS,
}


def _is_docker_archive(file: Path) -> bool:
    # Newer versions of `docker save` write an OCI layout with a manifest.json beside it.
    try:
        with tarfile.open(file) as archive:
            names: Iterable[str] = archive.getnames()
    except (OSError, tarfile.TarError) as error:
        raise FailedPrecondition(f"{file}: not a readable tar archive: {error}") from error
    return "manifest.json" in names and "oci-layout" not in names
