# SPDX-License-Identifier: Apache-2.0
"""Exec and Attach as clients see them, over SPDY and over WebSocket."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import struct
import threading
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
from support.cri_client import CriClient, eventually, refused
from support.daemon import Machine
from support.streaming_client import TRANSPORTS, CommandClient

from pvecri.cri.proto import cri_pb2 as pb
from pvecri.streaming.remotecommand import StreamType

STDIN, STDOUT, STDERR = StreamType.STDIN, StreamType.STDOUT, StreamType.STDERR
RESIZE = StreamType.RESIZE

Transport = type[CommandClient]


@pytest.fixture(params=TRANSPORTS)
def transport(request: pytest.FixtureRequest) -> Transport:
    return TRANSPORTS[request.param]


def exec_url(cri: CriClient, container: str, *command: str, streams: str = "oe", tty: bool = False) -> str:
    """The URL of an Exec with the streams whose letters (i, o, e) are given."""
    request = pb.ExecRequest(
        container_id=container,
        cmd=command,
        tty=tty,
        stdin="i" in streams,
        stdout="o" in streams,
        stderr="e" in streams,
    )
    return str(cri.runtime.Exec(request).url)


def attach_url(cri: CriClient, container: str, streams: str = "ioe", tty: bool = False) -> str:
    """The URL of an Attach."""
    request = pb.AttachRequest(
        container_id=container, tty=tty, stdin="i" in streams, stdout="o" in streams, stderr="e" in streams
    )
    return str(cri.runtime.Attach(request).url)


def kinds(streams: str) -> list[StreamType]:
    return [{"i": STDIN, "o": STDOUT, "e": STDERR}[letter] for letter in streams]


def size(columns: int, rows: int) -> bytes:
    return json.dumps({"Width": columns, "Height": rows}).encode()


def lines(output: bytes) -> list[bytes]:
    """What a terminal shows. The first lines may end with one CR too many: runc sets its terminal up in a race."""
    return output.replace(b"\r\r\n", b"\r\n").split(b"\r\n")[:-1]


def command_lines(machine: Machine, container: str, name: str) -> dict[int, str]:
    """The command lines of a container's processes that have `name` in them, by their pids."""
    lines = {}
    for pid in machine.processes_of(container):
        with suppress(FileNotFoundError, ProcessLookupError):
            lines[pid] = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    return {pid: line for pid, line in lines.items() if name in line}


def bytes_written(machine: Machine, container: str, name: str) -> list[int]:
    """How much such processes have written."""
    written = []
    for pid in command_lines(machine, container, name):
        fields = dict(line.split(": ") for line in Path(f"/proc/{pid}/io").read_text().splitlines())
        written.append(int(fields["wchar"]))
    return written


def send_until_broken(client: CommandClient) -> None:
    with suppress(OSError):
        while True:
            client.send(STDIN, bytes(50_000))


# -- exec ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("streams", ["o", "e", "i", "oe", "io", "ie", "ioe"])
def test_command_has_the_requested_streams(
    cri: CriClient, container: str, transport: Transport, streams: str
) -> None:
    url = exec_url(cri, container, "sh", "-c", "cat; echo out; echo err >&2", streams=streams)
    client = transport(url, *kinds(streams))
    if "i" in streams:
        client.send(STDIN, b"in\n")
        client.finish(STDIN)
    outcome = client.outcome()
    assert outcome.exit_code == 0
    assert outcome.stdout == (b"in\n" * ("i" in streams) + b"out\n") * ("o" in streams)
    assert outcome.stderr == b"err\n" * ("e" in streams)


@pytest.mark.parametrize("code", [0, 1, 7, 255])
def test_status_has_the_exit_code(cri: CriClient, container: str, transport: Transport, code: int) -> None:
    client = transport(exec_url(cri, container, "sh", "-c", f"exit {code}"), STDOUT, STDERR)
    assert client.outcome().exit_code == code


def test_exit_code_of_a_killed_command_is_128_plus_the_signal(
    cri: CriClient, container: str, transport: Transport
) -> None:
    client = transport(exec_url(cri, container, "sh", "-c", "kill -KILL $$"), STDOUT, STDERR)
    assert client.outcome().exit_code == 137


def test_missing_command_fails_with_an_error_message(cri: CriClient, container: str, transport: Transport) -> None:
    outcome = transport(exec_url(cri, container, "/no/such/program"), STDOUT, STDERR).outcome()
    assert outcome.exit_code != 0
    assert b"no such file" in outcome.stderr


def test_binary_data_is_unchanged_in_both_directions(cri: CriClient, container: str, transport: Transport) -> None:
    data = os.urandom(10 << 20)
    client = transport(exec_url(cri, container, "cat", streams="io"), STDIN, STDOUT)

    def send() -> None:
        for at in range(0, len(data), 50_000):
            client.send(STDIN, data[at : at + 50_000])
        client.finish(STDIN)

    sender = threading.Thread(target=send)
    sender.start()
    outcome = client.outcome()
    sender.join()
    assert hashlib.sha256(outcome.stdout).digest() == hashlib.sha256(data).digest()


