# SPDX-License-Identifier: Apache-2.0
"""Mounts of the node's files and directories into containers."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from support import leaks
from support.cri_client import CriClient, pod_security, refused, security
from support.daemon import Machine
from support.image_builder import LayerBuilder, build_image, plain
from support.processes import need
from support.tools import tools_layer

from pvecri.cri.proto import cri_pb2 as pb
from pvecri.linux import mounts
from pvecri.pods.user_namespaces import ANNOTATION

PRIVILEGED = pod_security(privileged=True)


@pytest.fixture
def volume() -> Iterator[Path]:
    """A directory of the node that everyone may write to."""
    directory = Path(tempfile.mkdtemp(prefix=leaks.PREFIX))
    directory.chmod(0o777)
    try:
        yield directory
    finally:
        mounts.umount_below(directory)
        shutil.rmtree(directory)


@pytest.fixture
def shared(volume: Path) -> Path:
    """The same, on a mount of its own that propagates."""
    mounts.mount("shared", volume, "tmpfs", 0, "mode=777")
    mounts.make_shared(volume)
    return volume


@pytest.fixture(params=["unprivileged", "privileged"])
def pod(request: pytest.FixtureRequest, cri: CriClient) -> str:
    linux = PRIVILEGED if request.param == "privileged" else pb.LinuxPodSandboxConfig()
    return cri.run_pod(cri.pod_config(linux=linux))


def mounted(host_path: Path, container_path: str = "/data", **fields: Any) -> dict[str, Any]:
    return {"mounts": [pb.Mount(host_path=str(host_path), container_path=container_path, **fields)]}


def test_mounted_directory_has_the_nodes_owners(cri: CriClient, pod: str, volume: Path) -> None:
    (volume / "of-root").write_text("x")
    (volume / "of-alice").write_text("x")
    os.chown(volume / "of-alice", 1000, 1000)
    script = "stat -c '%n %u:%g' /data/of-*; touch /data/made; chown 1000:50 /data/made"
    shown = cri.finish(pod, "sh", "-c", script, **mounted(volume))
    assert shown == "/data/of-alice 1000:1000\n/data/of-root 0:0\n"
    status = (volume / "made").stat()
    assert (status.st_uid, status.st_gid) == (1000, 50)


def test_volume_at_etc_has_the_pods_files(cri: CriClient, pod: str, volume: Path) -> None:
    (volume / "own").write_text("of the volume\n")
    script = "cat /etc/own /etc/hostname; grep -c localhost /etc/hosts; test -s /etc/resolv.conf"
    shown = cri.finish(pod, "sh", "-c", script, **mounted(volume, "/etc")).splitlines()
    assert shown[0] == "of the volume"
    assert shown[1] == cri.pod_status(pod).metadata.name
    assert int(shown[2]) > 0


def test_request_takes_precedence_over_the_pods_file(cri: CriClient, pod: str, volume: Path) -> None:
    (volume / "hostname").write_text("of the request\n")
    own = [*mounted(volume, "/etc")["mounts"], *mounted(volume / "hostname", "/etc/hostname")["mounts"]]
    assert cri.finish(pod, "cat", "/etc/hostname", mounts=own) == "of the request\n"


def test_nodes_dev_as_a_volume_has_the_pods_shared_memory(cri: CriClient, pod: str) -> None:
    name = f"pvecri-test-{pod[:12]}"
    cri.finish(pod, "touch", f"/dev/shm/{name}", **mounted(Path("/dev"), "/dev"))
    assert not Path("/dev/shm", name).exists()
    shown = cri.finish(pod, "ls", f"/dev/shm/{name}", attempt=1)
    assert shown == f"/dev/shm/{name}\n"


def test_a_user_of_the_pod_has_that_users_rights_on_the_node(cri: CriClient, pod: str, volume: Path) -> None:
    (volume / "secret").write_text("only root's")
    (volume / "secret").chmod(0o600)
    linux = security(run_as_user=pb.Int64Value(value=1000))
    script = "cat /data/secret 2>/dev/null || echo refused; touch /data/made"
    assert cri.finish(pod, "sh", "-c", script, linux=linux, **mounted(volume)) == "refused\n"
    assert (volume / "made").stat().st_uid == 1000


def test_single_file_can_be_mounted(cri: CriClient, pod: str, volume: Path) -> None:
    (volume / "file").write_text("content\n")
    fields = mounted(volume / "file", "/etc/config/file")
    assert cri.finish(pod, "cat", "/etc/config/file", **fields) == "content\n"


def test_a_symbolic_link_is_followed_on_the_node(cri: CriClient, pod: str, volume: Path) -> None:
    (volume / "real").mkdir()
    (volume / "real/file").write_text("content\n")
    (volume / "link").symlink_to("real")
    assert cri.finish(pod, "cat", "/data/file", **mounted(volume / "link")) == "content\n"


def test_a_read_only_mount_cannot_be_written(cri: CriClient, pod: str, volume: Path) -> None:
    fields = mounted(volume, readonly=True)
    script = "touch /data/file 2>/dev/null || echo refused"
    assert cri.finish(pod, "sh", "-c", script, **fields) == "refused\n"
    assert list(volume.iterdir()) == []


def test_mount_takes_precedence_over_the_pods_own_files(cri: CriClient, pod: str, volume: Path) -> None:
    (volume / "hosts").write_text("from the volume\n")
    fields = mounted(volume / "hosts", "/etc/hosts")
    assert cri.finish(pod, "cat", "/etc/hosts", **fields) == "from the volume\n"


def test_nested_mounts_can_be_in_any_order(cri: CriClient, pod: str, volume: Path) -> None:
    for name in ("outer", "inner"):
        (volume / name).mkdir()
        (volume / name / "file").write_text(f"{name}\n")
    inner = pb.Mount(host_path=str(volume / "inner"), container_path="/data/inner")
    outer = pb.Mount(host_path=str(volume / "outer"), container_path="/data")
    shown = cri.finish(pod, "cat", "/data/file", "/data/inner/file", mounts=[inner, outer])
    assert shown == "outer\ninner\n"


def test_containers_of_a_pod_share_a_volume(cri: CriClient, pod: str, volume: Path) -> None:
    cri.finish(pod, "sh", "-c", "echo shared >/data/file", name="writer", **mounted(volume))
    assert cri.finish(pod, "cat", "/data/file", name="reader", **mounted(volume)) == "shared\n"


def test_status_has_the_mounts(cri: CriClient, pod: str, volume: Path) -> None:
    fields = mounted(volume, readonly=True)
    container = cri.create(pod, cri.container_config("true", **fields))
    assert list(cri.status(container).mounts) == fields["mounts"]


def test_a_private_mount_does_not_see_what_is_mounted_later(cri: CriClient, pod: str, shared: Path) -> None:
    (shared / "later").mkdir()
    container = cri.run(pod, "sleep", "1000", **mounted(shared))
    mounts.mount("later", shared / "later", "tmpfs")
    (shared / "later/file").touch()
    assert cri.output(container, "ls", "/data/later") == ""


def test_later_mounts_of_the_node_propagate_to_a_slave_mount(cri: CriClient, pod: str, shared: Path) -> None:
    (shared / "later").mkdir()
    fields = mounted(shared, propagation=pb.PROPAGATION_HOST_TO_CONTAINER)
    container = cri.run(pod, "sleep", "1000", **fields)
    mounts.mount("later", shared / "later", "tmpfs")
    (shared / "later/file").touch()
    assert cri.output(container, "ls", "/data/later") == "file\n"


def test_mounts_of_a_privileged_container_propagate_to_the_node(cri: CriClient, shared: Path) -> None:
    pod = cri.run_pod(cri.pod_config(linux=PRIVILEGED))
    (shared / "inside").mkdir()
    fields = mounted(shared, propagation=pb.PROPAGATION_BIDIRECTIONAL)
    container = cri.run(pod, "sleep", "1000", linux=security(privileged=True), **fields)
    cri.output(container, "sh", "-c", "mount -t tmpfs inside /data/inside && touch /data/inside/file")
    assert (shared / "inside/file").exists()


def test_bidirectional_propagation_needs_a_privileged_pod(cri: CriClient, shared: Path) -> None:
    fields = mounted(shared, propagation=pb.PROPAGATION_BIDIRECTIONAL)
    with refused(grpc.StatusCode.INVALID_ARGUMENT, r"mounts\[0\]\.propagation: .*needs a privileged pod"):
        cri.create(cri.run_pod(), cri.container_config("true", **fields))


def test_propagation_from_a_mount_that_is_not_shared_is_refused(cri: CriClient, volume: Path) -> None:
    mounts.mount("private", volume, "tmpfs")
    mounts.make_private(volume)
    fields = mounted(volume, propagation=pb.PROPAGATION_HOST_TO_CONTAINER)
    with refused(grpc.StatusCode.INVALID_ARGUMENT, f"mount {volume}, which is not shared"):
        cri.create(cri.run_pod(), cri.container_config("true", **fields))


def test_container_path_with_dotdot_is_refused(cri: CriClient, pod: str, volume: Path) -> None:
    (volume / "file").write_text("content\n")
    fields = mounted(volume, "/bin/../../data")
    with refused(grpc.StatusCode.INVALID_ARGUMENT, r"mounts\[0\]\.container_path: .* contains '\.\.'"):
        cri.create(pod, cri.container_config("true", **fields))


# -- filesystems that cannot be idmapped ------------------------------------------------------------------------


@pytest.fixture
def unmappable(volume: Path) -> Iterator[Path]:
    """A directory on a filesystem that the kernel cannot idmap: FUSE."""
    need("bindfs", "bindfs")
    source, target = volume / "source", volume / "fuse"
    source.mkdir()
    (source / "file").write_text("content\n")
    target.mkdir()
    subprocess.run(["bindfs", str(source), str(target)], check=True)
    yield target
    mounts.umount(target, detach=True)


def kubelets(config: pb.PodSandboxConfig, volume: Path) -> Path:
    """Where a kubelet that has `volume` for its directory mounts a volume of the pod."""
    place = volume / "kubelet/pods" / config.metadata.uid / "volumes/kubernetes.io~nfs/share"
    place.mkdir(parents=True)
    return place


def test_volume_that_cannot_be_idmapped_selects_the_nodes_user_namespace(
    cri: CriClient, volume: Path, unmappable: Path
) -> None:
    config = cri.pod_config()
    share = kubelets(config, volume)
    mounts.bind(unmappable, share)
    pod = cri.run_pod(config)
    described = json.loads(cri.pod_info(pod).info["info"])["userNamespace"]
    assert (described["kind"], described["reason"]) == ("node", "volume")
    assert f"{share} (fuse)" in described["detail"]
    os.chown(unmappable / "file", 1000, 1000)
    assert cri.finish(pod, "stat", "-c", "%u", "/data/file", **mounted(share)) == "1000\n"


def test_idmappable_tmpfs_volume_does_not_affect_the_user_namespace(cri: CriClient, volume: Path) -> None:
    config = cri.pod_config()
    place = kubelets(config, volume)
    mounts.mount("secret", place, "tmpfs", 0, "mode=700")
    pod = cri.run_pod(config)
    assert json.loads(cri.pod_info(pod).info["info"])["userNamespace"]["kind"] == "ct"
    assert cri.finish(pod, "stat", "-c", "%u %a", "/data", **mounted(place)) == "0 700\n"


def test_error_for_a_host_path_that_cannot_be_idmapped_has_two_remedies(cri: CriClient, unmappable: Path) -> None:
    pod = cri.run_pod()
    container = cri.create(pod, cri.container_config("true", **mounted(unmappable)))
    words = (
        rf"config\.mounts\[0\]\.host_path: {unmappable} .*\(fuse\).* one that can be idmapped.* {ANNOTATION}: node"
    )
    with refused(grpc.StatusCode.FAILED_PRECONDITION, words):
        cri.start(container)
    assert cri.status(container).reason == "StartError"


def test_mounts_below_a_volume_are_idmapped_if_possible(cri: CriClient, volume: Path, unmappable: Path) -> None:
    memory = volume / "memory"
    memory.mkdir()
    mounts.mount("memory", memory, "tmpfs", 0, "mode=755")
    (volume / "alices").write_text("x")
    (memory / "alices").write_text("x")
    for path in (volume / "alices", memory / "alices"):
        os.chown(path, 1000, 1000)
    script = "stat -c %u /data/alices /data/memory/alices; cat /data/fuse/file"
    pod = cri.run_pod()
    assert cri.finish(pod, "sh", "-c", script, **mounted(volume)) == "1000\n1000\ncontent\n"
    cri.remove_pod(pod)  # no mount point can be removed while a clone of its directory has a mount on it


@pytest.mark.parametrize("path", ["/proc", "/sys"])
def test_kernel_filesystems_are_mounted_without_idmap(cri: CriClient, path: str) -> None:
    """What a node exporter without privileges has."""
    # Not by ls, which looks at each entry and fails for processes that end meanwhile.
    script = "cd /host && echo *"
    shown = cri.finish(cri.run_pod(), "sh", "-c", script, **mounted(Path(path), "/host", readonly=True))
    assert {"proc": "uptime", "sys": "class"}[path[1:]] in shown.split()


@pytest.mark.parametrize("kind", ["socket", "fifo"])
def test_a_socket_or_a_fifo_can_be_mounted(cri: CriClient, pod: str, volume: Path, kind: str) -> None:
    path = volume / kind
    if kind == "fifo":
        os.mkfifo(path)
    else:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
    shown = cri.finish(pod, "stat", "-c", "%F %u", "/run/it", **mounted(path, "/run/it"))
    assert shown == f"{kind} 0\n"


@pytest.mark.parametrize("later", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("propagation", [pb.PROPAGATION_PRIVATE, pb.PROPAGATION_HOST_TO_CONTAINER])
def test_mounts_of_the_node_below_a_volume_survive_the_container(
    cri: CriClient, pod: str, shared: Path, propagation: int, later: bool
) -> None:
    """A clone of a shared mount is its peer: unmounting it would unmount what lies below on the node."""
    below = shared / "below"
    below.mkdir()

    def mount_below() -> None:
        mounts.mount("below", below, "tmpfs")
        (below / "file").write_text("of the node")

    if not later:
        mount_below()
    container = cri.run(pod, "sleep", "1000", **mounted(shared, propagation=propagation))
    if later:
        mount_below()
    if not later or propagation == pb.PROPAGATION_HOST_TO_CONTAINER:
        assert cri.output(container, "cat", "/data/below/file") == "of the node"
    cri.stop(container)
    cri.remove(container)
    cri.remove_pod(pod)
    assert mounts.is_mountpoint(below)
    assert (below / "file").read_text() == "of the node"


@pytest.mark.whole_node
def test_unprivileged_pod_can_mount_the_nodes_root(machine: Machine, cri: CriClient, volume: Path) -> None:
    """The daemon's own directories are below it, some of them closed to all but a pod's root."""
    (volume / "file").write_text("x")
    fields = mounted(Path("/"), "/host", readonly=True)
    pod = cri.run_pod()
    assert cri.finish(pod, "cat", f"/host{volume}/file", **fields) == "x"
    cri.remove_pod(pod)
    assert mounts.is_mountpoint(machine.run_dir)


def test_volume_is_unmounted_whose_submount_is_in_a_directory_that_was_closed_to_the_pod(
    cri: CriClient, volume: Path
) -> None:
    """As the directories of other pods are, which come and go below the node's root in a pod of monitoring."""
    closed = volume / "closed"
    below = closed / "below"
    below.mkdir(parents=True)
    mounts.mount("below", below, "tmpfs")
    pod = cri.run_pod()
    container = cri.run(pod, "sleep", "1000", **mounted(volume))
    os.chown(closed, 0, 3_000_000)  # an ID that the pod's user namespace lacks
    closed.chmod(0o710)

    cri.stop(container)
    cri.remove_pod(pod)

    assert str(container) not in Path("/proc/self/mountinfo").read_text()
    assert mounts.is_mountpoint(below)


