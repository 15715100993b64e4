# SPDX-License-Identifier: Apache-2.0
"""What /healthz and /readyz answer."""

from __future__ import annotations

import pytest

from pvecri.observability.probes import Check, answer

CHECKS = [Check("ping"), Check("ProxmoxReady", "ProxmoxUnavailable"), Check("Work", "Fails", required=False)]


def test_success_is_the_word_ok_unless_verbose() -> None:
    assert answer("healthz", [Check("ping")], verbose=False) == (True, "ok")
    assert answer("healthz", [Check("ping")], verbose=True) == (True, "[+]ping ok\nhealthz check passed\n")


@pytest.mark.parametrize("verbose", [False, True])
def test_failure_has_a_line_for_each_check(verbose: bool) -> None:
    passed, body = answer("readyz", CHECKS, verbose=verbose)
    assert not passed
    assert body.splitlines() == [
        "[+]ping ok",
        "[-]ProxmoxReady failed: ProxmoxUnavailable",
        "[-]Work failed (not required): Fails",
        "readyz check failed",
    ]


def test_check_that_is_not_required_does_not_count() -> None:
    assert answer("readyz", [CHECKS[0], CHECKS[2]], verbose=False) == (True, "ok")


def test_excluded_check_does_not_count() -> None:
    passed, body = answer("readyz", CHECKS, verbose=True, excluded=["ProxmoxReady"])
    assert passed
    assert "[+]ProxmoxReady excluded: ok\n" in body


def test_name_that_excludes_nothing_is_reported() -> None:
    passed, body = answer("readyz", CHECKS, verbose=True, excluded=["etcd"])
    assert not passed
    assert "warn: some health checks cannot be excluded: no matches for 'etcd'\n" in body
