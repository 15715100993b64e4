# SPDX-License-Identifier: Apache-2.0
"""`pvecri setup` on an embedded node, by commands that make the same requests as Proxmox's own.

Files are written below another root; that a service is started is not tested here.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from support import proxmox_commands
from support.node import Descriptor, new_node
from support.processes import SOURCES

from pvecri.config import files
from pvecri.pods.store import Store
from pvecri.proxmox.privileges import missing, needed

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="setup needs root")


@dataclass(frozen=True)
class Fresh:
    """A node after Proxmox's installation, with a root directory for the files of setups."""

    directory: Path
    descriptor: Descriptor
    root: Path

    def on_other_root(self, name: str) -> Fresh:
        """The same Proxmox, with the files of another node."""
        return Fresh(self.directory, self.descriptor, self.directory / name)

    def setup(self, *options: str, hostname: str = "pve") -> subprocess.CompletedProcess[str]:
        """Run `pvecri setup` with the node's commands first in $PATH, on a machine of this name."""
        program = [sys.executable, "-m", "pvecri", "setup", "--root", str(self.root), *options]
        return subprocess.run(
            ["unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"', hostname, *program],
            env={**os.environ, "PYTHONPATH": SOURCES, "PATH": f"{self.directory}/bin:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
        )

    def succeed(self, *options: str, hostname: str = "pve") -> str:
        done = self.setup(*options, hostname=hostname)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def get(self, path: str) -> object:
        return self.descriptor.administrator(self.directory).ask("GET", path, {})

    def access(self) -> dict[str, object]:
        """All that a setup may change in Proxmox."""
        paths = ("/pools", "/access/roles", "/access/users?full=1", "/access/acl", "/cluster/options")
        return {path: self.get(path) for path in paths}

    def files(self) -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in self.root.rglob("*") if path.is_file()}


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Fresh]:
    with new_node(tmp_path) as descriptor:
        proxmox_commands.install(tmp_path / "bin", tmp_path)
        yield Fresh(tmp_path, descriptor, tmp_path / "root")


def documented(storage: str, template_storage: str) -> list[list[str]]:
    """The words of the summary's commands in docs/proxmox-setup.md, in their order."""
    text = (ROOT / "docs/proxmox-setup.md").read_text().partition("\n## Privileges and their use")[0]
    names = {"NODE": "pve", "local-lvm": storage, "local": template_storage}
    found = re.findall(r"^ {4}.*?\b(pve(?:um|sh) [^\\|;\n#]+)", text, re.MULTILINE)
    return [
        ["/".join(names.get(part, part) for part in word.split("/")) for word in shlex.split(each)]
        for each in found
    ]


def printed(output: str) -> list[list[str]]:
    """The words of the commands that a dry run prints."""
    lines = [line.strip().partition("    # ")[0] for line in output.splitlines() if line.startswith("  pve")]
    return [shlex.split(line) for line in lines]


def test_dry_run_prints_the_documented_commands_and_changes_nothing(fresh: Fresh) -> None:
    before = fresh.access()
    output = fresh.succeed("--dry-run")
    assert printed(output) == documented("local", "local")
    assert "write /etc/pvecri/config.toml" in output
    assert fresh.access() == before
    assert fresh.files() == {}


def test_setup_makes_an_account_with_all_needed_privileges(fresh: Fresh) -> None:
    fresh.succeed("--yes")
    secret = fresh.root / "etc/pvecri/token"
    assert secret.stat().st_mode & 0o777 == 0o600
    settings = files.load(fresh.root / "etc/pvecri/config.toml").config
    assert settings.proxmox.token_id == "kube@pve!pve"
    administrator = fresh.descriptor.administrator(fresh.directory)
    account = replace(administrator, token_id="kube@pve!pve", token_secret=secret.read_text().strip())
    granted = account.ask("GET", "/access/permissions", {})
    assert isinstance(granted, dict)
    assert (
        missing(needed(settings.proxmox, "pve"), {path: frozenset(names) for path, names in granted.items()}) == []
    )


