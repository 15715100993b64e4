# SPDX-License-Identifier: Apache-2.0
"""The daemon is killed at random times of a pod's life: unfinished calls are completed or undone."""

from __future__ import annotations

import random
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import grpc
import pytest
from support.cri_client import CriClient, eventually, pod_security
from support.daemon import Machine

from pvecri.cri.proto import cri_pb2 as pb

KINDS = (
    pb.LinuxPodSandboxConfig(),
    pod_security(privileged=True),
    pod_security(namespace_options=pb.NamespaceOption(network=pb.NODE)),
)


def live(cri: CriClient, kind: pb.LinuxPodSandboxConfig) -> None:
    """The whole life of a pod, as far as it comes."""
    with suppress(grpc.RpcError):
        pod = cri.run_pod(cri.pod_config(linux=kind))
        for attempt in range(3):
            container = cri.run(pod, "sleep", "1000", attempt=attempt)
            cri.exec(container, "true")
            cri.stop(container)
        cri.stop_pod(pod)
        cri.remove_pod(pod)


@pytest.mark.parametrize("seed", range(3))
def test_daemon_killed_at_random_times_leaves_nothing(machine: Machine, cri: CriClient, seed: int) -> None:
    chance = random.Random(seed)
    with ThreadPoolExecutor(len(KINDS)) as threads:
        for _ in range(3):
            for kind in KINDS:
                threads.submit(live, machine.client, kind)
            time.sleep(chance.uniform(0.02, 0.8))  # the moment is what is tried, nothing waits for it
            machine.kill()
            machine.start()
    for pod in machine.client.pods():
        machine.client.remove_pod(pod.id)
    machine.wait_until_nothing_left()
    eventually(lambda: not machine.node.cts() & set(machine.vmids), "no CT is left")
