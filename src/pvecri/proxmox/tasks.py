# SPDX-License-Identifier: Apache-2.0
"""Proxmox's tasks: waiting for one, and the error of a failed one."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from pvecri.backoff import Backoff
from pvecri.errors import DeadlineExceeded, Unavailable
from pvecri.observability import correlation, metrics
from pvecri.proxmox import errors, upid
from pvecri.proxmox.answers import LogLine, TaskEntry, TaskState, TaskStatus
from pvecri.proxmox.ctspec import ParameterValue
from pvecri.proxmox.transport import Call, Transport
from pvecri.proxmox.upid import Upid

log = logging.getLogger(__name__)

POLL = Backoff(first=0.005, maximum=1.0, factor=1.5)
"""Seconds. The shortest tasks take some milliseconds on the embedded node, and a second or so on Proxmox."""

LOG_LINES = 5
"""Lines of a failed task's log that the error contains."""


class Tasks:
    """The tasks of a node, seen through its API."""

    def __init__(self, transport: Transport, timeout: float) -> None:
        self._transport = transport
        self._timeout = timeout

    async def wait(self, task: Upid, action: str) -> None:
        """Wait until the task has succeeded.

        ProxmoxTaskError, or the kind of ProxmoxError of a known message, if it fails; DeadlineExceeded after
        proxmox.task_timeout, while the task continues. An API that is unavailable for a moment (pveproxy is
        reloaded) does not end the wait.
        """
        log.info("Proxmox: %s: task %s", action, task)
        with (
            # A leaf: the status is polled.
            correlation.span(f"Proxmox task {task.kind}", {"pvecri.upid": str(task)}, remote=True, leaf=True),
            metrics.TASKS_RUNNING.labels(task.kind).track_inprogress(),
            metrics.measured(metrics.TASKS, metrics.TASK_SECONDS, task.kind),
        ):
            await self._wait(task, action)

    async def _wait(self, task: Upid, action: str) -> None:
        ended = await self._end(task, action)
        if not ended.succeeded:
            raise errors.from_task(action, ended.exitstatus, await self.log_end(task), str(task))

    async def _end(self, task: Upid, action: str) -> TaskStatus:
        try:
            async with asyncio.timeout(self._timeout):
                return await self._poll(task, action)
        except TimeoutError as error:
            # Not stopped: a create or destroy that is cut off leaves a lock, which the API cannot remove.
            raise DeadlineExceeded(
                f"Proxmox: {action}: task {task} has not ended within {self._timeout:g} s (proxmox.task_timeout)"
            ) from error

    async def status(self, task: Upid, action: str) -> TaskStatus:
        """GET /nodes/{node}/tasks/{upid}/status: current, unlike the list of tasks."""
        call = Call(method="GET", path=f"{task.path}/status", action=f"{action}: get the status of task {task}")
        return await self._transport.call(call, TaskStatus)

    async def last(self, vmid: int, kind: str, node: str, since: int) -> TaskEntry | None:
        """The latest task of a guest of this kind (`vzstart`) that started at `since` (epoch seconds) or later."""
        entries = await self._list(vmid, node, {"typefilter": kind, "limit": 10, "since": since})
        return next((entry for entry in entries if entry.type == kind and entry.starttime >= since), None)

    async def replacement(self, vmid: int, node: str) -> TaskEntry | None:
        """See ProxmoxApi.replaced_by. The task log has a node's last one or two thousand tasks (100 kB)."""
        action = f"check the tasks of CT {vmid}"
        for entry in await self._list(vmid, node, {"limit": 500}):
            if entry.type == "vzcreate":
                return None
            if entry.type not in ("vzdestroy", "vzrestore"):
                continue
            # Not the status in the list, which shows some tasks as RUNNING that have ended.
            if (await self._end(parse_upid(entry.upid, action), action)).succeeded:
                return entry
        return None

    async def _list(self, vmid: int, node: str, filters: dict[str, ParameterValue]) -> list[TaskEntry]:
        call = Call(
            method="GET",
            path=f"/nodes/{node}/tasks",
            action=f"list the tasks of CT {vmid}",
            # By default the list has ended tasks only.
            parameters={"vmid": vmid, "source": "all", **filters},
        )
        return newest_first(await self._transport.call(call, list[TaskEntry]))

    async def log_end(self, task: Upid) -> str:
        """The last lines of a failed task's log, joined, without its exit status; empty if it cannot be read."""
        call = Call(
            # By default the first 50 lines; the error is at the end.
            method="GET",
            path=f"{task.path}/log",
            action=f"read the log of {task}",
            parameters={"limit": 500},
        )
        try:
            lines = await self._transport.call(call, list[LogLine])
        # The task has failed anyway: its exit status is the error, the log only adds to it.
        except (errors.ProxmoxError, Unavailable):
            return ""
        # The last line repeats the exit status.
        texts = [line.t.strip() for line in lines if line.t.strip() and not line.t.startswith("TASK ERROR: ")]
        return "; ".join(texts[-LOG_LINES:])

    async def _poll(self, task: Upid, action: str) -> TaskStatus:
        for delay in POLL.delays():
            await asyncio.sleep(delay)
            try:
                status = await self.status(task, action)
            except Unavailable:  # a reload of pveproxy; the task continues
                continue
            if status.status is TaskState.STOPPED:
                return status
        raise AssertionError("delays never end")


def parse_upid(text: str, action: str) -> Upid:
    """The UPID that a call returned; ProxmoxError if it is none."""
    try:
        return upid.parse(text)
    except ValueError as error:
        raise errors.ProxmoxError(action, str(error)) from error


def newest_first(entries: Sequence[TaskEntry]) -> list[TaskEntry]:
    """The tasks of one guest, as Proxmox lists them, in the order in which they happened, the latest first. Pure.

    Not by `starttime`: the node's clock may have been set back in between. Proxmox lists active tasks, then the
    archive from its end. It archives the tasks that have ended since it last looked at once, in the wrong order
    and with nearly the same `endtime`: only among those (and the active ones) does the start count, in ticks.
    """
    batches: list[list[TaskEntry]] = []
    for entry in entries:
        if batches and _same_batch(batches[-1][-1], entry):
            batches[-1].append(entry)
        else:
            batches.append([entry])
    return [entry for batch in batches for entry in sorted(batch, key=lambda entry: entry.pstart, reverse=True)]


def _same_batch(one: TaskEntry, other: TaskEntry) -> bool:
    if one.endtime is None or other.endtime is None:
        return one.endtime is other.endtime
    return abs(one.endtime - other.endtime) <= 1
