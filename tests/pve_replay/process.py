# SPDX-License-Identifier: AGPL-3.0-or-later
"""An embedded node as a process, and a client of it, for tests."""

from __future__ import annotations

import asyncio
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import urllib.parse
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import aiohttp
from support.leaks import LXC_LOCKS, PREFIX
from support.processes import SOURCES
from support.vmids import claim

VMIDS = claim(90_000, 90_999, 10)
"""The VMIDs of this test process."""

_TIMEOUT_S = 30.0
_POLL_S = 0.002


@contextmanager
def new_state_dir() -> Iterator[Path]:
    """An empty state directory; the CTs of a node that used it are gone afterwards."""
    directory = Path(tempfile.mkdtemp(prefix=f"{PREFIX}embedded-"))
    directory.chmod(0o711)  # the roots of unprivileged CTs are reached through it
    try:
        yield directory
    finally:
        for conf in directory.glob("pve/nodes/*/lxc/*.conf"):
            command = ["lxc-stop", "--kill", "--lxcpath", str(directory / "lxc"), "--name", conf.stem]
            subprocess.run(command, check=False, capture_output=True)
        shutil.rmtree(LXC_LOCKS / directory.name, ignore_errors=True)
        shutil.rmtree(directory)


@dataclass(frozen=True)
class Login:
    """A token, and its secret."""

    tokenid: str
    secret: str

    def headers(self) -> dict[str, str]:
        return {"Authorization": f"PVEAPIToken={self.tokenid}={self.secret}"}


@dataclass(frozen=True)
class Ticket:
    """A login by password: what Proxmox keeps to root is done with root's."""

    ticket: str
    csrf: str

    def headers(self) -> dict[str, str]:
        cookie = urllib.parse.quote(self.ticket, safe="")
        return {"Cookie": f"PVEAuthCookie={cookie}", "CSRFPreventionToken": self.csrf}


