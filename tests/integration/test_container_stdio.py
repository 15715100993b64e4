# SPDX-License-Identifier: Apache-2.0
"""A container's standard streams opened by name, by any user: nginx and httpd log to them."""

from __future__ import annotations

import asyncio
import platform
import sys
from pathlib import Path

import pytest
from support.cri_client import CriClient, eventually, pod_security, security
from support.daemon import Machine

from pvecri.cri.proto import cri_pb2 as pb
from pvecri.linux import keyrings, libc

PODS = {
    "ct": pb.LinuxPodSandboxConfig(),
    "node": pod_security(privileged=True),
}
WRITE = "for name in /dev/stdout /proc/self/fd/1 /dev/stderr /proc/self/fd/2; do echo $name >$name || exit 1; done"
WRITTEN = ["/dev/stdout", "/proc/self/fd/1", "/dev/stderr", "/proc/self/fd/2"]


@pytest.fixture(params=sorted(PODS))
def pod(request: pytest.FixtureRequest, cri: CriClient) -> str:
    return cri.run_pod(cri.pod_config(linux=PODS[request.param]))


def user(uid: int) -> pb.LinuxContainerConfig:
    return security(run_as_user=pb.Int64Value(value=uid))


@pytest.mark.parametrize("uid", [0, 1000, 65_534])
@pytest.mark.parametrize("tty", [False, True], ids=["pipes", "tty"])
def test_a_container_opens_its_streams_by_name(cri: CriClient, pod: str, uid: int, tty: bool) -> None:
    container = cri.run(pod, "sh", "-c", WRITE, linux=user(uid), tty=tty)
    assert cri.wait_for_exit(container).exit_code == 0, cri.logs(container)
    # Not line by line: the monitor may read a terminal in the middle of a line, and log that as a partial one.
    assert sorted((cri.text(container) + cri.text(container, "stderr")).split()) == sorted(WRITTEN)


@pytest.mark.parametrize("uid", [0, 1000])
def test_a_command_of_exec_opens_its_streams_by_name(cri: CriClient, pod: str, uid: int) -> None:
    container = cri.run(pod, "sleep", "1000", linux=user(uid))
    response = cri.exec(container, "sh", "-c", WRITE)
    assert response.exit_code == 0, response
    assert (response.stdout + response.stderr).decode().split() == [
        *(name for name in WRITTEN if "1" in name or "out" in name),
        *(name for name in WRITTEN if "2" in name or "err" in name),
    ]


@pytest.mark.parametrize("tty", [False, True], ids=["pipes", "tty"])
def test_other_users_can_open_the_containers_streams(cri: CriClient, pod: str, tty: bool) -> None:
    """As after su, or a server's workers: the stream was opened for root, and is opened again by another user."""
    script = "chmod u+s /bin/busybox; su -s /bin/sh alice -c 'echo hers >/dev/stdout && echo hers >/dev/stderr'"
    container = cri.run(pod, "sh", "-c", script, tty=tty)
    assert cri.wait_for_exit(container).exit_code == 0, cri.logs(container)
    assert (cri.text(container) + cri.text(container, "stderr")).split() == ["hers", "hers"]


def test_every_user_can_bind_low_ports(cri: CriClient) -> None:
    pod = cri.run_pod()
    container = cri.run(pod, "nc", "-l", "-p", "80", linux=user(1000))
    eventually(
        lambda: b":0050 " in cri.exec(container, "cat", "/proc/net/tcp", "/proc/net/tcp6").stdout, "it listens"
    )


def test_every_user_can_ping(cri: CriClient) -> None:
    """An ICMP socket of the kind that needs no capability, from a process in the pod's network and user
    namespace.
    """
    pod = cri.run_pod()
    assert cri.finish(pod, "cat", "/proc/sys/net/ipv4/ping_group_range").split() == ["0", "65535"]


def test_a_pods_own_sysctls_take_precedence_over_the_default_ones(cri: CriClient) -> None:
    name = "net.ipv4.ip_unprivileged_port_start"
    pod = cri.run_pod(cri.pod_config(linux=pb.LinuxPodSandboxConfig(sysctls={name: "1024"})))
    assert cri.finish(pod, "cat", f"/proc/sys/{name.replace('.', '/')}") == "1024\n"


def test_default_sysctls_are_a_setting(machine: Machine) -> None:
    with machine.restarted(runtime='default_sysctls = {"net.core.somaxconn" = "1111"}') as cri:
        pod = cri.run_pod()
        assert cri.finish(pod, "cat", "/proc/sys/net/core/somaxconn") == "1111\n"
        start = cri.finish(pod, "cat", "/proc/sys/net/ipv4/ip_unprivileged_port_start", name="start")
        assert start == "1024\n"


def test_default_sysctls_are_not_set_on_the_nodes_network(cri: CriClient) -> None:
    before = Path("/proc/sys/net/ipv4/ping_group_range").read_text()
    options = pb.NamespaceOption(network=pb.NODE, pid=pb.CONTAINER)
    cri.run_pod(cri.pod_config(linux=pod_security(namespace_options=options)))
    assert Path("/proc/sys/net/ipv4/ping_group_range").read_text() == before


# -- what the kernel counts per user ------------------------------------------------------------------------------


def keys_of(uid: int) -> int:
    """How many keys the kernel charges to a user of the node (proc_key-users(5))."""
    for line in Path("/proc/key-users").read_text().splitlines():
        number, _usage, _keys, quota, *_ = line.split()
        if int(number.rstrip(":")) == uid:
            return int(quota.partition("/")[0])
    return 0


def test_session_keyring_is_not_charged_to_the_shared_uid(cri: CriClient) -> None:
    pod = cri.run_pod()
    grown = []
    # More than once: pods of tests that run at the same time have keys of that user, and lose them.
    for attempt in range(5):
        before = keys_of(100_000)
        containers = [cri.run(pod, "sleep", "1000", name=f"c{attempt}-{number}") for number in range(3)]
        cri.exec(containers[0], "true")
        grown.append(keys_of(100_000) - before)
        if grown[-1] == 0:
            break
    assert grown[-1] == 0, grown


OWN_KEYRING = "import ctypes; print(ctypes.CDLL(None).syscall({number}, 0, -3, 0))"
"""For Python: what keyctl(KEYCTL_GET_KEYRING_ID, KEY_SPEC_SESSION_KEYRING) answers."""


async def test_every_program_has_its_own_session_keyring() -> None:
    number = keyrings._SYS_KEYCTL[platform.machine()]
    found = set()
    for _ in range(3):
        command = (sys.executable, "-c", OWN_KEYRING.format(number=number))
        process = await keyrings.start(*command, stdout=asyncio.subprocess.PIPE)
        found.add(int((await process.communicate())[0]))
        found.add(libc.syscall(number, 0, -3, 0))
    assert len(found) == 6


async def test_cancelled_start_raises_cancelled_error() -> None:
    starting = asyncio.ensure_future(keyrings.start("sleep", "0"))
    await asyncio.sleep(0)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
