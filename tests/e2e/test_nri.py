# SPDX-License-Identifier: Apache-2.0
"""NRI plugins with real pods, from the CRI socket to the plugin's socket."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from support import nri_plugin
from support.cri_client import CriClient, eventually, refused
from support.daemon import Machine
from support.nri_plugin import NriPlugin, Refused

from pvecri.cri.proto import cri_pb2
from pvecri.nri.proto import nri_pb2 as pb

LIFE_OF_A_POD = ["RunPodSandbox", "StopPodSandbox", "RemovePodSandbox"]
LIFE_OF_A_CONTAINER = [
    "CreateContainer",
    "ValidateContainerAdjustment",
    "PostCreateContainer",
    "StartContainer",
    "PostStartContainer",
    "StopContainer",
    "RemoveContainer",
]

Plug = Callable[..., NriPlugin]


@pytest.fixture
def plug(machine: Machine) -> Iterator[Plug]:
    """Connects plugins, with the arguments of NriPlugin; they go away with the test, before its pods."""
    plugged: list[NriPlugin] = []

    def connect(*, join: bool = True, **arguments: Any) -> NriPlugin:
        plugin = NriPlugin(machine.nri_socket, **arguments)
        plugged.append(plugin)
        if join:
            plugin.join()
        return plugin

    yield connect
    for plugin in plugged:
        plugin.close()


def adjusting(adjustment: pb.ContainerAdjustment) -> Callable[[Any], pb.CreateContainerResponse]:
    """A handler of CreateContainer."""
    return lambda _: pb.CreateContainerResponse(adjust=adjustment)


def shares(container: str, value: int) -> pb.ContainerUpdate:
    """A container's CPU shares."""
    cpu = pb.LinuxCPU(shares=pb.OptionalUInt64(value=value))
    resources = pb.LinuxResources(cpu=cpu)
    return pb.ContainerUpdate(container_id=container, linux=pb.LinuxContainerUpdate(resources=resources))


def shares_of(cri: CriClient, container: str) -> int:
    """What the runtime says that they are."""
    return int(cri.status(container).resources.linux.cpu_shares)


# -- events ---------------------------------------------------------------------------------------------------


def test_plugin_gets_events_of_a_pod_and_its_container_once_in_order(cri: CriClient, plug: Plug) -> None:
    plugin = plug()
    pod = cri.run_pod()
    container = cri.run(pod, "sleep", "1000")
    cri.stop(container)
    cri.stop(container)
    cri.remove(container)
    cri.stop_pod(pod)
    cri.stop_pod(pod)
    cri.remove_pod(pod)
    assert plugin.names(container) == LIFE_OF_A_CONTAINER
    assert [name for name in plugin.names(pod) if name in LIFE_OF_A_POD] == LIFE_OF_A_POD


def test_plugin_gets_the_exit_of_a_container(cri: CriClient, plug: Plug) -> None:
    plugin = plug()
    container = cri.run(cri.run_pod(), "sh", "-c", "exit 3")
    eventually(lambda: "StopContainer" in plugin.names(container), "the plugin heard of the end")
    assert plugin.request("StopContainer").container.exit_code == 3


def test_plugin_gets_all_fields_of_pod_and_container(machine: Machine, cri: CriClient, plug: Plug) -> None:
    plugin = plug()
    config = cri.pod_config(labels={"app": "web"}, annotations={"note": "x"})
    pod = cri.run_pod(config)
    container = cri.run(pod, "sleep", "1000", labels={"tier": "front"})
    seen = plugin.request("PostStartContainer")
    assert (seen.pod.id, seen.pod.name, seen.pod.uid) == (pod, config.metadata.name, config.metadata.uid)
    assert (seen.pod.namespace, seen.pod.labels["app"], seen.pod.annotations["note"]) == ("tests", "web", "x")
    assert seen.pod.linux.cgroups_path == f"/lxc/{cri.vmid(pod)}"
    assert list(seen.pod.ips) == [cri.pod_status(pod).network.ip]
    assert (seen.container.id, seen.container.name, seen.container.pod_sandbox_id) == (container, "main", pod)
    assert (list(seen.container.args), seen.container.labels["tier"]) == (["sleep", "1000"], "front")
    assert seen.container.pid in machine.processes(pod, container)
    assert seen.container.state == pb.CONTAINER_RUNNING


