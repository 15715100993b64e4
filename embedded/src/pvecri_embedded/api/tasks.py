# SPDX-License-Identifier: AGPL-3.0-or-later
"""Worker tasks: they begin at once, run beside the API, and are found again after a restart."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import itertools
import json
import logging
import os
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any

from aiohttp import web
from fakepve import PveError, TaskError
from fakepve.routing import split_list
from fakepve.server import USER, params

from pvecri_embedded.api.base import Base, parameter_error

CONFIG_LOCK_TIMEOUT_S = 10.0
STATUS_ROUND_S = 10.0
"""How often pvestatd looks for tasks that have ended, and at the guests."""
KEPT_TASKS = 1000
INTERRUPTED = "received interrupt"
"""What ends a task that DELETE /nodes/{node}/tasks/{upid} stops."""
CLUSTER_TASKS = 25
UPID = re.compile(r"^UPID:[^:\s]+(:[0-9A-F]{8,9}){3}:[^:\s]+:[^:\s]*:[^:\s]+:$")
_log: contextvars.ContextVar[list[str] | None] = contextvars.ContextVar("task_log", default=None)
_WARNING = "WARN: "
_logger = logging.getLogger(__name__)

Body = Callable[[], Awaitable[str | None]]
Record = dict[str, Any]


def log(line: str) -> None:
    """Add a line to the log of the task that runs; outside of one it is not kept, as with Proxmox."""
    lines = _log.get()
    if lines is not None:
        lines.append(line)


def warn(text: str) -> None:
    """Add a warning to the log of the task that runs, which then ends with ``WARNINGS: n`` in place of ``OK``."""
    log(f"{_WARNING}{text}")


class TaskApi(Base):
    """Overrides fakepve's tasks and config locks, which finish before the request is answered."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._pids = itertools.count(os.getpid())
        self._last_start = 0
        self._running: dict[str, asyncio.Task[None]] = {}
        self._active: list[Record] = []
        """Those that are not in the archive: `tasklog` has both."""
        self._config_locks: dict[int, asyncio.Lock] = {}

    async def task(
        self,
        node: str,
        ttype: str,
        tid: object,
        user: str,
        body: Body,
        vm: Any = None,
        lock: bool = True,
        log: Sequence[str] = (),
        after: Body | None = None,
    ) -> str:
        """Start a task and return its UPID; it runs on its own. `after` follows `body` without the config lock."""
        upid, pid, start = self._upid(node, ttype, tid, user)
        record = {
            "upid": upid, "node": node, "pid": pid, "pstart": self._last_start, "starttime": start, "type": ttype,
            "id": str(tid), "user": user, "status": "running", "log": list(log),
        }  # fmt: skip
        # A worker that a worker forks has no parent who reaps it, once that one has ended.
        orphan = _log.get() is not None
        self.tasks[upid] = record
        self.tasklog.append(record)
        self._active.append(record)
        self._write_down(record)
        self.archive_ended()
        running = asyncio.create_task(self._work(record, body, after, vm if lock else None, vm))
        self._running[upid] = running
        running.add_done_callback(lambda _: self._reap(record, orphan=orphan))
        return upid

    def _upid(self, node: str, ttype: str, tid: object, user: str) -> tuple[str, int, int]:
        """A new task's UPID, PID and time; `_last_start` is when its worker started, in clock ticks since boot.

        That is what tells the order of tasks (the clock may be set back), also of those of an earlier API process.
        Each has a tick of its own: here a task may end in less than one.
        """
        pid, start = next(self._pids), int(time.time())
        ticks = int(time.clock_gettime(time.CLOCK_BOOTTIME) * os.sysconf("SC_CLK_TCK"))
        self._last_start = max(self._last_start + 1, ticks)
        return f"UPID:{node}:{pid:08X}:{self._last_start:08X}:{start:08X}:{ttype}:{tid}:{user}:", pid, start

    def _reap(self, record: Record, *, orphan: bool) -> None:
        del self._running[record["upid"]]
        if not orphan:
            self.archive_ended()

    def archive_ended(self) -> None:
        """Move the tasks that have ended from the list of active ones to the archive.

        PVE::RESTEnvironment::active_workers: it runs when a worker is forked, when the API daemon reaps one of its
        own, and in pvestatd's rounds. Until then the lists show an ended task as RUNNING, and the time at which it
        is archived is its `endtime`.
        """
        ended = [record for record in self._active if record["status"] == "stopped"]
        self._active = [record for record in self._active if record["status"] != "stopped"]
        noticed = int(time.time())
        for record in sorted(ended, key=lambda record: record["starttime"], reverse=True):
            record["endtime"] = noticed
            # The list shows the archive from its end: among those archived at once, the latest start comes last.
            self.tasklog.remove(record)
            self.tasklog.append(record)
            self.keep_task(record)

    async def run_status_rounds(self) -> None:
        """What pvestatd does for the lists of tasks and guests, until it is cancelled."""
        while True:
            self.archive_ended()
            self.publish_figures()
            await asyncio.sleep(STATUS_ROUND_S)

    async def _work(self, record: Record, body: Body, after: Body | None, locked: Any, guest: Any) -> None:
        _log.set(record["log"])
        status = "OK"
        try:
            status = await self._run(record, body, after, locked)
        except TaskError as error:
            status = str(error)
        except PveError as error:
            status = error.message
        except asyncio.CancelledError:
            status = INTERRUPTED
        except Exception as error:
            _logger.exception("task %s", record["upid"])
            status = f"internal error: {error}"
        record["log"].append(_last_line(status))
        record |= {"status": "stopped", "exitstatus": status, "endtime": int(time.time())}
        if guest is not None and guest in self.cts:
            self.save(guest)

    async def _run(self, record: Record, body: Body, after: Body | None, locked: Any) -> str:
        async with contextlib.AsyncExitStack() as held:
            if locked is not None:
                await held.enter_async_context(self.config_lock(locked, record["upid"]))
            await self.faults.before_task(record["type"])
            note = await body()
        if note:
            record["log"].append(note)
        if after is not None:
            await after()
        warnings = sum(line.startswith(_WARNING) for line in record["log"])
        return f"WARNINGS: {warnings}" if warnings else "OK"

    @contextlib.asynccontextmanager
    async def config_lock(self, vm: Any, holder: str) -> AsyncIterator[None]:
        """The guest's config lock while the context lasts. TaskError when it stays taken, or the guest is gone."""
        await self.acquire(vm, holder)
        try:
            if vm not in self.cts and vm not in self.vms:
                # The config is read once the lock is held: by then it may have been removed.
                raise TaskError(f"Configuration file '{_config_path(vm)}' does not exist")
            yield
        finally:
            self.release(vm, holder)

    async def acquire(self, vm: Any, holder: str, wait: float | None = None) -> None:
        """Take the guest's config lock. Raises TaskError when it stays taken for ``wait`` seconds."""
        lock = self._config_locks.setdefault(vm.vmid, asyncio.Lock())
        try:
            async with asyncio.timeout(CONFIG_LOCK_TIMEOUT_S if wait is None else wait):
                await lock.acquire()
        except TimeoutError:
            raise TaskError(vm.lock_error) from None
        vm.lock_holder = holder

    def release(self, vm: Any, holder: str) -> None:
        """Give the config lock back if ``holder`` has it."""
        if vm.lock_holder == holder:
            vm.lock_holder = None
            self._config_locks[vm.vmid].release()

    async def _config_lock(self, ct: Any) -> None:
        # fakepve's way to take the lock for a change outside of a task.
        await super()._config_lock(ct)
        if ct not in self.cts:
            self.release(ct, "config")
            raise PveError(500, f"Configuration file '{_config_path(ct)}' does not exist")

    def _write_down(self, record: Record) -> None:
        """Write a task down, for the API process that comes after this one: as it begins and as it has ended."""
        with self.layout.tasks.open("a") as file:
            file.write(json.dumps(record) + "\n")

    def keep_task(self, record: Record) -> None:
        """Archive an ended task, and forget the oldest ones."""
        self._write_down(record)
        excess = self.tasklog[: max(0, len(self.tasklog) - KEPT_TASKS)]
        for old in excess:
            if old["status"] == "stopped":
                self.tasklog.remove(old)
                self.tasks.pop(old["upid"], None)

    def load_tasks(self) -> None:
        """Read the tasks of earlier API processes, and drop all but the newest from the file.

        One that has not ended was killed with its process, and has written no last line.
        """
        if not self.layout.tasks.exists():
            return
        records = [json.loads(line) for line in self.layout.tasks.read_text().splitlines()]
        # A task has a line from its beginning and one from its end: the later one counts.
        newest = list({record["upid"]: record for record in records}.values())[-KEPT_TASKS:]
        for record in newest:
            if record["status"] != "stopped":
                record |= {"status": "stopped", "exitstatus": "unexpected status", "endtime": int(time.time())}
            self.tasks[record["upid"]] = record
            self.tasklog.append(record)
        self.layout.tasks.write_text("".join(f"{json.dumps(record)}\n" for record in newest))

    def _routes_tasks(self) -> list[tuple[str, str, Any]]:
        return [
            ("GET", "/cluster/tasks", self._cluster_tasks),
            ("GET", "/nodes/{node}/tasks/{upid}", self._task_index),
            ("DELETE", "/nodes/{node}/tasks/{upid}", self._task_abort),
        ]

    async def _cluster_tasks(self, v: dict[str, Any], user: str) -> list[Record]:
        """GET /cluster/tasks: the newest tasks, those the user may see."""
        visible = [
            record
            for record in reversed(self.tasklog)
            if self._task_owner(user, record) or self.allowed(user, "/", "Sys.Audit")
        ]
        return [self._cluster_task_view(record) for record in visible[:CLUSTER_TASKS]]

    def _cluster_task_view(self, record: Record) -> Record:
        view = self._task_view(record, listing=True)
        unwanted = {"pid", "pstart"}
        saved = record not in self._active
        if not saved:
            # As the list was when it was last told to the cluster.
            unwanted |= {"status", "endtime"}
        return {key: value for key, value in view.items() if key not in unwanted} | {"saved": str(int(saved))}

    async def _task_index(self, v: dict[str, Any], user: str) -> list[dict[str, str]]:
        return [{"name": "log"}, {"name": "status"}]

    async def _task_abort(self, v: dict[str, Any], user: str) -> None:
        record = self._task_of(v["upid"])
        if not self._task_owner(user, record):
            self.require(user, f"/nodes/{self.node}", "Sys.Modify")
        self.abort_task(v["upid"])

    def _task_of(self, upid: str) -> Record:
        """The task of a UPID, or Proxmox's 400."""
        if not UPID.match(upid):
            raise parameter_error("upid", "unable to parse worker upid")
        if upid not in self.tasks:
            raise parameter_error("upid", "no such task")
        record: Record = self.tasks[upid]
        return record

    def _get_task(self, request: web.Request) -> Record:
        self._task_of(request.match_info["upid"])
        record: Record = super()._get_task(request)
        return record

    def _task_view(self, task: Record, listing: bool = False) -> Record:
        view: Record = super()._task_view(task, listing)
        return view | {"user": task["user"].partition("!")[0]}

    async def _task_log(self, request: web.Request) -> web.Response:
        """GET …/log. That of a task that does not exist says that its file cannot be opened."""
        upid = request.match_info["upid"]
        if UPID.match(upid) and upid not in self.tasks:
            self._verify(request, await params(request))
            view = {"user": upid.split(":")[7]}
            if not self._task_owner(request[USER], view):
                self.require(request[USER], f"/nodes/{self.node}", "Sys.Audit")
            text = "unable to open file - No such file or directory"
            return web.json_response({"data": [{"n": 1, "t": text}], "total": 1})
        if not self._get_task(request)["log"]:
            self._verify(request, await params(request))
            return web.json_response({"data": [{"n": 1, "t": "no content"}], "total": 1})
        response: web.Response = await super()._task_log(request)
        return response

    async def _task_list(self, request: web.Request) -> web.Response:
        """GET /nodes/{node}/tasks, by default of archived tasks."""
        values = self._verify(request, await params(request))
        user, source = request[USER], values.get("source", "archive")
        audit = self.allowed(user, f"/nodes/{self.node}", "Sys.Audit")
        views: list[Record] = []
        if source != "archive":
            views += [_active_view(record) for record in reversed(self._active)]
        if source != "active":
            unsaved = {record["upid"] for record in self._active}
            ended = [record for record in reversed(self.tasklog) if record["upid"] not in unsaved]
            views += [self._task_view(record, listing=True) for record in ended]
        chosen = [view for view in views if (audit or _is_of(user, view)) and _matches(view, values)]
        for view in chosen:
            view.setdefault("status", "RUNNING")
        start = values.get("start", 0)
        return web.json_response({"data": chosen[start : start + values.get("limit", 50)], "total": len(chosen)})

    async def drain_tasks(self, timeout: float) -> None:
        """Let the running tasks end, as the workers of a real node do when its API daemon restarts."""
        if self._running:
            await asyncio.wait(self._running.values(), timeout=timeout)

    async def task_ended(self, upid: str, timeout: float) -> bool:
        """Wait up to ``timeout`` seconds for a task's end; False when it goes on."""
        running = self._running.get(upid)
        return running is None or bool((await asyncio.wait([running], timeout=timeout))[0])

    def abort_task(self, upid: str) -> None:
        """Interrupt a task, as DELETE /nodes/{node}/tasks/{upid} does. Nothing happens if it has ended."""
        if upid in self._running:
            self._running[upid].cancel()


