# SPDX-License-Identifier: Apache-2.0
"""`pvecri image convert`: an image's root filesystem as one file, with the daemon and without."""

from __future__ import annotations

import argparse
import asyncio
import re
import shlex
import shutil
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pvecri.cli.image_access import Images, find, image_mounts, layers, open_images, stack_of
from pvecri.cli.image_progress import with_progress
from pvecri.concurrency import finish
from pvecri.config.settings import Config
from pvecri.errors import FailedPrecondition, InvalidArgument, NotFound, PermissionDenied, escaped
from pvecri.images import convert, manifest, placement
from pvecri.images.pull.progress import Progress
from pvecri.model import ContainerSecurity, ContainerUser, ImageConfig, ImageId
from pvecri.oci import users
from pvecri.proxmox.api import ProxmoxApi

_PACKAGES = {"mkfs.erofs": "erofs-utils", "mke2fs": "e2fsprogs", "zstd": "zstd"}


def add_commands(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = actions.add_parser(
        "convert", help="write an image's files to one file: a filesystem, a tar archive or a CT template"
    )
    parser.add_argument("reference", help="a name, or the prefix of an ID")
    parser.add_argument(
        "--format",
        required=True,
        choices=["raw", "tar", "template"],
        help="raw: a filesystem; tar: an archive; template: an archive that Proxmox makes CTs of",
    )
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="the file to create; must not exist")
    parser.add_argument(
        "--storage", help="of --format template: the Proxmox storage that gets it, instead of a file"
    )
    parser.add_argument(
        "--filesystem",
        choices=convert.FILESYSTEMS,
        help="of --format raw: ext4, which is the default, or erofs, which is read-only",
    )


async def run(config: Config, options: argparse.Namespace) -> int:
    """Convert an image; its file or volume on stdout, and for a template how to make a CT of it."""
    _check(options)
    async with AsyncExitStack() as stack:
        api = await stack.enter_async_context(_proxmox(config, options.storage)) if options.storage else None
        images, _progress = await stack.enter_async_context(open_images(config))
        image, found = await find(images, options.reference)
        layers(found)  # an artifact is refused before anything is made
        if api is None:
            target = options.output.absolute()
            draft = await stack.enter_async_context(convert.new_file(target, "-o"))
        else:
            scratch = placement.remembered(config).images_root / "tmp"
            directory = stack.enter_context(TemporaryDirectory(dir=scratch, prefix="convert-"))
            draft = target = Path(directory, convert.template_name(image.tags, image.id))
        converting = _convert(config, images, image.id, found, options, draft)
        user = await with_progress(converting, options.reference, Progress)
        volume = f"STORAGE:vztmpl/{target.name}"
        if api is not None:
            uploading = api.upload_image(draft, options.storage)
            volume = await with_progress(uploading, f"upload to {options.storage}", Progress)
    print(options.output or volume)
    if options.format == "template":
        for line in instructions(volume, image.tags, manifest.run_config(found["imageSpec"]), user):
            print(escaped(line))  # a line break in the image's config would end the document
    return 0


def _check(options: argparse.Namespace) -> None:
    """InvalidArgument or FailedPrecondition, which name the option, if they do not go together."""
    if options.filesystem and options.format != "raw":
        raise InvalidArgument("--filesystem", "is for --format raw")
    if options.storage and options.format != "template":
        raise InvalidArgument("--storage", "is for --format template")
    if options.storage and options.output:
        raise InvalidArgument("--storage", "is instead of -o")
    if options.output is None and not options.storage:
        or_storage = ", or --storage one in Proxmox" if options.format == "template" else ""
        raise InvalidArgument("-o", f"names the file to create{or_storage}")
    if options.output and not options.output.absolute().parent.is_dir():
        raise InvalidArgument("-o", f"{options.output.parent} is not a directory")
    if options.output and options.format == "template" and not options.output.name.endswith(".tar.zst"):
        raise InvalidArgument("-o", "Proxmox expects a name that ends with .tar.zst")
    program = {"template": "zstd", "raw": "mkfs.erofs" if options.filesystem == "erofs" else "mke2fs"}
    needed = program.get(options.format)
    if needed and shutil.which(needed) is None:
        raise FailedPrecondition(f"--format {options.format} needs {needed}: install {_PACKAGES[needed]}")