@pytest.mark.parametrize("path", ["/proc", pytest.param("/", marks=pytest.mark.whole_node)])
@pytest.mark.parametrize("host_network", [False, True])
def test_mounted_proc_of_the_node_shows_the_nodes_processes(
    machine: Machine, cri: CriClient, path: str, host_network: bool
) -> None:
    """conmon and the OCI runtime have the /proc of the CT: what a volume shows is not theirs."""
    options = pb.NamespaceOption(pid=pb.CONTAINER, network=pb.NODE if host_network else pb.POD)
    pod = cri.run_pod(cri.pod_config(linux=pod_security(namespace_options=options)))
    proc = "/host" if path == "/proc" else "/host/proc"
    fields = mounted(Path(path), "/host", readonly=True)
    # Processes end while ls looks at them, and it says so with its exit code.
    script = f"ls {proc} 2>/dev/null; true"
    shown = cri.finish(pod, "sh", "-c", script, linux=security(namespace_options=options), **fields)
    assert str(machine.daemon.pid) in shown.split()
    cri.remove_pod(pod)


def test_missing_host_directory_is_created(cri: CriClient, pod: str, volume: Path) -> None:
    assert cri.finish(pod, "ls", "-a", "/data", **mounted(volume / "new/one")).split() == [".", ".."]
    assert (volume / "new/one").is_dir()


