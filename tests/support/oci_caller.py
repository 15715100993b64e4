# SPDX-License-Identifier: Apache-2.0
"""A program that calls an OCI runtime as conmon and containerd's shim do, and waits for what it leaves behind.

    python -m support.oci_caller REPORT PID_FILE DIRECTORY STDIN STDOUT STDERR PROGRAM [ARGUMENT…]

It is a child subreaper, so that the process in PID_FILE becomes its child, and runs the program in DIRECTORY on
the three descriptors. It writes two lines to the descriptor REPORT: the exit status of the program, and, if that
was 0, how the process in PID_FILE has ended, as subprocess has it: a negative number for a signal.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from pvecri.linux import libc

PR_SET_CHILD_SUBREAPER = 36


def main() -> None:
    """See the module."""
    report, pid_file, directory, *streams = sys.argv[1:7]
    libc.call("prctl", PR_SET_CHILD_SUBREAPER, 1)
    stdin, stdout, stderr = map(int, streams)
    program = subprocess.Popen(sys.argv[7:], stdin=stdin, stdout=stdout, stderr=stderr, cwd=directory)
    for descriptor in (stdin, stdout, stderr):
        os.close(descriptor)
    status = program.wait()
    os.write(int(report), f"{status}\n".encode())
    if status:
        return
    wanted = int(Path(pid_file).read_text())
    while True:
        pid, ended = os.wait()
        if pid == wanted:
            os.write(int(report), f"{os.waitstatus_to_exitcode(ended)}\n".encode())
            return


if __name__ == "__main__":
    main()
