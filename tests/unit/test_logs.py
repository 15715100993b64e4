# SPDX-License-Identifier: Apache-2.0
"""The daemon's log in each format."""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from pvecri.config.settings import ConfigError, LogConfig
from pvecri.observability import correlation, logs
from pvecri.observability.logs import JournalHandler, JsonFormatter

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
TRACEPARENT = f"00-{TRACE}-00f067aa0ba902b7-01"

log = logging.getLogger("pvecri.tests")


@contextmanager
def root_logger() -> Iterator[logging.Logger]:
    """The root logger, which has its handlers and level back afterwards."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        yield root
    finally:
        for each in set(root.handlers) - set(handlers):
            each.close()
        root.handlers[:] = handlers
        root.setLevel(level)


class Journald:
    """The journal's end of the native protocol."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.settimeout(30)

    def read(self) -> dict[str, str]:
        """The fields of the next entry."""
        rest = self._socket.recv(1 << 20)
        fields = {}
        while rest:
            head, _, rest = rest.partition(b"\n")
            name, equals, value = head.partition(b"=")
            if not equals:
                length = int.from_bytes(rest[:8], "little")
                value, rest = rest[8 : 8 + length], rest[9 + length :]
            fields[name.decode()] = value.decode()
        return fields

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[tuple[Journald, Path]]:
    path = tmp_path / "socket"
    journald = Journald(path)
    yield journald, path
    journald.close()


def emitted(handler: logging.Handler, write: Callable[[], None]) -> None:
    """Run `write` with all that it logs going to the handler."""
    with root_logger() as root:
        root.handlers[:] = [handler]
        root.setLevel(logging.DEBUG)
        write()


def odd_failure() -> None:
    try:
        raise ValueError("\x1b[2J cleared")
    except ValueError:
        log.exception("odd name: %s", "a\nMESSAGE=forged\x07")


def json_lines(write: Callable[[], None], capsys: pytest.CaptureFixture[str]) -> list[dict[str, str]]:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    emitted(handler, write)
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_json_has_one_object_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    def write() -> None:
        log.warning("pod %s", "shop")
        odd_failure()

    before = datetime.now(UTC)
    first, second = json_lines(write, capsys)
    assert before <= datetime.fromisoformat(first.pop("timestamp")) <= datetime.now(UTC)
    assert first == {"level": "warning", "logger": "pvecri.tests", "message": "pod shop"}
    assert second["message"] == "odd name: a MESSAGE=forged\\x07"
    assert second["exception"].startswith("Traceback (most recent call last):\n")
    assert second["exception"].endswith("ValueError: \\x1b[2J cleared")


def test_json_of_a_file_name_that_is_no_text_is_valid(capsys: pytest.CaptureFixture[str]) -> None:
    (line,) = json_lines(lambda: log.info("file %s", os.fsdecode(b"a\xff")), capsys)
    assert line["message"] == "file a\\udcff"


def test_journal_gets_priorities_and_fields(journal: tuple[Journald, Path]) -> None:
    journald, path = journal

    def write() -> None:
        for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR):
            log.log(level, "to the journal")

    emitted(JournalHandler(path), write)
    entries = [journald.read() for _ in range(4)]
    assert [each["PRIORITY"] for each in entries] == ["7", "6", "4", "3"]
    assert (
        entries[0].items()
        >= {
            "MESSAGE": "to the journal",
            "SYSLOG_IDENTIFIER": "pvecri",
            "LOGGER": "pvecri.tests",
            "CODE_FILE": __file__,
            "CODE_FUNC": "write",
        }.items()
    )


def test_traceback_is_part_of_the_journals_entry(journal: tuple[Journald, Path]) -> None:
    journald, path = journal
    emitted(JournalHandler(path), odd_failure)
    entry = journald.read()
    first, *traceback = entry["MESSAGE"].splitlines()
    assert first == "odd name: a MESSAGE=forged\\x07"
    assert traceback[0] == "Traceback (most recent call last):"
    assert traceback[-1] == "ValueError: \\x1b[2J cleared"


def test_journal_that_was_started_again_gets_the_next_message(journal: tuple[Journald, Path]) -> None:
    first, path = journal
    handler = JournalHandler(path)
    first.close()
    path.unlink()
    second = Journald(path)
    emitted(handler, lambda: log.info("after"))
    assert second.read()["MESSAGE"] == "after"
    second.close()


def test_lost_messages_are_counted(journal: tuple[Journald, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "SEND_TIMEOUT", 0.001)
    journald, path = journal
    queued = int(Path("/proc/sys/net/unix/max_dgram_qlen").read_text()) + 1
    handler = JournalHandler(path)

    def write() -> None:
        for number in range(queued + 3):
            log.info("message %d", number)
        read = [journald.read()["MESSAGE"] for _ in range(queued)]
        assert read == [f"message {number}" for number in range(queued)]
        log.info("again")

    emitted(handler, write)
    assert [journald.read()["MESSAGE"] for _ in range(2)] == ["3 messages were lost", "again"]


def in_operation() -> None:
    with correlation.operation(
        "StopContainer", traceparent=TRACEPARENT, caused_by="other", fields={"vmid": "900000"}
    ):
        log.info("stopped")
    log.info("between")


def test_lines_of_an_operation_have_its_id(
    journal: tuple[Journald, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    ids = f"request_id={TRACE} caused_by=other"
    with root_logger():
        logs.configure(LogConfig(format="text"))
        in_operation()
    first, second = capsys.readouterr().err.splitlines()
    assert first.endswith(f"pvecri.tests: stopped {ids}")
    assert second.endswith("pvecri.tests: between")

    fields = {"request_id": TRACE, "caused_by": "other", "operation": "StopContainer", "vmid": "900000"}
    first_object, second_object = json_lines(in_operation, capsys)
    assert first_object.items() >= {"message": "stopped", **fields}.items()
    assert not second_object.keys() & fields.keys()

    emitted(JournalHandler(journal[1]), in_operation)
    entry = {key.lower(): value for key, value in journal[0].read().items()}
    assert entry.items() >= {"message": f"stopped {ids}", **fields}.items()


@pytest.mark.parametrize(("redirected", "expected"), [(False, JournalHandler), (True, logging.StreamHandler)])
def test_auto_is_the_journal_if_stderr_is_connected_to_it(
    journal: tuple[Journald, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    redirected: bool,
    expected: type[logging.Handler],
) -> None:
    monkeypatch.setattr(logs, "JOURNAL", journal[1])
    with (tmp_path / "stderr").open("w") as stderr, root_logger() as root:
        found = os.fstat(stderr.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{found.st_dev}:{found.st_ino + redirected}")
        monkeypatch.setattr(sys, "stderr", stderr)
        logs.configure(LogConfig(format="auto"))
        assert [type(each) for each in root.handlers] == [expected]


def test_level_and_format_change_together(capsys: pytest.CaptureFixture[str]) -> None:
    with root_logger():
        logs.configure(LogConfig(level="info", format="text"))
        log.info("as text")
        logs.configure(LogConfig(level="warning", format="json"))
        log.info("too little")
        log.warning("as JSON")
    text, as_json = capsys.readouterr().err.splitlines()
    assert text.endswith(" INFO    pvecri.tests: as text")
    assert json.loads(as_json)["message"] == "as JSON"


def test_journal_that_is_not_there_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "JOURNAL", tmp_path / "none")
    with root_logger() as root:
        before = root.handlers[:]
        with pytest.raises(
            ConfigError, match=r"^log\.format: the journal cannot be reached: .*/none: No such file"
        ):
            logs.configure(LogConfig(format="journal", level="debug"))
        assert root.handlers == before