def test_plugins_are_called_in_the_order_of_their_indices(cri: CriClient, plug: Plug) -> None:
    asked: list[str] = []
    for index in ("20", "10", "30"):
        plug(name=f"p{index}", index=index, RunPodSandbox=lambda _, index=index: asked.append(index))
    cri.run_pod()
    assert asked == ["10", "20", "30"]


def test_plugin_gets_only_subscribed_events(cri: CriClient, plug: Plug) -> None:
    plugin = plug(events=["RunPodSandbox", "StartContainer"])
    cri.run(cri.run_pod(), "true")
    assert plugin.names() == ["RunPodSandbox", "StartContainer"]


def test_a_plugin_of_an_earlier_version_gets_state_changes(cri: CriClient, plug: Plug) -> None:
    def missing(_: object) -> None:
        raise Refused("no such method", nri_plugin.UNIMPLEMENTED)

    plugin = plug(RunPodSandbox=missing)
    pod = cri.run_pod()
    cri.remove_pod(pod)
    changes = [request.event for name, request in plugin.calls if name == "StateChange"]
    assert changes == [pb.RUN_POD_SANDBOX, pb.STOP_POD_SANDBOX, pb.REMOVE_POD_SANDBOX]


# -- joining --------------------------------------------------------------------------------------------------


def test_late_plugin_is_synchronized(cri: CriClient, plug: Plug) -> None:
    pod = cri.run_pod()
    running, ended = cri.run(pod, "sleep", "1000"), cri.run(pod, "true", name="ended")
    cri.wait_for_exit(ended)
    told = plug().request("Synchronize")
    assert [each.id for each in told.pods] == [pod]
    assert [each.id for each in told.containers] == [running]


def test_container_created_during_synchronization_is_sent_once(cri: CriClient, plug: Plug) -> None:
    pod = cri.run_pod()
    reached, go_on = threading.Event(), threading.Event()

    def wait(_: object) -> None:
        reached.set()
        go_on.wait(nri_plugin.TIMEOUT)

    plugin = plug(join=False, Synchronize=wait)
    plugin.register()
    assert reached.wait(nri_plugin.TIMEOUT)
    made: list[str] = []
    creator = threading.Thread(target=lambda: made.append(cri.create(pod, cri.container_config("true"))))
    creator.start()
    go_on.set()
    creator.join()
    told = [each.id for each in plugin.request("Synchronize").containers]
    assert (made[0] in told) + plugin.names(made[0]).count("CreateContainer") == 1


def test_plugins_are_synchronized_after_a_restart_of_the_daemon(machine: Machine, plug: Plug) -> None:
    before = plug()
    container = machine.client.run(machine.client.run_pod(), "sleep", "1000")
    machine.restart()
    assert before.lost.wait(nri_plugin.TIMEOUT)
    assert ("Shutdown", pb.Empty()) in before.calls
    after = plug()
    assert [each.id for each in after.request("Synchronize").containers] == [container]
    machine.client.stop(container)
    assert after.names(container) == ["StopContainer"]


@pytest.mark.parametrize(("name", "index"), [("with space", "10"), ("good", "1"), ("good", "ab")])
def test_plugin_with_an_invalid_name_is_refused(plug: Plug, name: str, index: str) -> None:
    plugin = plug(join=False, name=name, index=index)
    with pytest.raises(Refused, match="index"):
        plugin.register()
    assert plugin.lost.wait(nri_plugin.TIMEOUT)


