# SPDX-License-Identifier: Apache-2.0
"""A pod's attachment to the CNI network, and its record on disk (decision 0023).

The record is written before the first plugin runs and completed after the last. So DEL uses the configuration that
ADD used, although the file may have changed, and an ADD that a crash interrupted can be undone.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from pvecri.linux.files import write_atomically
from pvecri.model import SandboxId
from pvecri.network import conflist
from pvecri.network.conflist import Network, PluginOptions
from pvecri.network.errors import RecordsUnavailable

log = logging.getLogger(__name__)

INTERFACE = "eth0"
"""CNI_IFNAME: the name that the kubelet expects of a pod's default interface."""


class Attachment(msgspec.Struct, frozen=True, kw_only=True):
    """The parameters for every plugin of the chain (CNI specification, section 2, Parameters).

    `netns` is empty if the namespace does not exist any more; `result` is empty until ADD has succeeded.
    """

    sandbox_id: SandboxId
    netns: str
    args: str
    arguments: PluginOptions
    network: Network
    interface: str = INTERFACE
    result: bytes = b""


NO_RESULT = msgspec.Raw(b"null")


class _Record(msgspec.Struct, rename="camel"):
    sandbox_id: str
    netns: str
    args: str
    arguments: PluginOptions
    interface: str
    config: msgspec.Raw
    config_path: str
    result: msgspec.Raw = NO_RESULT


@contextmanager
def _available(wanted: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        problem = f"{error.filename} cannot be {wanted}: {error.strerror} (network.cache_dir)"
        raise RecordsUnavailable(problem) from error


class AttachmentStore:
    """network.cache_dir: one file for each sandbox that is attached or being attached.

    All methods raise RecordsUnavailable if its filesystem fails, is full or is read-only.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def prepare(self) -> None:
        """Create the directory. Idempotent."""
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    def write(self, attachment: Attachment) -> None:
        """Write the record, atomically."""
        record = _Record(
            sandbox_id=attachment.sandbox_id,
            netns=attachment.netns,
            args=attachment.args,
            arguments=attachment.arguments,
            interface=attachment.interface,
            config=msgspec.Raw(conflist.to_json(attachment.network)),
            config_path=attachment.network.path,
            result=msgspec.Raw(attachment.result) if attachment.result else NO_RESULT,
        )
        with _available("written"):
            write_atomically(self._path(attachment.sandbox_id), msgspec.json.encode(record))

    def read(self, sandbox_id: SandboxId) -> Attachment | None:
        """The record of a sandbox; None if it does not exist or is not valid."""
        with _available("read"):
            try:
                data = self._path(sandbox_id).read_bytes()
            except FileNotFoundError:
                return None
        try:
            record = msgspec.json.decode(data, type=_Record)
            network = conflist.parse(bytes(record.config), record.config_path)
        except ValueError as error:
            # No error: its pod must stay removable, by a DEL with the current configuration.
            log.warning("%s: ignored: %s", self._path(sandbox_id), error)
            return None
        return Attachment(
            sandbox_id=SandboxId(record.sandbox_id),
            netns=record.netns,
            args=record.args,
            arguments=record.arguments,
            network=network,
            interface=record.interface,
            result=b"" if record.result == NO_RESULT else bytes(record.result),
        )

    def remove(self, sandbox_id: SandboxId) -> None:
        """Delete the record. Idempotent."""
        with _available("removed"):
            self._path(sandbox_id).unlink(missing_ok=True)

    def sandboxes(self) -> list[SandboxId]:
        """The sandboxes with a record."""
        with _available("listed"):
            paths = list(self._directory.iterdir())  # Path.glob returns nothing for EIO
        return sorted(SandboxId(path.stem) for path in paths if path.suffix == ".json")

    def _path(self, sandbox_id: SandboxId) -> Path:
        return self._directory / f"{sandbox_id}.json"
