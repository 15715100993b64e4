# SPDX-License-Identifier: Apache-2.0
"""The gRPC server: the CRI's two services, and the health checking service, on a unix socket.

Handlers are generated from the descriptors of cri.proto and health.proto (decision 0005): each call is dispatched
to the service's method of that name, or answered with UNIMPLEMENTED. A method returns the response's message, or
that message serialized.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, aclosing, contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

import grpc
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from pvecri.concurrency import serving
from pvecri.config.settings import ConfigError
from pvecri.cri.proto import cri_pb2, health_pb2
from pvecri.errors import PvecriError, Unimplemented, printable
from pvecri.linux import single_instance
from pvecri.observability import correlation, metrics
from pvecri.observability.correlation import Operation

log = logging.getLogger(__name__)

T = TypeVar("T")

MESSAGE_MAX = 64 << 20
"""Bytes; room for both output streams of ExecSync, 16 MiB each."""

_OPTIONS = (
    ("grpc.max_send_message_length", MESSAGE_MAX),
    ("grpc.max_receive_message_length", MESSAGE_MAX),
)

CHANGES: Final = frozenset(
    """RunPodSandbox StopPodSandbox RemovePodSandbox UpdatePodSandboxResources CreateContainer StartContainer
    StopContainer RemoveContainer UpdateContainerResources CheckpointContainer PullImage RemoveImage""".split()
)
"""Calls that change something: each is logged with its outcome. Kubelets make others every second."""

IDS: Final = (("pod_sandbox_id", "pod_id"), ("container_id", "container_id"))
"""Fields of requests, and of operations, with the same content."""

REQUEST_ID: Final = "x-request-id"
"""The trailing metadata of an error: the ID of the call in the log."""

Call = Callable[[Any], Awaitable[Message | bytes]]
Context = grpc.aio.ServicerContext[Any, Any]


class CriServer:
    """Serves between `start` and `close`."""

    def __init__(
        self, path: Path, runtime_service: object, image_service: object, health_service: object = None
    ) -> None:
        """`path` is the socket, which is created with mode 0600."""
        self._path = path
        self._inode: tuple[int, int] | None = None
        self._server = grpc.aio.server(options=_OPTIONS)
        services = cri_pb2.DESCRIPTOR.services_by_name
        self._server.add_generic_rpc_handlers(
            (
                _handlers(services["RuntimeService"], runtime_service),
                _handlers(services["ImageService"], image_service),
                _handlers(health_pb2.DESCRIPTOR.services_by_name["Health"], health_service),
            )
        )

    async def start(self) -> None:
        """Listen. ConfigError if another process listens on the socket."""
        self._path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        if not await single_instance.remove_stale_socket(self._path):
            raise ConfigError(f"runtime.socket: another process listens on {self._path}")
        self._server.add_insecure_port(f"unix:{self._path}")
        await self._server.start()
        self._path.chmod(0o600)  # gRPC creates it by the umask
        self._inode = _inode(self._path)

    @property
    def failure(self) -> str:
        """Why no client can connect, as a reason in CamelCase; empty while one can."""
        if self._inode is None:
            return "NotServing"
        # A socket that another process has unlinked or replaced stays open, and nobody finds it.
        return "" if _inode(self._path) == self._inode else "SocketReplaced"

    async def close(self, grace: float = 5.0) -> None:
        """Refuse new calls, wait `grace` seconds for running ones, and remove the socket."""
        self._inode = None
        await self._server.stop(grace)
        self._path.unlink(missing_ok=True)

    async def wait(self) -> None:
        """Wait until closed."""
        await self._server.wait_for_termination()


def _inode(path: Path) -> tuple[int, int] | None:
    """The device and inode of a file; None if it does not exist."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def _handlers(service: ServiceDescriptor, implementation: object) -> grpc.GenericRpcHandler:
    return grpc.method_handlers_generic_handler(
        service.full_name, {method.name: _handler(method, implementation) for method in service.methods}
    )


