# SPDX-License-Identifier: Apache-2.0
"""Container logs in the CRI's format, and reopening them."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import grpc
from support.cri_client import CriClient, eventually, refused

from pvecri.cri.proto import cri_pb2 as pb


def test_log_lines_have_stream_and_time(cri: CriClient, pod: str) -> None:
    container = cri.run(pod, "sh", "-c", "echo one; echo two >&2; echo three")
    cri.wait_for_exit(container)
    lines = cri.logs(container)
    assert sorted((line.stream, line.text) for line in lines) == [
        ("stderr", "two"),
        ("stdout", "one"),
        ("stdout", "three"),
    ]
    assert all(datetime.fromisoformat(line.time).tzinfo for line in lines)


def test_text_without_a_newline_is_a_partial_line(cri: CriClient, pod: str) -> None:
    container = cri.run(pod, "printf", "no end")
    cri.wait_for_exit(container)
    assert [(line.partial, line.text) for line in cri.logs(container) if line.text] == [(True, "no end")]


def test_long_line_is_split_into_partial_lines(cri: CriClient, pod: str) -> None:
    container = cri.run(pod, "sh", "-c", "head -c 100000 /dev/zero | tr '\\0' x; echo")
    cri.wait_for_exit(container)
    assert any(line.partial for line in cri.logs(container))
    assert cri.text(container) == "x" * 100_000 + "\n"


def test_every_attempt_has_its_own_log(cri: CriClient, pod: str) -> None:
    first = cri.run(pod, "echo", "first")
    cri.wait_for_exit(first)
    second = cri.run(pod, "echo", "second", attempt=1)
    cri.wait_for_exit(second)
    assert (cri.text(first), cri.text(second)) == ("first\n", "second\n")


def test_log_remains_after_removal_of_the_container(cri: CriClient, pod: str) -> None:
    container = cri.run(pod, "echo", "kept")
    path = Path(cri.wait_for_exit(container).log_path)
    cri.remove(container)
    assert path.read_text().endswith(" stdout F kept\n")


def test_after_a_rotation_the_output_goes_to_a_new_file(cri: CriClient, pod: str) -> None:
    script = "n=0; while usleep 1000; do n=$((n+1)); echo $n; done"
    container = cri.run(pod, "sh", "-c", script)
    path = Path(cri.status(container).log_path)
    eventually(lambda: path.exists() and path.stat().st_size > 0, "something is written")
    path.rename(f"{path}.old")
    cri.runtime.ReopenContainerLog(pb.ReopenContainerLogRequest(container_id=container))
    eventually(lambda: path.stat().st_size > 0, "something is written to the new file")
    cri.stop(container)
    lines = [*Path(f"{path}.old").read_text().splitlines(), *path.read_text().splitlines()]
    numbers = [int(line.split()[-1]) for line in lines]
    assert numbers == list(range(1, len(numbers) + 1))


def test_only_a_running_containers_log_can_be_reopened(cri: CriClient, pod: str) -> None:
    container = cri.run(pod, "true")
    cri.wait_for_exit(container)
    with refused(grpc.StatusCode.FAILED_PRECONDITION, f"container {container} is exited, not running"):
        cri.runtime.ReopenContainerLog(pb.ReopenContainerLogRequest(container_id=container))


def test_a_container_without_a_log_path_writes_none(cri: CriClient, pod: str) -> None:
    container = cri.run(pod, "echo", "nowhere", log_path="")
    assert cri.wait_for_exit(container).log_path == ""


def test_a_log_path_that_leads_out_of_the_pods_directory_is_refused(cri: CriClient, pod: str) -> None:
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "config.log_path: .* is outside"):
        cri.create(pod, cri.container_config("true", log_path="../../escaped.log"))