def test_terminal_follows_the_clients_size(cri: CriClient, container: str, transport: Transport) -> None:
    wait = 'until test "$(stty size 2>/dev/null)" = "$size"; do :; done'
    script = f'for size in "33 111" "24 80"; do {wait}; echo is $size; done'
    url = exec_url(cri, container, "sh", "-c", script, streams="io", tty=True)
    client = transport(url, STDIN, STDOUT, RESIZE)
    client.send(RESIZE, size(111, 33))
    client.wait_for(STDOUT, b"is 33 111\r")
    client.send(RESIZE, size(80, 24))
    outcome = client.outcome()
    assert (outcome.exit_code, lines(outcome.stdout)) == (0, [b"is 33 111", b"is 24 80"])


def test_terminal_echoes_input_once_and_sends_signals(
    cri: CriClient, container: str, transport: Transport
) -> None:
    script = "trap 'echo caught; exit 3' INT; echo ready; while read line; do echo got $line; done"
    url = exec_url(cri, container, "sh", "-c", script, streams="io", tty=True)
    client = transport(url, STDIN, STDOUT, RESIZE)
    client.wait_for(STDOUT, b"ready\r")
    client.send(STDIN, b"word\n")
    client.wait_for(STDOUT, b"got word\r")
    client.send(STDIN, b"\x03")
    outcome = client.outcome()
    assert (outcome.exit_code, lines(outcome.stdout)) == (3, [b"ready", b"word", b"got word", b"^Ccaught"])


@pytest.mark.parametrize("tty", [False, True])
def test_slow_client_blocks_the_command(
    machine: Machine, cri: CriClient, container: str, transport: Transport, tty: bool
) -> None:
    daemon = psutil.Process(machine.daemon.pid)
    before = daemon.memory_info().rss
    client = transport(exec_url(cri, container, "yes", streams="o", tty=tty), STDOUT, *[RESIZE] * tty)
    written: list[int] = []

    def stuck() -> bool:
        written.extend(bytes_written(machine, container, "yes"))
        return len(written) > 1 and written[-1] == written[-2] > 0

    eventually(stuck, "yes is held up")
    assert daemon.memory_info().rss - before < 8 << 20
    client.leave()
    eventually(lambda: not command_lines(machine, container, "yes"), "yes is killed")


def test_command_ends_if_its_client_disconnects(
    machine: Machine, cri: CriClient, container: str, transport: Transport
) -> None:
    script = "sleep 2001 & sleep 2002 & echo started; sleep 2003"
    client = transport(exec_url(cri, container, "sh", "-c", script), STDOUT, STDERR)
    client.wait_for(STDOUT, b"started")
    client.leave()
    eventually(lambda: not command_lines(machine, container, "sleep 200"), "the command is killed")
    assert cri.status(container).state == pb.CONTAINER_RUNNING


def test_disconnect_is_detected_while_input_is_pending(
    machine: Machine, cri: CriClient, container: str, transport: Transport
) -> None:
    client = transport(exec_url(cri, container, "sleep", "2004", streams="i"), STDIN)
    sender = threading.Thread(target=send_until_broken, args=(client,))
    sender.start()
    eventually(lambda: command_lines(machine, container, "sleep 2004"), "the command runs")
    # As the kernel does for a process that is killed with something unread.
    client.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.connection.shutdown(socket.SHUT_RD)
    client.leave()
    sender.join()
    eventually(lambda: not command_lines(machine, container, "sleep 2004"), "the command is killed")


def test_commands_run_concurrently(cri: CriClient, container: str, transport: Transport) -> None:
    clients = [transport(exec_url(cri, container, "cat", streams="io"), STDIN, STDOUT) for _ in range(20)]
    for number, client in enumerate(clients):
        client.send(STDIN, b"%d" % number)
        client.finish(STDIN)
    assert [client.outcome().stdout for client in clients] == [b"%d" % number for number in range(20)]


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"cmd": []}, "cmd: must not be empty"),
        ({"stdout": False}, "stdin, stdout, stderr: one of them"),
        ({"tty": True, "stderr": True}, "stderr: must be false with tty"),
        ({"container_id": ""}, "container_id: must not be empty"),
    ],
)
def test_invalid_exec_request_is_refused(
    cri: CriClient, container: str, fields: dict[str, Any], problem: str
) -> None:
    good: dict[str, Any] = {"container_id": container, "cmd": ["true"], "stdout": True}
    with refused(grpc.StatusCode.INVALID_ARGUMENT, problem):
        cri.runtime.Exec(pb.ExecRequest(**{**good, **fields}))


def test_exec_over_streaming_needs_a_running_container(cri: CriClient, pod: str) -> None:
    container = cri.run(pod, "true")
    cri.wait_for_exit(container)
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "exited, not running"):
        exec_url(cri, container, "true")
    with refused(grpc.StatusCode.NOT_FOUND, "does not exist"):
        exec_url(cri, "0" * 64, "true")


