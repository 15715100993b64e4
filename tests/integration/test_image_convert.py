# SPDX-License-Identifier: Apache-2.0
"""`pvecri image convert`: what real tools read from its output. Needs root."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support.cri_client import eventually
from support.image_builder import LayerBuilder, build_artifact, build_image
from support.image_commands import Node, run
from support.images import image_root
from support.registry import Registry

from pvecri.linux import loop, mounts

if TYPE_CHECKING:
    from support.daemon import Machine

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")

CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")
"""cap_net_bind_service=ep, as setcap(8) writes it."""
ATTRIBUTES = {"SCHILY.xattr.user.note": "kept", "SCHILY.xattr.security.capability": CAPABILITY.decode()}
BASE = (
    LayerBuilder()
    .directory("bin")
    .file("bin/sh", "shell", mode=0o4755, uid=100_000, pax_headers=ATTRIBUTES)
    .hardlink("bin/ash", "bin/sh")
    .symlink("bin/link", "sh")
    .file("bin/gone", "gone")
    .file("etc/passwd", "web:x:33:34::/:/bin/sh\n")
)
TOP = LayerBuilder().file("etc/motd", "hello").file("bin/.wh.gone")
CONFIG = {"Entrypoint": ["/bin/sh", "-c", "echo it's"], "User": "web", "WorkingDir": "/srv", "Env": ["A=b c"]}


@pytest.fixture
def node(registry: Registry) -> Iterator[Node]:
    with image_root() as root:
        yield Node(root, registry)


@pytest.fixture
def image(node: Node, registry: Registry) -> str:
    reference = registry.push("app", "1", build_image(BASE.build(), TOP.build(), config=CONFIG))
    node.image("pull", reference)
    return reference


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def test_tar_has_the_flat_root_filesystem(node: Node, image: str, tmp_path: Path) -> None:
    file = tmp_path / "app.tar"
    assert node.image("convert", image, "--format", "tar", "-o", str(file)) == f"{file}\n"
    with tarfile.open(file) as archive:
        names = {each.name for each in archive if not each.isdir()}
        assert names == {"./bin/sh", "./bin/ash", "./bin/link", "./etc/passwd", "./etc/motd"}
        linked = archive.getmember("./bin/sh")
        assert (linked.islnk(), linked.linkname) == (True, "./bin/ash")
        shell = archive.getmember("./bin/ash")
        assert (shell.mode, shell.uid, shell.uname) == (0o4755, 100_000, "")
        assert shell.pax_headers.items() >= ATTRIBUTES.items()
    assert [each.name for each in tmp_path.iterdir() if each.name.startswith(".")] == []
    node.image("remove", image)


@pytest.mark.parametrize("form", [["tar"], ["raw"], ["raw", "--filesystem", "erofs"]], ids=" ".join)
def test_output_is_the_same_twice(node: Node, image: str, tmp_path: Path, form: list[str]) -> None:
    files = [tmp_path / name for name in ("first", "second")]
    for file in files:
        node.image("convert", image, "--format", *form, "-o", str(file))
        time.sleep(1.1)  # times in all formats are whole seconds
    assert digest(files[0]) == digest(files[1])


@pytest.mark.parametrize("filesystem", ["ext4", "erofs"])
def test_raw_is_a_filesystem_with_the_images_files(
    node: Node, image: str, tmp_path: Path, filesystem: str
) -> None:
    file, place = tmp_path / "app.raw", tmp_path / "place"
    node.image("convert", image, "--format", "raw", "--filesystem", filesystem, "-o", str(file))
    if filesystem == "ext4":
        subprocess.run(["e2fsck", "-fn", file], check=True, capture_output=True)
    place.mkdir()
    with loop.attached(file, readonly=True) as device:
        mounts.mount(device, place, filesystem, mounts.MS_RDONLY)
        try:
            shell = (place / "bin/sh").stat()
            assert (shell.st_mode & 0o7777, shell.st_uid, shell.st_nlink) == (0o4755, 100_000, 2)
            assert os.getxattr(place / "bin/sh", "user.note") == b"kept"
            assert os.getxattr(place / "bin/sh", "security.capability") == CAPABILITY
            assert (place / "etc/motd").read_text() == "hello"
            assert not (place / "bin/gone").exists()
        finally:
            mounts.umount(place, detach=True)


def test_template_comes_with_the_commands_to_make_a_ct(node: Node, image: str, tmp_path: Path) -> None:
    file = tmp_path / "app.tar.zst"
    shown = node.image("convert", image, "--format", "template", "-o", str(file)).splitlines()
    # As pct(1) extracts it.
    extracted = tmp_path / "extracted"
    extracted.mkdir()
    options = ["--zstd", "--numeric-owner", "--xattrs", "--xattrs-include=user.*", "--anchored"]
    subprocess.run(["tar", "xpf", file, *options, "--exclude", "./dev/*", "-C", extracted], check=True)
    assert (extracted / "bin/sh").stat().st_uid == 100_000
    assert shown[0] == str(file)
    assert shown[2].startswith("pct create VMID STORAGE:vztmpl/app.tar.zst --ostype unmanaged")
    assert shown[4:-2] == [
        "lxc.init.cmd: /bin/sh -c 'echo it'\"'\"'s'",
        "lxc.init.cwd: /srv",
        "lxc.init.uid: 33",
        "lxc.init.gid: 34",
        "lxc.signal.halt: SIGTERM",
        "lxc.environment: A=b c",
    ]


def test_template_is_uploaded_to_a_proxmox_storage(machine: Machine) -> None:
    config = machine.directory / "config.toml"
    reference = machine.registry.push("ct", "1", build_image(BASE.build(), TOP.build(), config=CONFIG))
    run(config, "pull", reference)
    words = ("convert", reference, "--format", "template", "--storage")
    volume, *_ = run(config, *words, "local").splitlines()
    assert re.fullmatch(r"local:vztmpl/ct_1_[0-9a-f]{12}\.tar\.zst", volume)
    assert f" {volume} " in run(config, *words, "local")
    listed = machine.node.request("GET", f"/nodes/{machine.node.name}/storage/local/content?content=vztmpl")
    assert volume in str(listed)
    assert not any(Path(machine.directory).rglob("convert-*"))
    # Proxmox does not tell our account whether there is a storage that it has no rights on.
    assert "pvecri: --storage: Proxmox: get the status of storage none: " in run(config, *words, "none", status=1)


def test_errors_name_the_option_and_leave_no_file(
    node: Node, image: str, registry: Registry, tmp_path: Path
) -> None:
    there = tmp_path / "there"
    there.write_text("kept")
    artifact = registry.push("model", "1", build_artifact(("model.bin", b"weights")))
    node.image("pull", artifact)
    for words, message in (
        ((image, "--format", "tar", "-o", str(there)), f"-o: {there} exists already"),
        ((image, "--format", "tar"), "-o: names the file to create"),
        ((image, "--format", "tar", "-o", "/none/such"), "-o: /none is not a directory"),
        (
            (image, "--format", "tar", "--filesystem", "ext4", "-o", f"{there}2"),
            "--filesystem: is for --format raw",
        ),
        ((image, "--format", "template", "-o", f"{there}2"), "-o: Proxmox expects a name that ends with .tar.zst"),
        ((artifact, "--format", "tar", "-o", f"{there}2"), "is an OCI artifact"),
        (("none:1", "--format", "tar", "-o", f"{there}2"), "is not in the store"),
    ):
        assert message in node.image("convert", *words, status=1)
    assert there.read_text() == "kept"
    assert list(tmp_path.glob("there?*")) == list(tmp_path.glob(".there*")) == []


def test_interrupted_conversion_leaves_nothing(node: Node, image: str, tmp_path: Path) -> None:
    """By Ctrl-C while zstd runs, here one that never ends: how long a real one takes is the machine's affair."""
    slow = tmp_path / "bin/zstd"
    slow.parent.mkdir()
    slow.write_text("#!/bin/sh\nwhile true; do sleep 0.1; done\n")
    slow.chmod(0o755)
    out = tmp_path / "out"
    out.mkdir()
    command = [sys.executable, "-m", "pvecri", "--config", str(node.config), "image", "convert", image]
    command += ["--format", "template", "-o", str(out / "big.tar.zst")]
    environment = os.environ | {"PATH": f"{slow.parent}:{os.environ['PATH']}"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        eventually(lambda: any(out.iterdir()), "the archive is begun")
        process.send_signal(signal.SIGINT)
        _, said = process.communicate()
    assert (process.returncode, said) == (130, "")
    assert list(out.iterdir()) == []
    assert not any(node.root.glob("state/images/overlay/rootfs/*"))