def test_second_setup_changes_nothing_and_says_so(fresh: Fresh) -> None:
    fresh.succeed("--yes")
    before = fresh.access(), fresh.files()
    assert fresh.succeed("--yes").endswith("nothing to do\n")
    assert (fresh.access(), fresh.files()) == before


def test_undo_removes_all_that_setup_made(fresh: Fresh) -> None:
    before = fresh.access()
    fresh.succeed("--yes")
    fresh.succeed("--undo", "--yes")
    assert fresh.access() == before
    assert fresh.files() == {}
    assert "nothing to undo" in fresh.succeed("--undo", "--yes")


def test_sysctls_are_written_for_the_kubelets_pods(fresh: Fresh) -> None:
    current = fresh.root / "proc/sys/fs/inotify/max_user_instances"
    kubelet = fresh.root / "var/lib/kubelet/config.yaml"
    for path, text in ((current, "128\n"), (kubelet, "maxPods: 250\n")):
        path.parent.mkdir(parents=True)
        path.write_text(text)
    before = fresh.files()
    assert "write /etc/sysctl.d/90-pvecri.conf" in fresh.succeed("--dry-run")
    fresh.succeed("--yes")
    written = fresh.root / "etc/sysctl.d/90-pvecri.conf"
    settings = [line for line in written.read_text().splitlines() if not line.startswith("#")]
    assert settings == ["fs.inotify.max_user_instances = 2000", "net.ipv4.ip_forward = 1"]
    assert fresh.succeed("--yes").endswith("nothing to do\n")
    kubelet.write_text("maxPods: 500\n")
    assert "replace /etc/sysctl.d/90-pvecri.conf" in fresh.succeed("--yes").splitlines()
    assert "fs.inotify.max_user_instances = 4000\n" in written.read_text()
    assert written.stat().st_mode & 0o777 == 0o644
    kubelet.write_text("maxPods: 250\n")
    fresh.succeed("--undo", "--yes")
    assert fresh.files() == before


def test_sysctls_that_were_changed_by_hand_stay_and_what_they_lack_is_said(fresh: Fresh) -> None:
    written = fresh.root / "etc/sysctl.d/90-pvecri.conf"
    current = fresh.root / "proc/sys/fs/inotify/max_user_instances"
    for path, text in ((current, "128\n"), (written, "fs.inotify.max_user_instances = 200\n")):
        path.parent.mkdir(parents=True)
        path.write_text(text)
    output = fresh.succeed("--yes")
    assert "90-pvecri.conf (changed since; it needs fs.inotify.max_user_instances = 880)" in output
    assert written.read_text() == "fs.inotify.max_user_instances = 200\n"


def test_undo_keeps_what_was_there_before_and_what_was_changed_since(fresh: Fresh) -> None:
    administrator = fresh.descriptor.administrator(fresh.directory)
    administrator.ask("POST", "/pools", {"poolid": "kubernetes"})
    crictl = fresh.root / "etc/crictl.yaml"
    crictl.parent.mkdir(parents=True)
    crictl.write_text("mine\n")
    assert "pool kubernetes" in fresh.succeed("--yes").splitlines()[0]
    settings = fresh.root / "etc/pvecri/config.toml"
    settings.write_text(settings.read_text() + "# mine\n")
    assert "/etc/pvecri/config.toml was changed since" in fresh.succeed("--undo", "--yes")
    assert [each["poolid"] for each in fresh.get("/pools")] == ["kubernetes"]  # type: ignore[attr-defined]
    assert crictl.read_text() == "mine\n"
    assert settings.exists()


def test_existing_configuration_names_the_account(fresh: Fresh) -> None:
    settings = fresh.root / "etc/pvecri/config.toml"
    settings.parent.mkdir(parents=True)
    text = (ROOT / "examples/config.toml").read_text().replace("kube@pve!NODE", "pods@pve!first")
    settings.write_text(text.replace('"kubernetes"', '"apps"'))
    output = fresh.succeed("--yes")
    assert "pveum pool add apps" in output
    assert "pveum user token add pods@pve first" in output
    assert settings.read_text().count("pods@pve!first") == 1