@asynccontextmanager
async def _proxmox(config: Config, storage: str) -> AsyncIterator[ProxmoxApi]:
    """The API, if a CT template can be uploaded to the storage; InvalidArgument."""
    api = ProxmoxApi(config.proxmox)
    await api.start()
    try:
        try:
            found = await api.storage_status(storage)
        except (NotFound, PermissionDenied) as error:
            raise InvalidArgument("--storage", str(error)) from error
        if "vztmpl" not in found.contents:
            raise InvalidArgument("--storage", f"{storage} takes no CT templates: its content lacks vztmpl")
        yield api
    finally:
        await api.close()


async def _convert(
    config: Config,
    images: Images,
    image: ImageId,
    found: dict[str, Any],
    options: argparse.Namespace,
    target: Path,
) -> ContainerUser | None:
    """Write the file. The user of a template's init; None if the image has no user of that name."""
    created = convert.created(found["imageSpec"])
    async with _mounted(config, images, image) as root:
        await asyncio.to_thread(convert.set_top_time, root, created)
        if options.format == "raw":
            await convert.write_filesystem(options.filesystem or "ext4", root, target, image, created)
        else:
            await convert.write_tar(root, target, compressed=options.format == "template")
        try:
            name = (found["imageSpec"].get("config") or {}).get("User") or ""
            return await asyncio.to_thread(users.resolve, ContainerSecurity(), name, root)
        except InvalidArgument:
            return None


@asynccontextmanager
async def _mounted(config: Config, images: Images, image: ImageId) -> AsyncIterator[Path]:
    """A root filesystem of the image until the context ends."""
    context = image_mounts(config).mounted(image, stack_of(images, image))
    entered: list[Path] = []
    try:
        await finish(asyncio.to_thread(lambda: entered.append(context.__enter__())))
        yield entered[0]
    finally:
        if entered:
            await finish(asyncio.to_thread(context.__exit__, None, None, None))


def instructions(volume: str, names: Sequence[str], run: ImageConfig, user: ContainerUser | None) -> Iterator[str]:
    """How to make an ordinary CT of a template, as commands for the node's root; VMID and STORAGE are to choose.

    Proxmox knows nothing of the image's config, and its own init is `/sbin/init`: all that it has is settings of
    LXC, which only a file can have (lxc.container.conf(5)). They hold for Proxmox VE 8 and 9.
    """
    host = re.sub(r"[^a-z0-9-]+", "-", (names[0] if names else "").rpartition("/")[2].partition(":")[0].lower())
    yield "# To make a CT of it, as root on a Proxmox node (choose VMID, STORAGE, size in GiB, network):"
    yield (
        f"pct create VMID {volume} --ostype unmanaged --unprivileged 1 --cmode console"
        f" --hostname {host.strip('-') or 'image'} --rootfs STORAGE:8 --net0 name=eth0,bridge=vmbr0,ip=dhcp"
    )
    yield "cat >> /etc/pve/lxc/VMID.conf <<'END'"
    command = (*run.entrypoint, *run.cmd)
    yield f"lxc.init.cmd: {shlex.join(command)}" if command else "# The image has no command: set lxc.init.cmd"
    if run.working_dir:
        yield f"lxc.init.cwd: {run.working_dir}"
    if user is None:
        yield f"# The image has no user {run.user}: set lxc.init.uid and lxc.init.gid"
    elif (user.uid, user.gid) != (0, 0):
        yield f"lxc.init.uid: {user.uid}"
        yield f"lxc.init.gid: {user.gid}"
    yield f"lxc.signal.halt: {run.stop_signal or 'SIGTERM'}"
    # A line break cannot be part of a setting.
    yield from (f"lxc.environment: {each}" for each in run.env if "\n" not in each)
    yield "END"
    yield "pct start VMID"
