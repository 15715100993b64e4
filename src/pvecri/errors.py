# SPDX-License-Identifier: Apache-2.0
"""The errors that components raise to each other, as one tree.

    PvecriError
    ├── InvalidArgument      the request is invalid; names the field
    ├── NotFound             the pod, container or image does not exist
    ├── AlreadyExists        the name is in use
    ├── FailedPrecondition   the object's state does not allow the request (a container is not running, …)
    ├── ResourceExhausted    a configured limit is reached
    ├── DeadlineExceeded     Proxmox, a registry or a program did not answer in time
    ├── PermissionDenied     Proxmox or a registry refused our credentials or privileges
    ├── Unavailable          what pvecri depends on cannot be reached; worth a retry
    ├── Unimplemented        pvecri does not support this part of the CRI
    └── InternalError        what pvecri depends on failed; the message has its own
        └── CommandError     a program that pvecri ran failed

A message names the object, the cause and, if there is one, the setting that changes it. It is one printable line.
`status` is the name of the gRPC status code that a CRI client gets.
"""

from __future__ import annotations

import re
from typing import ClassVar, Final

MESSAGE_MAX: Final = 2000
"""Bytes of a message: gRPC sends it in a header, with three characters for a byte that is not ASCII, and clients
limit headers to 8 KiB.
"""
_KEPT_TAIL: Final = 500


def printable(text: str) -> str:
    """`text` as one line of printable characters. One longer than MESSAGE_MAX is ASCII, and lacks its middle.

    Messages have parts that others wrote (requests, programs, registries), and end up in terminals and logs.
    """
    line = escaped(re.sub(r"\s*[\r\n]\s*", " ", text.strip()))
    if len(line.encode()) <= MESSAGE_MAX:
        return line
    line = line.encode("ascii", "backslashreplace").decode()
    return f"{line[: MESSAGE_MAX - _KEPT_TAIL - 5]} ... {line[-_KEPT_TAIL:]}"


def escaped(text: str) -> str:
    """`text` with every character that is not printable as its escape, such as `\\x1b`."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


class PvecriError(Exception):
    """The base of all errors that pvecri raises deliberately; other exceptions are bugs."""

    status: ClassVar[str] = "INTERNAL"

    def __init__(self, message: str = "") -> None:
        super().__init__(printable(message))


class InvalidArgument(PvecriError):
    """A field of the request is invalid.

    `field` is the field's path in the CRI message, such as `config.linux.sysctls[kernel.foo]`; the message
    begins with it.
    """

    status = "INVALID_ARGUMENT"

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field
        self.problem = problem


class NotFound(PvecriError):
    """The object that the request names does not exist."""

    status = "NOT_FOUND"


class AlreadyExists(PvecriError):
    """The object that the request would create exists."""

    status = "ALREADY_EXISTS"


class FailedPrecondition(PvecriError):
    """The object is not in a state that allows the request."""

    status = "FAILED_PRECONDITION"


class ResourceExhausted(PvecriError):
    """A configured limit, such as the VMID range, is exhausted."""

    status = "RESOURCE_EXHAUSTED"


class DeadlineExceeded(PvecriError):
    """Proxmox, a registry or a program did not finish within its timeout."""

    status = "DEADLINE_EXCEEDED"


class PermissionDenied(PvecriError):
    """Proxmox or a registry refused our credentials or privileges."""

    status = "PERMISSION_DENIED"


class Unavailable(PvecriError):
    """What pvecri depends on cannot be reached now."""

    status = "UNAVAILABLE"


class Unimplemented(PvecriError):
    """pvecri does not support this part of the CRI."""

    status = "UNIMPLEMENTED"


class InternalError(PvecriError):
    """What pvecri depends on failed, and the client cannot change that."""


class CommandError(InternalError):
    """A program exited with a status other than 0.

    `returncode` is negative for death by a signal, as in subprocess; `output` is the program's.
    """

    def __init__(self, command: str, returncode: int, output: str) -> None:
        ending = f"signal {-returncode}" if returncode < 0 else f"status {returncode}"
        super().__init__(f"{command} ended with {ending}: {output.strip() or 'no output'}")
        self.command = command
        self.returncode = returncode
        self.output = output
