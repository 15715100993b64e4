# SPDX-License-Identifier: Apache-2.0
"""One plugin: its registration, and the calls to it."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

import pvecri
from pvecri.config.settings import NriConfig
from pvecri.errors import DeadlineExceeded
from pvecri.nri.errors import CallFailed, PluginError, PluginGone, ProtocolError
from pvecri.nri.frames import MAX_DATA, Connection
from pvecri.nri.proto import nri_pb2 as pb
from pvecri.nri.ttrpc import Code, TtrpcConnection
from pvecri.observability import metrics
from pvecri.supervision import Supervisor

log = logging.getLogger(__name__)

NRI_VERSION = "v0.12.2"
"""The version of NRI of nri.proto, which plugins compare with theirs."""

VALID_EVENTS = (1 << (pb.LAST - 1)) - 1
_ENVELOPE = 4096
"""Bytes that are reserved for the rest of a Synchronize message, beside its pods and containers."""

_NAME = re.compile(r"[A-Za-z0-9_.+-]+")
_INDEX = re.compile(r"[0-9]{2}")
_FATAL = (DeadlineExceeded, PluginGone, ProtocolError)

Update = Callable[[pb.UpdateContainersRequest], Awaitable[list[pb.ContainerUpdate]]]
"""Serves UpdateContainers, a plugin's unsolicited updates; returns those that failed."""


@dataclass(frozen=True)
class Call:
    """A call to a plugin. `notification` is whether its response is empty, so that StateChange can replace it."""

    method: str
    event: int
    response: type[Message]
    notification: bool


def _calls() -> dict[str, Call]:
    """The calls of all events, by the name of the request's message, from the service's descriptor."""
    calls: dict[str, Call] = {}
    for method in pb.DESCRIPTOR.services_by_name["Plugin"].methods:
        event = re.sub(r"(?<!^)(?=[A-Z])", "_", method.name).upper()
        if event in pb.Event.keys():  # noqa: SIM118 - an EnumTypeWrapper is no mapping
            response = GetMessageClass(method.output_type)
            # UpdatePodSandbox answers nothing either, but a plugin may fail it: it is no notification.
            notification = not method.output_type.fields and method.name != "UpdatePodSandbox"
            calls[method.input_type.name] = Call(method.name, pb.Event.Value(event), response, notification)
    return calls


CALLS = _calls()


