# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import logging
import signal

import pytest

from pvecri.cri import requests
from pvecri.cri.proto import cri_pb2 as pb
from pvecri.pods.container.stop import signal_number


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("SIGTERM", 15),
        ("TERM", 15),
        ("sigquit", 3),
        ("9", 9),
        ("1", 1),
        ("64", 64),
        ("SIGRTMIN", 34),
        ("SIGRTMIN+3", 37),
        ("RTMIN+30", 64),
        ("SIGRTMAX-2", 62),
        ("rtmax", 64),
    ],
)
def test_signals_are_parsed_by_name_and_number(name: str, number: int) -> None:
    assert signal_number(name) == number


@pytest.mark.parametrize(
    "name",
    [
        "",
        "SIG",
        "SIGNOTHING",
        "0",
        "65",
        "999",
        "-9",
        "TERM+",
        "TERM+x",
        "RTMIN+31",
        "RTMAX+1",
        "HUP-1",
        "1.5",
        "SIG+1",
        "TERM+1",
        "RTMIN-1",
        "٩",
        "9" * 5000,
        "SIG_DFL",
    ],
)
def test_unknown_signal_becomes_sigterm_and_is_logged(name: str, caplog: pytest.LogCaptureFixture) -> None:
    assert signal_number(name) == signal.SIGTERM
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


@pytest.mark.parametrize("number", [each.number for each in pb.Signal.DESCRIPTOR.values if each.number])
def test_every_signal_of_the_cri_is_one_of_the_kernels(number: int, caplog: pytest.LogCaptureFixture) -> None:
    assert 0 < signal_number(requests.signal_name(number)) < signal.NSIG
    assert caplog.records == []
