# SPDX-License-Identifier: Apache-2.0
"""The server of metrics and health on a real socket."""

from __future__ import annotations

import asyncio
import socket
import ssl
import subprocess
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from support.figures import Scrape

from pvecri.config.settings import ConfigError, MetricsConfig, parse
from pvecri.observability import metrics
from pvecri.observability.metrics_server import MetricsServer
from pvecri.observability.probes import Check


async def nothing_to_observe() -> None:
    return


async def alive() -> list[Check]:
    return [Check("ping")]


async def not_ready() -> list[Check]:
    return [Check("ping"), Check("NetworkReady", "NetworkPluginNotReady")]


def server_of(
    settings: MetricsConfig, observe: Callable[[], Awaitable[None]] = nothing_to_observe
) -> MetricsServer:
    return MetricsServer(settings, observe, alive=alive, ready=not_ready)


@asynccontextmanager
async def serving(
    settings: MetricsConfig = MetricsConfig(listen="127.0.0.1:0"),  # noqa: B008  it is frozen
) -> AsyncIterator[MetricsServer]:
    server = server_of(settings)
    await server.start()
    try:
        yield server
    finally:
        await server.close()


async def test_metrics_are_served_in_prometheus_format() -> None:
    async with serving() as server:
        found = await asyncio.to_thread(Scrape, server.url)
    assert found.content_type.startswith("text/plain; version=")
    assert "# TYPE pvecri_cri_calls_total counter" in found.text
    assert "process_resident_memory_bytes " in found.text
    assert "python_gc_collections_total{" in found.text


async def test_openmetrics_is_served_on_request() -> None:
    async with serving() as server:
        request = urllib.request.Request(server.url, headers={"Accept": "application/openmetrics-text"})
        with await asyncio.to_thread(urllib.request.urlopen, request) as response:
            assert response.headers["Content-Type"].startswith("application/openmetrics-text")
            assert response.read().endswith(b"# EOF\n")


async def test_observe_is_called_for_each_scrape() -> None:
    async def observe() -> None:
        metrics.CLEANUP_PENDING.inc()

    server = server_of(MetricsConfig(listen="127.0.0.1:0"), observe)
    await server.start()
    scrapes = [await asyncio.to_thread(Scrape, server.url) for _ in range(2)]
    await server.close()
    first, second = [scrape.value("cleanup_pending") for scrape in scrapes]
    assert second == first + 1
    metrics.CLEANUP_PENDING.set(0)


def get(url: str) -> tuple[int, str]:
    """Status and body of a response."""
    try:
        with urllib.request.urlopen(url) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/healthz", (200, "ok")),
        ("/healthz?verbose", (200, "[+]ping ok\nhealthz check passed\n")),
        ("/readyz", (503, "[+]ping ok\n[-]NetworkReady failed: NetworkPluginNotReady\nreadyz check failed\n")),
        ("/readyz?exclude=NetworkReady", (200, "ok")),
    ],
)
async def test_health_is_served_beside_metrics(path: str, expected: tuple[int, str]) -> None:
    async with serving() as server:
        assert await asyncio.to_thread(get, server.url.removesuffix("/metrics") + path) == expected


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/", 404), ("POST", "/metrics", 405)])
async def test_other_paths_are_not_found(method: str, path: str, status: int) -> None:
    async with serving() as server:
        request = urllib.request.Request(server.url.removesuffix("/metrics") + path, method=method)
        with pytest.raises(urllib.error.HTTPError) as refusal:
            await asyncio.to_thread(urllib.request.urlopen, request)
    assert refusal.value.code == status
    refusal.value.close()


async def test_error_for_an_address_in_use_names_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ConfigError, match=rf"^metrics\.listen: {address}: .*in use"):
            await server_of(MetricsConfig(listen=address)).start()


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=node"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(cert)]
    subprocess.run(command, check=True, capture_output=True)
    return cert, key


async def test_certificate_enables_https(certificate: tuple[Path, Path]) -> None:
    cert, key = certificate
    async with serving(MetricsConfig(listen="127.0.0.1:0", tls_cert=cert, tls_key=key)) as server:
        context = ssl.create_default_context(cafile=str(cert))
        found = await asyncio.to_thread(Scrape, server.url, context)
    assert "pvecri_cri_calls_total" in found.text


async def test_error_for_an_invalid_certificate_names_the_setting(tmp_path: Path) -> None:
    missing = MetricsConfig(listen="127.0.0.1:0", tls_cert=tmp_path / "none", tls_key=tmp_path / "none")
    with pytest.raises(ConfigError, match=r"^metrics\.tls_cert, metrics\.tls_key: "):
        await server_of(missing).start()


@pytest.mark.parametrize(
    ("text", "address"),
    [("127.0.0.1:9537", ("127.0.0.1", 9537)), ("[::1]:9537", ("::1", 9537)), ("0.0.0.0:1", ("0.0.0.0", 1))],
)
def test_an_address_and_a_port_are_listened_on(text: str, address: tuple[str, int]) -> None:
    assert MetricsConfig(listen=text).address == address


@pytest.mark.parametrize(
    "text", ["9537", "localhost:9537", ":9537", "127.0.0.1", "127.0.0.1:x", "127.0.0.1:65536"]
)
def test_error_for_an_invalid_listen_address_names_the_setting(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^p: metrics\.listen: "):
        parse(f'[metrics]\nlisten = "{text}"', "p")


def test_a_certificate_and_its_key_go_together() -> None:
    with pytest.raises(ConfigError, match=r"metrics\.tls_cert and metrics\.tls_key go together"):
        parse('[metrics]\ntls_cert = "/c"', "p")
