# SPDX-License-Identifier: AGPL-3.0-or-later
"""Faults on demand for tests, set over ``/pvecri-embedded/fault`` of a node started with ``--faults``."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from aiohttp import web
from fakepve import TaskError

from pvecri_embedded.http import Handler

PATH = "/pvecri-embedded/fault"
DEFAULT_TEXT = "fault on demand"


@dataclass
class Fault:
    """One fault: of tasks of a type, or of requests ``METHOD PATH`` that a pattern matches as a whole.

    It happens ``times`` times, or until it is cleared when that is None.
    """

    task: str | None = None
    request: str | None = None
    times: int | None = 1
    text: str = ""
    """The task's error, or the answer's reason phrase. A task with a `delay` and no text goes on after it."""
    status: int | None = None
    """Answer this HTTP status; the request does nothing."""
    delay: float = 0.0
    """Seconds to wait before the task's work, or before the request is handled."""
    hold: bool = False
    """Wait until the fault is cleared; a request is not answered then either."""
    cleared: asyncio.Event = field(default_factory=asyncio.Event, repr=False)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Fault:
        """Raises ValueError for values that make no fault."""
        known = {"task", "request", "times", "text", "status", "delay", "hold"}
        if unknown := set(values) - known:
            raise ValueError(f"unknown: {', '.join(sorted(unknown))}")
        if ("task" in values) == ("request" in values):
            raise ValueError("give either task or request")
        return cls(**values)

    def describe(self) -> dict[str, Any]:
        # Not asdict: it copies values, and an event that is waited for cannot be copied.
        return {each.name: getattr(self, each.name) for each in fields(self) if each.name != "cleared"}


def _refusal(status: int, text: str) -> web.Response:
    """An error as Proxmox frames it: 401 and the proxy's own 59x come without a body."""
    if status == 401 or status >= 590:
        response = web.Response(status=status, reason=text)
    else:
        response = web.json_response({"message": f"{text}\n", "data": None}, status=status, reason=text)
    response.force_close()
    return response


class Faults:
    """The faults that are set, oldest first."""

    def __init__(self) -> None:
        self._faults: list[Fault] = []

    def add(self, fault: Fault) -> None:
        self._faults.append(fault)

    def clear(self) -> None:
        """Take every fault back; what is held goes on."""
        for fault in self._faults:
            fault.cleared.set()
        self._faults.clear()

    async def before_task(self, kind: str) -> None:
        """What is to happen to a task of this type before its work. Raises TaskError if it is to fail."""
        fault = self._take(lambda candidate: candidate.task == kind)
        if fault is None:
            return
        await asyncio.sleep(fault.delay)
        if fault.hold:
            await fault.cleared.wait()
        elif fault.text or not fault.delay:
            raise TaskError(fault.text or DEFAULT_TEXT)

    @web.middleware
    async def middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """The control interface, and the faults of requests."""
        if request.path == PATH:
            return await self._control(request)
        asked = f"{request.method} {request.path.removeprefix('/api2/json')}"
        fault = self._take(lambda rule: rule.request is not None and bool(re.fullmatch(rule.request, asked)))
        if fault is None:
            return await handler(request)
        # First: pvedaemon handles a request even if its client is gone by then.
        await request.read()
        await asyncio.sleep(fault.delay)
        if fault.hold:
            await fault.cleared.wait()
            raise ConnectionResetError("fault on demand: no answer")
        if fault.status is not None:
            return _refusal(fault.status, fault.text or DEFAULT_TEXT)
        return await handler(request)

    def _take(self, wanted: Any) -> Fault | None:
        """The first fault that applies, counted."""
        for fault in self._faults:
            if wanted(fault):
                if fault.times is not None:
                    fault.times -= 1
                    # One that holds stays in the list: it is cleared through it.
                    if fault.times <= 0 and not fault.hold:
                        self._faults.remove(fault)
                return fault
        return None

    async def _control(self, request: web.Request) -> web.Response:
        match request.method:
            case "POST":
                try:
                    self.add(Fault.from_json(await request.json()))
                except (ValueError, TypeError) as error:
                    raise web.HTTPBadRequest(text=str(error)) from error
            case "DELETE":
                self.clear()
            case "GET":
                pass
            case _:
                raise web.HTTPMethodNotAllowed(request.method, ["GET", "POST", "DELETE"])
        return web.json_response([fault.describe() for fault in self._faults])
