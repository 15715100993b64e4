# SPDX-License-Identifier: AGPL-3.0-or-later
"""The embedded node fetches images as templates, with the real skopeo from a real registry."""

from __future__ import annotations

import os
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from pve_replay.process import NodeProcess, new_state_dir
from support.image_builder import LayerBuilder, build_image
from support.registry import Registry

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the node wants root")

PULL = "/nodes/pve/storage/local/oci-registry-pull"


@pytest.fixture
async def node(registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[NodeProcess]:
    """A node that may speak plain HTTP to the registry."""
    registry.trust_on_node(tmp_path, monkeypatch)
    with new_state_dir() as state_dir:
        async with NodeProcess(state_dir, "--faults", "--vm-storage", "thin=lvmthin") as process:
            yield process


@pytest.fixture
def image(registry: Registry) -> str:
    return registry.push("rig/app", "1.0", build_image(LayerBuilder().file("app", "x" * 4096).build()))


def cache(node: NodeProcess) -> list[str]:
    return [path.name for path in (node.state_dir / "storage/local/template/cache").iterdir()]


async def test_image_becomes_a_template_and_is_not_overwritten(node: NodeProcess, image: str) -> None:
    await node.task("POST", PULL, {"reference": image})
    (item,) = await node.get("/nodes/pve/storage/local/content?content=vztmpl")
    assert (item["volid"], item["format"]) == ("local:vztmpl/app_1.0.tar", "tar")
    about = await node.get(f"/nodes/pve/storage/local/content/{item['volid']}")
    with tarfile.open(about["path"]) as archive:
        assert {"oci-layout", "index.json"} <= set(archive.getnames())
    assert await node.refusal("POST", PULL, {"reference": image}) == (
        500,
        "refusing to override existing file 'app_1.0.tar'",
    )


async def test_failed_pull_has_skopeos_message_and_leaves_no_file(node: NodeProcess, image: str) -> None:
    status, log = await node.failed_task("POST", PULL, {"reference": image.replace("1.0", "9.9")})
    assert status.startswith(f"command 'skopeo copy docker://{image.replace('1.0', '9.9')} oci-archive:")
    assert any("manifest unknown" in line for line in log)
    assert cache(node) == []


async def test_pull_that_is_stopped_leaves_no_file(node: NodeProcess, image: str) -> None:
    await node.fault({"task": "ociregistrypull", "hold": True})
    upid = await node.ask("POST", PULL, {"reference": image})
    await node.ask("DELETE", f"/nodes/pve/tasks/{upid}")
    assert (await node.ended(upid))[0] != "OK"
    assert cache(node) == []


async def test_tags_of_a_repository_are_those_of_the_registry(node: NodeProcess, image: str) -> None:
    repository = image.removesuffix(":1.0")
    assert await node.get(f"/nodes/pve/query-oci-repo-tags?reference={repository}") == ["1.0"]
    missing = f"{repository}-not"
    status, reason = await node.refusal("GET", f"/nodes/pve/query-oci-repo-tags?reference={missing}")
    assert status == 500
    assert reason.startswith(f"command 'skopeo list-tags docker://{missing}' failed: exit code ")


async def test_block_storage_refuses_templates(node: NodeProcess, image: str) -> None:
    status, reason = await node.refusal("POST", PULL.replace("local", "thin"), {"reference": image})
    assert (status, reason) == (500, "can't upload to storage type 'lvmthin', not a file based storage!")
