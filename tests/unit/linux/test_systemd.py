# SPDX-License-Identifier: Apache-2.0
"""What the service manager hears, and that children do not inherit its socket."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from pvecri.linux.systemd import ServiceManager


@pytest.fixture(params=["path", "abstract"])
def notified(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[socket.socket]:
    """The socket of $NOTIFY_SOCKET."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        name = str(tmp_path / "notify") if request.param == "path" else f"@pvecri-test-{os.getpid()}"
        listener.bind(name.replace("@", "\0"))
        listener.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        yield listener


def test_states_are_sent_in_order(notified: socket.socket) -> None:
    manager = ServiceManager()
    manager.ready()
    manager.status("serving")
    manager.reloading()
    manager.alive()
    manager.stopping()
    sent = [notified.recv(100) for _ in range(5)]
    assert sent == [b"READY=1", b"STATUS=serving", b"RELOADING=1", b"WATCHDOG=1", b"STOPPING=1"]


def test_children_do_not_get_the_socket(notified: socket.socket) -> None:
    """runc would offer it to the container, whose READY=1 would be the daemon's."""
    ServiceManager()
    assert "NOTIFY_SOCKET" not in os.environ


def test_nobody_listens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for address in ("", str(tmp_path / "gone"), "@gone"):
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        ServiceManager().ready()


@pytest.mark.parametrize(
    ("microseconds", "process", "interval"),
    [("30000000", None, 15.0), ("30000000", "1", None), ("", None, None), ("x", None, None)],
)
def test_watchdog_is_fed_twice_in_its_time(
    microseconds: str, process: str | None, interval: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", microseconds)
    monkeypatch.setenv("WATCHDOG_PID", process or str(os.getpid()))
    assert ServiceManager().watchdog_interval == interval
    assert not {"WATCHDOG_USEC", "WATCHDOG_PID"} & os.environ.keys()
