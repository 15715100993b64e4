# SPDX-License-Identifier: Apache-2.0
"""One plugin: its registration, and what it is asked."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from pvecri.config import NriConfig
from pvecri.errors import DeadlineExceeded
from pvecri.nri.errors import CallFailed, PluginError, PluginGone, ProtocolError
from pvecri.nri.frames import MAX_DATA, Connection
from pvecri.nri.proto import nri_pb2 as pb
from pvecri.nri.ttrpc import Code, TtrpcConnection
from pvecri.supervision import Supervisor

log = logging.getLogger(__name__)

NRI_VERSION = "v0.12.2"
"""The version of NRI that nri.proto is of, as plugins compare it."""

VALID_EVENTS = (1 << (pb.LAST - 1)) - 1
_ENVELOPE = 4096
"""Bytes of a message that are not its pods and containers, at most."""

_NAME = re.compile(r"[A-Za-z0-9_.+-]+")
_INDEX = re.compile(r"[0-9]{2}")
_FATAL = (DeadlineExceeded, PluginGone, ProtocolError)

Update = Callable[[pb.UpdateContainersRequest], Awaitable[list[pb.ContainerUpdate]]]
"""Does what a plugin asks for by itself; the answer is which updates failed."""


@dataclass(frozen=True)
class Call:
    """A call of a plugin. `notice` says that its answer is empty, so that StateChange can stand for it."""

    method: str
    event: int
    answer: type[Message]
    notice: bool


def _calls() -> dict[str, Call]:
    """Every call that is an event to subscribe to, by its request's name: read off the interface."""
    calls: dict[str, Call] = {}
    for method in pb.DESCRIPTOR.services_by_name["Plugin"].methods:
        event = re.sub(r"(?<!^)(?=[A-Z])", "_", method.name).upper()
        if event in pb.Event.keys():  # noqa: SIM118 - no mapping
            answer = GetMessageClass(method.output_type)
            notice = not method.output_type.fields and method.name != "UpdatePodSandbox"
            calls[method.input_type.name] = Call(method.name, pb.Event.Value(event), answer, notice)
    return calls


CALLS = _calls()


