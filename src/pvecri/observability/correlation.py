# SPDX-License-Identifier: Apache-2.0
"""The ID by which all log lines of one operation are found, from the CRI call down to programs and Proxmox tasks.

An operation is a CRI call, a command of pvecri-runtime, a streaming session, or one run of background work. Its ID
is a W3C trace ID (32 hex digits): the caller's if it sends a `traceparent`, else a new one. It is inherited by the
tasks and threads that the operation starts; background work has IDs of its own, and the ID of what caused it.

The parts of an operation are spans, which are recorded if tracing is configured (tracing.py).
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, Protocol

# Trace Context: version, trace ID, parent ID, flags; versions after 00 may append fields.
_TRACEPARENT: Final = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-.*)?"
)


@dataclass(slots=True)
class Operation:
    """See the module. `fields` identify what it works on: `pod_id`, `container_id`, `vmid`, as far as known.

    `name` is the call's (`RunPodSandbox`), or the background work's. `caused_by` is the first of a chain, such as
    the StartContainer that began the watch of a container, whose end began its release.
    """

    id: str
    name: str
    caused_by: str = ""
    fields: dict[str, str] = field(default_factory=dict)

    @property
    def log_fields(self) -> dict[str, str]:
        """Its fields in each line of the log."""
        found = {"request_id": self.id, "operation": self.name, **self.fields}
        return {**found, "caused_by": self.caused_by} if self.caused_by else found


Attributes = Mapping[str, str | int]


class Recorder(Protocol):
    """Records spans."""

    def operation(self, name: str, traceparent: str, attributes: Attributes) -> AbstractContextManager[str]:
        """Record the body as a span below the caller's, if `traceparent` is valid; gives the trace ID.

        `attributes` are read at its end.
        """

    def no_operation(self) -> AbstractContextManager[None]:
        """The body is no part of any span."""

    def span(self, name: str, attributes: Attributes, *, remote: bool, leaf: bool) -> AbstractContextManager[None]:
        """See `span`."""


_recorder: Recorder | None = None


def record(recorder: Recorder | None) -> None:
    """Have spans recorded from now on, or no more."""
    global _recorder  # noqa: PLW0603  # there is one in a process, as there is one log
    _recorder = recorder


_current: Final[ContextVar[Operation | None]] = ContextVar("operation", default=None)


def current() -> Operation | None:
    """The operation that this task or thread works for."""
    return _current.get()


def current_id() -> str:
    """Its ID; empty without an operation."""
    found = _current.get()
    return found.id if found else ""


def cause() -> str:
    """The ID of what caused the current operation, or its own if nothing did, for work that it starts."""
    found = _current.get()
    return (found.caused_by or found.id) if found else ""


def operation(
    name: str,
    *,
    traceparent: str = "",
    caused_by: str = "",
    fields: dict[str, str] | None = None,
    span_name: str = "",
) -> AbstractContextManager[Operation]:
    """The body is an operation, and part of no other.

    `traceparent` is the caller's, which may be invalid; `caused_by` is the ID of another operation. Only one with
    a `span_name` is recorded as a span.
    """
    made = Operation(trace_id(traceparent) or secrets.token_hex(16), name, caused_by, fields or {})
    return _Current(made) if _recorder is None else _recorded(_recorder, made, traceparent, span_name)


class _Current:
    """Makes an operation the current one. A class, as each call enters one: a generator takes twice the time."""

    __slots__ = ("_before", "_made")

    def __init__(self, made: Operation) -> None:
        self._made = made

    def __enter__(self) -> Operation:
        self._before = _current.get()
        _current.set(self._made)
        return self._made

    def __exit__(self, *_: object) -> None:
        # Not reset(): an asynchronous generator may be closed in another context.
        _current.set(self._before)


@contextmanager
def _recorded(recorder: Recorder, made: Operation, traceparent: str, span_name: str) -> Iterator[Operation]:
    if not span_name:
        with recorder.no_operation(), _Current(made):
            yield made
    else:
        with recorder.operation(span_name, traceparent, made.fields) as made.id, _Current(made):
            yield made


@contextmanager
def span(
    name: str, attributes: Attributes = MappingProxyType({}), *, remote: bool = False, leaf: bool = False
) -> Iterator[None]:
    """The body is a part of the current operation, named by what it does; an exception is its outcome.

    `remote` is a request to another process; in a `leaf` nothing else is recorded.
    """
    if _recorder is None:
        yield
    else:
        with _recorder.span(name, attributes, remote=remote, leaf=leaf):
            yield


def rename(name: str, caused_by: str = "") -> None:
    """Name the current operation, if there is one, once it is known what it does."""
    found = _current.get()
    if found is not None:
        found.name, found.caused_by = name, caused_by or found.caused_by


def annotate(**fields: str) -> None:
    """Set fields of the current operation, if there is one. Empty ones are ignored."""
    found = _current.get()
    if found is not None:
        found.fields |= {name: value for name, value in fields.items() if value}


def annotate_missing(**fields: str) -> None:
    """As `annotate`, of fields that the operation does not have."""
    found = _current.get()
    if found is not None:
        annotate(**{name: value for name, value in fields.items() if name not in found.fields})


def trace_id(traceparent: str) -> str:
    """The trace ID of a W3C traceparent; empty if it is invalid. Pure."""
    found = _TRACEPARENT.fullmatch(traceparent) if traceparent else None
    return found[1] if found else ""
