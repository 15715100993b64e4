# SPDX-License-Identifier: Apache-2.0
"""What a front wants, and the client that it is asked through."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from msgspec.structs import replace

from pvecri.errors import InternalError
from pvecri.model import (
    ContainerConfig,
    ContainerId,
    ContainerMetadata,
    FrontSandbox,
    SandboxConfig,
    SandboxId,
    SandboxMetadata,
)

Metadata = TypeVar("Metadata", SandboxMetadata, ContainerMetadata)


def with_free_attempt(metadata: Metadata, taken: Collection[Metadata]) -> Metadata:
    """The metadata with the first free attempt from its own on: containerd does not pass on the kubelet's."""
    while metadata in taken:
        metadata = replace(metadata, attempt=metadata.attempt + 1)
    return metadata


@dataclass(frozen=True)
class WantedSandbox:
    """The pod that a front's container belongs to."""

    id: SandboxId
    config: SandboxConfig
    front: FrontSandbox


@dataclass(frozen=True)
class WantedContainer:
    """A container that a front creates. `cgroup` is the path that the front would have for it; it may be empty."""

    id: ContainerId
    front_id: str
    root: str
    bundle: Path
    spec: dict[str, Any]
    config: ContainerConfig
    cgroup: str
    image_id: str
    is_sandbox: bool


class Client(Protocol):
    """Runs programs as children of pvecri-runtime, with the streams of the front (front/protocol.py)."""

    async def launch(
        self,
        command: Sequence[str],
        *,
        exit_file: Path,
        pid_file: Path,
        pid_namespace: Path | None,
        started: Callable[[int], None],
    ) -> int:
        """Run `command` below a monitor, to its end; its status."""
        ...

    async def run(self, command: Sequence[str]) -> int:
        """Run a program to its end; its status."""
        ...


class LaunchFailed(InternalError):
    """The OCI runtime failed with `status`; the front has its message already."""

    def __init__(self, container: str, status: int) -> None:
        super().__init__(f"container {container}: the OCI runtime ended with status {status}")
        self.code = status
