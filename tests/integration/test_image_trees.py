# SPDX-License-Identifier: Apache-2.0
"""`pvecri image inspect`, `mount` and `umount`, without a daemon and beside one. Needs root."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support.image_builder import build_artifact, build_image
from support.image_commands import BASE, TOP, Node, run
from support.images import image_root
from support.registry import Registry

from pvecri.linux import mounts

if TYPE_CHECKING:
    from support.daemon import Machine

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")


@pytest.fixture
def node(registry: Registry) -> Iterator[Node]:
    with image_root() as root:
        yield Node(root, registry)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A directory to mount at."""
    directory = tmp_path / "place"
    directory.mkdir()
    yield directory
    mounts.umount_below(directory)


def test_inspect_shows_names_config_layers_and_users(node: Node, registry: Registry, place: Path) -> None:
    built = build_image(BASE.build(), TOP.build(), config={"Cmd": ["sh"]})
    reference = registry.push("shown", "1", built)
    node.image("pull", reference)
    node.image("mount", reference, str(place))
    shown = json.loads(node.image("inspect", reference))
    assert (shown["id"], shown["names"]) == (built.id, [reference])
    assert shown["config"]["config"]["Cmd"] == ["sh"]
    assert [each["diffID"] for each in shown["layers"]] == shown["config"]["rootfs"]["diff_ids"]
    assert all(each["size"] > 0 and each["inodes"] > 0 for each in shown["layers"])
    assert shown["storage"] == {"driver": "overlay", "root": f"{node.root}/state/images/overlay"}
    assert shown["usedBy"] == {"containers": [], "mounts": [str(place)]}
    node.image("umount", reference)
    assert "is not in the store" in node.image("inspect", "other:1", status=1)


def test_inspect_shows_an_artifacts_manifest_and_files(node: Node, registry: Registry, place: Path) -> None:
    reference = registry.push("model", "2", build_artifact(("model.bin", b"weights")))
    node.image("pull", reference)
    shown = json.loads(node.image("inspect", reference))
    assert [each["file"] for each in shown["layers"]] == ["model.bin"]
    assert shown["manifest"]["layers"][0]["digest"] == shown["layers"][0]["digest"]
    assert "is an OCI artifact" in node.image("mount", reference, str(place), status=1)


@pytest.mark.parametrize("driver", ["overlay", "raw"])
def test_mounted_image_is_read_only_and_kept_until_unmounted(
    node: Node, registry: Registry, place: Path, driver: str
) -> None:
    node.config.write_text(node.config.read_text() + f'driver = "{driver}"\n')
    reference = registry.push("mounted", driver, build_image(BASE.build(), TOP.build()))
    node.image("pull", reference)
    for _ in range(2):
        assert node.image("mount", reference, str(place)) == f"{place}\n"
    assert [each.name for each in (place / "bin").iterdir()] == ["sh"]
    assert (place / "etc/motd").read_text() == "hello"
    with pytest.raises(OSError, match="Read-only"):
        (place / "new").touch()
    assert {"nosuid", "nodev"} <= set(mounts.restrictions(place))
    assert f"is mounted at {place}" in node.image("remove", reference, status=1)
    assert reference in node.image("list")
    assert node.image("umount", str(place)) == f"{place}\n"
    assert not mounts.is_mountpoint(place)
    assert "has no mounted image" in node.image("umount", str(place), status=1)
    node.image("remove", reference)
    assert not any(node.root.glob(f"state/images/{driver}/rootfs/*"))
    assert not any(node.root.glob("state/images/mounts/*"))


def test_mount_that_is_in_use_stays(node: Node, registry: Registry, place: Path) -> None:
    reference = registry.push("busy", "1", build_image(TOP.build()))
    node.image("pull", reference)
    node.image("mount", reference, str(place))
    with (place / "etc/motd").open() as file:
        assert f"{place} is in use" in node.image("umount", str(place), status=1)
        assert file.read() == "hello"
    node.image("umount", str(place))


def test_image_is_free_again_after_an_ordinary_umount(node: Node, registry: Registry, place: Path) -> None:
    reference = registry.push("forgotten", "1", build_image(TOP.build()))
    node.image("pull", reference)
    node.image("mount", reference, str(place))
    subprocess.run(["umount", str(place)], check=True)
    node.image("remove", reference)
    assert not any(node.root.glob("state/images/overlay/rootfs/*"))


def test_another_image_is_not_mounted_over_one(node: Node, registry: Registry, place: Path) -> None:
    first, second = (
        registry.push(name, "1", build_image(each.build())) for name, each in (("f", BASE), ("s", TOP))
    )
    for reference in (first, second):
        node.image("pull", reference)
    node.image("mount", first, str(place))
    assert "is mounted there" in node.image("mount", second, str(place), status=1)
    node.image("umount", first)


def test_daemon_keeps_a_mounted_image_also_after_a_crash(machine: Machine, place: Path) -> None:
    config = machine.directory / "config.toml"
    reference = machine.registry.push("kept", "1", build_image(TOP.build()))
    run(config, "pull", reference)
    run(config, "mount", reference, str(place))
    assert f"is mounted at {place}" in run(config, "remove", reference, status=1)
    machine.kill()
    machine.start()
    assert (place / "etc/motd").read_text() == "hello"
    assert json.loads(run(config, "inspect", reference))["usedBy"]["mounts"] == [str(place)]
    assert f"is mounted at {place}" in run(config, "remove", reference, status=1)
    assert run(config, "umount", reference) == f"{place}\n"
    run(config, "remove", reference)