class NodeProcess:
    """``python -m pvecri_embedded`` while the context lasts, asked with the token of `login`."""

    def __init__(self, state_dir: Path, *options: str) -> None:
        self.state_dir = state_dir
        self.lxc_path = state_dir / "lxc"
        self._command = [sys.executable, "-m", "pvecri_embedded", "--state-dir", str(state_dir)]
        self._command += ["--listen", "127.0.0.1:0", "--lxc-path", str(self.lxc_path), *options]
        self._session: aiohttp.ClientSession

    async def __aenter__(self) -> NodeProcess:
        await self.begin()
        return self

    async def __aexit__(
        self, _type: type[BaseException] | None, _value: BaseException | None, _trace: TracebackType | None
    ) -> None:
        await self.end()

    async def begin(self) -> None:
        """Start the process and wait until it answers."""
        environment = {**os.environ, "PYTHONPATH": SOURCES}
        self._process = await asyncio.create_subprocess_exec(
            *self._command, stdout=asyncio.subprocess.PIPE, env=environment
        )
        assert self._process.stdout is not None
        assert await self._process.stdout.readline(), "the embedded node did not start"
        descriptor = json.loads((self.state_dir / "node.json").read_text())
        self.url = descriptor["url"]
        pinned = aiohttp.Fingerprint(bytes.fromhex(descriptor["fingerprint"].replace(":", "")))
        self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=pinned))
        self.root = Login(descriptor["token_id"], descriptor["token_secret"])
        self.login: Login | Ticket = self.root
        self._root_password = descriptor["root_password"]

    async def root_ticket(self) -> Ticket:
        """Log in as root@pam."""
        login = {"username": "root@pam", "password": self._root_password}
        answer = await self.ask("POST", "/access/ticket", login)
        return Ticket(answer["ticket"], answer["CSRFPreventionToken"])

    @contextmanager
    def asked_as(self, login: Login | Ticket) -> Iterator[None]:
        """Requests are of this login while the context lasts."""
        before, self.login = self.login, login
        try:
            yield
        finally:
            self.login = before

    async def end(self) -> None:
        """End the process as a service manager does."""
        await self._session.close()
        self._process.terminate()
        assert await self._process.wait() == 0

    async def kill(self) -> None:
        """End the process, and the tasks that run in it, as a crash does."""
        await self._session.close()
        self._process.kill()
        await self._process.wait()

    async def restart(self) -> None:
        await self.end()
        await self.begin()

    async def ask(self, method: str, path: str, parameters: dict[str, Any] | None = None) -> Any:
        """The data of the answer."""
        status, reason, body = await self.send(method, path, parameters)
        assert status == 200, f"{method} {path}: {status} {reason} {body}"
        return json.loads(body)["data"]

    async def get(self, path: str) -> Any:
        return await self.ask("GET", path)

    async def refusal(self, method: str, path: str, parameters: dict[str, Any] | None = None) -> tuple[int, str]:
        """Status and reason phrase of an answer."""
        status, reason, _ = await self.send(method, path, parameters)
        return status, reason

    async def send(self, method: str, path: str, parameters: dict[str, Any] | None) -> tuple[int, str, str]:
        """Status, reason phrase and body of an answer."""
        url = f"{self.url}/api2/json{path}"
        async with self._session.request(method, url, data=parameters, headers=self.login.headers()) as response:
            return response.status, str(response.reason), await response.text()

    async def headers(self, method: str, path: str) -> Mapping[str, str]:
        """The headers of an answer."""
        url = f"{self.url}/api2/json{path}"
        async with self._session.request(method, url, headers=self.login.headers()) as response:
            return response.headers

    async def task(self, method: str, path: str, parameters: dict[str, Any] | None = None) -> None:
        """Ask for a task and wait until it has ended well."""
        exitstatus, log = await self.ended(await self.ask(method, path, parameters))
        assert exitstatus == "OK", f"{method} {path}: {log}"

    async def failed_task(
        self, method: str, path: str, parameters: dict[str, Any] | None = None
    ) -> tuple[str, list[str]]:
        """Ask for a task that fails; its exit status and log."""
        exitstatus, log = await self.ended(await self.ask(method, path, parameters))
        assert exitstatus != "OK", f"{method} {path}"
        return exitstatus, log

    async def ended(self, upid: str) -> tuple[str, list[str]]:
        """Exit status and log of a task, once it has ended."""
        status: dict[str, Any] = {}

        async def has_ended() -> bool:
            status.update(await self.get(f"/nodes/pve/tasks/{upid}/status"))
            return bool(status["status"] == "stopped")

        await self.until(has_ended)
        log = await self.get(f"/nodes/pve/tasks/{upid}/log")
        return status["exitstatus"], [line["t"] for line in log]

    async def listed(self, upid: str, source: str) -> dict[str, Any] | None:
        """What a list of tasks says of one, if it has it: `active`, `archive` or `all`."""
        tasks = await self.get(f"/nodes/pve/tasks?source={source}&limit=1000")
        return next((task for task in tasks if task["upid"] == upid), None)

    async def latest(self, vmid: int, kind: str) -> str:
        """The UPID of a guest's newest task of this type."""
        tasks = await self.get(f"/nodes/pve/tasks?source=all&vmid={vmid}&typefilter={kind}")
        return str(max(tasks, key=lambda task: (task["starttime"], task["upid"]))["upid"])

    async def tasks_ended(self, query: str) -> None:
        """Wait until no task of the query runs."""

        async def none_runs() -> bool:
            # The list shows tasks as RUNNING for a while after their end; their own status is exact.
            listed = await self.get(f"/nodes/pve/tasks?source=active&{query}")
            return not [task for task in listed if await self.runs(task["upid"])]

        await self.until(none_runs)

    async def logs(self, upid: str, start: str) -> bool:
        """Whether a task's log has a line that starts so."""
        log = await self.get(f"/nodes/pve/tasks/{upid}/log")
        return any(line["t"].startswith(start) for line in log)

    async def config_says(self, vmid: int, option: str, value: object) -> bool:
        return bool((await self.get(f"/nodes/pve/lxc/{vmid}/config")).get(option) == value)

    async def runs(self, upid: str) -> bool:
        """Whether a task runs, by its own status."""
        return bool((await self.get(f"/nodes/pve/tasks/{upid}/status"))["status"] == "running")

    async def status_is(self, vmid: int, status: str) -> bool:
        return bool((await self.get(f"/nodes/pve/lxc/{vmid}/status/current"))["status"] == status)

    async def until(self, condition: Callable[[], Awaitable[bool]]) -> None:
        """Wait for a condition, which must come true within half a minute."""
        async with asyncio.timeout(_TIMEOUT_S):
            while not await condition():
                await asyncio.sleep(_POLL_S)

    async def upload(self, template: Path) -> None:
        form = aiohttp.FormData()
        form.add_field("content", "vztmpl")
        form.add_field("filename", template.read_bytes(), filename=template.name)
        status, reason, answer = await self.post_form("/nodes/pve/storage/local/upload", form)
        assert status == 200, reason
        assert (await self.ended(answer["data"]))[0] == "OK"

    async def post_form(self, path: str, form: aiohttp.FormData) -> tuple[int, str, Any]:
        """Status, reason phrase and JSON of the answer to a multipart form."""
        url = f"{self.url}/api2/json{path}"
        async with self._session.post(url, data=form, headers=self.login.headers()) as response:
            return response.status, str(response.reason), await response.json()

    async def fault(self, fault: dict[str, Any]) -> None:
        async with self._session.post(f"{self.url}/pvecri-embedded/fault", json=fault) as response:
            assert response.status == 200, await response.text()

    async def clear_faults(self) -> None:
        async with self._session.delete(f"{self.url}/pvecri-embedded/fault") as response:
            assert response.status == 200

    @staticmethod
    def wait_for_end_of(pidfd: int) -> None:
        """Block until the process has ended, and close its pidfd."""
        poller = select.poll()
        poller.register(pidfd, select.POLLIN)
        assert poller.poll(_TIMEOUT_S * 1000)
        os.close(pidfd)
