# SPDX-License-Identifier: Apache-2.0
"""Files that are replaced as a whole."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

DRAFT_SUFFIX = ".new"
"""In place of the file's own suffix. A crash may leave a draft; the next write replaces it."""


def write_atomically(path: Path, data: bytes) -> None:
    """Create or replace a file of mode 0600; who opens it, also after a crash, finds all of the old or of the new.

    Not synced: a power cut may leave the new one empty. OSError, the old file unchanged, if it cannot be written,
    for instance on a full filesystem.
    """
    draft = path.with_suffix(DRAFT_SUFFIX)
    try:
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
            file.write(data)
        draft.replace(path)
    except OSError:
        with suppress(OSError):
            draft.unlink()
        raise
