# SPDX-License-Identifier: Apache-2.0
"""A container's grace period at a shutdown is its pod's, as the kubelet writes it."""

from __future__ import annotations

import pytest

from pvecri.pods.sandbox.shutdown import DEFAULT_GRACE, GRACE_ANNOTATION, grace_period


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("5", 5.0),
        ("0", 0.0),
        ("3600", 3600.0),
        ("", DEFAULT_GRACE),
        ("-1", DEFAULT_GRACE),
        ("1e400", DEFAULT_GRACE),
        ("\u0663", DEFAULT_GRACE),
        ("9" * 5000, DEFAULT_GRACE),
        ("soon", DEFAULT_GRACE),
    ],
)
def test_grace_is_the_annotation_in_seconds(text: str, seconds: float) -> None:
    assert grace_period({GRACE_ANNOTATION: text}) == seconds


def test_default_without_the_annotation() -> None:
    assert grace_period({}) == DEFAULT_GRACE
