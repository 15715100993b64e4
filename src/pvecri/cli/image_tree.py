# SPDX-License-Identifier: Apache-2.0
"""`pvecri image inspect`, `mount` and `umount`: what is in an image. With the daemon and without."""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from pvecri.cli.image_access import find, image_mounts, layers, open_images, stack_of
from pvecri.concurrency import finish
from pvecri.config.settings import Config
from pvecri.errors import FailedPrecondition, NotFound


def add_commands(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommands."""
    inspect = actions.add_parser(
        "inspect", help="print names, config, layers and users of an image, or of an artifact, as JSON"
    )
    inspect.add_argument("reference", help="a name, or the prefix of an ID")
    mount = actions.add_parser(
        "mount", help="mount an image's files at a directory, read-only; the image stays until it is unmounted"
    )
    mount.add_argument("reference", help="a name, or the prefix of an ID")
    mount.add_argument("directory", type=Path)
    unmount = actions.add_parser("umount", help="undo `mount`")
    unmount.add_argument("mounted", metavar="directory", help="or an image, to unmount it everywhere")


async def _inspect(config: Config, options: argparse.Namespace) -> int:
    async with open_images(config) as (images, _progress):
        image, found = await find(images, options.reference)
    shown = {"id": image.id, "names": image.tags, "digests": image.digests, "size": image.size}
    known = {"artifactType", "manifest", "chainID"} & found.keys()
    if "imageSpec" in found:
        shown["config"] = found["imageSpec"]
    shown |= {name: found[name] for name in sorted(known)}
    storage = {name: found["storage"][name] for name in ("driver", "root")}
    shown |= {"pinned": image.pinned, "layers": found["storage"]["layers"], "storage": storage}
    print(json.dumps(shown | {"usedBy": found["usedBy"]}, indent=2))
    return 0


async def _mount(config: Config, options: argparse.Namespace) -> int:
    directory: Path = options.directory.resolve()
    if not directory.is_dir():
        raise NotFound(f"{options.directory} is not a directory")
    async with open_images(config) as (images, _progress):
        image, found = await find(images, options.reference)
        layers(found)
        stack = stack_of(images, image.id)
        await finish(asyncio.to_thread(image_mounts(config).mount, image.id, stack, directory))
    print(directory)
    return 0


async def _umount(config: Config, options: argparse.Namespace) -> int:
    directory = Path(options.mounted).resolve()
    async with open_images(config) as (images, _progress):
        mounted = image_mounts(config)
        records = [each for each in await asyncio.to_thread(mounted.all) if each.target]
        wanted = [each for each in records if each.target == str(directory)]
        if not wanted and (found := await images.inspect(options.mounted)):
            wanted = [each for each in records if each.image == found[0].id]
            if not wanted:
                raise FailedPrecondition(f"image {options.mounted} is not mounted")
        if not wanted:
            raise NotFound(f"{options.mounted} has no mounted image, and is not the name of one")
        for each in wanted:
            await finish(asyncio.to_thread(mounted.unmount, each))
            print(each.target)
    return 0


ACTIONS: dict[str, Callable[[Config, argparse.Namespace], Coroutine[Any, Any, int]]] = {
    "inspect": _inspect,
    "mount": _mount,
    "umount": _umount,
}