class Plugin:
    """A plugin on a socket: `start` and `synchronize` it, then call it until it is `closed`."""

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
        """`identity` is index and name of a launched plugin; others register with theirs."""
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
        """Index and name, as the file of a pre-installed plugin is named."""
        return f"{self.index or '??'}-{self.base or 'plugin'}"

    @property
    def closed(self) -> bool:
        """Whether its connection is closed."""
        return self._connection.closed

    def subscribed(self, request: type[Message]) -> bool:
        """Whether it subscribes to a request's event."""
        return bool(self._events >> (CALLS[request.DESCRIPTOR.name].event - 1) & 1)

    # -- registration -----------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Wait for RegisterPlugin, then Configure it, which returns the events that it subscribes to.

        PluginError if it fails, or does not register within nri.registration_timeout; it is closed then.
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
                self._registered.set_exception(PluginError("an NRI plugin disconnected before it registered"))
                self._registered.exception()  # retrieved, or asyncio logs it if nobody awaits it

    async def _configure(self) -> None:
        request = pb.ConfigureRequest(
            config=self._configuration,
            runtime_name="pvecri",
            runtime_version=pvecri.__version__,
            # Milliseconds in the protocol.
            registration_timeout=int(self._config.registration_timeout * 1000),
            request_timeout=int(self._config.request_timeout * 1000),
            NRI_version=NRI_VERSION,
        )
        response = await self._call("Configure", request, pb.ConfigureResponse, self._config.request_timeout)
        events = response.events & 0xFFFF_FFFF  # a signed int32 in the protocol
        if events & ~VALID_EVENTS:
            raise PluginError(f"NRI plugin {self.name} subscribes to unknown events: {events:#x}")
        self._events = events or VALID_EVENTS  # 0 subscribes to all

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
        if not self._launched:  # NRI: the file name of a pre-installed plugin takes precedence
            self.base, self.index = request.plugin_name, request.plugin_idx
            if not _NAME.fullmatch(self.base) or not _INDEX.fullmatch(self.index):
                problem = f"{self.index!r} and {self.base!r} are not a plugin's index (two digits) and name"
                self._registered.set_exception(PluginError(f"NRI: {problem}"))
                raise CallFailed(Code.INVALID_ARGUMENT, problem)
        log.info("NRI plugin %s has registered, NRI version %s", self.name, request.NRI_version or "unknown")
        self._registered.set_result(None)

    # -- calls ------------------------------------------------------------------------------------------------

    async def synchronize(
        self, pods: Iterable[pb.PodSandbox], containers: Iterable[pb.Container]
    ) -> list[pb.ContainerUpdate]:
        """Send all pods and containers, in one or more messages; returns the updates that it requests.

        PluginError if it returns an error, DeadlineExceeded after nri.registration_timeout; it is closed then.
        """
        requests = list(split(pods, containers))
        updates: list[pb.ContainerUpdate] = []
        try:
            for request in requests:
                # The timeout of a registration, which is longer: a plugin that is dropped here would come back at
                # once and ask for the same (decision 0041).
                response = await self._call(
                    "Synchronize", request, pb.SynchronizeResponse, self._config.registration_timeout
                )
                if request.more and (response.update or not response.more):
                    raise PluginError(f"NRI plugin {self.name} does not support a split Synchronize")
                updates += response.update
        except BaseException:
            self.close()
            raise
        return updates

    async def send(self, request: Message) -> Any:
        """Its response; None if it does not subscribe to the event, or has just been dropped.

        PluginError if it returns an error. It is dropped if it times out, disconnects or violates the protocol.
        """
        call = CALLS[request.DESCRIPTOR.name]
        if self.closed or not self.subscribed(type(request)):
            return None
        try:
            return await self._send(call, request)
        except _FATAL as error:
            self._drop(call.method, error)
            return None

    async def validate(self, request: pb.ValidateContainerAdjustmentRequest) -> None:
        """PluginError if it rejects the adjustment or has just been dropped: validation fails closed."""
        call = CALLS[request.DESCRIPTOR.name]
        try:
            response = await self._send(call, request)
        except _FATAL as error:
            self._drop(call.method, error)
            raise PluginError(f"NRI plugin {self.name}, which validates, was dropped: {error}") from error
        if response.reject:
            reason = response.reason or "no reason given"
            raise PluginError(f"NRI plugin {self.name} rejects the adjustment: {reason}")

    async def shut_down(self) -> None:
        """Send Shutdown and close the connection."""
        with suppress(PluginError, *_FATAL):
            await self._call("Shutdown", pb.Empty(), pb.Empty, self._config.request_timeout)
        self.close()

    async def _send(self, call: Call, request: Any) -> Any:
        timeout = self._config.request_timeout
        if not (self._legacy and call.notification):
            try:
                return await self._exchange(call.method, request, call.response, timeout)
            except CallFailed as error:
                if error.code != Code.UNIMPLEMENTED or not call.notification:
                    raise self._error(call.method, error) from error
                # NRI before 0.10 had StateChange for all notifications.
                log.info("NRI plugin %s does not implement %s: using StateChange", self.name, call.method)
                self._legacy = True
        change = pb.StateChangeEvent(event=call.event, pod=request.pod)  # type: ignore[arg-type]
        if "container" in request.DESCRIPTOR.fields_by_name:
            change.container.CopyFrom(request.container)
        return await self._call("StateChange", change, pb.Empty, timeout)

    async def _call(self, method: str, request: Message, response: Any, timeout: float) -> Any:
        try:
            return await self._exchange(method, request, response, timeout)
        except CallFailed as error:
            raise self._error(method, error) from error

    async def _exchange(self, method: str, request: Message, response: Any, timeout: float) -> Any:
        metrics.NRI_PLUGIN_NAMES.use(self.name)
        with metrics.measured(metrics.NRI_CALLS, metrics.NRI_SECONDS, self.name, method) as measure:
            try:
                return await self._connection.call(method, request, response, timeout)
            except CallFailed as error:
                measure.code = _name_of(error.code)
                raise

    def _error(self, method: str, error: CallFailed) -> Exception:
        """A plugin that observes ttrpc's timeout field returns DEADLINE_EXCEEDED itself."""
        if error.code == Code.DEADLINE_EXCEEDED:
            return DeadlineExceeded(f"{method}: {error}")
        return PluginError(f"NRI plugin {self.name}: {method}: {error}")

    def _drop(self, method: str, error: Exception) -> None:
        log.error("NRI plugin %s is dropped: %s: %s", self.name, method, error)
        self._connection.abort()  # not close: a plugin that hangs does not read what is unsent

    # -- closing ----------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Close the connection. Idempotent."""
        self._connection.close()

    async def wait(self) -> None:
        """Return once the connection, of a started plugin, is closed."""
        if self._runner is not None:
            await asyncio.wait([self._runner])

    def dismiss(self) -> None:
        """Close the connection and stop reading it."""
        self.close()
        if self._runner is not None:
            self._runner.cancel()


def _name_of(code: int) -> str:
    """The name of a status code; of one that gRPC does not define, or that no plugin should send, UNKNOWN."""
    try:
        return Code(code).name
    except ValueError:
        return Code.UNKNOWN.name


def split(pods: Iterable[pb.PodSandbox], containers: Iterable[pb.Container]) -> Iterable[pb.SynchronizeRequest]:
    """Synchronize messages for all entries, each within ttrpc's limit; `more` is set in all but the last."""
    current, size = pb.SynchronizeRequest(), _ENVELOPE
    for kind, entries in (("pods", pods), ("containers", containers)):
        for entry in entries:
            needed = entry.ByteSize() + 16  # 16: its tag and length
            if size + needed > MAX_DATA and size > _ENVELOPE:
                current.more = True
                yield current
                current, size = pb.SynchronizeRequest(), _ENVELOPE
            getattr(current, kind).append(entry)
            size += needed
    yield current
