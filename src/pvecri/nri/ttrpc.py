# SPDX-License-Identifier: Apache-2.0
"""ttrpc over a plugin's socket: unary calls in both directions."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from enum import IntEnum
from functools import partial
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from pvecri.errors import DeadlineExceeded, PvecriError
from pvecri.nri.errors import CallFailed, PluginGone, ProtocolError
from pvecri.nri.frames import MAX_DATA, Connection, MessageType, Reader, encode
from pvecri.nri.frames import Message as Frame
from pvecri.nri.proto import ttrpc_pb2
from pvecri.supervision import Supervisor, describe, report

log = logging.getLogger(__name__)

PACKAGE = "nri.pkg.api.v1alpha1"
_SERVICES = {Connection.PLUGIN: "Plugin", Connection.RUNTIME: "Runtime"}
_CHUNK = 64 << 10

Response = TypeVar("Response", bound=Message)
Serve = Callable[[str, bytes], Awaitable[Message]]
"""Serves a call of the peer by its method's name; CallFailed with UNIMPLEMENTED for an unknown one."""


class Code(IntEnum):
    """gRPC status codes."""

    OK = 0
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    UNIMPLEMENTED = 12
    INTERNAL = 13


class TtrpcConnection:
    """One side of a socket between the runtime and a plugin. `run` must run for calls to be answered."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, ours: Connection, serve: Serve
    ) -> None:
        """`ours` is the connection on which this side serves calls, by `serve`; it calls on the other one."""
        self._reader, self._writer = reader, writer
        self._ours = ours
        self._theirs = Connection.RUNTIME if ours is Connection.PLUGIN else Connection.PLUGIN
        self._serve = serve
        self._next_stream = 1
        self._last_served = 0
        self._waiting: dict[int, asyncio.Future[ttrpc_pb2.Response]] = {}
        self._supervisor = Supervisor()
        self.closed = False

    async def run(self) -> None:
        """Dispatch messages until either side closes; ProtocolError if the peer violates the protocol."""
        incoming = Reader()
        try:
            while data := await self._reader.read(_CHUNK):
                for frame in incoming.feed(data):
                    self._dispatch(frame)
        except ConnectionError:
            pass  # ECONNRESET: ends as by EOF
        finally:
            self.close()
            for task in self._supervisor.tasks:
                task.cancel()

    def close(self) -> None:
        """Close the connection; pending calls raise PluginGone. Idempotent."""
        if self.closed:
            return
        self.closed = True
        self._writer.close()
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(PluginGone("the connection was closed"))

    def abort(self) -> None:
        """As `close`, and discard unsent data: the peer may not be reading."""
        self.close()
        self._writer.transport.abort()

    # -- calling ----------------------------------------------------------------------------------------------

    async def call(self, method: str, request: Message, response_type: type[Response], timeout: float) -> Response:
        """Call a method of the peer.

        CallFailed with the peer's status, DeadlineExceeded after `timeout` seconds, PluginGone if the connection
        is closed, ProtocolError for a malformed response.
        """
        if self.closed:
            raise PluginGone("the connection was closed")
        envelope = ttrpc_pb2.Request(
            service=f"{PACKAGE}.{_SERVICES[self._theirs]}",
            method=method,
            payload=request.SerializeToString(),
            timeout_nano=int(timeout * 1e9),
        )
        # Odd IDs for both sides: each is the client of its own multiplexed connection.
        stream = self._next_stream
        self._next_stream += 2
        future = self._waiting[stream] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(timeout):
                self._write(self._theirs, stream, MessageType.REQUEST, envelope)
                await self._drain()
                response = await future
        except TimeoutError:
            raise DeadlineExceeded(f"{method} was not answered within {timeout:g} s") from None
        finally:
            del self._waiting[stream]
            if future.done() and not future.cancelled():
                future.exception()  # retrieved, or asyncio logs it: the response may have come with the timeout
        return _parse(response, response_type)

    async def _drain(self) -> None:
        try:
            await self._writer.drain()
        except ConnectionError as error:
            raise PluginGone(str(error)) from error

    def _write(self, connection: Connection, stream: int, kind: MessageType, envelope: Message) -> None:
        data = envelope.SerializeToString()
        if len(data) > MAX_DATA:
            raise CallFailed(Code.RESOURCE_EXHAUSTED, f"a message of {len(data)} bytes is too large")
        self._writer.write(encode(Frame(connection, stream, kind, data)))

    # -- serving ----------------------------------------------------------------------------------------------

    def _dispatch(self, frame: Frame) -> None:
        if frame.connection is self._theirs and frame.kind == MessageType.RESPONSE:
            self._resolve(frame)
        elif frame.connection is self._ours and frame.kind == MessageType.REQUEST:
            # A task: the reader must go on, for the responses to our own calls.
            self._supervisor.once("call of an NRI plugin", partial(self._respond, frame))
        # Others belong to streaming calls or to a later version of ttrpc.

    def _resolve(self, frame: Frame) -> None:
        future = self._waiting.get(frame.stream)
        if future is None or future.done():
            return  # the call has timed out
        if frame.data is None:
            future.set_exception(CallFailed(Code.RESOURCE_EXHAUSTED, "the response is too large"))
            return
        try:
            future.set_result(ttrpc_pb2.Response.FromString(frame.data))
        except DecodeError as error:
            raise ProtocolError(f"malformed response: {error}") from error

    async def _respond(self, frame: Frame) -> None:
        try:
            message = await self._serve_request(frame)
            response = ttrpc_pb2.Response(status=ttrpc_pb2.Status(), payload=message.SerializeToString())
        except CallFailed as error:
            response = _failure(error.code, str(error))
        except PvecriError as error:
            response = _failure(Code.UNKNOWN, str(error))
        except Exception as error:  # the other side waits for an answer
            report(error, "call of an NRI plugin", "call of an NRI plugin")
            response = _failure(Code.INTERNAL, describe(error))
        if self.closed:
            return
        with suppress(PluginGone):
            self._write(self._ours, frame.stream, MessageType.RESPONSE, response)
            await self._drain()

    async def _serve_request(self, frame: Frame) -> Message:
        # Stream IDs of a client are odd and ascending (ttrpc protocol, Message Frame).
        if frame.stream % 2 == 0 or frame.stream <= self._last_served:
            raise CallFailed(Code.INVALID_ARGUMENT, f"stream ID {frame.stream} is not odd and ascending")
        self._last_served = frame.stream
        if frame.data is None:
            raise CallFailed(Code.RESOURCE_EXHAUSTED, f"a request is larger than {MAX_DATA} bytes")
        try:
            request = ttrpc_pb2.Request.FromString(frame.data)
            if request.service != f"{PACKAGE}.{_SERVICES[self._ours]}":
                raise CallFailed(Code.UNIMPLEMENTED, f"there is no service {request.service!r} here")
            return await self._serve(request.method, request.payload)
        except DecodeError as error:
            raise CallFailed(Code.INVALID_ARGUMENT, f"malformed request: {error}") from error


def _failure(code: int, message: str) -> ttrpc_pb2.Response:
    return ttrpc_pb2.Response(status=ttrpc_pb2.Status(code=code, message=message))


def _parse(response: ttrpc_pb2.Response, response_type: type[Response]) -> Response:
    if response.status.code:
        raise CallFailed(response.status.code, response.status.message)
    try:
        return response_type.FromString(response.payload)
    except DecodeError as error:
        raise ProtocolError(f"malformed response: {error}") from error
