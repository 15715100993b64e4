# SPDX-License-Identifier: Apache-2.0
"""CheckpointContainer with CRIU: the archive, and that the container runs on."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import tarfile
from pathlib import Path

import grpc
import pytest
from support.cri_client import CriClient, eventually, refused
from support.daemon import Machine

from pvecri.cri.proto import cri_pb2 as pb
from pvecri.linux import cgroups

pytestmark = pytest.mark.skipif(shutil.which("criu") is None, reason="criu is not installed")

COUNTS = """
echo kept >/etc/kept; rm /etc/passwd
i=0; while true; do i=$((i + 1)); echo $i >/dev/shm/count; usleep 10000; done
"""


def checkpoint(cri: CriClient, container: str, target: Path) -> None:
    cri.runtime.CheckpointContainer(pb.CheckpointContainerRequest(container_id=container, location=str(target)))


def content(archive: tarfile.TarFile, name: str) -> bytes:
    file = archive.extractfile(name)
    assert file is not None, name
    return file.read()


def count(cri: CriClient, container: str) -> int:
    """How far a container that COUNTS has come; 0 while it writes the file."""
    return int(cri.output(container, "cat", "/dev/shm/count") or 0)


def test_archive_has_the_layout_of_cri_os(machine: Machine, tmp_path: Path) -> None:
    with machine.restarted(runtime=f'oci_runtime = "{shutil.which("runc")}"') as cri:
        pod = cri.run_pod()
        container = cri.run(pod, "sh", "-c", COUNTS)
        eventually(lambda: count(cri, container) > 2, "it counts")
        target = tmp_path / "checkpoint.tar"
        checkpoint(cri, container, target)
        assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.tar"]
        with tarfile.open(target) as archive:
            names = set(archive.getnames())
            images = {name for name in names if name.startswith("checkpoint/")}
            assert {"checkpoint/inventory.img", "checkpoint/pstree.img"} <= images
            assert names - images == {"checkpoint", "config.dump", "spec.dump", "rootfs-diff.tar", "deleted.files"}
            assert json.loads(content(archive, "config.dump"))["id"] == container
            assert json.loads(content(archive, "spec.dump"))["process"]["args"] == ["sh", "-c", COUNTS]
            assert [path.lstrip("/") for path in json.loads(content(archive, "deleted.files"))] == ["etc/passwd"]
            packed = content(archive, "rootfs-diff.tar")
        with tarfile.open(fileobj=io.BytesIO(packed)) as layer:
            (kept,) = [name for name in layer.getnames() if name.endswith("etc/kept")]
            assert content(layer, kept) == b"kept\n"
        # It was frozen meanwhile, and counts on.
        assert not cgroups.detect().is_frozen(f"/lxc/{cri.vmid(pod)}/{container}")
        before = count(cri, container)
        eventually(lambda: count(cri, container) > before, "it counts on")


def test_crun_that_was_built_without_criu_is_named(machine: Machine, tmp_path: Path) -> None:
    crun = shutil.which("crun")
    if crun is None or not cgroups.detect().pure_v2:
        pytest.skip("crun is not installed or refuses this node's cgroups")
    if "+CRIU" in subprocess.run([crun, "--version"], check=True, capture_output=True, text=True).stdout.split():
        pytest.skip("this crun can use CRIU")
    with machine.restarted(runtime=f'oci_runtime = "{crun}"') as cri:
        container = cri.run(cri.run_pod(), "sh", "-c", COUNTS)
        with refused(grpc.StatusCode.FAILED_PRECONDITION, f"{crun} was built without CRIU"):
            checkpoint(cri, container, tmp_path / "checkpoint.tar")
