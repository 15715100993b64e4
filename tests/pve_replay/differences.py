# SPDX-License-Identifier: AGPL-3.0-or-later
"""Where the embedded node answers otherwise than the recorded one: what differs, and why no client minds."""

from __future__ import annotations

_PULL = "the node fetches no images; the runtime does that itself."

DIFFERENCES: dict[str, str] = {
    "03-storage.json: oci pull again (exists)": _PULL,
    "03-storage.json: oci pull unknown tag": _PULL,
    "03-storage.json: oci pull unknown registry": _PULL,
    "03-storage.json: download-url refused": "the node downloads nothing: the task fails with other words.",
    "06-status.json: termproxy": (
        "the recorded node had no termproxy program, so the call failed there; the runtime opens no consoles."
    ),
}
