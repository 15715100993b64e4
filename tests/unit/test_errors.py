# SPDX-License-Identifier: Apache-2.0
"""Errors have the gRPC status for clients, and name their subject."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import grpc
import pytest

import pvecri.daemon  # noqa: F401  # brings in every component, and with it the errors that they add
from pvecri import errors
from pvecri.errors import CommandError, InternalError, InvalidArgument, PvecriError
from pvecri.observability import logs


def kinds(root: type[PvecriError] = PvecriError) -> Iterator[type[PvecriError]]:
    """The tree of errors, those of the components too."""
    yield root
    for kind in root.__subclasses__():
        yield from kinds(kind)


@pytest.mark.parametrize("kind", list(dict.fromkeys(kinds())))
def test_error_statuses_are_grpc_status_names(kind: type[PvecriError]) -> None:
    assert kind.status in grpc.StatusCode.__members__


@pytest.mark.parametrize("kind", [kind for kind in vars(errors).values() if isinstance(kind, type)])
def test_all_errors_derive_from_pvecri_error(kind: type[BaseException]) -> None:
    assert issubclass(kind, PvecriError)


def test_each_status_has_one_base_error() -> None:
    statuses = [kind.status for kind in PvecriError.__subclasses__() if kind.__module__ == errors.__name__]
    assert len(set(statuses)) == len(statuses)


def test_invalid_argument_message_begins_with_the_field() -> None:
    error = InvalidArgument("config.hostname", "is not a host name")
    assert (str(error), error.field, error.problem) == (
        "config.hostname: is not a host name",
        "config.hostname",
        "is not a host name",
    )


@pytest.mark.parametrize(
    ("returncode", "output", "message"),
    [
        (3, "no such layer\n", "skopeo ended with status 3: no such layer"),
        (-9, "", "skopeo ended with signal 9: no output"),
        (1, " \n", "skopeo ended with status 1: no output"),
    ],
)
def test_command_error_has_program_status_and_output(returncode: int, output: str, message: str) -> None:
    error = CommandError("skopeo", returncode, output)
    assert str(error) == message
    assert (error.command, error.returncode, error.output) == ("skopeo", returncode, output)
    assert isinstance(error, InternalError)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("plain", "plain"),
        ("two\nlines \r\n here\n", "two lines here"),
        ("\x1b[31mred\x00\x7f\u202e", "\\x1b[31mred\\x00\\x7f\\u202e"),
        ("half a pair \udc80", "half a pair \\udc80"),
        ("caf\N{LATIN SMALL LETTER E WITH ACUTE}", "caf\N{LATIN SMALL LETTER E WITH ACUTE}"),
    ],
)
def test_message_is_one_printable_line(text: str, line: str) -> None:
    assert str(InternalError(text)) == errors.printable(text) == line


def test_long_message_keeps_its_start_and_its_end() -> None:
    message = str(InvalidArgument("config.image.image", "x" * 10_000 + " is not a reference"))
    assert len(message) == errors.MESSAGE_MAX
    assert message.startswith("config.image.image: xxx")
    assert message.endswith("xxx is not a reference")


@pytest.mark.parametrize("length", [600, 1900, 5000])
def test_message_fits_a_header_whatever_its_letters(length: int) -> None:
    message = str(InternalError("\N{SNOWMAN}" * length))
    assert sum(1 if each.isascii() else 3 * len(each.encode()) for each in message) < 8000


def test_log_lines_have_no_control_characters(caplog: pytest.LogCaptureFixture) -> None:
    try:
        raise ValueError("\x1b[2J cleared")
    except ValueError:
        logging.getLogger("tests").exception("odd name: %s", "a\nCRITICAL forged\x07")
    caplog.records[0].exc_text = None  # pytest's own formatter has filled it
    text = logs.TextFormatter("%(levelname)s %(message)s").format(caplog.records[0])
    assert text.startswith("ERROR odd name: a CRITICAL forged\\x07\nTraceback (most recent call last):\n")
    assert text.endswith("ValueError: \\x1b[2J cleared")
