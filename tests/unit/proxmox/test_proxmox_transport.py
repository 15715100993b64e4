# SPDX-License-Identifier: Apache-2.0
"""Calls are sent, repeated where that is safe, and their failures told apart."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from fakepve.certs import make_cert
from support import figures
from support.scripted_pve import ScriptedPve, data, dropped, redirect, refusal, scripted_pve, unauthorized

from pvecri.config.settings import ConfigError, ProxmoxConfig
from pvecri.errors import PermissionDenied, Unavailable
from pvecri.proxmox.answers import Version
from pvecri.proxmox.errors import ConnectionLost, ProxmoxError
from pvecri.proxmox.transport import Call, Transport, path_template

READ = Call(method="GET", path="/version", action="ask for the version")
WRITE = Call(method="POST", path="/nodes/pve/lxc", action="create CT 900001", parameters={"vmid": 900_001})
VERSION = data({"version": "9.2.11", "release": "9.2", "repoid": "14a22df35955d97d"})
TICKET = data(
    {"ticket": "PVE:root@pam:6B0448FC::Nr5v+/==", "CSRFPreventionToken": "6B0448FC:fKLw", "username": "root@pam"}
)


@pytest.fixture
async def pve() -> AsyncIterator[ScriptedPve]:
    async with scripted_pve() as server:
        yield server


@asynccontextmanager
async def transport(config: ProxmoxConfig) -> AsyncIterator[Transport]:
    opened = Transport(config)
    await opened.start()
    try:
        yield opened
    finally:
        await opened.close()


async def test_call_has_the_token_and_a_typed_response(pve: ScriptedPve, tmp_path: Path) -> None:
    pve.script("GET", "/version", VERSION)

    async with transport(pve.config(tmp_path)) as client:
        version = await client.call(READ, Version)

    assert version == Version(version="9.2.11")
    assert pve.received[0].headers["Authorization"] == "PVEAPIToken=cri@pve!t1=s3cret"


async def test_parameters_of_a_post_are_a_form_and_those_of_a_delete_a_query(
    pve: ScriptedPve, tmp_path: Path
) -> None:
    pve.script("POST", "/a", data(None))
    pve.script("DELETE", "/a", data(None))

    async with transport(pve.config(tmp_path)) as client:
        for method in ("POST", "DELETE"):
            call = Call(method=method, path="/a", action="try", parameters={"force": True, "text": "ä b&c"})
            assert await client.call(call, object) is None

    post, delete = pve.received
    assert post.body == b"force=1&text=%C3%A4+b%26c"
    assert post.headers["Content-Type"] == "application/x-www-form-urlencoded"
    assert (delete.path, delete.body) == ("/a?force=1&text=%C3%A4+b%26c", b"")


async def test_read_is_retried_after_connection_loss(pve: ScriptedPve, tmp_path: Path) -> None:
    pve.script("GET", "/version", dropped, dropped, dropped, VERSION)

    async with transport(pve.config(tmp_path)) as client:
        assert (await client.call(READ, Version)).version == "9.2.11"


async def test_a_connection_that_the_server_closed_while_it_was_idle_is_not_noticed(tmp_path: Path) -> None:
    body = b'{"data": {"version": "9.2.11"}}'

    async def answer_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(
            b"HTTP/1.1 200 OK\r\nConnection: Keep-Alive\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
        )
        writer.close()

    async with await asyncio.start_server(answer_once, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with transport(ScriptedPve(url=url).config(tmp_path)) as client:
            for _ in range(10):
                assert (await client.call(READ, Version)).version == "9.2.11"


async def test_write_without_a_response_is_not_retried(pve: ScriptedPve, tmp_path: Path) -> None:
    pve.script("POST", "/nodes/pve/lxc", dropped, data("UPID"))

    async with transport(pve.config(tmp_path)) as client:
        with pytest.raises(ConnectionLost, match=r"create CT 900001.*proxmox\.url"):
            await client.call(WRITE, str)

    assert pve.count("POST", "/nodes/pve/lxc") == 1


async def test_write_for_which_pveproxy_got_no_response_is_not_retried(pve: ScriptedPve, tmp_path: Path) -> None:
    pve.script("POST", "/nodes/pve/lxc", refusal(596, "Connection timed out"))

    async with transport(pve.config(tmp_path)) as client:
        with pytest.raises(ConnectionLost, match="596 Connection timed out"):
            await client.call(WRITE, str)

    assert pve.count("POST", "/nodes/pve/lxc") == 1


async def test_write_with_status_595_is_retried(pve: ScriptedPve, tmp_path: Path) -> None:
    pve.script("POST", "/nodes/pve/lxc", refusal(595, "Connection refused"), data("UPID"))

    async with transport(pve.config(tmp_path)) as client:
        assert await client.call(WRITE, str) == "UPID"


async def test_renewed_ca_is_read_without_a_restart(tmp_path: Path) -> None:
    old, new = (make_cert(str(tmp_path), name)[:2] for name in ("old", "new"))
    ca_file = tmp_path / "ca.pem"
    ca_file.write_text(Path(old[0]).read_text())

    async with (
        scripted_pve(certificate=new) as server,
        transport(server.config(tmp_path, ca_file=ca_file)) as client,
    ):
        server.script("POST", WRITE.path, data("UPID"))
        with pytest.raises(Unavailable, match=r"not trusted: [^<]*verify failed[^<]*proxmox\.ca_file"):
            await client.call(WRITE, str)
        ca_file.write_text("")  # as while it is being written: nothing else is trusted meanwhile
        with pytest.raises(Unavailable, match="not trusted"):
            await client.call(WRITE, str)
        ca_file.write_text(Path(new[0]).read_text())

        assert await client.call(WRITE, str) == "UPID"


async def test_error_for_a_refused_connection_names_the_url(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    server = ScriptedPve(url=f"http://127.0.0.1:{port}")

    async with transport(server.config(tmp_path)) as client:
        with pytest.raises(
            Unavailable, match=rf"cannot connect to {server.url}: Connect call failed [^<]*check proxmox\.url"
        ):
            await client.call(WRITE, str)


async def test_error_for_a_request_timeout_names_the_setting(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        server = ScriptedPve(url=f"http://127.0.0.1:{silent.getsockname()[1]}")
        async with transport(server.config(tmp_path, request_timeout=0.05)) as client:
            with pytest.raises(Unavailable, match=r"did not answer within 0\.05 s \(proxmox\.request_timeout\)"):
                await client.call(WRITE, str)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("call", [READ, WRITE], ids=["read", "write"])
async def test_redirect_is_not_followed(pve: ScriptedPve, tmp_path: Path, call: Call, status: int) -> None:
    async with scripted_pve() as other:
        other.script("GET", "/version", VERSION)
        other.script("POST", "/nodes/pve/lxc", data("UPID"))
        target = f"{other.url}/api2/json{call.path}"
        pve.script(call.method, call.path, redirect(status, target))
        async with transport(pve.config(tmp_path)) as client:
            with pytest.raises(Unavailable, match=rf"redirects to '{target}'.*set proxmox\.url"):
                await client.call(call, object)
        assert (other.received, len(pve.received)) == ([], 1)


async def test_password_is_not_sent_to_the_target_of_a_redirect(pve: ScriptedPve, tmp_path: Path) -> None:
    async with scripted_pve() as other:
        other.script("POST", "/access/ticket", TICKET)
        pve.script("POST", "/access/ticket", redirect(307, f"{other.url}/api2/json/access/ticket"))
        async with transport(with_password(pve, tmp_path)) as client:
            with pytest.raises(Unavailable, match=r"log in as root@pam.*redirects to"):
                await client.call(READ, Version)
        assert other.received == []


async def test_invalid_response_is_an_error(pve: ScriptedPve, tmp_path: Path) -> None:
    pve.script("GET", "/version", data({"release": 9}))

    async with transport(pve.config(tmp_path)) as client:
        with pytest.raises(ProxmoxError, match="invalid response"):
            await client.call(READ, Version)


async def test_replaced_token_secret_is_read_again(pve: ScriptedPve, tmp_path: Path) -> None:
    pve.script("GET", "/version", unauthorized(), VERSION)

    async with transport(pve.config(tmp_path)) as client:
        (tmp_path / "secret").write_text("n3w")
        await client.call(READ, Version)

    assert [each.headers["Authorization"][-6:] for each in pve.received] == ["s3cret", "t1=n3w"]


async def test_refused_token_is_not_retried(pve: ScriptedPve, tmp_path: Path) -> None:
    pve.script("GET", "/version", unauthorized())

    async with transport(pve.config(tmp_path)) as client:
        with pytest.raises(PermissionDenied, match="token cri@pve!t1 were refused"):
            await client.call(READ, Version)

    assert pve.count("GET", "/version") == 1


def with_password(pve: ScriptedPve, directory: Path) -> ProxmoxConfig:
    password = directory / "password"
    password.write_text("rigroot\n")
    return ProxmoxConfig(url=pve.url, node="pve", username="root@pam", password_file=password)


async def test_ticket_is_reused_by_later_calls(pve: ScriptedPve, tmp_path: Path) -> None:
    pve.script("POST", "/access/ticket", TICKET)
    pve.script("GET", "/version", VERSION)

    async with transport(with_password(pve, tmp_path)) as client:
        await client.call(READ, Version)
        await client.call(READ, Version)

    login, first, _ = pve.received
    assert login.body == b"username=root%40pam&password=rigroot"
    assert first.headers["Cookie"] == "PVEAuthCookie=PVE%3Aroot%40pam%3A6B0448FC%3A%3ANr5v%2B%2F%3D%3D"
    assert first.headers["CSRFPreventionToken"] == "6B0448FC:fKLw"
    assert pve.count("POST", "/access/ticket") == 1


async def test_expired_ticket_is_renewed(pve: ScriptedPve, tmp_path: Path) -> None:
    pve.script("POST", "/access/ticket", TICKET)
    pve.script("GET", "/version", VERSION, unauthorized("No ticket"), VERSION)

    async with transport(with_password(pve, tmp_path)) as client:
        await client.call(READ, Version)
        await client.call(READ, Version)

    assert pve.count("POST", "/access/ticket") == 2


async def test_error_for_a_wrong_password_names_the_setting(pve: ScriptedPve, tmp_path: Path) -> None:
    pve.script("POST", "/access/ticket", refusal(401, "authentication failure"))

    async with transport(with_password(pve, tmp_path)) as client:
        with pytest.raises(PermissionDenied, match=r"user root@pam were refused.*proxmox\.password_file"):
            await client.call(READ, Version)


async def test_error_for_a_second_factor_recommends_a_token(pve: ScriptedPve, tmp_path: Path) -> None:
    pve.script("POST", "/access/ticket", data({"ticket": "PVE:!tfa!…", "NeedTFA": 1, "username": "root@pam"}))

    async with transport(with_password(pve, tmp_path)) as client:
        with pytest.raises(PermissionDenied, match=r"second factor.*proxmox\.token_id"):
            await client.call(READ, Version)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (ProxmoxConfig(), r"set proxmox\.token_id"),
        (ProxmoxConfig(token_id="a@pve!b", token_secret_file=Path("/nonexistent")), r"proxmox\.token_secret_file"),
        (
            ProxmoxConfig(username="a@pve", password_file=Path(__file__), fingerprint="abc"),
            r"proxmox\.fingerprint",
        ),
        (ProxmoxConfig(username="a@pve", password_file=Path(__file__), ca_file=Path("/no")), r"proxmox\.ca_file"),
    ],
)
async def test_invalid_settings_are_refused_at_start(config: ProxmoxConfig, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        await Transport(config).start()


@pytest.mark.parametrize(
    ("path", "template"),
    [
        ("/version", "/version"),
        ("/storage", "/storage"),
        ("/nodes/pve1/lxc", "/nodes/{node}/lxc"),
        ("/nodes/lxc/lxc/900001/status/current", "/nodes/{node}/lxc/{vmid}/status/current"),
        ("/nodes/pve1/tasks/UPID%3Apve%3A0%3A/status", "/nodes/{node}/tasks/{upid}/status"),
        ("/nodes/pve1/storage/local/content", "/nodes/{node}/storage/{storage}/content"),
        (
            "/nodes/pve1/storage/local/content/local:vztmpl/a.tar",
            "/nodes/{node}/storage/{storage}/content/{volume}",
        ),
    ],
)
def test_path_label_has_placeholders(path: str, template: str) -> None:
    assert path_template(path) == template


async def test_requests_are_counted_with_retries_and_statuses(pve: ScriptedPve, tmp_path: Path) -> None:
    def counted() -> list[float]:
        where = {"method": "POST", "path": "/nodes/{node}/lxc"}
        requests = [figures.value("proxmox_requests_total", **where, code=code) for code in ("200", "595")]
        timed = figures.value("proxmox_request_duration_seconds_count", **where)
        return [*requests, timed, figures.value("proxmox_retries_total", method="POST")]

    before = counted()
    pve.script("POST", "/nodes/pve/lxc", refusal(595, "Connection refused"), data("UPID:x"))
    async with transport(pve.config(tmp_path)) as client:
        await client.call(WRITE, str)
    assert [now - then for now, then in zip(counted(), before, strict=True)] == [1, 1, 2, 1]


async def test_request_without_a_response_is_counted_by_its_error(pve: ScriptedPve, tmp_path: Path) -> None:
    where = {"method": "POST", "path": "/nodes/{node}/lxc", "code": "UNAVAILABLE"}
    before = figures.value("proxmox_requests_total", **where)
    pve.script("POST", "/nodes/pve/lxc", dropped)
    async with transport(pve.config(tmp_path)) as client:
        with pytest.raises(ConnectionLost):
            await client.call(WRITE, str)
    assert figures.value("proxmox_requests_total", **where) == before + 1


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
async def test_call_that_is_not_repeatable_is_sent_once(pve: ScriptedPve, tmp_path: Path, method: str) -> None:
    pve.script(method, "/a", dropped, data(None))

    async with transport(pve.config(tmp_path)) as client:
        with pytest.raises(ConnectionLost):
            await client.call(Call(method=method, path="/a", action="change it"), object)

    assert pve.count(method, "/a") == 1