# -- attach ----------------------------------------------------------------------------------------------------

ECHO = ("sh", "-c", "while read line; do echo got $line; echo err >&2; done; echo end")


def test_attached_client_is_connected_to_the_containers_streams(
    cri: CriClient, pod: str, transport: Transport
) -> None:
    container = cri.run(pod, *ECHO, stdin=True)
    client = transport(attach_url(cri, container), STDIN, STDOUT, STDERR)
    client.send(STDIN, b"one\n")
    client.wait_for(STDOUT, b"got one\n")
    client.wait_for(STDERR, b"err\n")
    client.leave()
    assert cri.status(container).state == pb.CONTAINER_RUNNING


def test_client_can_attach_after_another_has_detached(cri: CriClient, pod: str, transport: Transport) -> None:
    container = cri.run(pod, *ECHO, stdin=True)
    for word in (b"one", b"two"):
        client = transport(attach_url(cri, container), STDIN, STDOUT, STDERR)
        client.send(STDIN, word + b"\n")
        client.finish(STDIN)
        client.wait_for(STDOUT, b"got " + word)
        client.leave()
    assert cri.status(container).state == pb.CONTAINER_RUNNING


def test_stdin_once_closes_stdin_after_the_first_client(cri: CriClient, pod: str, transport: Transport) -> None:
    container = cri.run(pod, *ECHO, stdin=True, stdin_once=True)
    client = transport(attach_url(cri, container), STDIN, STDOUT, STDERR)
    client.send(STDIN, b"one\n")
    client.wait_for(STDOUT, b"got one\n")
    client.finish(STDIN)
    outcome = client.outcome()
    assert (outcome.exit_code, outcome.stdout) == (0, b"got one\nend\n")
    assert cri.wait_for_exit(container).exit_code == 0


def test_stdin_once_ignores_clients_without_stdin(cri: CriClient, pod: str, transport: Transport) -> None:
    container = cri.run(pod, *ECHO, stdin=True, stdin_once=True)
    listener = transport(attach_url(cri, container, "o"), STDOUT)
    speaker = transport(attach_url(cri, container), STDIN, STDOUT, STDERR)
    with ThreadPoolExecutor(1) as thread:
        heard = thread.submit(listener.wait_for, STDOUT, b"got one\n")
        while not heard.done():  # a client hears what is said once conmon knows of it, no client is told when
            speaker.send(STDIN, b"one\n")
            wait([heard], timeout=0.02)
        heard.result()
    listener.leave()
    speaker.send(STDIN, b"two\n")
    speaker.wait_for(STDOUT, b"got two\n")
    speaker.leave()
    assert cri.wait_for_exit(container).exit_code == 0


def test_stdin_once_closes_stdin_if_the_client_disconnects_during_output(
    cri: CriClient, pod: str, transport: Transport
) -> None:
    script = "while :; do echo noise; done & cat; kill $!"
    container = cri.run(pod, "sh", "-c", script, stdin=True, stdin_once=True)
    client = transport(attach_url(cri, container), STDIN, STDOUT, STDERR)
    client.wait_for(STDOUT, b"noise\n")
    client.leave()
    assert cri.wait_for_exit(container).exit_code == 0


def test_an_attached_terminal_has_the_clients_size(cri: CriClient, pod: str, transport: Transport) -> None:
    script = 'until test "$(stty size 2>/dev/null)" = "33 111"; do :; done; echo is; read line'
    container = cri.run(pod, "sh", "-c", script, stdin=True, tty=True)
    client = transport(attach_url(cri, container, "io", tty=True), STDIN, STDOUT, RESIZE)
    client.send(RESIZE, size(111, 33))
    client.wait_for(STDOUT, b"is\r")
    client.send(STDIN, b"\n")
    assert client.outcome().exit_code == 0


def test_attach_to_an_exited_container_is_refused(cri: CriClient, pod: str) -> None:
    container = cri.run(pod, "true")
    cri.wait_for_exit(container)
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "exited, not running"):
        attach_url(cri, container)


def test_attach_url_of_a_container_that_exited_meanwhile_reports_an_error(
    cri: CriClient, pod: str, transport: Transport
) -> None:
    container = cri.run(pod, "sleep", "1000")
    url = attach_url(cri, container, "o")
    cri.stop(container)
    outcome = transport(url, STDOUT).outcome()
    assert "no conmon is listening" in json.loads(outcome.status)["message"]


def test_streams_end_with_their_pod(cri: CriClient, pod: str, container: str, transport: Transport) -> None:
    client = transport(exec_url(cri, container, "sh", "-c", "echo runs; sleep 2005"), STDOUT, STDERR)
    client.wait_for(STDOUT, b"runs")
    cri.remove_pod(pod)
    assert client.outcome().exit_code == 137
