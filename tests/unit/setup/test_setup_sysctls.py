# SPDX-License-Identifier: Apache-2.0
"""The steps of a setup that set sysctls, by a sysctl(8) that writes below the other root."""

from __future__ import annotations

from pathlib import Path

import pytest

from pvecri.setup import undo
from pvecri.setup.choice import Choice
from pvecri.setup.command import planned
from pvecri.setup.node import Node
from pvecri.setup.record import Record
from pvecri.setup.steps import SYSCTL, Step, steps

INSTANCES = "fs.inotify.max_user_instances"
SYSCTL_PROGRAM = """#!/bin/sh
[ "$1 $2" = "--quiet --write" ] || exit 1
echo "${3#*=}" >"$ROOT/proc/sys/$(echo "${3%%=*}" | tr . /)"
"""
CHOICE = Choice(node="pve", token="pve", storage="local", template_storage="local")


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Node:
    """A node whose sysctls are files below `tmp_path`."""
    program = tmp_path / "bin/sysctl"
    program.parent.mkdir()
    program.write_text(SYSCTL_PROGRAM)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    monkeypatch.setenv("ROOT", str(tmp_path))
    monkeypatch.setattr(Node, "starts_services", True)
    set_value(tmp_path, INSTANCES, 128)
    set_value(tmp_path, "fs.inotify.max_user_watches", 4_194_304)
    set_value(tmp_path, "net.ipv4.ip_forward", 0)
    return Node(tmp_path)


def set_value(root: Path, name: str, value: int) -> None:
    path = root / "proc/sys" / name.replace(".", "/")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{value}\n")


def value(root: Path, name: str) -> int:
    return int((root / "proc/sys" / name.replace(".", "/")).read_text())


def pods(root: Path, number: int) -> None:
    path = root / "var/lib/kubelet/config.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"kind: KubeletConfiguration\nmaxPods: {number}\n")


def set_up(node: Node) -> list[str]:
    """Set the sysctls; the values that were set."""
    record = Record(node.root)
    wanted = [step for step in steps(CHOICE, node.lacking()) if step.name.startswith(SYSCTL)]
    plan, _ = planned(node, record, wanted)
    for step in plan:
        perform(node, record, step)
    return [step.name.removeprefix(SYSCTL) for step in plan]


def perform(node: Node, record: Record, step: Step) -> None:
    node.perform(step)
    if step.undo or step.path:
        record.add(step)


def undone(node: Node) -> None:
    record = Record(node.root)
    plan, _ = undo.planned(node, record)
    for each in plan:
        undo.perform(node, record, each)


def test_values_that_are_too_low_are_raised_and_taken_back(node: Node) -> None:
    assert sorted(set_up(node)) == [f"{INSTANCES}=880", "net.ipv4.ip_forward=1"]
    assert value(node.root, INSTANCES) == 880
    assert set_up(node) == []
    undone(node)
    assert value(node.root, INSTANCES) == 128
    assert value(node.root, "net.ipv4.ip_forward") == 1, "something else may need it now"
    assert not (node.root / "var/lib/pvecri/setup.json").exists()


def test_value_that_was_raised_twice_is_taken_back_to_the_first(node: Node) -> None:
    set_up(node)
    pods(node.root, 250)
    assert set_up(node) == [f"{INSTANCES}=2000"]
    undone(node)
    assert value(node.root, INSTANCES) == 128


def test_value_that_somebody_else_has_raised_stays(node: Node) -> None:
    set_up(node)
    set_value(node.root, INSTANCES, 65536)
    undone(node)
    assert value(node.root, INSTANCES) == 65536