LAUNCHED = """#!{python}
import os, socket, sys
sys.path[:0] = {path!r}
from support.nri_plugin import NriPlugin
given = socket.socket(fileno=int(os.environ["NRI_PLUGIN_SOCKET"]))
plugin = NriPlugin(given, os.environ["NRI_PLUGIN_NAME"], os.environ["NRI_PLUGIN_IDX"])
plugin.handlers["CreateContainer"] = lambda _: pb.CreateContainerResponse(
    adjust=pb.ContainerAdjustment(env=[pb.KeyValue(key="SAID", value=plugin.configuration)])
)
from pvecri.nri.proto import nri_pb2 as pb
plugin.register()
plugin.lost.wait()
"""


def test_preinstalled_plugin_is_launched_with_its_configuration(machine: Machine) -> None:
    directory, settings = machine.directory / "nri-plugins", machine.directory / "nri-conf"
    for each in (directory, settings):
        each.mkdir()
    program = directory / "15-greeter"
    program.write_text(LAUNCHED.format(python=sys.executable, path=[path for path in sys.path if path]))
    program.chmod(0o755)
    (settings / "greeter.conf").write_text("hello")
    try:
        machine.restart()
        cri = machine.client
        assert cri.finish(cri.run_pod(), "sh", "-c", "echo $SAID") == "hello\n"
    finally:
        program.unlink()
        machine.restart()


# -- adjustments ----------------------------------------------------------------------------------------------


def test_plugin_adjusts_a_container(cri: CriClient, plug: Plug) -> None:
    adjustment = pb.ContainerAdjustment(
        env=[pb.KeyValue(key="ADDED", value="1"), pb.KeyValue(key="-GONE")],
        rlimits=[pb.POSIXRlimit(type="RLIMIT_NOFILE", hard=321, soft=123)],
        mounts=[pb.Mount(destination="/scratch", type="tmpfs", source="tmpfs", options=["size=1m"])],
        linux=pb.LinuxContainerAdjustment(
            resources=pb.LinuxResources(memory=pb.LinuxMemory(limit=pb.OptionalInt64(value=64 << 20)))
        ),
    )
    plug(CreateContainer=adjusting(adjustment))
    gone = cri_pb2.KeyValue(key="GONE", value=b"x")
    command = "echo $ADDED ${GONE-none}; ulimit -n; grep -o ' /scratch tmpfs' /proc/mounts; sleep 1000"
    container = cri.run(cri.run_pod(), "sh", "-c", command, envs=[gone])
    eventually(lambda: len(cri.logs(container)) == 3, "the container spoke")
    assert cri.text(container) == "1 none\n123\n /scratch tmpfs\n"
    assert cri.status(container).resources.linux.memory_limit_in_bytes == 64 << 20


