# SPDX-License-Identifier: Apache-2.0
"""Addresses and sockets that the daemon listens on."""

from __future__ import annotations

import socket
from collections.abc import Iterator

from pvecri.checks.finding import Finding
from pvecri.config.settings import Config
from pvecri.linux import single_instance

SUBJECT = "ports"

SOCKET_PATH_MAX = 107
"""Bytes of a unix socket's path (unix(7), sun_path, with its terminating NUL)."""


def check(config: Config) -> Iterator[Finding]:
    """Whether the daemon can listen; a port that the daemon itself has is in order."""
    for setting, path in (
        ("runtime.socket", config.runtime.socket),
        ("oci.socket", config.oci.socket),
        ("nri.socket", config.nri.socket),
    ):
        if len(bytes(path)) > SOCKET_PATH_MAX:
            message = f"{setting}: {path} is longer than {SOCKET_PATH_MAX} bytes"
            yield Finding("problem", SUBJECT, message, "choose a shorter path")
    short = len(bytes(config.runtime.socket)) <= SOCKET_PATH_MAX
    if short and single_instance.listens(config.runtime.socket):
        return
    addresses = {"streaming.port": (config.streaming.address, config.streaming.port)}
    if config.metrics.listen:
        addresses["metrics.listen"] = config.metrics.address
    for setting, (host, port) in addresses.items():
        try:
            _bind(host, port)
        except OSError as error:
            message = f"{setting}: cannot listen on {host} port {port}: {error.strerror}"
            yield Finding(
                "problem", SUBJECT, message, f"choose another, or see who has it: ss -ltnp sport = {port}"
            )


def _bind(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as listener:
        # As asyncio's servers: a port in TIME_WAIT is free.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen()
