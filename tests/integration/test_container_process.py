# SPDX-License-Identifier: Apache-2.0
"""A container's process: command, environment, user, capabilities, seccomp, devices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc
import pytest
from support.cri_client import CriClient, pod_security, refused, security
from support.daemon import Machine
from support.tools import tools_image

from pvecri.cri.proto import cri_pb2 as pb


def with_image(machine: Machine, name: str, **config: Any) -> dict[str, pb.ImageSpec]:
    """The image of a container, made with this OCI config."""
    image = machine.registry.push(f"tests/{name}", "1", tools_image(**config))
    machine.client.pull(image)
    return {"image": pb.ImageSpec(image=image)}


def test_image_command_is_the_default(machine: Machine, cri: CriClient, pod: str) -> None:
    image = with_image(machine, "entrypoint", Entrypoint=["/bin/echo", "entry"], Cmd=["cmd"])
    assert cri.finish(pod, **image) == "entry cmd\n"
    assert cri.finish(pod, args=["args"], attempt=1, **image) == "entry args\n"
    assert cri.finish(pod, "echo", "command", attempt=2, **image) == "command\n"


def test_requests_environment_overrides_the_images(machine: Machine, cri: CriClient, pod: str) -> None:
    image = with_image(machine, "env", Env=["PATH=/bin", "FROM=image", "KEPT=yes"])
    envs = [pb.KeyValue(key="FROM", value=b"request"), pb.KeyValue(key="MORE", value=b"a=b\nc")]
    shown = cri.finish(pod, "env", envs=envs, **image)
    assert {"PATH=/bin", "FROM=request", "KEPT=yes", "MORE=a=b", "c"} <= set(shown.splitlines())
    assert f"HOSTNAME={cri.pod_status(pod).metadata.name}" in shown


def test_requests_working_directory_takes_precedence_over_the_images(
    machine: Machine, cri: CriClient, pod: str
) -> None:
    image = with_image(machine, "workdir", WorkingDir="/home/alice")
    assert cri.finish(pod, "pwd", **image) == "/home/alice\n"
    assert cri.finish(pod, "pwd", working_dir="/tmp", attempt=1, **image) == "/tmp\n"


def test_missing_working_directory_is_created(machine: Machine, cri: CriClient, pod: str) -> None:
    image = with_image(
        machine,
        "old-builders",
        Entrypoint=[""],
        Cmd=["sh", "-c", "pwd; id -u; env"],
        WorkingDir="srv/app",
        Env=["PATH=/bin", "BARE", "=nameless"],
        User="1000:50:rest",
        StopSignal="rubbish",
    )
    shown = cri.finish(pod, **image).splitlines()
    assert shown[:2] == ["/srv/app", "1000"]
    assert not [line for line in shown if line.startswith(("BARE", "="))]


def test_a_working_directory_that_the_image_lacks_is_made(cri: CriClient, pod: str) -> None:
    assert cri.finish(pod, "pwd", working_dir="/not/in/the/image") == "/not/in/the/image\n"


ALICE = "uid=1000(alice) gid=1000(alice)"


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, "uid=0(root) gid=0(root) groups=0(root)"),
        ({"run_as_username": "alice"}, f"{ALICE} groups=50(staff),1000(alice)"),
        ({"run_as_user": pb.Int64Value(value=1000)}, f"{ALICE} groups=50(staff),1000(alice)"),
        ({"run_as_user": pb.Int64Value(value=4242)}, "uid=4242 gid=0(root) groups=0(root)"),
        (
            {"run_as_user": pb.Int64Value(value=1000), "run_as_group": pb.Int64Value(value=7)},
            "uid=1000(alice) gid=7 groups=7,50(staff)",
        ),
        (
            {"run_as_username": "alice", "supplemental_groups": [90], "supplemental_groups_policy": pb.Strict},
            f"{ALICE} groups=90,1000(alice)",
        ),
    ],
)
def test_container_runs_as_the_requested_user(
    cri: CriClient, pod: str, fields: dict[str, Any], expected: str
) -> None:
    shown = cri.finish(pod, "id", linux=security(**fields)).strip()
    head, _, groups = shown.partition(" groups=")
    wanted_head, _, wanted_groups = expected.partition(" groups=")
    assert (head, sorted(groups.split(","))) == (wanted_head, sorted(wanted_groups.split(",")))


def test_status_has_the_containers_user(cri: CriClient, pod: str) -> None:
    container = cri.create(pod, cri.container_config("id", linux=security(run_as_username="alice")))
    user = cri.status(container).user.linux
    assert (user.uid, user.gid, sorted(user.supplemental_groups)) == (1000, 1000, [50, 1000])


def test_image_user_is_the_default(machine: Machine, cri: CriClient, pod: str) -> None:
    image = with_image(machine, "user", User="alice:staff")
    assert cri.finish(pod, "id", "-u", **image) == "1000\n"
    assert cri.finish(pod, "id", "-g", attempt=1, **image) == "50\n"


def test_a_group_without_a_user_is_refused(cri: CriClient, pod: str) -> None:
    linux = security(run_as_group=pb.Int64Value(value=7))
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "run_as_group"):
        cri.create(pod, cri.container_config("id", linux=linux))


def capabilities(text: str, name: str) -> int:
    """One of the sets that /proc/self/status shows."""
    return next(int(line.split()[1], 16) for line in text.splitlines() if line.startswith(name))


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (pb.Capability(drop_capabilities=["ALL"]), 0),
        (pb.Capability(drop_capabilities=["ALL"], add_capabilities=["NET_BIND_SERVICE"]), 1 << 10),
        (pb.Capability(drop_capabilities=["ALL"], add_capabilities=["CAP_CHOWN"]), 1),
    ],
)
def test_container_has_the_requested_capabilities(
    cri: CriClient, pod: str, wanted: pb.Capability, expected: int
) -> None:
    text = cri.finish(pod, "cat", "/proc/self/status", linux=security(capabilities=wanted))
    assert [capabilities(text, name) for name in ("CapEff", "CapPrm", "CapBnd")] == [expected] * 3


def test_non_root_user_has_only_ambient_capabilities(cri: CriClient, pod: str) -> None:
    user = pb.Int64Value(value=1000)
    text = cri.finish(pod, "cat", "/proc/self/status", linux=security(run_as_user=user))
    assert capabilities(text, "CapEff") == 0
    ambient = pb.Capability(add_ambient_capabilities=["NET_BIND_SERVICE"])
    linux = security(run_as_user=user, capabilities=ambient)
    text = cri.finish(pod, "cat", "/proc/self/status", linux=linux, attempt=1)
    assert capabilities(text, "CapEff") == 1 << 10


def test_no_new_privileges_and_seccomp_are_set_as_requested(cri: CriClient, pod: str) -> None:
    profile = pb.SecurityProfile(profile_type=pb.SecurityProfile.RuntimeDefault)
    text = cri.finish(pod, "cat", "/proc/self/status", linux=security(no_new_privs=True, seccomp=profile))
    fields = dict(line.split(":\t") for line in text.splitlines() if ":\t" in line)
    assert (fields["NoNewPrivs"], fields["Seccomp"]) == ("1", "2")


def test_without_a_profile_no_seccomp_filter_is_set(cri: CriClient, pod: str) -> None:
    text = cri.finish(pod, "cat", "/proc/self/status")
    assert "Seccomp:\t0\n" in text


def test_masked_paths_are_empty_and_readonly_paths_cannot_be_written(cri: CriClient, pod: str) -> None:
    linux = security(masked_paths=["/proc/version", "/home"], readonly_paths=["/data"])
    script = "ls /home | wc -l; wc -c </proc/version; touch /data/file 2>/dev/null || echo refused"
    assert cri.finish(pod, "sh", "-c", script, linux=linux).split() == ["0", "0", "refused"]


def test_a_tty_is_a_terminal_and_its_output_is_in_the_log(cri: CriClient, pod: str) -> None:
    assert cri.finish(pod, "sh", "-c", "tty; echo $TERM", tty=True, stdin=True) == "/dev/pts/0\r\nxterm\r\n"


def test_stdin_is_at_eof_unless_requested(cri: CriClient, pod: str) -> None:
    assert cri.finish(pod, "sh", "-c", "cat; echo end") == "end\n"


def test_requested_stdin_stays_open(cri: CriClient, pod: str) -> None:
    container = cri.run(pod, "cat", stdin=True)
    cri.output(container, "true")
    assert cri.status(container).state == pb.CONTAINER_RUNNING


def test_requested_device_of_the_node_can_be_used(cri: CriClient) -> None:
    device = pb.Device(host_path="/dev/null", container_path="/dev/nothing", permissions="rw")
    pod = cri.run_pod(cri.pod_config(linux=pod_security(privileged=True)))
    assert cri.finish(pod, "sh", "-c", "echo x >/dev/nothing && echo fine", devices=[device]) == "fine\n"


def test_a_privileged_container_has_all_capabilities_of_the_daemon_and_its_devices(cri: CriClient) -> None:
    pod = cri.run_pod(cri.pod_config(linux=pod_security(privileged=True)))
    text = cri.finish(pod, "cat", "/proc/self/status", linux=security(privileged=True))
    own = capabilities(Path("/proc/self/status").read_text(), "CapEff")
    assert capabilities(text, "CapEff") == own
    assert cri.finish(pod, "ls", "/dev/kmsg", name="b", linux=security(privileged=True)) == "/dev/kmsg\n"
