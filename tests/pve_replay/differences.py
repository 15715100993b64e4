# SPDX-License-Identifier: AGPL-3.0-or-later
"""Where the embedded node answers otherwise than the recorded one: what differs, and why no client minds."""

from __future__ import annotations

DIFFERENCES: dict[str, str] = {
    "03-storage.json: download-url refused": "the node downloads nothing: the task fails with other words.",
    "06-status.json: termproxy": (
        "the recorded node had no termproxy program, so the call failed there; the runtime opens no consoles."
    ),
}