def test_mount_of_a_plugin_is_owned_by_the_pods_root(cri: CriClient, plug: Plug, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("content")
    mount = pb.Mount(destination="/added", type="bind", source=str(tmp_path), options=["rbind", "rw"])
    plug(CreateContainer=adjusting(pb.ContainerAdjustment(mounts=[mount])))
    output = cri.finish(cri.run_pod(), "sh", "-c", "stat -c %u /added/file; cat /added/file; touch /added/new")
    assert output == "0\ncontent"
    assert (tmp_path / "new").stat().st_uid == 0


def test_a_plugin_gives_a_container_a_device(cri: CriClient, plug: Plug) -> None:
    device = pb.LinuxDevice(path="/dev/mine", type="c", major=1, minor=5)
    adjustment = pb.ContainerAdjustment(linux=pb.LinuxContainerAdjustment(devices=[device]))
    plugin = plug(CreateContainer=adjusting(adjustment))
    assert cri.finish(cri.run_pod(), "sh", "-c", "head -c 3 /dev/mine | od -An -tx1") == " 00 00 00\n"
    assert [each.path for each in plugin.request("PostCreateContainer").container.linux.devices] == ["/dev/mine"]


def test_error_for_conflicting_adjustments_names_both_plugins(cri: CriClient, plug: Plug) -> None:
    pod = cri.run_pod()
    for index, value in (("10", "a"), ("20", "b")):
        adjustment = pb.ContainerAdjustment(annotations={"who": value})
        plug(name="p", index=index, CreateContainer=adjusting(adjustment))
    with refused(grpc.StatusCode.INTERNAL, "10-p and 20-p both set the annotations 'who'"):
        cri.create(pod, cri.container_config("true"))
    assert cri.containers() == []


def test_later_plugin_gets_the_changes_of_earlier_ones(cri: CriClient, plug: Plug) -> None:
    plug(index="10", CreateContainer=adjusting(pb.ContainerAdjustment(env=[pb.KeyValue(key="A", value="1")])))
    later = plug(index="20")
    cri.create(cri.run_pod(), cri.container_config("true"))
    assert "A=1" in later.request("CreateContainer").container.env


def test_a_cgroup_outside_the_ct_is_refused(cri: CriClient, plug: Plug) -> None:
    adjustment = pb.ContainerAdjustment(linux=pb.LinuxContainerAdjustment(cgroups_path="/elsewhere"))
    plug(CreateContainer=adjusting(adjustment))
    pod = cri.run_pod()
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "'/elsewhere' is not supported"):
        cri.create(pod, cri.container_config("true"))


def test_validating_plugin_gets_the_owners_and_can_reject(cri: CriClient, plug: Plug) -> None:
    plug(name="changer", index="10", CreateContainer=adjusting(pb.ContainerAdjustment(annotations={"k": "v"})))
    rejection = pb.ValidateContainerAdjustmentResponse(reject=True, reason="not here")
    validator = plug(index="90", ValidateContainerAdjustment=lambda _: rejection)
    pod = cri.run_pod()
    with refused(grpc.StatusCode.INTERNAL, "90-plugin rejects the adjustment: not here"):
        cri.create(pod, cri.container_config("true"))
    request = validator.request("ValidateContainerAdjustment")
    owners = request.owners.owners[request.container.id].compound[pb.FIELD_ANNOTATIONS].owners
    assert dict(owners) == {"k": "10-changer"}
    assert [plugin.name for plugin in request.plugins] == ["changer", "plugin"]


# -- updates --------------------------------------------------------------------------------------------------


def test_a_plugin_updates_another_container_when_one_is_created(cri: CriClient, plug: Plug) -> None:
    pod = cri.run_pod()
    first = cri.run(pod, "sleep", "1000", name="first")
    plug(CreateContainer=lambda _: pb.CreateContainerResponse(update=[shares(first, 333)]))
    cri.create(pod, cri.container_config("true"))
    assert shares_of(cri, first) == 333


def test_plugin_modifies_an_update_of_the_client(cri: CriClient, plug: Plug) -> None:
    container = cri.run(cri.run_pod(), "sleep", "1000")
    plug(UpdateContainer=lambda asked: pb.UpdateContainerResponse(update=[shares(asked.container.id, 444)]))
    limits = cri_pb2.LinuxContainerResources(cpu_shares=200)
    request = cri_pb2.UpdateContainerResourcesRequest(container_id=container, linux=limits)
    cri.runtime.UpdateContainerResources(request)
    assert shares_of(cri, container) == 444


def test_unsolicited_update_returns_failed_containers(cri: CriClient, plug: Plug) -> None:
    plugin = plug()
    container = cri.run(cri.run_pod(), "sleep", "1000")
    failed = plugin.update(shares(container, 555), shares("0" * 64, 555))
    assert [update.container_id for update in failed] == ["0" * 64]
    assert shares_of(cri, container) == 555


