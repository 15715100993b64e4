# SPDX-License-Identifier: Apache-2.0
"""`pvecri image …` without a daemon and beside one. Needs root."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support.image_builder import build_artifact, build_image, digest_of
from support.image_commands import BASE, TOP, Node, run
from support.images import image_root
from support.registry import Registry

if TYPE_CHECKING:
    from support.daemon import Machine

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="unpacking needs root")


@pytest.fixture
def node(registry: Registry) -> Iterator[Node]:
    with image_root() as root:
        yield Node(root, registry)


def on_terminal(config: Path, *words: str) -> str:
    """What `pvecri image` shows on a terminal."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "pvecri", "--config", str(config), "image", *words]
    with os.fdopen(ours, "rb", buffering=0) as screen:
        with os.fdopen(theirs, "wb") as terminal:
            termios.tcsetwinsize(terminal, (24, 200))
            process = subprocess.Popen(command, stdout=terminal, stderr=terminal)
        said = b""
        with suppress(OSError):  # EIO: nobody has the terminal open any more
            while more := screen.read(4096):
                said += more
        assert process.wait() == 0, said
    return said.decode()


def test_images_are_pulled_listed_and_removed_without_a_daemon(node: Node, registry: Registry) -> None:
    built = build_image(BASE.build(), TOP.build())
    reference = registry.push("app", "1", built)
    assert node.image("pull", reference) == f"{built.id}\n"
    assert [reference, built.id[7:20]] == node.image("list").splitlines()[1].split()[:2]
    other = registry.push("other", "2", built)
    node.image("pull", other)
    assert [line.split()[0] for line in node.image("list").splitlines()[1:]] == sorted([reference, other])
    node.image("remove", reference)
    assert len(node.image("list").splitlines()) == 1
    assert f"image {reference} is not in the store" in node.image("remove", reference, status=1)


def test_terminal_shows_progress_and_summary_of_a_pull(node: Node, registry: Registry) -> None:
    built = build_image(BASE.build(), TOP.build())
    reference = registry.push("app", "1", built)
    said = on_terminal(node.config, "pull", reference)
    assert f"0 s  {reference}" in said
    assert re.search(rf"{re.escape(reference)}: 2 layers with [\d.]+ (B|KiB), [\d.]+ s\r\n", said)
    assert said.endswith(f"{built.id}\r\n")


def test_export_and_import_preserve_all_file_attributes(node: Node, registry: Registry, tmp_path: Path) -> None:
    reference = registry.push("app", "1", build_image(BASE.build(), TOP.build(), config={"Cmd": ["sh"]}))
    node.image("pull", reference)
    archive = tmp_path / "app.tar"
    node.image("export", reference, str(archive))
    node.image("remove", reference)
    node.image("import", str(archive), "example.org/copy:1")
    (layer,) = (node.root / "state/images/overlay/layers").iterdir()
    assert sorted(str(path.relative_to(layer)) for path in layer.rglob("*")) == [
        "bin",
        "bin/sh",
        "etc",
        "etc/motd",
    ]
    assert ((layer / "bin/sh").stat().st_mode & 0o7777, (layer / "bin/sh").stat().st_uid) == (0o4755, 5)
    assert "example.org/copy:1" in node.image("list")


def test_export_does_not_overwrite_a_file(node: Node, registry: Registry, tmp_path: Path) -> None:
    reference = registry.push("app", "1", build_image(BASE.build()))
    node.image("pull", reference)
    (tmp_path / "there").write_text("kept")
    refusal = node.image("export", reference, str(tmp_path / "there"), status=1)
    assert refusal == f"pvecri: {tmp_path}/there exists already\n"
    assert (tmp_path / "there").read_text() == "kept"


def test_artifact_is_imported_and_not_exported(node: Node, registry: Registry, tmp_path: Path) -> None:
    built = build_artifact(("model.bin", b"weights"))
    reference, archive = registry.push("model", "1", built), tmp_path / "model.tar"
    copy = ["skopeo", "--insecure-policy", "copy", "--quiet", "--src-tls-verify=false"]
    subprocess.run([*copy, f"docker://{reference}", f"oci-archive:{archive}:1"], check=True)
    assert node.image("import", str(archive), "example.org/model:1") == f"{built.digest}\n"
    assert "example.org/model:1" in node.image("list")
    refusal = node.image("export", "example.org/model:1", str(tmp_path / "exported"), status=1)
    assert refusal == "pvecri: example.org/model:1 is an OCI artifact, not an image; use `skopeo copy`\n"
    assert node.image("check") == "no image is damaged\n"


def test_damaged_image_is_found_and_removed_by_repair(node: Node, registry: Registry) -> None:
    node.config.write_text(node.config.read_text() + 'driver = "raw"\n')
    good, bad = (registry.push(name, "1", build_image(each.build())) for name, each in (("a", BASE), ("b", TOP)))
    for reference in (good, bad):
        node.image("pull", reference)
    assert node.image("check") == "no image is damaged\n"
    with (node.root / "state/images/raw/layers" / digest_of(TOP.build())[7:]).open("r+b") as file:
        file.seek(1100)
        file.write(b"damage")
    assert "damaged" in node.image("check", status=1)
    assert "repaired" in node.image("check", "--repair")
    assert (good in node.image("list"), bad in node.image("list")) == (True, False)
    node.image("pull", bad)
    assert node.image("check") == "no image is damaged\n"


def test_commands_that_open_the_store_are_refused_while_the_daemon_runs(node: Node) -> None:
    (node.root / "state").mkdir()
    with (node.root / "state/lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert "stop it for this command" in node.image("check", status=1)


def test_commands_call_the_daemon_if_it_runs(machine: Machine) -> None:
    config = machine.directory / "config.toml"
    reference = machine.registry.push("cli", "1", build_image(TOP.build()))
    run(config, "pull", reference)
    assert reference in run(config, "list")
    assert re.search(rf"{re.escape(reference)}: [\d.]+ s\r\n", on_terminal(config, "pull", reference))
    run(config, "remove", reference)
    assert reference not in run(config, "list")
    assert "manifest unknown" in run(config, "pull", f"{machine.registry.address}/none:1", status=1)
