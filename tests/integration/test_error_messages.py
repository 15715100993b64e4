# SPDX-License-Identifier: Apache-2.0
"""Errors of conmon and the OCI runtime are one sentence, for clients and in the log."""

from __future__ import annotations

import re

import grpc
import pytest
from support.cri_client import CriClient, refused, security
from support.daemon import Machine

from pvecri.cri.proto import cri_pb2 as pb

NOISE = re.compile(r"level=|msg=|time=\"|\\\\|[\x00-\x09\x0b-\x1f\x7f]")


def test_command_that_the_image_lacks_is_the_whole_message(cri: CriClient, pod: str) -> None:
    container = cri.create(pod, cri.container_config("no-such-program"))
    with refused(grpc.StatusCode.INVALID_ARGUMENT, r'^config\.command: (exec: )?"?.?no-such-program'):
        cri.start(container)
    status = cri.status(container)
    assert status.reason == "StartError"
    assert not NOISE.search(status.message), status.message


def test_failure_of_the_runtime_is_one_sentence_with_its_last_error(cri: CriClient, pod: str) -> None:
    # A file of the image is in the place of the directory that the mount needs.
    mounts = [pb.Mount(host_path="/srv", container_path="/bin/busybox/x")]
    container = cri.create(pod, cri.container_config("true", mounts=mounts))
    with pytest.raises(grpc.RpcError) as raised:
        cri.start(container)
    message = str(raised.value.details())
    assert re.match(r"(runc|crun) could not create the container: .*not a directory", message, re.IGNORECASE)
    assert not NOISE.search(message), message
    assert cri.status(container).message == message


def test_exec_of_what_is_not_there_writes_one_line(cri: CriClient, container: str) -> None:
    result = cri.exec(container, "no-such-program")
    assert result.exit_code in (126, 127, 255)
    assert b"no-such-program" in result.stderr
    assert not NOISE.search(result.stderr.decode()), result.stderr


def test_control_characters_of_a_request_do_not_reach_message_or_log(
    machine: Machine, cri: CriClient, pod: str
) -> None:
    name = "eve\x1b[2J\nERROR forged"
    config = cri.container_config("true", linux=security(run_as_username=name))
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "run_as_username"):
        cri.create(pod, config)
    with refused(grpc.StatusCode.NOT_FOUND, r"\\x1b"):
        cri.status("\x1b[2J")
    log = machine.daemon.log.read_text()
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", log)
    assert "\nERROR forged" not in log
