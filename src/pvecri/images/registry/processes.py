# SPDX-License-Identifier: Apache-2.0
"""Processes that outlive a pull, so that the next one does not wait for their start (decision 0017).

A proxy serves one pull at a time, for it answers one request after the other, and a registry that does not respond
would delay all other pulls; one unpacker serves all. They end after IDLE seconds without a pull.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from pvecri.concurrency import finish
from pvecri.images.reference import Reference
from pvecri.images.registry.proxy import ImageProxy, ProxyGone
from pvecri.images.registry.skopeo import Skopeo, applies
from pvecri.images.unpacking import client
from pvecri.images.unpacking.client import Unpacker
from pvecri.model import RegistryAuth
from pvecri.supervision import Supervisor, attempt

WORK: Final = "processes of pulls"

IDLE: Final = 120.0


class Workers:
    """The processes of all pulls."""

    def __init__(self, skopeo: Skopeo) -> None:
        self._skopeo = skopeo
        self._proxies: dict[bool, list[ImageProxy]] = {False: [], True: []}
        self._unpacker: Unpacker | None = None
        self._starting = asyncio.Lock()
        self._busy = 0
        self._timer: asyncio.TimerHandle | None = None
        self._supervisor = Supervisor()

    @asynccontextmanager
    async def opened(
        self, name: str, reference: Reference, auth: RegistryAuth | None
    ) -> AsyncIterator[tuple[ImageProxy, int]]:
        """A proxy that has opened the image `name`, for this pull alone, and the image's number."""
        while True:
            async with self._proxy(reference, auth) as (proxy, is_new):
                try:
                    number = await proxy.open(name)
                except ProxyGone:
                    if is_new:
                        raise
                    continue  # an idle one had been killed, which only its first answer shows
                yield proxy, number
                # Not in a `finally`: after an error the process is ended, and not used again.
                await proxy.close_image(number)
                return

    @asynccontextmanager
    async def _proxy(
        self, reference: Reference, auth: RegistryAuth | None
    ) -> AsyncIterator[tuple[ImageProxy, bool]]:
        """A proxy, and whether it is new. One that has credentials, or has failed, is not used again."""
        self._begin()
        try:
            insecure = self._skopeo.is_insecure(reference)
            with self._skopeo.credentials(reference, auth) as authfile:
                has_credentials = auth is not None and applies(auth, reference)
                idle = None if has_credentials else self._idle_proxy(insecure)
                proxy = idle or await self._skopeo.start_proxy(insecure=insecure, authfile=authfile)
                keep = False
                try:
                    yield proxy, idle is None
                    keep = not has_credentials and proxy.usable
                finally:
                    if keep:
                        self._proxies[insecure].append(proxy)
                    else:
                        await finish(proxy.close())
        finally:
            self._end()

    async def unpacker(self) -> Unpacker:
        """The unpacker. Only for use inside the context of `opened`, which keeps it from being ended as idle."""
        async with self._starting:
            if self._unpacker is None or not self._unpacker.usable:
                if self._unpacker is not None:
                    await finish(self._unpacker.close())
                self._unpacker = await client.start()
            return self._unpacker

    async def close(self) -> None:
        """End all processes. Idempotent; no pull may be running."""
        if self._timer is not None:
            self._timer.cancel()
        await self._end_idle()
        if ending := self._supervisor.tasks:
            await asyncio.wait(ending)  # and not cancelled: processes would stay

    def _idle_proxy(self, insecure: bool) -> ImageProxy | None:
        idle = self._proxies[insecure]
        while idle:
            proxy = idle.pop()
            if proxy.usable:
                return proxy
            self._supervisor.once(WORK, proxy.close)
        return None

    def _begin(self) -> None:
        self._busy += 1
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _end(self) -> None:
        self._busy -= 1
        if self._busy == 0:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(IDLE, lambda: self._supervisor.once(WORK, self._end_idle))

    async def _end_idle(self) -> None:
        proxies = [proxy for idle in self._proxies.values() for proxy in idle]
        self._proxies = {False: [], True: []}
        unpacker, self._unpacker = self._unpacker, None
        for each in (*proxies, *((unpacker,) if unpacker else ())):
            await finish(attempt(each.close, WORK, "ending an idle process of pulls"))
