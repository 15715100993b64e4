# SPDX-License-Identifier: Apache-2.0
"""Requests whose paths are on a filesystem that does not answer: only they wait."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from support.cri_client import CriClient
from support.daemon import Machine
from support.hung import hung_filesystem

from pvecri.cri.proto import cri_pb2 as pb

REQUESTS = 40
"""More than the event loop has threads: 32 at most (ThreadPoolExecutor)."""


@pytest.fixture
def hung(tmp_path: Path) -> Iterator[Path]:
    directory = tmp_path / "hung"
    directory.mkdir()
    with hung_filesystem(directory):
        yield directory


def as_device(path: Path) -> dict[str, Any]:
    return {"devices": [pb.Device(host_path=f"{path}/null", container_path="/dev/x", permissions="r")]}


def as_volume(path: Path) -> dict[str, Any]:
    return {"mounts": [pb.Mount(host_path=f"{path}/volume", container_path="/x")]}


@pytest.mark.parametrize("fields", [as_device, as_volume])
def test_other_containers_start_while_requests_wait_for_a_filesystem(
    cri: CriClient, pod: str, hung: Path, fields: Callable[[Path], dict[str, Any]]
) -> None:
    configs = [cri.container_config("true", name=f"waits-{each}", **fields(hung)) for each in range(REQUESTS)]
    requests = [pb.CreateContainerRequest(pod_sandbox_id=pod, config=each) for each in configs]
    waiting = [cri.runtime.CreateContainer.future(each) for each in requests]
    assert cri.finish(pod, "echo", "works") == "works\n"
    assert not any(each.done() for each in waiting)
    for each in waiting:
        each.cancel()


def test_stop_ends_the_daemon_while_a_request_waits(
    machine: Machine, cri: CriClient, pod: str, hung: Path
) -> None:
    config = cri.container_config("true", **as_device(hung))
    waiting = cri.runtime.CreateContainer.future(pb.CreateContainerRequest(pod_sandbox_id=pod, config=config))
    assert machine.stop() == 0
    with pytest.raises(grpc.RpcError):
        waiting.result()
