# SPDX-License-Identifier: Apache-2.0
"""Every error that crosses a component's border, as one tree.

    PvecriError
    ├── InvalidArgument      the request itself is wrong; names the field
    ├── NotFound             the pod, container or image does not exist
    ├── AlreadyExists        the name is taken
    ├── FailedPrecondition   right request, wrong moment (a container that is not running, …)
    ├── ResourceExhausted    a limit that the configuration sets is reached
    ├── DeadlineExceeded     a part did not answer in time
    ├── PermissionDenied     a part refused our rights or credentials
    ├── Unavailable          a part that pvecri needs cannot be reached; worth trying again
    ├── Unimplemented        the CRI has it, pvecri does not
    └── InternalError        a part failed; the message carries its own words
        └── CommandError     a helper program failed

A message names the thing, the cause and, where there is one, the setting that changes it. `status` is the
name of the gRPC status code that a CRI client sees.
"""

from __future__ import annotations

from typing import ClassVar


class PvecriError(Exception):
    """The root: anything that pvecri raises on purpose."""

    status: ClassVar[str] = "INTERNAL"


class InvalidArgument(PvecriError):
    """A field of the request cannot be accepted.

    `field` is the field's path in the CRI message, such as `config.linux.sysctls[kernel.foo]`; the message
    begins with it.
    """

    status = "INVALID_ARGUMENT"

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field
        self.problem = problem


class NotFound(PvecriError):
    """What the request names does not exist."""

    status = "NOT_FOUND"


class AlreadyExists(PvecriError):
    """What the request would make exists already."""

    status = "ALREADY_EXISTS"


class FailedPrecondition(PvecriError):
    """The object is not in a state that allows the request."""

    status = "FAILED_PRECONDITION"


class ResourceExhausted(PvecriError):
    """A configured limit, such as the VMID range, is used up."""

    status = "RESOURCE_EXHAUSTED"


class DeadlineExceeded(PvecriError):
    """A part did not finish in its time."""

    status = "DEADLINE_EXCEEDED"


class PermissionDenied(PvecriError):
    """A part refused our rights or credentials."""

    status = "PERMISSION_DENIED"


class Unavailable(PvecriError):
    """A part that is needed cannot be reached now."""

    status = "UNAVAILABLE"


class Unimplemented(PvecriError):
    """The interface has this, pvecri does not."""

    status = "UNIMPLEMENTED"


class InternalError(PvecriError):
    """A part failed in a way that the client can do nothing about."""


class CommandError(InternalError):
    """A helper program ended with a status other than 0.

    `returncode` is negative for a death by signal, as in subprocess; `output` is what the program said.
    """

    def __init__(self, command: str, returncode: int, output: str) -> None:
        ending = f"signal {-returncode}" if returncode < 0 else f"status {returncode}"
        super().__init__(f"{command} ended with {ending}: {output.strip() or 'no output'}")
        self.command = command
        self.returncode = returncode
        self.output = output
