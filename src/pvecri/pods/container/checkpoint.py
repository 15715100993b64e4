# SPDX-License-Identifier: Apache-2.0
"""CheckpointContainer: a running container's state as one archive, by CRIU through the OCI runtime.

The archive has the layout of CRI-O's, which checkpointctl reads: `checkpoint/` (CRIU's images), `config.dump` and
`spec.dump` (metadata and OCI spec), `rootfs-diff.tar` and `deleted.files` (the writable layer).
"""

from __future__ import annotations

import asyncio
import json
import shutil
import tarfile
from functools import partial
from pathlib import Path
from tempfile import mkdtemp

from pvecri.concurrency import finish, in_own_thread
from pvecri.errors import CommandError, DeadlineExceeded, FailedPrecondition, InternalError, InvalidArgument
from pvecri.images.manager import ImageManager
from pvecri.linux.cgroups import Cgroups
from pvecri.model import ContainerState
from pvecri.oci.runtime import OciRuntime
from pvecri.pods import validation
from pvecri.pods.container import exposure
from pvecri.pods.container.layer_archive import pack_layer
from pvecri.pods.registry import ContainerEntry, Registry, refuse_front


class Checkpoints:
    """Writes checkpoints; the container runs on, but for the time in which its writable layer is packed."""

    def __init__(self, registry: Registry, runtime: OciRuntime, images: ImageManager, cgroups: Cgroups) -> None:
        self._registry = registry
        self._runtime = runtime
        self._images = images
        self._cgroups = cgroups

    async def write(self, container_id: str, location: str, timeout: float) -> None:
        """Write a checkpoint of a running container to the file `location` (CRI CheckpointContainer).

        `timeout` is in seconds, 0 or less for none. FailedPrecondition if CRIU is not installed, InvalidArgument
        for a location that cannot be written, InternalError with CRIU's messages if it fails. Atomic: no partial
        file.
        """
        validation.check_path("location", location)
        target = Path(location)
        if not await in_own_thread(target.parent.is_dir):
            raise InvalidArgument("location", f"the directory of {location!r} does not exist")
        if shutil.which("criu") is None:
            raise FailedPrecondition("checkpoints need the program criu, which is not installed on this node")
        container = self._registry.container(container_id)
        refuse_front(self._registry.pod_of(container).value.front, f"container {container.id}")
        if container.value.state is not ContainerState.RUNNING:
            raise FailedPrecondition(f"container {container.id} is {container.value.state.value}, not running")
        try:
            async with container.lock, asyncio.timeout(timeout if timeout > 0 else None):
                await self._write(container, target)
        except TimeoutError:
            raise DeadlineExceeded(f"container {container.id}: no checkpoint within {timeout:g} s") from None

    async def _write(self, container: ContainerEntry, target: Path) -> None:
        # Beside the target: rename(2) works within one filesystem only.
        make = partial(mkdtemp, prefix=f".{target.name}.", dir=target.parent)
        work = Path(await finish(asyncio.to_thread(make)))
        try:
            pod = self._registry.pod_of(container)
            try:
                await self._runtime.checkpoint(pod.namespaces, container.id, work / "checkpoint", work)
            except CommandError as error:
                raise InternalError(f"container {container.id}: {_criu_errors(work) or error}") from error
            async with exposure.frozen(pod, container, self._cgroups):
                await asyncio.to_thread(self._pack, container, work)
            (work / "archive.tar").rename(target)
        finally:
            await finish(asyncio.to_thread(shutil.rmtree, work))

    def _pack(self, container: ContainerEntry, work: Path) -> None:
        value = container.value
        described = {
            "id": value.id,
            "name": value.config.metadata.name,
            "rootfsImageRef": value.image_id,
            "rootfsImageName": value.image_reference,
            "createdTime": value.created_at,
            "runtime": "pvecri",
        }
        (work / "config.dump").write_text(json.dumps(described, indent=1))
        shutil.copyfile(container.bundle.spec, work / "spec.dump")
        deleted = pack_layer(self._images.writable_layer(container.id), work / "rootfs-diff.tar")
        (work / "deleted.files").write_text(json.dumps(deleted))
        with tarfile.open(work / "archive.tar", "w") as archive:
            for name in ("checkpoint", "config.dump", "spec.dump", "rootfs-diff.tar", "deleted.files"):
                archive.add(work / name, name)
        (work / "archive.tar").chmod(0o600)  # it has the container's memory


def _criu_errors(work: Path) -> str:
    """The errors in CRIU's log; the OCI runtime's own message has only the log's path."""
    try:
        lines = (work / "dump.log").read_text(errors="replace").splitlines()
    except OSError:
        return ""
    return "; ".join(["CRIU could not dump it", *(line for line in lines if "Error" in line)])
