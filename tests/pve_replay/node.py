# SPDX-License-Identifier: AGPL-3.0-or-later
"""An embedded node made to stand as the recorded one did, and a client that asks it what was recorded."""

from __future__ import annotations

import json
import shutil
import tempfile
import urllib.parse
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
from multidict import CIMultiDict
from support.image_builder import LayerBuilder, build_image
from support.leaks import LXC_LOCKS, PREFIX
from support.registry import running_registry
from yarl import URL

from pvecri_embedded.faults import Fault
from pvecri_embedded.identity import Certificate, Identity
from pvecri_embedded.layout import Layout
from pvecri_embedded.node import EmbeddedNode
from pvecri_embedded.usercfg import Token, User

from . import scenario
from .compare import Answer, alike
from .oci_archive import APP, SHELL, write_image
from .records import Record
from .sandbox_template import POWER_OFF, write_template
from .scenario import PASSWORDS, ROLE, STORAGES, TOKENS, Prepared

ROOT_PASSWORD = "rigroot"


class ReplayNode:
    """The node and a client of it."""

    def __init__(self, node: EmbeddedNode, session: aiohttp.ClientSession) -> None:
        self.node = node
        self._session = session
        self._upids: dict[str, str] = {}
        """Recorded UPID -> the one of this node."""
        self._begun: str | None = None
        self._held = False
        self.registry = ""
        """The address of the registry of this node's machine, if it has one."""

    async def replay(self, record: Record) -> tuple[Answer, Answer]:
        """The recorded answer and this node's, made alike."""
        for step in scenario.BEFORE.get(record.key, ()):
            await step(self)
        if record.name == "abort task" and self._begun is not None:
            self._upids[_upid_in(record.request["url"])] = self._begun
        self.node.publish_figures()  # the recorded one had its rounds of pvestatd in between
        status, reason, body = await self._ask(record)
        recorded = record.response["body"]
        exitstatus = None
        upid = body.get("data") if isinstance(body, dict) else None
        if isinstance(upid, str) and upid.startswith("UPID:"):
            if isinstance(recorded, dict) and isinstance(recorded.get("data"), str):
                self._upids[recorded["data"]] = upid
            if record.exitstatus is not None:
                exitstatus = await self.ended(upid)
        await self.settle()
        places = self._places()
        body = json.loads(alike(json.dumps(body), places))
        ours = Answer(status, alike(reason, places), body, exitstatus and alike(exitstatus, places))
        expected = record.exitstatus and alike(record.exitstatus, {})
        theirs = Answer(record.response["status"], record.response["reason"], recorded, expected)
        return theirs, ours

    async def _ask(self, record: Record) -> tuple[int, str, Any]:
        request = record.request
        headers: CIMultiDict[str] = CIMultiDict(self._credentials(record))
        url = self._translated(request["url"])
        data: Any = None
        params = request.get("params")
        if params:
            params = {key: self._ours(value) for key, value in params.items()}
        if request["method"] in {"POST", "PUT"} and params is not None:
            headers["Content-Type"] = "application/json" if request["encoding"] == "json" else _FORM
            data = json.dumps(params) if request["encoding"] == "json" else urllib.parse.urlencode(params)
        data = _special_bodies(record, headers, data)
        return await self._send(request["method"], url, headers, data)

    async def _send(self, method: str, url: str, headers: Any, data: Any) -> tuple[int, str, Any]:
        target = URL(self.node.url + url, encoded=True)
        async with self._session.request(method, target, headers=headers, data=data) as response:
            text = await response.text()
            try:
                body = json.loads(text) if text else None
            except ValueError:
                body = None
            return response.status, str(response.reason), body

    def _credentials(self, record: Record) -> dict[str, str]:
        if record.auth == "custom" and "Authorization" in record.request["headers"]:
            return {"Authorization": record.request["headers"]["Authorization"]}
        if record.auth is None:
            return {}
        if "!" in record.auth:
            return {"Authorization": f"PVEAPIToken={record.auth}={TOKENS[record.auth][0]}"}
        ticket, csrf = self.node.issue_ticket("root@pam" if record.auth == "custom" else record.auth)
        headers = {"Cookie": f"PVEAuthCookie={urllib.parse.quote(ticket, safe='')}"}
        return headers if record.auth == "custom" else {**headers, "CSRFPreventionToken": csrf}

    def _translated(self, url: str) -> str:
        for theirs, ours in self._upids.items():
            url = url.replace(urllib.parse.quote(theirs, safe=""), urllib.parse.quote(ours, safe=""))
            url = url.replace(theirs, ours)
        if "query-oci-repo-tags" in url and self.registry:
            # skopeo asks the place that is named for tags, whatever registries.conf says.
            url = url.replace("127.0.0.1%3A5000", urllib.parse.quote(self.registry))
        return url

    def _ours(self, value: Any) -> Any:
        """A parameter with the recorded node's shared directory replaced by this one's."""
        return value.replace("/mnt/share", str(self._share)) if isinstance(value, str) else value

    @property
    def _share(self) -> Path:
        return self.node.layout.state_dir / "share"

    def _places(self) -> dict[str, str]:
        layout = self.node.layout
        return {
            str(layout.storage("local")): "/var/lib/vz",
            **{str(layout.storage(name)): f"/mnt/{name}" for name in STORAGES},
            str(layout.lxc_path): "/var/lib/lxc",
            str(self._share): "/mnt/share",
        }

    # Steps of the scenario.

    async def root(self, method: str, path: str, parameters: dict[str, Any] | None = None) -> Any:
        """Ask as root@pam; the data of the answer, after the task it is the UPID of."""
        ticket, csrf = self.node.issue_ticket("root@pam")
        headers = {"Cookie": f"PVEAuthCookie={urllib.parse.quote(ticket, safe='')}", "CSRFPreventionToken": csrf}
        body = urllib.parse.urlencode(parameters or {}) if method in {"POST", "PUT"} else None
        headers["Content-Type"] = _FORM
        status, reason, answer = await self._send(method, f"/api2/json{path}", headers, body)
        assert status == 200, f"{method} {path}: {status} {reason} {answer}"
        data = answer["data"]
        if isinstance(data, str) and data.startswith("UPID:"):
            exitstatus = await self.ended(data)
            assert exitstatus == "OK", f"{method} {path}: {exitstatus}"
        return data

    async def ended(self, upid: str) -> str:
        await self.node.task_ended(upid, 30)
        return str(self.node.tasks[upid].get("exitstatus"))

    async def settle(self) -> None:
        """Let the tasks end that run on, but for those that are to."""
        if not self._held:
            await self.node.drain_tasks(20.0)

    async def prepare(self, ct: Prepared) -> None:
        if self.node.ct(ct.vmid) is not None:
            await self.remove(ct.vmid)
        parameters = {key: self._ours(value) for key, value in ct.parameters().items()}
        await self.root("POST", "/nodes/pve/lxc", parameters)
        if ct.raw:
            made = self.node.ct(ct.vmid)
            made.config["lxc"] = [list(pair) for pair in ct.raw]
            self.node.save(made)
        if ct.running:
            await self.make_running(ct.vmid)

    async def remove(self, vmid: int) -> None:
        if self.node.ct(vmid) is not None:
            await self.lock(vmid, None)
            await self.root("DELETE", f"/nodes/pve/lxc/{vmid}?force=1")

    async def lock(self, vmid: int, lock: str | None) -> None:
        self.node.ct(vmid).lock = lock

    async def put(self, vmid: int, options: dict[str, Any]) -> None:
        await self.root("PUT", f"/nodes/pve/lxc/{vmid}/config", options)

    async def make_running(self, vmid: int) -> None:
        if self.node.ct(vmid).status != "running":
            await self.root("POST", f"/nodes/pve/lxc/{vmid}/status/start")

    async def make_stopped(self, vmid: int) -> None:
        if self.node.ct(vmid).status == "running":
            await self.root("POST", f"/nodes/pve/lxc/{vmid}/status/stop")

    async def template(self, vmid: int) -> None:
        await self.root("POST", f"/nodes/pve/lxc/{vmid}/template")
        await self.settle()

    async def snapshot(self, vmid: int, name: str) -> None:
        await self.root("POST", f"/nodes/pve/lxc/{vmid}/snapshot", {"snapname": name})

    async def hold(self, kind: str) -> None:
        """Tasks of this type do not go on until released."""
        self.node.faults.add(Fault(task=kind, hold=True))
        self._held = True

    async def release(self) -> None:
        self.node.faults.clear()
        self._held = False
        await self.settle()

    async def begin_shutdown(self, vmid: int) -> None:
        """Begin a shutdown that the CT's init does not heed."""
        ct = self.node.ct(vmid)
        values = {"node": "pve", "vmid": vmid, "timeout": 60}
        self._begun = await self.node._lxc_shutdown("root@pam!cri", values)
        assert ct.status == "running"
        self._held = True


