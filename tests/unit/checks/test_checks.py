# SPDX-License-Identifier: Apache-2.0
"""Each kind of damage is found, named and comes with a remedy; what is in order yields nothing."""

from __future__ import annotations

import json
import shutil
import socket
import sqlite3
from collections.abc import AsyncIterator, Iterable
from contextlib import closing
from pathlib import Path

import pytest

from pvecri.checks import cni, databases, executables, files, fronts, kernel, kubelet, limits, ports, space, units
from pvecri.checks.finding import Finding
from pvecri.config.settings import Config, parse
from pvecri.observability import logs
from pvecri.pods.store import SCHEMA_VERSION, Store
from pvecri.setup import files as files_of_setup


def parsed(text: str) -> Config:
    return parse(text)


def only(findings: Iterable[Finding], level: str, *words: str) -> None:
    """There is one finding, of this level, with these words in its line."""
    [found] = findings
    assert found.level == level
    for word in words:
        assert word in str(found)


async def collected(findings: AsyncIterator[Finding]) -> list[Finding]:
    return [each async for each in findings]


# -- files ------------------------------------------------------------------------------------------------------


def account(secret: Path) -> str:
    return f'[proxmox]\ntoken_id = "a@pve!t"\ntoken_secret_file = "{secret}"\n'


def test_secret_that_is_missing_empty_or_open_to_others(tmp_path: Path) -> None:
    secret = tmp_path / "token"
    settings = parsed(account(secret))
    only(files.required(settings), "problem", "proxmox.token_secret_file", str(secret), "No such file")
    secret.touch(mode=0o600)
    only(files.required(settings), "problem", "proxmox.token_secret_file", "is empty")
    secret.write_text("x")
    assert list(files.required(settings)) == []
    secret.chmod(0o644)
    only(files.required(settings), "warning", f"chmod 600 {secret}")


def test_journal_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "JOURNAL", tmp_path / "socket")
    only(files.required(parsed('log.format = "journal"')), "problem", "log.format", str(tmp_path / "socket"))
    assert list(files.required(parsed('log.format = "auto"'))) == []


def test_certificates_that_cannot_be_read(tmp_path: Path) -> None:
    bad = tmp_path / "bad.pem"
    bad.write_text("no certificate")
    pair = f'tls_cert = "{bad}"\ntls_key = "{bad}"\n'
    only(files.required(parsed(f"[streaming]\n{pair}")), "problem", "streaming.tls_cert")
    only(files.required(parsed(f'[proxmox]\nca_file = "{bad}"')), "problem", "proxmox.ca_file", str(bad))


@pytest.mark.parametrize("setting", ["auth_file", "policy", "registries_conf"])
def test_file_for_pulls_that_is_missing_or_no_json_or_toml(tmp_path: Path, setting: str) -> None:
    path = tmp_path / "given"
    profile = tmp_path / "seccomp.json"
    profile.write_text('{"defaultAction": "SCMP_ACT_ALLOW"}')
    settings = parsed(f'[images]\n{setting} = "{path}"\n[runtime]\nseccomp_profile = "{profile}"')
    only(files.used_later(settings), "problem", f"images.{setting}", "No such file")
    path.write_text("[")
    only(files.used_later(settings), "problem", f"images.{setting}: {path}")


def test_seccomp_profile_that_is_none(tmp_path: Path) -> None:
    profile = tmp_path / "seccomp.json"
    profile.write_text("[]")
    settings = parsed(f'[runtime]\nseccomp_profile = "{profile}"')
    only(files.used_later(settings), "problem", "runtime.seccomp_profile", str(profile))


# -- databases --------------------------------------------------------------------------------------------------


def test_database_of_a_newer_version_or_none_at_all(tmp_path: Path) -> None:
    settings = parsed(f'[runtime]\nstate_dir = "{tmp_path}"')
    assert list(databases.required(settings)) == []
    assert list(tmp_path.iterdir()) == []
    path = tmp_path / "pods.db"
    Store(path).close()
    assert list(databases.required(settings)) == []
    with closing(sqlite3.connect(path)) as newer:
        newer.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    only(databases.required(settings), "problem", f"{path}: written by a newer pvecri", "upgrade.md")
    with closing(sqlite3.connect(path)) as newer:
        assert newer.execute("PRAGMA user_version").fetchone()[0] == SCHEMA_VERSION + 1
    path.write_text("no database, and longer than the header of one " * 20)
    only(databases.required(settings), "problem", f"{path}: file is not a database")


# -- programs ---------------------------------------------------------------------------------------------------