class Plugin:
    """A plugin on a socket: `start`, then ask it; `closed` tells when it is of no more use."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        config: NriConfig,
        update: Update,
        *,
        identity: tuple[str, str] = ("", ""),
        configuration: str = "",
    ) -> None:
        """`identity` is the index and the name of a plugin that was launched; others tell it themselves."""
        self._supervisor = Supervisor()
        self._connection = TtrpcConnection(reader, writer, Connection.RUNTIME, self._serve)
        self._config = config
        self._update = update
        self._launched = bool(identity[0])
        self._configuration = configuration
        self._registered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._runner: asyncio.Task[None] | None = None
        self._events = 0
        self._legacy = False
        self.index, self.base = identity

    @property
    def name(self) -> str:
        """As administrators know it: its index and its name."""
        return f"{self.index or '??'}-{self.base or 'plugin'}"

    @property
    def closed(self) -> bool:
        """Whether its connection has ended."""
        return self._connection.closed

    def subscribed(self, request: type[Message]) -> bool:
        """Whether it wants to be asked this."""
        return bool(self._events >> (CALLS[request.DESCRIPTOR.name].event - 1) & 1)

    # -- registration -----------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Wait until it registers, configure it, and learn which events it wants.

        PluginError when it does not do its part in time; its connection is closed then.
        """
        self._runner = self._supervisor.once("NRI plugin", self._run, self.name)
        try:
            async with asyncio.timeout(self._config.registration_timeout):
                await self._registered
            await self._configure()
        except TimeoutError:
            self.close()
            seconds = self._config.registration_timeout
            raise PluginError(
                f"NRI plugin {self.name} did not register within {seconds:g} s (nri.registration_timeout)"
            ) from None
        except BaseException:
            self.close()
            raise

    async def _run(self) -> None:
        try:
            await self._connection.run()
        except ProtocolError as error:
            log.warning("NRI plugin %s: %s", self.name, error)
        finally:
            if not self._registered.done():
                self._registered.set_exception(PluginError("an NRI plugin went away before it registered"))
                self._registered.exception()  # somebody may wait for it, or not

    async def _configure(self) -> None:
        request = pb.ConfigureRequest(
            config=self._configuration,
            runtime_name="pvecri",
            runtime_version=version("pvecri"),
            registration_timeout=int(self._config.registration_timeout * 1000),
            request_timeout=int(self._config.request_timeout * 1000),
            NRI_version=NRI_VERSION,
        )
        answer = await self._call("Configure", request, pb.ConfigureResponse, self._config.request_timeout)
        events = answer.events & 0xFFFF_FFFF
        if events & ~VALID_EVENTS:
            raise PluginError(f"NRI plugin {self.name} asks for events that there are not: {events:#x}")
        self._events = events or VALID_EVENTS

    async def _serve(self, method: str, payload: bytes) -> Message:
        if method == "RegisterPlugin":
            self._register(pb.RegisterPluginRequest.FromString(payload))
            return pb.Empty()
        if method == "UpdateContainers":
            if not self._events:
                raise CallFailed(Code.FAILED_PRECONDITION, "the plugin has not registered")
            failed = await self._update(pb.UpdateContainersRequest.FromString(payload))
            return pb.UpdateContainersResponse(failed=failed)
        raise CallFailed(Code.UNIMPLEMENTED, f"the runtime has no method {method!r}")

    def _register(self, request: pb.RegisterPluginRequest) -> None:
        if self._registered.done():
            raise CallFailed(Code.FAILED_PRECONDITION, "the plugin has registered already")
        if not self._launched:
            self.base, self.index = request.plugin_name, request.plugin_idx
            if not _NAME.fullmatch(self.base) or not _INDEX.fullmatch(self.index):
                problem = f"{self.index!r} and {self.base!r} are not a plugin's index (two digits) and name"
                self._registered.set_exception(PluginError(f"NRI: {problem}"))
                raise CallFailed(Code.INVALID_ARGUMENT, problem)
        log.info("NRI plugin %s registers, of NRI %s", self.name, request.NRI_version or "unknown")
        self._registered.set_result(None)

    # -- what it is asked -------------------------------------------------------------------------------------

    async def synchronize(
        self, pods: Iterable[pb.PodSandbox], containers: Iterable[pb.Container]
    ) -> list[pb.ContainerUpdate]:
        """Tell it of all pods and containers, in as many messages as it takes; the updates that it asks for.

        PluginError when it refuses, or does not answer within nri.registration_timeout; it is closed then.
        """
        requests = list(split(pods, containers))
        updates: list[pb.ContainerUpdate] = []
        try:
            for request in requests:
                answer = await self._call(
                    "Synchronize", request, pb.SynchronizeResponse, self._config.registration_timeout
                )
                if request.more and (answer.update or not answer.more):
                    raise PluginError(f"NRI plugin {self.name} does not take its pods in more than one message")
                updates += answer.update
        except BaseException:
            self.close()
            raise
        return updates

    async def ask(self, request: Message) -> Any:
        """Its answer; None when it did not subscribe to the event, or was lost over it.

        PluginError when it refuses.
        """
        call = CALLS[request.DESCRIPTOR.name]
        if self.closed or not self.subscribed(type(request)):
            return None
        try:
            return await self._ask(call, request)
        except _FATAL as error:
            self._lose(call.method, error)
            return None

    async def validate(self, request: pb.ValidateContainerAdjustmentRequest) -> None:
        """PluginError when it rejects the adjustment, or cannot be asked: what it guards is not left unguarded."""
        call = CALLS[request.DESCRIPTOR.name]
        try:
            answer = await self._ask(call, request)
        except _FATAL as error:
            self._lose(call.method, error)
            raise PluginError(f"NRI plugin {self.name}, which validates, was lost: {error}") from error
        if answer.reject:
            reason = answer.reason or "no reason given"
            raise PluginError(f"NRI plugin {self.name} rejects the adjustment: {reason}")

    async def shut_down(self) -> None:
        """Tell it that the runtime ends, and close the connection."""
        with suppress(PluginError, *_FATAL):
            await self._call("Shutdown", pb.Empty(), pb.Empty, self._config.request_timeout)
        self.close()

    async def _ask(self, call: Call, request: Any) -> Any:
        timeout = self._config.request_timeout
        if not (self._legacy and call.notice):
            try:
                return await self._connection.call(call.method, request, call.answer, timeout)
            except CallFailed as error:
                if error.code != Code.UNIMPLEMENTED or not call.notice:
                    raise self._refusal(call.method, error) from error
                # Plugins made for NRI before 0.10 take all notices by one call.
                log.info("NRI plugin %s has no %s: it gets StateChange instead", self.name, call.method)
                self._legacy = True
        change = pb.StateChangeEvent(event=call.event, pod=request.pod)  # type: ignore[arg-type]
        if "container" in request.DESCRIPTOR.fields_by_name:
            change.container.CopyFrom(request.container)
        return await self._call("StateChange", change, pb.Empty, timeout)

    async def _call(self, method: str, request: Message, answer: Any, timeout: float) -> Any:
        try:
            return await self._connection.call(method, request, answer, timeout)
        except CallFailed as error:
            raise self._refusal(method, error) from error

    def _refusal(self, method: str, error: CallFailed) -> Exception:
        """A plugin that heeds our timeout says itself that it ran out."""
        if error.code == Code.DEADLINE_EXCEEDED:
            return DeadlineExceeded(f"{method}: {error}")
        return PluginError(f"NRI plugin {self.name}: {method}: {error}")

    def _lose(self, method: str, error: Exception) -> None:
        log.error("NRI plugin %s is dropped: %s: %s", self.name, method, error)
        self._connection.abort()

    # -- the end ----------------------------------------------------------------------------------------------

    def close(self) -> None:
        """End the connection. Idempotent."""
        self._connection.close()

    async def wait(self) -> None:
        """Until the connection has ended; after `start`."""
        if self._runner is not None:
            await asyncio.wait([self._runner])

    def dismiss(self) -> None:
        """Close it and stop listening to it."""
        self.close()
        if self._runner is not None:
            self._runner.cancel()


def split(pods: Iterable[pb.PodSandbox], containers: Iterable[pb.Container]) -> Iterable[pb.SynchronizeRequest]:
    """Messages that hold them all, none too large to be sent; `more` is set in all but the last."""
    current, size = pb.SynchronizeRequest(), _ENVELOPE
    for kind, entries in (("pods", pods), ("containers", containers)):
        for entry in entries:
            needed = entry.ByteSize() + 16
            if size + needed > MAX_DATA and size > _ENVELOPE:
                current.more = True
                yield current
                current, size = pb.SynchronizeRequest(), _ENVELOPE
            getattr(current, kind).append(entry)
            size += needed
    yield current
