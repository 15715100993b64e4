# SPDX-License-Identifier: Apache-2.0
"""SIGHUP to the real daemon, and what it tells a service manager."""

from __future__ import annotations

import json
import signal
import socket
from pathlib import Path

import pytest
from support.cri_client import CriClient, eventually
from support.daemon import Machine

from pvecri.cri.proto import cri_pb2 as pb


def pinned(cri: CriClient) -> list[bool]:
    """Whether the image of the tests is pinned."""
    images = cri.images.ListImages(pb.ListImagesRequest()).images
    return [each.pinned for each in images if cri.image in each.repo_tags]


def test_reload_changes_what_it_can_and_keeps_pods(machine: Machine, cri: CriClient, container: str) -> None:
    """SIGHUP ended the daemon."""
    assert pinned(cri) == [False]
    pid = machine.daemon.pid
    drop_ins = machine.directory / "conf.d"
    drop_ins.mkdir()
    try:
        (drop_ins / "10-pin.toml").write_text(
            f'[images]\npinned = ["{cri.image}"]\n[runtime]\nstart_timeout = 59.0\n'
            '[log]\nlevel = "debug"\nformat = "json"\n'
        )
        machine.daemon.send(signal.SIGHUP)
        eventually(lambda: pinned(cri) == [True], "the image is pinned")
        assert cri.output(container, "echo", "on") == "on\n"
        assert machine.daemon.pid == pid
        log = machine.daemon.log.read_text()
        assert "images.pinned" in log
        assert "the change of runtime.start_timeout needs a restart" in log
        objects = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
        assert any("log.format" in each["message"] for each in objects)

        (drop_ins / "20-broken.toml").write_text("[")
        machine.daemon.send(signal.SIGHUP)
        eventually(
            lambda: f"{drop_ins}/20-broken.toml:" in machine.daemon.log.read_text(), "the broken file is named"
        )
        assert pinned(cri) == [True]
    finally:
        for path in drop_ins.iterdir():
            path.unlink()
        drop_ins.rmdir()
        machine.daemon.send(signal.SIGHUP)
    eventually(lambda: pinned(cri) == [False], "the image is not pinned any more")


def test_service_manager_hears_when_the_daemon_serves_reloads_and_ends(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(60)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "2000000")
        machine.restart()
        heard = {manager.recv(200) for _ in range(3)}
        assert heard == {b"READY=1", b"STATUS=serving the CRI", b"WATCHDOG=1"}
        machine.daemon.send(signal.SIGHUP)
        while manager.recv(200) != b"RELOADING=1":
            pass
        assert manager.recv(200) == b"READY=1"
        monkeypatch.delenv("NOTIFY_SOCKET")
        machine.restart()
        while manager.recv(200) != b"STOPPING=1":
            pass
