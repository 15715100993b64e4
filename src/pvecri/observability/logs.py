# SPDX-License-Identifier: Apache-2.0
"""The daemon's log: as lines of text, JSON objects, or entries of systemd's journal.

Parts of messages were written by others (requests, programs, registries), so control characters are escaped in
every format.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import msgspec

from pvecri.config.settings import ConfigError, LogConfig
from pvecri.errors import escaped, printable
from pvecri.observability import correlation

JOURNAL: Final = Path("/run/systemd/journal/socket")
"""journald's socket for its native protocol (systemd.io, "Native Journal Protocol")."""

SEND_TIMEOUT: Final = 0.1
"""Seconds that the event loop waits for a journald that does not read."""

TRACEBACK_MAX: Final = 32 << 10
"""Characters of a traceback in the journal: a datagram is limited by the socket's send buffer."""

_PRIORITIES: Final = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))
"""syslog(3)'s priorities from a level on; below all it is 7, debug."""


def configure(config: LogConfig) -> None:
    """Log as `config` says from now on. ConfigError, and no change, if the journal cannot be reached."""
    handler = _handler(config.format)
    root = logging.getLogger()
    replaced = root.handlers[:]
    root.handlers[:] = [handler]
    root.setLevel(config.level.upper())
    for each in replaced:
        each.close()


def _handler(form: str) -> logging.Handler:
    if form == "journal" or (form == "auto" and stderr_is_the_journal() and JOURNAL.exists()):
        return JournalHandler(JOURNAL)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    return handler


def stderr_is_the_journal() -> bool:
    """Whether systemd connected standard error to the journal, and nobody has redirected it (systemd.exec(5))."""
    try:
        stream = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError):  # closed, or replaced by an object without a descriptor
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{stream.st_dev}:{stream.st_ino}"


class TextFormatter(logging.Formatter):
    """Formats a message as one printable line, and so each line of a traceback."""

    def __init__(self, style: str = "%(asctime)s %(levelname)-7s %(name)s: %(message)s") -> None:
        super().__init__(style)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # logging's name
        """The line, without the traceback."""
        record.message = printable(record.message) + _ids()
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:  # noqa: N802  # logging's name
        """The traceback."""
        return "\n".join(escaped(line) for line in super().formatException(ei).split("\n"))


class JsonFormatter(TextFormatter):
    """Formats a message as a JSON object on one line, the traceback included."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        entry = {
            # RFC 3339, UTC.
            "timestamp": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="microseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": printable(record.getMessage()),
            **_fields(),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return msgspec.json.encode(entry).decode()


class JournalHandler(logging.Handler):
    """Sends each message to journald with its fields, so that `journalctl -p warning -t pvecri` selects by them.

    The native protocol and not `<N>` in front of lines on stderr (sd-daemon(3)): that has no fields, and each line
    of a traceback would be an entry of its own.
    """

    def __init__(self, path: Path) -> None:
        """ConfigError if nothing listens on `path`."""
        super().__init__()
        self.setFormatter(TextFormatter("%(message)s"))
        self._path = path
        self._lost = 0
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._socket.settimeout(SEND_TIMEOUT)
        try:
            self._socket.connect(str(path))
        except OSError as error:
            self._socket.close()
            raise ConfigError(f"log.format: the journal cannot be reached: {path}: {error.strerror}") from error

    def emit(self, record: logging.LogRecord) -> None:
        """Send a message. One that journald does not take in time is lost, and the next tells how many were."""
        try:
            if self._lost:
                self._send([("MESSAGE", f"{self._lost} messages were lost"), ("PRIORITY", "4")])
                self._lost = 0
            self._send(self._fields(record))
        except OSError:
            self._lost += 1
        except Exception:
            self.handleError(record)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()
        super().close()

    def _fields(self, record: logging.LogRecord) -> list[tuple[str, str]]:
        traceback = ""
        if record.exc_info:
            assert self.formatter is not None
            traceback = "\n" + self.formatter.formatException(record.exc_info)[-TRACEBACK_MAX:]
        return [
            ("MESSAGE", printable(record.getMessage()) + _ids() + traceback),
            ("PRIORITY", str(priority(record.levelno))),
            ("LOGGER", record.name),
            ("CODE_FILE", record.pathname),
            ("CODE_LINE", str(record.lineno)),
            ("CODE_FUNC", record.funcName or ""),
            *((name.upper(), value) for name, value in _fields().items()),
        ]

    def _send(self, fields: Iterable[tuple[str, str]]) -> None:
        # journald adds the unit, by the sender's cgroup.
        datagram = b"".join(
            journal_field(name, value) for name, value in (("SYSLOG_IDENTIFIER", "pvecri"), *fields)
        )
        try:
            self._socket.send(datagram)
        except ConnectionError:  # it was started again, with a new socket
            self._socket.connect(str(self._path))
            self._socket.send(datagram)


def _fields() -> dict[str, str]:
    """The fields of the operation that logs."""
    operation = correlation.current()
    return operation.log_fields if operation else {}


def _ids() -> str:
    """The IDs of the operation that logs, as the end of its line."""
    found = _fields()
    return "".join(f" {name}={found[name]}" for name in ("request_id", "caused_by") if name in found)


def priority(level: int) -> int:
    """The syslog(3) priority of a level of logging."""
    return next((each for least, each in _PRIORITIES if level >= least), 7)


def journal_field(name: str, value: str) -> bytes:
    """A field in the native protocol; one with several lines is preceded by its length."""
    data = value.encode(errors="backslashreplace")
    if b"\n" not in data:
        return b"%b=%b\n" % (name.encode(), data)
    return b"%b\n%b%b\n" % (name.encode(), len(data).to_bytes(8, "little"), data)
