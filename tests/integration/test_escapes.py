# SPDX-License-Identifier: Apache-2.0
"""Containers as attackers: they must not reach the node, conmon or the OCI runtime.

docs/security.md has the table of these attacks. A privileged pod, and one with the node's PIDs, has the node by
its own wish; a pod that has neither must not, whatever capabilities its containers have and whatever happens
meanwhile.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from support.cri_client import CriClient, eventually, pod_security, refused, security
from support.daemon import Machine
from support.image_builder import LayerBuilder, build_image, plain
from support.tools import tools_layer

from pvecri.cri.proto import cri_pb2 as pb
from pvecri.linux import cgroups
from pvecri.pods.user_namespaces import ANNOTATION

EVERYTHING = pb.Capability(add_capabilities=["ALL"])
MAPPING = pb.IDMapping(container_id=0, host_id=4_072_865_792, length=65_536)
OWN = pb.UserNamespace(mode=pb.POD, uids=[MAPPING], gids=[MAPPING])
NODES = pb.UserNamespace(mode=pb.NODE)

HUNT = """
marker=$1
found() { echo "$*" >>/data/found; }
while :; do
    for p in /proc/[0-9]*; do
        for way in root cwd; do
            [ -e "$p/$way$marker" ] && found "$way of $p $(cat $p/comm) reaches the node"
        done
        for fd in $p/fd/*; do
            [ -d "$fd/" ] && [ -e "$fd/../../../../../../../..$marker" ] && found "$fd of $(cat $p/comm)"
            [ -e "$fd$marker" ] && found "$fd of $(cat $p/comm)"
        done
        comm=$(cat $p/comm 2>/dev/null)
        case $comm in conmon|lxc-*|pvecri|nsenter|unshare) found "$p is $comm";; esac
        case $comm in runc*|crun*|conmon|exe) (: >>$p/exe) 2>/dev/null && found "$p/exe can be written";; esac
    done
    echo round >>/data/rounds
done
"""
"""For sh: look again and again for a way to the file $1, which only the node has."""


@dataclass(frozen=True)
class Attacked:
    """A kind of pod, by what is asked for it: `user` as userns_options, `pid` as a mode of NamespaceOption."""

    user: Any
    pid: int
    annotation: str = ""

    def options(self, **target: str) -> pb.NamespaceOption:
        return pb.NamespaceOption(pid=self.pid, userns_options=self.user, **target)  # type: ignore[arg-type]

    def pod(self, cri: CriClient) -> str:
        pid = pb.CONTAINER if self.pid == pb.TARGET else self.pid
        options = pb.NamespaceOption(pid=pid, userns_options=self.user)  # type: ignore[arg-type]
        annotations = {ANNOTATION: self.annotation} if self.annotation else {}
        return cri.run_pod(cri.pod_config(linux=pod_security(namespace_options=options), annotations=annotations))


PODS = {
    f"{kind}-{name}": Attacked(user, mode, annotation)
    for kind, user, annotation in (("ct", NODES, ""), ("pod", OWN, ""), ("node", NODES, "node"))
    for name, mode in (("shared", pb.POD), ("target", pb.TARGET), ("alone", pb.CONTAINER))
}


@pytest.fixture
def marker(machine: Machine) -> Iterator[Path]:
    """A file that only the node has, and everyone on it may read."""
    path = machine.directory / "marker"
    path.write_text("the node's\n")
    yield path
    path.unlink()


def attacker(**fields: Any) -> pb.LinuxContainerConfig:
    """All capabilities, no seccomp profile, as a kubelet's container without one."""
    return security(capabilities=EVERYTHING, **fields)


@pytest.mark.parametrize("kind", sorted(PODS))
def test_no_process_that_a_container_sees_leads_to_the_node(
    machine: Machine, cri: CriClient, marker: Path, kind: str
) -> None:
    """Meanwhile commands are executed in it and beside it, and containers come and go."""
    asked = PODS[kind]
    pod = asked.pod(cri)
    victim = cri.run(
        pod,
        "sleep",
        "1000",
        name="victim",
        linux=security(namespace_options=asked.options()) if asked.pid != pb.TARGET else security(),
    )
    target = {"target_id": victim} if asked.pid == pb.TARGET else {}
    linux = attacker(namespace_options=asked.options(**target))
    hunter = cri.run(pod, "sh", "-c", HUNT, "sh", str(marker), name="hunter", linux=linux)
    for number in range(12):
        cri.exec(victim, "true")
        cri.exec(hunter, "true")
        other = cri.run(pod, "true", name=f"other{number}", linux=linux)
        cri.wait_for_exit(other)
        cri.remove(other)
    eventually(
        lambda: cri.exec(hunter, "grep", "-c", "round", "/data/rounds").stdout.strip() not in (b"", b"0", b"1"),
        "the hunter has looked twice",
    )
    assert cri.exec(hunter, "cat", "/data/found").stdout.decode() == ""


@pytest.mark.parametrize("kind", sorted(kind for kind in PODS if not kind.endswith("-target")))
@pytest.mark.parametrize("tty", [False, True], ids=["pipes", "tty"])
def test_a_container_has_no_descriptor_but_its_standard_streams(cri: CriClient, kind: str, tty: bool) -> None:
    asked = PODS[kind]
    pod = asked.pod(cri)
    linux = attacker(namespace_options=asked.options())
    container = cri.run(pod, "sh", "-c", "ls -l /proc/$$/fd; exec sleep 1000", tty=tty, linux=linux)
    shown = eventually(lambda: cri.text(container), "the container has shown its descriptors")
    executed = cri.output(container, "ls", "-l", "/proc/self/fd")
    targets = {line.rpartition(" -> ")[2].strip() for line in (shown + executed).splitlines() if " -> " in line}
    usual = ("pipe:", "/dev/null", "/dev/pts/", "/proc/")
    assert [target for target in targets if not target.startswith(usual)] == []


@pytest.mark.parametrize("kind", ["ct-alone", "pod-alone", "node-alone", "ct-shared"])
def test_no_cgroup_file_can_be_written_above_the_containers_own(cri: CriClient, kind: str) -> None:
    asked = PODS[kind]
    pod = asked.pod(cri)
    container = cri.run(pod, "sleep", "1000", linux=attacker(namespace_options=asked.options()))
    script = """
        mount -o remount,rw /sys/fs/cgroup 2>/dev/null
        for tree in /sys/fs/cgroup /sys/fs/cgroup/*; do mount -o remount,rw $tree 2>/dev/null; done
        find /sys/fs/cgroup -name release_agent -o -path '*/../*' | while read -r f; do
            (echo /x >"$f") 2>/dev/null && echo "$f"
        done
        cat /proc/self/cgroup | while IFS=: read -r n c path; do
            for d in /sys/fs/cgroup/$c /sys/fs/cgroup; do
                for above in "$d$path/.." "$d/.." "$d/lxc" ; do
                    [ -w "$above/cgroup.procs" ] && (echo 1 >"$above/cgroup.procs") 2>/dev/null && echo "$above"
                done
            done
        done
        true"""
    assert cri.output(container, "sh", "-c", script.replace("find ", "busybox find ", 1)) == ""


# -- what was published of others ---------------------------------------------------------------------------------


@pytest.mark.parametrize("number", range(3, 14))
def test_working_directory_cannot_be_a_leaked_descriptor(
    cri: CriClient, marker: Path, pod: str, number: int
) -> None:
    """CVE-2024-21626: a working directory /proc/self/fd/N, N a directory of the node that the runtime left
    open.
    """
    config = cri.container_config(
        "sh",
        "-c",
        f"[ -e ./../../../../../..{marker} ] && echo escaped; true",
        name=f"fd{number}",
        working_dir=f"/proc/self/fd/{number}",
    )
    container = cri.create(pod, config)
    try:
        cri.start(container)
    except grpc.RpcError:
        return
    cri.wait_for_exit(container)
    assert cri.text(container) == ""


def test_runtime_binaries_cannot_be_overwritten(machine: Machine, cri: CriClient, marker: Path) -> None:
    """CVE-2019-5736: an entrypoint /proc/self/exe, and a library or script that writes to it."""
    programs = [Path(found) for name in ("runc", "crun", "conmon", "catatonit") if (found := shutil.which(name))]
    before = [hashlib.sha256(each.read_bytes()).digest() for each in programs]
    image = build_image(tools_layer(), LayerBuilder().symlink("entry", "/proc/self/exe").build(), compress=plain)
    pushed = machine.registry.push("tests/self-exe", "1", image)
    cri.pull(pushed)
    for kind in ("ct-alone", "node-alone"):
        pod = PODS[kind].pod(cri)
        container = cri.create(pod, cri.container_config("/entry", image=pb.ImageSpec(image=pushed)))
        with suppress(grpc.RpcError):
            cri.start(container)
    assert [hashlib.sha256(each.read_bytes()).digest() for each in programs] == before
    cri.images.RemoveImage(pb.RemoveImageRequest(image=pb.ImageSpec(image=pushed)))


def test_sysctl_value_cannot_set_another_sysctl(cri: CriClient) -> None:
    """CVE-2022-0811 (cr8escape): `kernel.shm_rmid_forced=1+kernel.core_pattern=|…`."""
    core_pattern = Path("/proc/sys/kernel/core_pattern").read_text()
    for value in ("1+kernel.core_pattern=|/x", "1\nkernel.core_pattern=|/x", "0' /proc/sys/kernel/core_pattern"):
        linux = pb.LinuxPodSandboxConfig(sysctls={"kernel.shm_rmid_forced": value})
        with suppress(grpc.RpcError):
            cri.run_pod(cri.pod_config(linux=linux))
    assert Path("/proc/sys/kernel/core_pattern").read_text() == core_pattern


@pytest.mark.parametrize(
    "name", ["etc/hosts", "etc/resolv.conf", "etc/hostname", "etc/mtab", "dev", "proc", "sys"]
)
def test_symlinks_of_an_image_do_not_lead_to_the_node(machine: Machine, cri: CriClient, name: str) -> None:
    """CVE-2024-5154 (/etc/mtab), CVE-2019-19921 and CVE-2023-27561 (/proc), CVE-2021-30465 (mount targets)."""
    outside = machine.directory / "outside"
    layer = LayerBuilder()
    if name.startswith("etc/"):
        layer.directory("etc")
    link = layer.symlink(name, f"../../../../../../..{outside}").build()
    image = build_image(tools_layer(), link, compress=plain)
    pushed = machine.registry.push(f"tests/link-{name.replace('/', '-')}", "1", image)
    cri.pull(pushed)
    for kind in ("ct-alone", "node-alone"):
        pod = PODS[kind].pod(cri)
        try:
            container = cri.run(pod, "sh", "-c", "echo run", image=pb.ImageSpec(image=pushed))
            cri.wait_for_exit(container)
        except grpc.RpcError:
            continue
    assert not outside.exists()
    cri.images.RemoveImage(pb.RemoveImageRequest(image=pb.ImageSpec(image=pushed)))


@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize("name", ["dev", "proc", "sys"])
@pytest.mark.parametrize("runtime", ["runc", "crun"])
def test_symlinked_kernel_directory_does_not_lead_the_oci_runtime_to_the_node(
    machine: Machine, tmp_path: Path, runtime: str, name: str, absolute: bool
) -> None:
    """runc 1.1.5 with /dev as a symlink replaces `ptmx` and makes `fd`, `stdin`, … where the link leads."""
    if shutil.which(runtime) is None or (runtime == "crun" and not cgroups.detect().pure_v2):
        pytest.skip(f"{runtime} is not installed or refuses this node's cgroups")
    tmp_path.chmod(0o777)
    (tmp_path / "ptmx").write_text("the node's")
    link = LayerBuilder().symlink(name, str(tmp_path) if absolute else f"../../../../../../..{tmp_path}").build()
    image = build_image(tools_layer(), link, compress=plain)
    pushed = machine.registry.push(f"tests/kernel-{name}-{absolute}".lower(), "1", image)
    with machine.restarted(runtime=f'oci_runtime = "{runtime}"') as cri:
        cri.pull(pushed)
        for kind in ("ct-alone", "node-alone"):
            pod = PODS[kind].pod(cri)
            config = cri.container_config("true", image=pb.ImageSpec(image=pushed))
            if runtime == "runc":
                with refused(grpc.StatusCode.FAILED_PRECONDITION, f"its /{name} is a symlink to "):
                    cri.create(pod, config)
            else:  # crun resolves the link inside the image, where its target is not
                with suppress(grpc.RpcError):
                    cri.start(cri.create(pod, config))
        cri.images.RemoveImage(pb.RemoveImageRequest(image=pb.ImageSpec(image=pushed)))
    assert [(each.name, each.read_text()) for each in tmp_path.iterdir()] == [("ptmx", "the node's")]


def test_a_volumes_symlink_leads_no_other_mount_to_the_node(machine: Machine, cri: CriClient, pod: str) -> None:
    """CVE-2021-30465, CVE-2017-1002101: the target of a mount lies below a volume's symlink."""
    volume, target = machine.directory / "volume", machine.directory / "target"
    volume.mkdir()
    target.mkdir()
    volume.chmod(0o755)
    (volume / "link").symlink_to(f"../../../../../../..{target}")
    mounts = [
        pb.Mount(host_path=str(volume), container_path="/data"),
        pb.Mount(host_path=str(volume), container_path="/data/link/inside"),
    ]
    try:
        cri.run(pod, "true", mounts=mounts)
    except grpc.RpcError:
        pass
    finally:
        assert list(target.iterdir()) == []
        for container in cri.containers():
            cri.remove(container.id)
        shutil.rmtree(volume)
        target.rmdir()


def test_daemon_has_no_abstract_socket(cri: CriClient) -> None:
    """CVE-2020-15257: a shim's API on an abstract socket, which a pod with the node's network could reach."""
    options = pb.NamespaceOption(network=pb.NODE, pid=pb.CONTAINER)
    pod = cri.run_pod(cri.pod_config(linux=pod_security(namespace_options=options)))
    container = cri.run(pod, "sleep", "1000", linux=security(namespace_options=options))
    shown = cri.output(container, "cat", "/proc/net/unix")
    sockets = {
        fields[7] for line in shown.splitlines() if len(fields := line.split()) > 7 and fields[7].startswith("@")
    }
    assert not {name for name in sockets if "conmon" in name or "pvecri" in name or "nri" in name}


def test_release_agent_cannot_be_written_from_a_nested_user_namespace(cri: CriClient, pod: str) -> None:
    """CVE-2022-0492: unshare, mount a cgroup of version 1, write its release_agent."""
    script = """
        unshare -U -r -m -C sh -c 'for c in memory rdma pids devices; do
            mkdir -p /tmp/$c && mount -t cgroup -o $c cgroup /tmp/$c 2>/dev/null &&
            (echo /x >/tmp/$c/release_agent) 2>/dev/null && echo $c
        done' 2>/dev/null
        true"""
    container = cri.run(pod, "sleep", "1000", linux=attacker())
    assert cri.output(container, "sh", "-c", script) == ""


def test_pause_container_has_no_privileges(machine: Machine, cri: CriClient, marker: Path) -> None:
    asked = PODS["node-shared"]
    pod = asked.pod(cri)
    container = cri.run(pod, "sleep", "1000", linux=attacker(namespace_options=asked.options()))
    script = f"[ -e /proc/1/root{marker} ] && echo node; grep -E 'CapBnd|NoNewPrivs' /proc/1/status"
    assert cri.output(container, "sh", "-c", script).split() == ["CapBnd:", "0" * 16, "NoNewPrivs:", "1"]
    # Where AppArmor confines both, the directory itself cannot be looked at.
    listed = cri.exec(container, "ls", "/proc/1/root/")
    assert listed.stdout.split() == ([b"catatonit", b"dev", b"proc"] if listed.exit_code == 0 else [])
