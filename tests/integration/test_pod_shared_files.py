# SPDX-License-Identifier: Apache-2.0
"""What a pod writes to /etc/hosts, /etc/hostname and /etc/resolv.conf is bounded, and not the run directory's."""

from __future__ import annotations

import pytest
from support.cri_client import CriClient, pod_security, security

from pvecri.cri.proto import cri_pb2 as pb

FILES = ("hosts", "hostname", "resolv.conf")
# More than the room, and little enough to be harmless where there is no bound.
FILL = "dd if=/dev/zero bs=1M count=8 >>/etc/{} 2>/tmp/error; grep -o 'No space left on device' /tmp/error"


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("privileged", [False, True])
def test_pod_cannot_fill_the_run_directory(cri: CriClient, file: str, privileged: bool) -> None:
    pod = cri.run_pod(cri.pod_config(linux=pod_security(privileged=privileged)))
    container = cri.run(pod, "sleep", "1000", linux=security(privileged=privileged))
    assert cri.exec(container, "sh", "-c", FILL.format(file)).stdout == b"No space left on device\n"
    assert int(cri.output(container, "stat", "-c", "%s", f"/etc/{file}")) < 2 << 20


def test_files_are_shared_and_writable_by_the_pods_root_alone(cri: CriClient, pod: str) -> None:
    first = cri.run(pod, "sleep", "1000", name="first")
    second = cri.run(pod, "sleep", "1000", name="second")
    assert cri.exec(first, "sh", "-c", "echo 10.0.0.1 db >>/etc/hosts").exit_code == 0
    assert "10.0.0.1 db\n" in cri.output(second, "cat", "/etc/hosts")
    user = security(run_as_user=pb.Int64Value(value=1000))
    command = "cat /etc/resolv.conf >/dev/null && ! echo x 2>/dev/null >>/etc/hosts && echo refused"
    assert cri.finish(pod, "sh", "-c", command, name="user", linux=user) == "refused\n"


def test_files_are_read_only_with_a_read_only_root(cri: CriClient, pod: str) -> None:
    readonly = security(readonly_rootfs=True)
    command = "! echo x 2>/dev/null >>/etc/hosts && cat /etc/hostname"
    assert cri.finish(pod, "sh", "-c", command, linux=readonly).startswith("pod-")


def test_shared_memory_has_its_own_size(cri: CriClient, container: str) -> None:
    size = cri.output(container, "sh", "-c", "df -k /dev/shm | tail -1 | tr -s ' ' | cut -d' ' -f2")
    assert int(size) == 64 << 10