def _handler(method: MethodDescriptor, implementation: object) -> grpc.RpcMethodHandler[Any, Any]:
    name = snake_case(method.name)
    call = getattr(implementation, name, None)
    if method.server_streaming:
        behaviour: Any = _streaming(method, call)
        make = grpc.unary_stream_rpc_method_handler
    else:
        behaviour = _unary(method, call)
        make = grpc.unary_unary_rpc_method_handler
    return make(
        behaviour,
        request_deserializer=GetMessageClass(method.input_type).FromString,
        response_serializer=_serialized,
    )


def _serialized(response: Message | bytes) -> bytes:
    return response if isinstance(response, bytes) else response.SerializeToString()


def snake_case(name: str) -> str:
    """`RunPodSandbox` as Python names it: `run_pod_sandbox`."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


def _unary(
    method: MethodDescriptor, call: Call | None
) -> Callable[[Message, Context], Awaitable[Message | bytes]]:
    name, operation = method.name, _operations(method)

    async def behaviour(request: Message, context: Context) -> Message | bytes:
        serving(lambda callback: context.add_done_callback(lambda _: callback()))  # type: ignore[arg-type]
        with operation(request, context):
            begin = time.perf_counter()
            try:
                with _measured(name):
                    answer = await _known(name, call)(request)
            except BaseException as error:
                # Raises, except for a cancellation.
                await _abort(name, error, context)
                raise
            level = logging.INFO if name in CHANGES else logging.DEBUG
            log.log(level, "%s: OK in %.3f s", name, time.perf_counter() - begin)
            return answer

    return behaviour


def _streaming(method: MethodDescriptor, call: Any) -> Callable[[Message, Context], AsyncIterator[Message]]:
    name, operation = method.name, _operations(method)

    async def behaviour(request: Message, context: Context) -> AsyncIterator[Message]:
        with operation(request, context):
            try:
                with _measured(name):
                    # A subscription ends with its call, not when the generator is collected.
                    async with aclosing(_known(name, call)(request)) as messages:
                        # Without it a client of GetContainerEvents cannot know when its subscription has begun.
                        await context.send_initial_metadata(())
                        async for message in messages:
                            yield message
            except BaseException as error:
                await _abort(name, error, context)
                raise

    return behaviour


def _operations(method: MethodDescriptor) -> Callable[[Message, Context], AbstractContextManager[Operation]]:
    """Makes each call of a method an operation, with the IDs that its request names."""
    name, rpc = method.name, f"{method.containing_service.full_name}/{method.name}"
    known = method.input_type.fields_by_name
    ids = [(field, key) for field, key in IDS if field in known]

    def operation(request: Message, context: Context) -> AbstractContextManager[Operation]:
        sent = context.invocation_metadata() or ()
        traceparent = next((str(value) for key, value in sent if key == "traceparent"), "")
        fields = {key: value for field, key in ids if (value := getattr(request, field))}
        return correlation.operation(name, traceparent=traceparent, fields=fields, span_name=rpc)

    return operation


@contextmanager
def _measured(name: str) -> Iterator[None]:
    running = metrics.CRI_RUNNING.labels(name)
    running.inc()
    try:
        with metrics.measured(metrics.CRI_CALLS, metrics.CRI_SECONDS, name):
            yield
    finally:
        running.dec()


def _known(name: str, call: Callable[[Any], T] | None) -> Callable[[Any], T]:
    if call is None:
        raise Unimplemented(f"pvecri does not have {name}")
    return call


async def _abort(name: str, error: BaseException, context: Context) -> None:
    """End the call with the status of an answer, and INTERNAL for a fault, which is logged with its traceback.

    The client gets the call's ID, too, as trailing metadata.
    """
    trailer = ((REQUEST_ID, correlation.current_id()),)
    if isinstance(error, PvecriError):
        log.info("%s: %s: %s", name, error.status, error)
        await context.abort(grpc.StatusCode[error.status], str(error), trailer)
    # The client or the daemon has ended the call: nobody gets a status.
    if isinstance(error, asyncio.CancelledError | grpc.aio.AbortError | GeneratorExit):
        return
    metrics.CRI_FAULTS.labels(name).inc()
    log.error("%s failed", name, exc_info=error)
    problem = printable(f"{name}: {type(error).__name__}: {error}")
    await context.abort(grpc.StatusCode.INTERNAL, problem, trailer)
