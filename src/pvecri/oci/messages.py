# SPDX-License-Identifier: Apache-2.0
"""Error messages of conmon, runc and crun, without what surrounds the cause."""

from __future__ import annotations

import json
import re

_LOGRUS = re.compile(r'^time=(?:"[^"]*"|\S+) level=(?P<level>\w+) msg=(?P<message>"(?:[^"\\]|\\.)*"|\S*)')
_CONMON = re.compile(r"^\[conmon:(?P<level>\w)\]: (?P<message>.*)$")
_ERRORS = ("error", "fatal", "panic", "e")

# What the runtimes put before the cause; runc repeats it for each of its processes.
_PREFIX = re.compile(
    r"^(?:(?:runc|crun) \w+ failed: |exec failed: |unable to start container process: |"
    r"container_linux\.go:\d+: |starting container process caused: |"
    r"error during container init: )+"
)


def last_error(output: str) -> str:
    """The last error in the stderr of a program; all of it if none is marked as one. Empty if there is nothing.

    `--log` keeps the lines of runc and crun that are marked with a level out of their stderr. A conmon that fails
    itself, and a `runc init` that fails before it has the log, still write some.
    """
    plain, errors = [], []
    for line in output.splitlines():
        found = _LOGRUS.match(line) or _CONMON.match(line)
        if found is None:
            plain.append(line)
        elif found["level"] in _ERRORS:
            errors.append(_unquoted(found["message"]))
    kept = [line.strip() for line in plain if line.strip()]
    return cause(errors[-1] if errors else " ".join(kept))


def cause(message: str) -> str:
    """A message of runc or crun without the steps that led to the cause."""
    return _PREFIX.sub("", message.strip()).strip()


def _unquoted(text: str) -> str:
    # logrus quotes as Go does, whose escapes for a valid text are JSON's, and `\\x1b`.
    try:
        return str(json.loads(re.sub(r"\\x([0-9a-f]{2})", r"\\u00\1", text))) if text.startswith('"') else text
    except ValueError:
        return text