def _config_path(vm: Any) -> str:
    return f"nodes/{vm.node}/{vm.guest.replace('qemu/', 'qemu-server/')}.conf"


def _last_line(status: str) -> str:
    """How a task's log ends, by its exit status."""
    ended_well = status == "OK" or status.startswith("WARNINGS: ")
    return f"TASK {status}" if ended_well else f"TASK ERROR: {status}"


def _active_view(record: Record) -> Record:
    """A task of the active list: its user is still that of the UPID, and it has no status."""
    kept = ("upid", "node", "pid", "pstart", "starttime", "type", "id", "user")
    return {**{key: record[key] for key in kept}, "saved": "0"}


def _is_of(user: str, view: Record) -> bool:
    """Whether a task is the user's own (PVE::API2::Tasks). Active tasks of tokens are not those of their user."""
    token = view.get("tokenid")
    return user == view["user"] if token is None else user in {view["user"], f"{view['user']}!{token}"}


def _status_type(status: str | None) -> str:
    if status is None or status == "unexpected status":
        return "unknown"
    return "ok" if status == "OK" else "warning" if status.startswith("WARNINGS: ") else "error"


def _matches(view: Record, values: Mapping[str, Any]) -> bool:
    """True if a task is among those a list request asks for."""
    kind = _status_type(view.get("status"))
    wanted = split_list(values.get("statusfilter") or "ok,warning,error,unknown")
    return (
        str(values.get("vmid", view["id"])) == view["id"]
        and values.get("typefilter") in (None, view["type"])
        and (values.get("userfilter") or "").lower() in view["user"].lower()
        and (kind != "ok" if values.get("errors") else kind in wanted)
        and int(values.get("since", 0)) <= view["starttime"] <= int(values.get("until", view["starttime"]))
    )