def test_evicted_container_is_stopped(cri: CriClient, plug: Plug) -> None:
    plugin = plug()
    container = cri.run(cri.run_pod(), "sleep", "1000")
    eviction = pb.ContainerEviction(container_id=container, reason="room is needed")
    plugin.call("UpdateContainers", pb.UpdateContainersRequest(evict=[eviction]), pb.UpdateContainersResponse)
    assert cri.wait_for_exit(container).exit_code == 137


# -- refusals and failures ------------------------------------------------------------------------------------


def refuse(_: object) -> None:
    """A handler."""
    raise Refused("not today")


def test_rejected_pod_is_removed_and_plugins_are_notified(machine: Machine, cri: CriClient, plug: Plug) -> None:
    first, second = plug(index="10"), plug(index="20", RunPodSandbox=refuse)
    with refused(grpc.StatusCode.INTERNAL, "20-plugin: RunPodSandbox: not today"):
        cri.run_pod()
    assert first.names() == second.names() == LIFE_OF_A_POD
    assert cri.pods() == []
    machine.assert_nothing_left()


def test_rejected_container_is_removed_and_plugins_are_notified(cri: CriClient, plug: Plug) -> None:
    pod = cri.run_pod()
    first = plug(index="10")
    plug(index="20", CreateContainer=refuse)
    with refused(grpc.StatusCode.INTERNAL, "20-plugin: CreateContainer: not today"):
        cri.create(pod, cri.container_config("true"))
    assert first.names() == ["CreateContainer", "StopContainer", "RemoveContainer"]
    assert cri.containers() == []


def test_container_with_a_rejected_start_has_reason_start_error(cri: CriClient, plug: Plug) -> None:
    plug(StartContainer=refuse)
    container = cri.create(cri.run_pod(), cri.container_config("true"))
    with refused(grpc.StatusCode.INTERNAL, "not today"):
        cri.start(container)
    assert cri.status(container).reason == "StartError"


def test_plugin_cannot_prevent_stop_and_removal_of_a_pod(cri: CriClient, plug: Plug) -> None:
    plug(StopContainer=refuse, RemoveContainer=refuse, StopPodSandbox=refuse, RemovePodSandbox=refuse)
    pod = cri.run_pod()
    cri.run(pod, "sleep", "1000")
    cri.remove_pod(pod)
    assert cri.pods() == []


def test_unresponsive_plugin_is_disconnected_and_the_request_continues(cri: CriClient, plug: Plug) -> None:
    done = threading.Event()
    silent = plug(index="10", RunPodSandbox=lambda _: done.wait(nri_plugin.TIMEOUT) and None)
    other = plug(index="20")
    pod = cri.run_pod()
    assert silent.lost.wait(nri_plugin.TIMEOUT)
    done.set()
    assert other.names(pod) == ["RunPodSandbox"]


def test_cancelled_pod_is_removed_and_plugins_are_notified(machine: Machine, cri: CriClient, plug: Plug) -> None:
    reached, go_on = threading.Event(), threading.Event()

    def wait(_: object) -> None:
        reached.set()
        go_on.wait(nri_plugin.TIMEOUT)

    plugin = plug(RunPodSandbox=wait)
    call = cri.runtime.RunPodSandbox.future(cri_pb2.RunPodSandboxRequest(config=cri.pod_config()))
    assert reached.wait(nri_plugin.TIMEOUT)
    call.cancel()
    eventually(lambda: plugin.names() == LIFE_OF_A_POD, "the plugin heard of the end")
    go_on.set()
    eventually(lambda: not machine.node.cts() & set(machine.vmids), "the CT is gone")
    assert cri.pods() == []


def test_plugin_that_disconnects_during_a_request_is_skipped(cri: CriClient, plug: Plug) -> None:
    plugin = plug(join=False)
    plugin.handlers["RunPodSandbox"] = lambda _: plugin.hang_up()
    plugin.join()
    cri.run_pod()
    assert plugin.lost.is_set()
