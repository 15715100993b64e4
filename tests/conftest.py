# SPDX-License-Identifier: Apache-2.0
"""What every test run has: the check that it leaves nothing behind, and the machine that pods run on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings
from support import leaks, node

if TYPE_CHECKING:
    from pathlib import Path

    from support.cri_client import CriClient
    from support.daemon import Machine, Machines
    from support.registry import Registry


# How long a case takes is the machine's affair.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


@pytest.fixture(scope="session", autouse=True)
def _nothing_left(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Fail the run when, after all other fixtures are gone, something of it is left on the machine."""
    yield
    own = [tmp_path_factory.getbasetemp()]
    left = leaks.of_run(own, [*range(node.VMIDS.first, node.VMIDS.last + 1), *leaks.VMIDS])
    assert not left, "the test run has left behind:\n" + "\n".join(left)


@pytest.fixture(scope="session")
def _machines(_nothing_left: None) -> Iterator[Machines]:
    from support.daemon import Machines

    with Machines() as machines:
        yield machines


@pytest.fixture
def machine(_machines: Machines) -> Iterator[Machine]:
    """A node with a ready runtime and no pod. After the test its pods are removed, and must leave nothing."""
    with _machines.clean() as machine:
        yield machine


@pytest.fixture
def cri(machine: Machine) -> CriClient:
    """A client of the machine's daemon."""
    return machine.client


@pytest.fixture
def pod(cri: CriClient) -> str:
    """The id of a ready pod."""
    return cri.run_pod()


@pytest.fixture
def container(cri: CriClient, pod: str) -> str:
    """The id of a container of `pod` that runs and does nothing."""
    return cri.run(pod, "sleep", "1000")


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    """A registry that is empty."""
    from support.registry import running_registry

    with running_registry(tmp_path) as running:
        yield running


@pytest.fixture
def netns() -> Iterator[Path]:
    """A network namespace."""
    from support.netns import network_namespace

    with network_namespace() as path:
        yield path
