# SPDX-License-Identifier: Apache-2.0
"""A registry on the loopback interface, to pull from."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trial.programs import START_TIMEOUT, StartError, log_end, running

_LISTENING = re.compile(r"listening on (127\.0\.0\.1:\d+)")


@contextmanager
def running_registry(directory: Path) -> Iterator[str]:
    """Debian's docker-registry on a free port; gives its address. It speaks plain HTTP.

    Raises StartError when it does not come up.
    """
    directory.mkdir(parents=True)
    config = {
        "version": "0.1",
        "log": {"accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": str(directory / "storage")}},
        "http": {"addr": "127.0.0.1:0", "secret": "not a secret"},
    }
    (directory / "config.yml").write_text(json.dumps(config))  # every JSON text is YAML
    log = directory / "log"
    with running(["docker-registry", "serve", str(directory / "config.yml")], log) as process:
        yield _address(process, log)


def _address(process: subprocess.Popen[bytes], log: Path) -> str:
    """Where it listens, once it says so."""
    deadline = time.monotonic() + START_TIMEOUT
    while process.poll() is None and time.monotonic() < deadline:
        if found := _LISTENING.search(log.read_text()):
            return found[1]
        time.sleep(0.02)
    raise StartError(f"docker-registry did not come up; {log} ends with:\n{log_end(log)}")
