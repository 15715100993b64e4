# SPDX-License-Identifier: Apache-2.0
"""Invalid settings of the streaming server are refused by name."""

from __future__ import annotations

import pytest

from pvecri.config.settings import ConfigError, parse


@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        ('tls_cert = "/a"', "tls_cert and streaming.tls_key go together"),
        ('address = "localhost"', "streaming.address: 'localhost' does not appear to be"),
        ("port = 70000", "streaming.port"),
        ("idle_timeout = 0", "streaming.idle_timeout"),
        ("max_sessions = 0", "streaming.max_sessions"),
    ],
)
def test_invalid_streaming_settings_are_refused(setting: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        parse(f"[streaming]\n{setting}")
