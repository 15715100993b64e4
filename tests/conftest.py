# SPDX-License-Identifier: Apache-2.0
"""What every test run has: the check that it leaves nothing behind, and the machine that pods run on."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings
from support import leaks, node
from support.existing import EXISTING
from support.netns import own_ipc_namespace, own_network_namespace
from support.task_times import TASK_TIMES

if TYPE_CHECKING:
    from pathlib import Path

    from support.cri_client import CriClient
    from support.daemon import Machine, Machines
    from support.front import Front
    from support.machine_node import EmbeddedNode
    from support.registry import Registry


LOG_SHOWN = 10_000
"""Characters of the daemon's log that a failure shows."""

# How long a case takes is the machine's affair.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


def pytest_report_header() -> str:
    """Which Proxmox node pods run on."""
    if EXISTING is None:
        return f"Proxmox: embedded nodes of the tests' own, task times {TASK_TIMES or 'none'}"
    proxmox = EXISTING.settings.proxmox
    return (
        f"Proxmox: {proxmox.url}, node {proxmox.node_name}, pool {proxmox.pool}, "
        f"VMIDs {leaks.VMIDS[0]} to {leaks.VMIDS[-1]}"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Only tests of pods on a node that is there already, and on one whose tasks take their time."""
    if hasattr(config, "workerinput"):  # one of several at once (xdist)
        alone = [item for item in items if item.get_closest_marker("whole_node")]
        config.hook.pytest_deselected(items=alone)
        items[:] = [item for item in items if item not in alone]
    if EXISTING is None and not TASK_TIMES:
        return
    without_pods = [item for item in items if "_machines" not in _fixtures(item)]
    config.hook.pytest_deselected(items=without_pods)
    items[:] = [item for item in items if "_machines" in _fixtures(item)]
    for item in items:
        if EXISTING and "embedded" in _fixtures(item):
            item.add_marker(pytest.mark.skip(reason="changes the node, and so needs an embedded one"))


def _fixtures(item: pytest.Item) -> Sequence[str]:
    """The names of all fixtures that a test uses."""
    return item.fixturenames if isinstance(item, pytest.Function) else ()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the end of the daemon's log with a failure: what came before it is seldom seen twice."""
    report = yield
    machine = getattr(item, "funcargs", {}).get("machine")
    if report.failed and machine is not None and machine.daemon.log.exists():
        report.sections.append(("Log of the daemon", machine.daemon.log.read_text()[-LOG_SHOWN:]))
    return report


@pytest.fixture(scope="session", autouse=True)
def _nothing_left(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Fail the run when, after all other fixtures are gone, something of it is left on the machine."""
    with _own_namespaces():
        before = leaks.before()
        yield
        own = [tmp_path_factory.getbasetemp()]
        of_embedded_nodes = () if EXISTING else range(node.VMIDS.first, node.VMIDS.last + 1)
        left = leaks.of_run(own, [*of_embedded_nodes, *leaks.VMIDS], before)
    assert not left, "the test run has left behind:\n" + "\n".join(left)


@contextmanager
def _own_namespaces() -> Iterator[None]:
    """Enter a new network and IPC namespace, without the links and shared memory of other runs and workers.

    An existing Proxmox node is reached through the machine's own network. Without root, tests make neither.
    """
    with ExitStack() as stack:
        with suppress(PermissionError):
            stack.enter_context(own_ipc_namespace())
            if EXISTING is None:
                stack.enter_context(own_network_namespace())
        yield


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
def embedded(machine: Machine) -> EmbeddedNode:
    """The machine's node, for a test that controls it; such tests are skipped on a node that is there already."""
    from support.machine_node import EmbeddedNode

    assert isinstance(machine.node, EmbeddedNode)
    return machine.node


@pytest.fixture(scope="session")
def _runtime_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from support.front import build_runtime
    from support.processes import need

    need("cc", "gcc")
    return build_runtime(tmp_path_factory.mktemp("runtime"))


@pytest.fixture
def front(machine: Machine, _runtime_program: Path) -> Iterator[Front]:
    """What calls pvecri-runtime as CRI-O, containerd and podman do."""
    from support.front import front

    with front(machine, _runtime_program) as client:
        yield client


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
