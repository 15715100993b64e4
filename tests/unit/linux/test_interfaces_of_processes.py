# SPDX-License-Identifier: Apache-2.0
"""A process's interfaces are those of its network namespace. Needs root."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pvecri.linux import interfaces
from pvecri.linux.processes import Process

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="a network namespace needs root")

SCRIPT = "ip link add here type veth peer name there && ip link set there up && echo made && exec sleep 1000"


@contextmanager
def process_with_interfaces() -> Iterator[subprocess.Popen[str]]:
    command = ["unshare", "--net", "sh", "-c", SCRIPT]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
        try:
            assert running.stdout is not None
            assert running.stdout.readline() == "made\n"
            yield running
        finally:
            running.kill()


def test_they_equal_those_read_inside_the_namespace() -> None:
    with process_with_interfaces() as running:
        process = Process(running.pid)
        found = interfaces.of_process(process)
        assert found is not None
        assert {each.name for each in found} == {"here", "there"}
        inside = interfaces.read([Path(f"/proc/{running.pid}/ns/net")])[0]
        assert inside is not None
        assert {each.name for each in inside} == {each.name for each in found}
        process.close()


def test_an_ended_process_has_none() -> None:
    with process_with_interfaces() as running:
        process = Process(running.pid)
    assert interfaces.of_process(process) is None
    process.close()
    assert interfaces.of_process(process) is None


def test_a_closed_process_has_none() -> None:
    with process_with_interfaces() as running:
        process = Process(running.pid)
        process.close()
        assert interfaces.of_process(process) is None
