# SPDX-License-Identifier: Apache-2.0
"""An NRI plugin for tests: a thread on a socket, on top of the frame codec alone."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from pvecri.nri import frames
from pvecri.nri.frames import Connection, MessageType
from pvecri.nri.proto import nri_pb2 as pb
from pvecri.nri.proto import ttrpc_pb2

TIMEOUT = 60.0
PACKAGE = "nri.pkg.api.v1alpha1"
UNIMPLEMENTED = 12
_METHODS = pb.DESCRIPTOR.services_by_name["Plugin"].methods_by_name

Answer = TypeVar("Answer", bound=Message)
Handler = Callable[[Any], Message | None]


class Refused(Exception):
    """Raised by a handler to answer with a status that is not OK; or the runtime's own such answer."""

    def __init__(self, message: str, code: int = 2) -> None:
        super().__init__(message)
        self.code = code


class NriPlugin:
    """Connects, registers and answers. `calls` is what it was asked, in order; `handlers` answer, by call."""

    def __init__(
        self,
        where: Path | socket.socket,
        name: str = "plugin",
        index: str = "50",
        events: Iterable[str] = (),
        **handlers: Handler,
    ) -> None:
        """`events` are names of calls to subscribe to, none for all; a handler may answer None for empty."""
        self.name, self.index = name, index
        self.handlers = handlers
        self.calls: list[tuple[str, Any]] = []
        self.configuration = ""
        self.synchronized = threading.Event()
        self.lost = threading.Event()
        self._events = sum(1 << (_event(each) - 1) for each in events)
        if isinstance(where, Path):
            self._socket = socket.socket(socket.AF_UNIX)
            self._socket.connect(str(where))
        else:
            self._socket = where
        self._writing = threading.Lock()
        self._waiting: dict[int, Future[ttrpc_pb2.Response]] = {}
        self._stream = -1
        self._thread = threading.Thread(target=self._read, name=f"NRI plugin {name}", daemon=True)
        self._thread.start()

    def __enter__(self) -> NriPlugin:
        self.join()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def join(self) -> None:
        """Register, and return when the runtime has told of all there is."""
        self.register()
        assert self.synchronized.wait(TIMEOUT), "the runtime did not synchronize the plugin"

    def register(self) -> None:
        """RegisterPlugin; Refused."""
        request = pb.RegisterPluginRequest(plugin_name=self.name, plugin_idx=self.index, NRI_version="v0.12.0")
        self.call("RegisterPlugin", request, pb.Empty)

    def hang_up(self) -> None:
        """Break the connection."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Go away."""
        self.hang_up()
        self._thread.join(TIMEOUT)
        self._socket.close()

    # -- what was asked ---------------------------------------------------------------------------------------

    def names(self, container: str = "") -> list[str]:
        """The calls about a pod or container whose id is `container`, in order; all events when it is empty."""
        return [name for name, request in self.calls if name not in _HANDSHAKE and _is_about(request, container)]

    def request(self, name: str) -> Any:
        """The last request of that name."""
        return next(request for called, request in reversed(self.calls) if called == name)

    # -- calls ------------------------------------------------------------------------------------------------

    def call(self, method: str, request: Message, answer: type[Answer]) -> Answer:
        """Call the runtime; Refused with its words."""
        self._stream += 2
        stream = self._stream
        waiting = self._waiting[stream] = Future()
        envelope = ttrpc_pb2.Request(
            service=f"{PACKAGE}.Runtime", method=method, payload=request.SerializeToString()
        )
        self._send(Connection.RUNTIME, stream, MessageType.REQUEST, envelope)
        response = waiting.result(TIMEOUT)
        if response.status.code:
            raise Refused(response.status.message, response.status.code)
        return answer.FromString(response.payload)

    def update(self, *updates: pb.ContainerUpdate) -> list[pb.ContainerUpdate]:
        """UpdateContainers; those that failed."""
        request = pb.UpdateContainersRequest(update=updates)
        return list(self.call("UpdateContainers", request, pb.UpdateContainersResponse).failed)

    # -- the thread -------------------------------------------------------------------------------------------

    def _read(self) -> None:
        reader = frames.Reader()
        while data := self._receive():
            for message in reader.feed(data):
                if message.connection is Connection.RUNTIME:
                    self._waiting.pop(message.stream).set_result(
                        ttrpc_pb2.Response.FromString(message.data or b"")
                    )
                else:
                    threading.Thread(target=self._answer, args=(message,), daemon=True).start()
        self.lost.set()

    def _receive(self) -> bytes:
        try:
            return self._socket.recv(1 << 16)
        except OSError:
            return b""

    def _answer(self, message: frames.Message) -> None:
        call = ttrpc_pb2.Request.FromString(message.data or b"")
        request: Any = GetMessageClass(_METHODS[call.method].input_type).FromString(call.payload)
        self.calls.append((call.method, request))
        response = ttrpc_pb2.Response(status=ttrpc_pb2.Status())
        try:
            answer = self.handlers.get(call.method, self._usual)(request)
            response.payload = b"" if answer is None else answer.SerializeToString()
        except Refused as error:
            response.status.code, response.status.message = error.code, str(error)
        self._send(Connection.PLUGIN, message.stream, MessageType.RESPONSE, response)
        if call.method == "Synchronize" and not request.more:
            self.synchronized.set()

    def _usual(self, request: Any) -> Message | None:
        if isinstance(request, pb.ConfigureRequest):
            self.configuration = request.config
            return pb.ConfigureResponse(events=self._events)
        if isinstance(request, pb.SynchronizeRequest):
            return pb.SynchronizeResponse(more=request.more)
        return None

    def _send(self, connection: Connection, stream: int, kind: MessageType, envelope: Message) -> None:
        data = frames.encode(frames.Message(connection, stream, kind, envelope.SerializeToString()))
        with self._writing:
            try:
                self._socket.sendall(data)
            except OSError:
                self.lost.set()


_HANDSHAKE = ("Configure", "Synchronize", "Shutdown")


def _event(call: str) -> int:
    return int(pb.Event.Value(re.sub(r"(?<!^)(?=[A-Z])", "_", call).upper()))


def _is_about(request: Any, wanted: str) -> bool:
    return not wanted or wanted in (request.pod.id, getattr(request, "container", request.pod).id)