def test_token_without_its_secret_is_not_replaced(fresh: Fresh) -> None:
    fresh.succeed("--yes")
    (fresh.root / "etc/pvecri/token").unlink()
    before = fresh.access()
    done = fresh.setup("--yes")
    assert done.returncode == 1
    assert "pveum user token delete kube@pve pve" in done.stderr
    assert fresh.access() == before


def test_role_that_lacks_a_privilege_gets_it(fresh: Fresh) -> None:
    fresh.succeed("--yes")
    administrator = fresh.descriptor.administrator(fresh.directory)
    administrator.ask("PUT", "/access/roles/KubePods", {"privs": "VM.Audit,VM.Console"})
    fresh.succeed("--yes")
    held = fresh.get("/access/roles/KubePods")
    assert isinstance(held, dict)
    assert {"VM.Audit", "VM.Console", "VM.Allocate", "VM.PowerMgmt"} <= held.keys()
    assert fresh.succeed("--yes").endswith("nothing to do\n")


def test_second_node_of_a_cluster_keeps_the_account_when_the_first_leaves(fresh: Fresh) -> None:
    before = fresh.access()
    fresh.succeed("--yes")
    second = fresh.on_other_root("second")
    # Both are the same machine to the API: what differs are the token, and the files.
    settings = second.root / "etc/pvecri/config.toml"
    settings.parent.mkdir(parents=True)
    settings.write_text((fresh.root / "etc/pvecri/config.toml").read_text().replace("pve!pve", "pve!second"))
    assert "pveum user add" not in second.succeed("--yes")
    assert "kept: user kube@pve: kube@pve!second may use it" in fresh.succeed("--undo", "--yes")
    assert json.dumps(fresh.get("/access/users?full=1")).count("tokenid") == 2  # and the administrator's
    second.succeed("--undo", "--yes")
    fresh.succeed("--undo", "--yes")
    assert fresh.access() == before


def test_interrupted_setup_is_continued_or_undone(fresh: Fresh) -> None:
    before = fresh.access()
    pveum = fresh.directory / "bin/pveum"
    text = pveum.read_text()
    pveum.write_text(text.replace("\nPYTHONPATH", '\n[ "$1 $2" != "user add" ] || exit 5\nPYTHONPATH'))
    done = fresh.setup("--yes")
    assert done.returncode == 1
    assert "pveum user add kube@pve" in done.stderr
    pveum.write_text(text)
    assert "pveum pool add" not in fresh.succeed("--yes")
    fresh.succeed("--undo", "--yes")
    assert fresh.access() == before


def test_without_a_terminal_nothing_is_done_unless_yes_is_given(fresh: Fresh) -> None:
    done = fresh.setup()
    assert done.returncode == 1
    assert "--yes" in done.stderr
    assert fresh.files() == {}


def test_undo_refuses_while_there_are_pods(fresh: Fresh) -> None:
    fresh.succeed("--yes")
    path = fresh.root / "var/lib/pvecri/pods.db"
    Store(path).close()
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("INSERT INTO sandboxes VALUES ('1', 'shop', 900000, x'')")
    done = fresh.setup("--undo", "--yes")
    assert done.returncode == 1
    assert "crictl rmp" in done.stderr


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("--storage", "nowhere"), "--storage: nowhere is no active storage with content rootdir"),
        (("--pod-subnet", "10.0.0.1/8"), "--pod-subnet: "),
    ],
)
def test_wrong_options_are_named(fresh: Fresh, options: tuple[str, ...], problem: str) -> None:
    done = fresh.setup("--yes", *options)
    assert done.returncode == 1
    assert problem in done.stderr
    assert fresh.files() == {}