_FORM = "application/x-www-form-urlencoded"


def _upid_in(url: str) -> str:
    return urllib.parse.unquote(url.partition("/tasks/")[2].partition("/")[0])


def _special_bodies(record: Record, headers: Any, data: Any) -> Any:
    """The bodies that the records leave out."""
    if record.name == "invalid json body":
        headers["Content-Type"] = "application/json"
        return "{bad"
    if record.name == "unexpected content type":
        headers["Content-Type"] = "text/plain"
        return "text"
    if record.request["url"].endswith("/upload"):
        name = "uploaded-oci.tar" if record.response["status"] == 200 else "uploaded.txt"
        form = aiohttp.FormData()
        form.add_field("content", "vztmpl")
        form.add_field("filename", b"\0" * 10240, filename=name)
        return form
    return data


@asynccontextmanager
async def replay_node(file: str) -> AsyncIterator[ReplayNode]:
    """A node that stands as the recorded one did before ``file``; nothing of it is left afterwards."""
    async with AsyncExitStack() as undo:
        base = Path(tempfile.mkdtemp(prefix=f"{PREFIX}replay-"))
        undo.callback(shutil.rmtree, base)
        undo.callback(shutil.rmtree, LXC_LOCKS / base.name, ignore_errors=True)
        base.chmod(0o755)  # the roots of unprivileged CTs are reached through it
        layout = Layout(base / "state", "pve", base / "lxc")
        layout.make_directories()
        certificate = Certificate.load_or_make(layout, "127.0.0.1")
        node = _new_node(layout)
        _write_templates(layout)
        address = ""
        if file in scenario.WITH_REGISTRY:
            registry = undo.enter_context(running_registry(base))
            registry.push("rig/app", "1.0", build_image(LayerBuilder().file("app").build()))
            address = registry.address
            node.registries_conf = str(_write_registries(layout, address))
        await node.serve(str(certificate.certificate), str(certificate.key))
        undo.push_async_callback(_tear_down, node)
        session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=False))
        replay = ReplayNode(node, await undo.enter_async_context(session))
        replay.registry = address
        for ct in scenario.CTS.get(file, ()):
            await replay.prepare(ct)
        if file in scenario.WITHOUT_TASKS:
            node.tasks.clear()
            node.tasklog.clear()
        yield replay


