# SPDX-License-Identifier: Apache-2.0
"""The tests and script/serve on an existing Proxmox node: here an embedded node that runs separately."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest
from support.cri_client import eventually
from support.node import EmbeddedNode, embedded_node
from support.vmids import claim
from trial.cri import CriClient

from pvecri.cri.proto import cri_pb2 as pb
from pvecri.linux import mounts
from pvecri.proxmox.api import ProxmoxApi

ROOT = Path(__file__).resolve().parents[2]
OTHERS = claim(93_000, 94_999, 40)[0]
"""The VMID of a CT that is none of ours, though it is in the pool. Ours begin after it."""

FAILING = f"""
import pytest

def test_another_ct_cannot_be_removed(machine):
    assert {OTHERS} in machine.node.cts()
    with pytest.raises(AssertionError, match="it stays"):
        machine.node.remove_ct({OTHERS})

def test_fails_and_leaves_a_pod_and_a_ct(machine, container):
    machine.node.make_ct(machine.vmids[-1])
    machine.kill()
    raise AssertionError("on purpose")
"""

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="pods are LXC containers: needs root"),
    pytest.mark.xdist_group("existing node"),  # one node for all
]


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedNode]:
    """A node with the documented account, and with a CT of somebody else's that the account may change."""
    with embedded_node(tmp_path_factory.mktemp("node")) as running:
        wanted = {"vmid": str(OTHERS), "ostemplate": _uploaded_template(running), "rootfs": "local:0"}
        _ask(running, "POST", "/lxc", {**wanted, "unprivileged": "1", "pool": running.account.pool})
        eventually(lambda: "lock" not in others_ct(running), "the CT is created")
        yield running


def _uploaded_template(node: EmbeddedNode) -> str:
    async def upload() -> str:
        api = ProxmoxApi(node.config())
        await api.start()
        try:
            return (await api.ensure_sandbox_template())[0]
        finally:
            await api.close()

    return asyncio.run(upload())


def _ask(node: EmbeddedNode, method: str, path: str, parameters: dict[str, str]) -> object:
    """Ask as the node's root."""
    root = node.descriptor.administrator(node.state_dir)
    return root.ask(method, f"/nodes/{node.descriptor.node}{path}", parameters)


def others_ct(node: EmbeddedNode) -> dict[str, object]:
    """The configuration of somebody else's CT."""
    config = _ask(node, "GET", f"/lxc/{OTHERS}/config", {})
    assert isinstance(config, dict)
    return config


def write_config(node: EmbeddedNode, directory: Path, first: int = OTHERS + 1, more: str = "") -> Path:
    """A configuration for this node with twenty VMIDs from `first` on; `more` are further sections."""
    wanted = ("url", "node", "token_id", "fingerprint", "pool")
    lines = [f"{name} = {json.dumps(getattr(node.config(), name))}" for name in wanted]
    lines += [f'token_secret_file = "{node.config().token_secret_file}"']
    lines += [f"vmid_range = {{first = {first}, last = {first + 19}}}"]
    path = directory / "config.toml"
    path.write_text("\n".join(["[proxmox]", *lines, more]))
    return path


def run_tests(config: Path, *arguments: str) -> tuple[dict[str, str], str]:
    """Run pytest with this node: how each test ended (`passed`, or as JUnit has it), and what was printed."""
    report = config.with_name("report.xml")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", f"--junitxml={report}", *arguments]
    environment = {**os.environ, "PVECRI_TEST_CONFIG": str(config), "PYTHONPATH": "tests:bench:script/lib"}
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    cases = ElementTree.parse(report).iter("testcase") if report.exists() else ()
    return {
        case.attrib["name"]: case[0].tag if len(case) else "passed" for case in cases
    }, ended.stdout + ended.stderr


def test_pod_tests_pass_and_node_controlling_tests_are_skipped(node: EmbeddedNode, tmp_path: Path) -> None:
    before = others_ct(node)
    integration = "tests/integration/test_"
    outcomes, output = run_tests(
        write_config(node, tmp_path),
        "tests/e2e/test_smoke.py",
        f"{integration}pod_proxmox.py",
        f"{integration}recovery_pods.py::test_reused_vmid_is_not_touched",
        f"{integration}recovery_pods.py::test_the_api_process_of_the_node_can_be_restarted_while_pods_run",
        f"{integration}leak_check.py",
    )
    assert outcomes.pop("test_the_api_process_of_the_node_can_be_restarted_while_pods_run") == "skipped", output
    assert "changes the node, and so needs an embedded one" in output
    assert "test_leak_is_reported_until_it_is_removed" not in outcomes
    assert len(outcomes) >= 10
    assert set(outcomes.values()) == {"passed"}, output
    assert others_ct(node) == before


def test_failed_test_leaves_nothing_and_touches_no_other_ct(node: EmbeddedNode, tmp_path: Path) -> None:
    before = others_ct(node)
    (tmp_path / "test_failing.py").write_text(FAILING)
    outcomes, output = run_tests(write_config(node, tmp_path), "-p", "conftest", str(tmp_path))
    wanted = {"test_another_ct_cannot_be_removed": "passed", "test_fails_and_leaves_a_pod_and_a_ct": "failure"}
    assert outcomes == wanted, output
    assert [path.stem for path in node.state_dir.glob("pve/nodes/*/lxc/*.conf")] == [str(OTHERS)]
    assert others_ct(node) == before


def test_vmids_in_use_are_refused(node: EmbeddedNode, tmp_path: Path) -> None:
    outcomes, output = run_tests(write_config(node, tmp_path, OTHERS), "tests/e2e/test_smoke.py")
    assert set(outcomes.values()) == {"error"}
    assert f"VMIDs [{OTHERS}] are in use" in output


def test_serve_with_a_configuration_runs_the_daemon_alone(node: EmbeddedNode, tmp_path: Path) -> None:
    socket = tmp_path / "run/pvecri.sock"
    paths = {"socket": socket, "run_dir": tmp_path / "run", "state_dir": tmp_path / "state"}
    runtime = "\n".join(f'{name} = "{path}"' for name, path in paths.items())
    nri, network = (
        f'socket = "{tmp_path}/nri.sock"',
        f'conf_dir = "{tmp_path}/net.d"\ncache_dir = "{tmp_path}/cni"',
    )
    config = write_config(node, tmp_path, more=f"[runtime]\n{runtime}\n[nri]\n{nri}\n[network]\n{network}\n")
    command = [str(ROOT / "script/serve"), "--config", str(config)]
    with (tmp_path / "log").open("w") as log:
        serve = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, text=True)
    assert serve.stdout is not None
    try:
        assert node.descriptor.url in serve.stdout.readline()
        # Without a CNI network only pods of the node's run.
        options = pb.NamespaceOption(network=pb.NODE)
        linux = pb.LinuxPodSandboxConfig(
            security_context=pb.LinuxSandboxSecurityContext(namespace_options=options)
        )
        metadata = pb.PodSandboxMetadata(name="a", namespace="b", uid="c")
        with CriClient(socket) as client:
            client.status()
            pod = client.run_pod(pb.PodSandboxConfig(metadata=metadata, linux=linux))
            assert len(list(node.state_dir.glob("pve/nodes/*/lxc/*.conf"))) == 2
            client.stop_pod(pod)
            client.remove_pod(pod)
            client.wait_for_removals(60)
    finally:
        serve.send_signal(signal.SIGINT)
        serve.communicate()
        mounts.umount_below(tmp_path)
    assert serve.returncode == 0, (tmp_path / "log").read_text()