async def test_programs_that_are_missing_or_something_else() -> None:
    found = await collected(executables.required(parsed('[runtime]\nconmon = "no-conmon"')))
    only([each for each in found if each.level == "problem"], "problem", "runtime.conmon", "install conmon")
    found = await collected(executables.required(parsed('[runtime]\noci_runtime = "/bin/true"')))
    only(found, "problem", "runtime.oci_runtime", "neither runc nor crun")
    only(executables.used_later(parsed('[images]\nskopeo = "no-skopeo"')), "problem", "images.skopeo")


# -- the kernel -------------------------------------------------------------------------------------------------


def kernel_files(tmp_path: Path, *, filesystems: str, apparmor: str) -> tuple[Path, Path]:
    proc, sys = tmp_path / "proc", tmp_path / "sys"
    proc.mkdir()
    (proc / "filesystems").write_text(filesystems)
    (sys / "module/apparmor/parameters").mkdir(parents=True)
    (sys / "module/apparmor/parameters/enabled").write_text(f"{apparmor}\n")
    return proc, sys


def test_kernel_without_apparmor(tmp_path: Path) -> None:
    proc, sys = kernel_files(tmp_path, filesystems="nodev\toverlay\n", apparmor="N")
    only(kernel.used_later(Config(), proc, sys), "warning", "AppArmor is off")


def test_kernel_without_overlay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # no modprobe, and so no module to load
    proc, sys = kernel_files(tmp_path, filesystems="\text4\n", apparmor="N")
    problems = [each for each in kernel.used_later(Config(), proc, sys) if each.level == "problem"]
    only(problems, "problem", "overlay", "modprobe overlay")


def test_limits_for_the_number_of_pods(tmp_path: Path) -> None:
    for name, value in {
        "kernel/keys/maxkeys": 200,
        "fs/inotify/max_user_instances": 128,
        "fs/inotify/max_user_watches": 4_194_304,
        "kernel/pid_max": 32768,
        "user/max_user_namespaces": 15000,
        "net/ipv4/ip_forward": 1,
    }.items():
        path = tmp_path / "sys" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{value}\n")
    assert list(limits.check(Config(), 16, tmp_path)) == []
    only(
        limits.check(Config(), 110, tmp_path),
        "warning",
        "fs.inotify.max_user_instances is 128",
        "`pvecri setup` sets it to 880",
    )
    found = [str(each) for each in limits.check(Config(), 300, tmp_path)]
    assert ["kernel.keys.maxkeys" in found[0], "inotify" in found[1], "pid_max" in found[2]] == [True] * 3
    (tmp_path / "sys/net/ipv4/ip_forward").write_text("0\n")
    only(limits.check(Config(), 16, tmp_path), "warning", "net.ipv4.ip_forward is 0")
    (tmp_path / "sys/net/ipv4/ip_forward").write_text("1\n")
    (tmp_path / "sys/user/max_user_namespaces").write_text("0\n")
    only(
        limits.check(Config(), 16, tmp_path), "problem", "user.max_user_namespaces is 0: no unprivileged CT", "64"
    )
    few = parsed("[proxmox]\nvmid_range = { first = 200, last = 210 }")
    assert "11 VMIDs for up to 16 pods" in str(list(limits.check(few, 16, tmp_path))[-1])


# -- the network ------------------------------------------------------------------------------------------------


PLUGIN = """#!/bin/sh
[ "$CNI_COMMAND" = VERSION ] || exit 9
echo '{"cniVersion": "1.0.0", "supportedVersions": ["0.4.0", "1.0.0"]}'
"""


def plugin(path: Path, mode: int = 0o755) -> None:
    path.write_text(PLUGIN)
    path.chmod(mode)


def conflist(directory: Path, version: str = "1.0.0") -> None:
    bridge = {"type": "bridge", "ipam": {"type": "host-local"}}
    content = {"cniVersion": version, "name": "pods", "plugins": [bridge, {"type": "calico"}]}
    (directory / "10-pods.conflist").write_text(json.dumps(content))


async def test_network_that_is_missing_or_whose_plugins_cannot_be_executed(tmp_path: Path) -> None:
    directory, programs = tmp_path / "net.d", tmp_path / "bin"
    directory.mkdir()
    programs.mkdir()
    settings = parsed(f'[network]\nconf_dir = "{directory}"\nbin_dirs = ["{programs}"]')
    only(await collected(cni.check(settings)), "problem", "network.conf_dir", str(directory), "pvecri setup")
    conflist(directory)
    plugin(programs / "bridge")
    plugin(programs / "host-local", 0o644)
    found = [str(each) for each in await collected(cni.check(settings))]
    assert ["needs the plugin host-local" in found[0], "needs the plugin calico" in found[1]] == [True] * 2
    assert found[0].endswith("install containernetworking-plugins")
    assert found[1].endswith("install it, or wait for the network's agent")
    plugin(programs / "host-local")
    plugin(programs / "calico")
    assert await collected(cni.check(settings)) == []
    (programs / "calico").write_text("no program")
    only(await collected(cni.check(settings)), "warning", "calico", "Exec format error")


