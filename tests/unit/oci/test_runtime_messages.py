# SPDX-License-Identifier: Apache-2.0
"""The cause in what conmon, runc and crun write to stderr."""

from __future__ import annotations

import pytest

from pvecri.oci.messages import last_error

TIME = 'time="2026-11-27T10:00:00Z"'
WARNING = f'{TIME} level=warning msg="cannot toggle freezer: cgroups not configured for container"\n'


@pytest.mark.parametrize(
    ("output", "cause"),
    [
        ("", ""),
        (" \n\n", ""),
        (WARNING, ""),
        ("no such container\n", "no such container"),
        ("two lines\nof it\n", "two lines of it"),
        (f'{WARNING * 3}{TIME} level=error msg="runc create failed: no space left"\n', "no space left"),
        (f'{WARNING}{TIME} level=error msg="first"\n{TIME} level=error msg=last\n', "last"),
        (f"{WARNING}error loading config.json\n", "error loading config.json"),
        (f'{TIME} level=error msg="exec: \\"no\\": not found"\n', 'exec: "no": not found'),
        (f'{TIME} level=error msg="\\x1b[31mred\\u00e4"\n', "\x1b[31mred\N{LATIN SMALL LETTER A WITH DIAERESIS}"),
        (
            'runc create failed: unable to start container process: exec: "no": not found',
            'exec: "no": not found',
        ),
        (
            "exec failed: unable to start container process: error during container init: no /proc",
            "no /proc",
        ),
        (
            "[conmon:w]: odd\n[conmon:e]: Failed to create container: exit status 1\n",
            "Failed to create container: exit status 1",
        ),
    ],
)
def test_only_the_cause_is_left_of_the_stderr_of_a_runtime(output: str, cause: str) -> None:
    assert last_error(output) == cause