def _new_node(layout: Layout) -> EmbeddedNode:
    """A node with the recorded one's storages, users and tokens."""
    identity = Identity("unused", ROOT_PASSWORD)
    node = EmbeddedNode(layout, identity, host="127.0.0.1", port=0)
    node.refusal_delay = 0.0
    for name, (kind, content) in STORAGES.items():
        node.add_storage(name, kind, content)
    _set_up_access(node)
    return node


def _write_templates(layout: Layout) -> None:
    cache = layout.storage("local") / "template" / "cache"
    share = layout.state_dir / "share"
    share.mkdir()
    shutil.copy(write_template(cache / "busybox-rig_1.0_amd64.tar.gz", POWER_OFF), share)
    layer = write_template(layout.state_dir / "layer.tar")
    write_image(cache / "sh-oci_1.0.tar", SHELL, layer)
    write_image(cache / "app-oci_1.0.tar", APP, layer)
    (cache / "corrupt.tar.gz").write_bytes(b"\0" * 5000)


def _set_up_access(node: EmbeddedNode) -> None:
    for tokenid, (secret, separated) in TOKENS.items():
        owner, _, name = tokenid.partition("!")
        node.access.users.setdefault(owner, User()).tokens[name] = Token(int(separated))
        node.apitokens[tokenid] = secret
    node.users.update(PASSWORDS)
    node.access.own_roles["Rig"] = set(ROLE)
    node.access.give("/", "user", "cri@pve", "Rig")


def _write_registries(layout: Layout, registry: str) -> Path:
    """The recorded node's registry is `registry`, and there is no other."""
    path = layout.state_dir / "registries.conf"
    places = {
        "127.0.0.1:5000": registry,
        "localhost:5000": registry,
        "docker.io": "127.0.0.1:1",
        registry: registry,
    }
    entries = [
        f'[[registry]]\nprefix = "{prefix}"\nlocation = "{place}"\ninsecure = true\n'
        for prefix, place in places.items()
    ]
    path.write_text("\n".join(entries))
    return path


async def _tear_down(node: EmbeddedNode) -> None:
    for upid in list(node.tasks):
        node.abort_task(upid)
    for ct in list(node.cts):
        if ct.monitor is not None:
            ct.monitor.kill()
            await ct.monitor.ended()
    await node.shut_down()
