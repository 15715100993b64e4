# SPDX-License-Identifier: Apache-2.0
"""What the client makes of Proxmox's answers to oci-registry-pull; the words are those of Proxmox VE 9.2."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from support.scripted_pve import ScriptedPve, data, refusal, scripted_pve

from pvecri.errors import AlreadyExists, CommandError, FailedPrecondition, PermissionDenied
from pvecri.proxmox.api import ProxmoxApi
from pvecri.proxmox.errors import ParameterError, ProxmoxError, ProxmoxTaskError
from pvecri.proxmox.image_templates import ImageTemplates

PULL = "/nodes/pve/storage/x/oci-registry-pull"
CONTENT = "/nodes/pve/storage/x/content"
TASK = "UPID:pve:00000A3C:00003C6C:6B044925:ociregistrypull:app_1.tar:cri@pve!t1:"
TASK_PATH = f"/nodes/pve/tasks/{TASK.replace(':', '%3A').replace('@', '%40').replace('!', '%21')}"
FATAL = 'time="2026-11-23T14:09:41Z" level=fatal msg="reading manifest 1 in h/app: manifest unknown"'
SKOPEO = "command 'skopeo copy docker://h/app:1 oci-archive:/var/lib/vz/x.tar.tmp.18' failed: exit code 2"


@pytest.fixture
async def pve() -> AsyncIterator[ScriptedPve]:
    async with scripted_pve() as server:
        server.script("POST", PULL, data(TASK))
        server.script("DELETE", TASK_PATH, data(None))
        server.script("GET", f"{TASK_PATH}/log", data([{"n": 1, "t": FATAL}]))
        yield server


@pytest.fixture
async def templates(pve: ScriptedPve, tmp_path: Path) -> AsyncIterator[ImageTemplates]:
    api = ProxmoxApi(pve.config(tmp_path), image_storage="x")
    await api.start()
    yield api.image_templates(60.0)
    await api.close()


def ends(pve: ScriptedPve, status: str) -> None:
    pve.script("GET", f"{TASK_PATH}/status", data({"status": "stopped", "exitstatus": status}))


async def test_a_pull_names_the_file_without_its_ending_which_proxmox_adds(
    pve: ScriptedPve, templates: ImageTemplates
) -> None:
    ends(pve, "OK")
    await templates.pull("h/app:1", "app_1.tar")
    assert pve.received[0].body == b"reference=h%2Fapp%3A1&filename=app_1"


async def test_skopeo_failure_has_skopeos_output(pve: ScriptedPve, templates: ImageTemplates) -> None:
    ends(pve, SKOPEO)
    with pytest.raises(CommandError, match="manifest unknown") as raised:
        await templates.pull("h/app:1", "app_1.tar")
    assert (raised.value.command, raised.value.returncode) == ("skopeo", 2)


async def test_other_task_failure_is_a_proxmox_error(pve: ScriptedPve, templates: ImageTemplates) -> None:
    ends(pve, "unable to rename temporary file: No space left on device")
    with pytest.raises(ProxmoxTaskError, match="No space left"):
        await templates.pull("h/app:1", "app_1.tar")


@pytest.mark.parametrize(
    ("status", "words", "kind"),
    [
        (500, "refusing to override existing file 'app_1.tar'", AlreadyExists),
        (501, f"Method 'POST {PULL}' not implemented", FailedPrecondition),
        (403, "Permission check failed (/nodes/pve, Sys.AccessNetwork)", PermissionDenied),
    ],
)
async def test_a_refusal_is_an_error_of_its_kind(
    pve: ScriptedPve, templates: ImageTemplates, status: int, words: str, kind: type[Exception]
) -> None:
    pve.script("POST", PULL, refusal(status, words))
    with pytest.raises(kind):
        await templates.pull("h/app:1", "app_1.tar")


async def test_error_for_a_refused_reference_names_the_parameter(
    pve: ScriptedPve, templates: ImageTemplates
) -> None:
    wrong = {"reference": "value does not match the regex pattern"}
    pve.script("POST", PULL, refusal(400, "Parameter verification failed.", wrong))
    with pytest.raises(ParameterError, match="reference: value does not match"):
        await templates.pull("h/app@sha256:1", "app_1.tar")


async def test_a_template_is_found_by_its_name_where_the_node_has_it(
    pve: ScriptedPve, templates: ImageTemplates
) -> None:
    pve.script("GET", CONTENT, data([{"volid": "x:vztmpl/app_1.tar", "size": 1}]))
    pve.script("GET", f"{CONTENT}/x%3Avztmpl%2Fapp_1.tar", data({"path": "/mnt/x/app_1.tar", "size": 1}))
    assert await templates.find("app_1.tar") == Path("/mnt/x/app_1.tar")
    assert await templates.find("app_2.tar") is None


async def test_a_template_that_is_removed_during_the_query_is_not_found(
    pve: ScriptedPve, templates: ImageTemplates
) -> None:
    pve.script("GET", CONTENT, data([{"volid": "x:vztmpl/app_1.tar"}]), data([]))
    gone = "volume_size_info on 'x:vztmpl/app_1.tar' failed - no format"
    pve.script("GET", f"{CONTENT}/x%3Avztmpl%2Fapp_1.tar", refusal(500, gone))
    assert await templates.find("app_1.tar") is None


async def test_an_unreadable_template_is_an_error(pve: ScriptedPve, templates: ImageTemplates) -> None:
    pve.script("GET", CONTENT, data([{"volid": "x:vztmpl/app_1.tar"}]))
    pve.script("GET", f"{CONTENT}/x%3Avztmpl%2Fapp_1.tar", refusal(500, "volume 'x' has size zero"))
    with pytest.raises(ProxmoxError, match="has size zero"):
        await templates.find("app_1.tar")


async def test_remove_stops_only_the_pull_of_that_file(pve: ScriptedPve, templates: ImageTemplates) -> None:
    other = TASK.replace("app_1", "app_2")
    active = [{"upid": each, "type": "ociregistrypull", "starttime": 1} for each in (TASK, other)]
    listed = [{**each, "id": each["upid"].split(":")[6]} for each in active]  # type: ignore[attr-defined]
    pve.script("GET", "/nodes/pve/tasks", data(listed))
    pve.script("GET", CONTENT, data([]))
    ends(pve, "got interrupted by signal")
    await templates.remove("app_1.tar")
    assert [each.path for each in pve.received if each.method == "DELETE"] == [TASK_PATH]


async def test_removal_is_done_at_once_or_waited_for(pve: ScriptedPve, templates: ImageTemplates) -> None:
    volume = f"{CONTENT}/x%3Avztmpl%2Fapp_1.tar"
    pve.script("GET", "/nodes/pve/tasks", data([]))
    pve.script("GET", CONTENT, data([{"volid": "x:vztmpl/app_1.tar"}]))
    pve.script("DELETE", volume, data(None), data(TASK))
    ends(pve, "OK")
    await templates.remove("app_1.tar")
    await templates.remove("app_1.tar")
    assert pve.count("DELETE", volume) == 2
    assert pve.count("GET", f"{TASK_PATH}/status") == 1
