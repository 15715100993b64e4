# SPDX-License-Identifier: Apache-2.0
"""A registry on the loopback interface, to pull from."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from trial.programs import START_TIMEOUT, StartError, log_end, running

_LISTENING = re.compile(r"listening on (127\.0\.0\.1:\d+)")


@contextmanager
def running_registry(directory: Path, port: int = 0) -> Iterator[str]:
    """Debian's docker-registry on `port`, or a free one for 0; gives its address. It speaks plain HTTP.

    Raises StartError when it does not come up.
    """
    directory.mkdir(parents=True)
    storage = {"filesystem": {"rootdirectory": str(directory / "storage")}}
    with serving(directory, {"storage": storage}, port) as (_, address):
        yield address


@contextmanager
def serving(
    directory: Path, config: Mapping[str, object], port: int = 0
) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """As `running_registry`, with the sections of `config` besides; the process, too.

    Its log goes to a file: a registry whose log nobody reads stands still once a pipe is full.
    """
    usual = {
        "version": "0.1",
        "log": {"accesslog": {"disabled": True}},
        "http": {"addr": f"127.0.0.1:{port}", "secret": "not a secret"},
    }
    (directory / "registry.yml").write_text(json.dumps({**usual, **config}))  # every JSON text is YAML
    log = directory / "registry.log"
    with running(["docker-registry", "serve", str(directory / "registry.yml")], log) as process:
        yield process, _address(process, log)


def _address(process: subprocess.Popen[bytes], log: Path) -> str:
    """Where it listens, once it says so."""
    deadline = time.monotonic() + START_TIMEOUT
    while process.poll() is None and time.monotonic() < deadline:
        if found := _LISTENING.search(log.read_text()):
            return found[1]
        time.sleep(0.02)
    raise StartError(f"docker-registry did not come up; {log} ends with:\n{log_end(log)}")