async def test_plugin_that_does_not_support_the_networks_version(tmp_path: Path) -> None:
    for name in ("bridge", "host-local", "calico"):
        plugin(tmp_path / name)
    settings = parsed(f'[network]\nconf_dir = "{tmp_path}"\nbin_dirs = ["{tmp_path}"]')
    conflist(tmp_path, "1.1.0")
    for name, found in zip(("bridge", "host-local", "calico"), await collected(cni.check(settings)), strict=True):
        only([found], "problem", f"has cniVersion 1.1.0, and the plugin {name} supports 0.4.0, 1.0.0", "to 1.0.0")
    conflist(tmp_path, "0.4.0")
    assert await collected(cni.check(settings)) == []


def test_port_that_another_program_has(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        text = f'[metrics]\nlisten = "127.0.0.1:{port}"\n[runtime]\nsocket = "{tmp_path}/cri.sock"'
        only(ports.check(parsed(text)), "problem", "metrics.listen", str(port), "Address already in use")
        # The daemon that runs is who has it.
        with socket.socket(socket.AF_UNIX) as daemon:
            daemon.bind(f"{tmp_path}/cri.sock")
            daemon.listen()
            assert list(ports.check(parsed(text))) == []


def test_socket_whose_path_is_too_long() -> None:
    settings = parsed(f'[runtime]\nsocket = "/run/{"x" * 110}"')
    only(ports.check(settings), "problem", "runtime.socket", "longer than 107 bytes")


def test_filesystem_without_room(tmp_path: Path) -> None:
    text = f'[runtime]\nrun_dir = "{tmp_path}/run"\nstate_dir = "{tmp_path}/state"'
    assert list(space.check(parsed(text), dict.fromkeys(space.MIN_BYTES, 0))) == []
    much = {**dict.fromkeys(space.MIN_BYTES, 0), "images.root": 1 << 62}
    only(space.check(parsed(text), much), "warning", "images.root", "MiB left")
    text = f'[runtime]\nrun_dir = "{tmp_path}/run"\nstate_dir = "/proc/pvecri"'
    problems = [each for each in space.check(parsed(text)) if each.level == "problem"]
    assert problems == [], "procfs is no read-only filesystem, so it is only full"


# -- beside pvecri ----------------------------------------------------------------------------------------------


KUBELET = """\
containerRuntimeEndpoint: unix:///run/pvecri/pvecri.sock
featureGates: {PodAndContainerStatsFromCRI: true}
maxPods: 42
"""


@pytest.mark.parametrize(
    ("text", "level", "word"),
    [
        (KUBELET.replace("pvecri/pvecri", "crio/crio"), "warning", "the kubelet uses unix:///run/crio/crio.sock"),
        (KUBELET.replace("true", "false"), "warning", "PodAndContainerStatsFromCRI"),
        (f"{KUBELET}cgroupsPerQOS: false\n", "problem", "cgroupsPerQOS"),
        (f"{KUBELET}podPidsLimit: 10\n", "warning", "podPidsLimit 10"),
        ("- a list\n", "problem", "is not a KubeletConfiguration"),
        ("{", "problem", "config.yaml"),
    ],
)
def test_setting_of_the_kubelet_that_does_not_fit(tmp_path: Path, text: str, level: str, word: str) -> None:
    path = tmp_path / "config.yaml"
    assert list(kubelet.check(Config(), path, tmp_path)) == []
    path.write_text(KUBELET)
    assert list(kubelet.check(Config(), path, tmp_path)) == []
    assert kubelet.max_pods(path) == 42
    path.write_text(text)
    only(kubelet.check(Config(), path, tmp_path), level, word)


def test_arguments_of_the_kubelet_count_too(tmp_path: Path) -> None:
    path, root = tmp_path / "config.yaml", tmp_path / "root"
    path.write_text("maxPods: 42\n")
    drop_ins = root / "etc/systemd/system/kubelet.service.d"
    drop_ins.mkdir(parents=True)
    ours = Path(__file__).parents[3] / "packaging/20-pvecri.conf"
    (drop_ins / "20-pvecri.conf").write_text(ours.read_text())
    assert list(kubelet.check(Config(), path, root)) == []
    other = parsed('[runtime]\nsocket = "/run/other.sock"')
    only(kubelet.check(other, path, root), "warning", "the kubelet uses unix:///run/pvecri/pvecri.sock")


def test_arguments_of_the_kubelet_that_its_package_overrides_do_not_count(tmp_path: Path) -> None:
    """Kubernetes' package has /etc/default/kubelet with an empty KUBELET_EXTRA_ARGS."""
    path, root = tmp_path / "config.yaml", tmp_path / "root"
    path.write_text("maxPods: 42\n")
    defaults, drop_in = root / "etc/default/kubelet", root / "etc/systemd/system/kubelet.service.d/20-pvecri.conf"
    for each in (defaults, drop_in):
        each.parent.mkdir(parents=True)
    defaults.write_text("KUBELET_EXTRA_ARGS=\n")
    drop_in.write_text(files_of_setup.KUBELET)
    assert list(kubelet.check(Config(), path, root)) == []
    drop_in.write_text(files_of_setup.KUBELET.replace("KUBELET_CONFIG_ARGS", "KUBELET_EXTRA_ARGS"))
    only(kubelet.check(Config(), path, root), "warning", "without the feature gate")


@pytest.mark.parametrize("endpoint", ["crio/crio", "containerd/containerd"])
def test_gate_of_the_kubelet_is_recommended_only_for_pods_of_pvecri(tmp_path: Path, endpoint: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(KUBELET.replace("pvecri/pvecri", endpoint).replace("true", "false"))
    only(kubelet.check(Config(), path, tmp_path), "warning", f"the kubelet uses unix:///run/{endpoint}.sock")


def test_kubelet_that_sees_no_usage_of_crios_pods(tmp_path: Path) -> None:
    packaging = Path(__file__).parents[3] / "packaging"
    handlers = tmp_path / "etc/crio/crio.conf.d/50-pvecri.conf"
    drop_in = tmp_path / "etc/systemd/system/kubelet.service.d/50-pvecri-kubelet.conf"
    program, config = tmp_path / "usr/local/bin/pvecri-runtime", tmp_path / "var/lib/kubelet/config.yaml"
    version_2 = tmp_path / "sys/fs/cgroup/cgroup.controllers"
    for each in (handlers, drop_in, program, config, version_2):
        each.parent.mkdir(parents=True)
    handlers.write_text((packaging / "crio/50-pvecri.conf").read_text())
    program.touch(mode=0o755)
    config.touch()
    assert list(fronts.check(Config(), tmp_path)) == [], "cgroup version 1"
    version_2.touch()
    only(fronts.check(Config(), tmp_path), "warning", "no usage of pods", "50-pvecri-kubelet.conf")
    drop_in.write_text((packaging / "crio/50-pvecri-kubelet.conf").read_text())
    assert list(fronts.check(Config(), tmp_path)) == []
    drop_in.unlink()
    config.unlink()
    assert list(fronts.check(Config(), tmp_path)) == [], "no kubelet"


def test_units_without_the_one_for_a_shutdown(tmp_path: Path) -> None:
    packaging = Path(__file__).parents[3] / "packaging"
    assert list(units.check(tmp_path)) == []  # not run by systemd
    folder = tmp_path / "etc/systemd/system"
    folder.mkdir(parents=True)
    (folder / "pvecri.service").write_text("[Service]\n")
    only(units.check(tmp_path), "warning", "there is no pvecri-shutdown.service")
    shutil.copy(packaging / "pvecri-shutdown.service", folder)
    only(units.check(tmp_path), "warning", "does not start pvecri-shutdown.service")
    shutil.copy(packaging / "pvecri.service", folder)
    assert list(units.check(tmp_path)) == []


def test_handler_of_containerd_or_crio_without_its_program(tmp_path: Path) -> None:
    packaging = Path(__file__).parents[3] / "packaging"
    for folder, name in (
        ("containerd/conf.d", "containerd/50-pvecri.toml"),
        ("crio/crio.conf.d", "crio/50-pvecri.conf"),
    ):
        (tmp_path / "etc" / folder).mkdir(parents=True)
        (tmp_path / "etc" / folder / Path(name).name).write_text((packaging / name).read_text())
    found = list(fronts.check(Config(), tmp_path))
    assert [each.level for each in found] == ["problem", "problem"]
    assert "/usr/local/bin/pvecri-runtime cannot be executed" in str(found[0])
    program = tmp_path / "usr/local/bin/pvecri-runtime"
    program.parent.mkdir(parents=True)
    program.touch(mode=0o755)
    assert list(fronts.check(Config(), tmp_path)) == []
    found = list(fronts.check(parsed("[oci]\nenabled = false"), tmp_path))
    assert all("oci.enabled is false" in str(each) for each in found)
    assert len(found) == 2