# -- volumes that the image declares ---------------------------------------------------------------------------


DECLARED = LayerBuilder().directory("var/db", mode=0o700, uid=1000, gid=50).file("var/db/seed", "seed", uid=1000)
DECLARED.symlink("var/link", "/var/db")


def declaring(cri: CriClient, machine: Machine, *volumes: str) -> pb.ImageSpec:
    """An image with these volumes that has content for /var/db."""
    built = build_image(
        tools_layer(), DECLARED.build(), compress=plain, config={"Volumes": {volume: {} for volume in volumes}}
    )
    reference = machine.registry.push("tests/declares-volumes", "1", built)
    cri.pull(reference)
    return pb.ImageSpec(image=reference)


@pytest.mark.parametrize("readonly", [False, True])
def test_declared_volume_is_created_and_writable_with_a_readonly_root(
    cri: CriClient, machine: Machine, pod: str, *, readonly: bool
) -> None:
    image = declaring(cri, machine, "/made/by/volume", "/var/db")
    script = "echo x >/made/by/volume/f; echo y >/var/db/f; cat /made/by/volume/f /var/db/f /var/db/seed"
    script += (
        "; stat -c '%a %u %g' /made/by/volume /var/db; touch /root/f 2>/dev/null && echo root is writable; true"
    )
    shown = cri.finish(pod, "sh", "-c", script, image=image, linux=security(readonly_rootfs=readonly))
    expected = "x\ny\nseed755 0 0\n700 1000 50\n" + ("" if readonly else "root is writable\n")
    assert shown == expected


def test_declared_volume_through_a_symlink_stays_in_the_container(
    cri: CriClient, machine: Machine, pod: str
) -> None:
    image = declaring(cri, machine, "/var/link", "relative", "/", "/bin/busybox")
    script = "echo x >/var/link/f; cat /var/db/f; ls -d /relative; busybox true && echo busybox"
    shown = cri.finish(pod, "sh", "-c", script, image=image, linux=security(readonly_rootfs=True))
    assert shown == "x\n/relative\nbusybox\n"


@pytest.mark.parametrize("place", ["/var/db", "/var"])
def test_a_mount_of_the_request_takes_precedence_over_a_declared_volume(
    cri: CriClient, machine: Machine, pod: str, volume: Path, place: str
) -> None:
    image = declaring(cri, machine, "/var/db")
    (volume / "of-the-pod").touch()
    linux = security(readonly_rootfs=True)
    shown = cri.finish(pod, "ls", place, image=image, linux=linux, **mounted(volume, place))
    assert shown == "of-the-pod\n"
