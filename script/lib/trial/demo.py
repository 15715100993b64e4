# SPDX-License-Identifier: Apache-2.0
"""Shows one pod from its image to its end, all on this machine: what is called, what comes back, what is left.

Everything lies in a directory of its own and is removed in the end, also after a failure or Ctrl-C.
"""

from __future__ import annotations

import argparse
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import grpc
import msgspec

from pvecri.errors import PvecriError
from trial import footprint
from trial.cri import CriClient
from trial.footprint import Footprint
from trial.image import push, write_image
from trial.narrator import Narrator
from trial.plan import NodeDescriptor, Plan, make_plan
from trial.programs import StartError
from trial.proxmox import ProxmoxView
from trial.registry import running_registry
from trial.stack import (
    end_on_signals,
    remove_everything,
    remove_pods,
    running_daemon,
    running_node,
)
from trial.tour import Tour

FAILURES = (PvecriError, StartError, OSError, RuntimeError, grpc.RpcError, subprocess.SubprocessError)


def main() -> int:
    """0 when a pod ran and nothing is left of it, else 1."""
    argparse.ArgumentParser(prog="script/demo", description=__doc__).parse_args()
    narrator = Narrator()
    if os.geteuid() != 0:
        narrator.end("demo: FAILED at the start: root is needed, for pods are LXC containers", good=False)
        return 1
    end_on_signals()
    try:
        vmid = _run(narrator)
    except KeyboardInterrupt:
        narrator.end(f"demo: FAILED at {narrator.current}: interrupted; all is cleaned up", good=False)
    except FAILURES as error:
        narrator.end(f"demo: FAILED at {narrator.current}: {_words(error)}", good=False)
    else:
        narrator.end(f"demo: a pod ran as Proxmox container {vmid} and left nothing behind", good=True)
        return 0
    return 1


def _run(narrator: Narrator) -> int:
    """The whole demo; returns the pod's VMID."""
    with _own_plan() as plan:
        before = footprint.take(plan)
        vmid, during = _live(narrator, plan)
        with narrator.step(
            "Both programs have stopped; their directories are removed. What is left on this machine?"
        ):
            remove_everything(plan)
            _compare(narrator, before, during, footprint.take(plan, during.namespaces))
    return vmid


@contextmanager
def _own_plan() -> Iterator[Plan]:
    """A plan in a directory of its own, of which nothing is left when the context ends."""
    # Not below /tmp, which may be in memory: overlayfs on tmpfs cannot do all that pods need.
    plan = make_plan(Path(f"/var/lib/pvecri-demo-{secrets.token_hex(3)}"))
    try:
        yield plan
    finally:
        remove_everything(plan)


def _live(narrator: Narrator, plan: Plan) -> tuple[int, Footprint]:
    """Everything from the image to the removed pod; what there was to see while it ran."""
    with ExitStack() as stack:
        with narrator.step("An image is made from Debian's busybox and put into a registry on this machine."):
            image = _publish(narrator, plan, stack)
        plan = msgspec.structs.replace(plan, insecure_registries=(image.partition("/")[0],))
        with narrator.step("The embedded Proxmox node starts: the Proxmox VE API over local LXC containers."):
            node = _start_node(narrator, plan, stack)
        with narrator.step("The daemon starts and serves the Container Runtime Interface (CRI)."):
            client = _start_daemon(narrator, plan, stack)
        tour = Tour(narrator, plan, client, ProxmoxView(plan, node), image)
        tour.pull_image()
        tour.run_pod()
        tour.look_at_proxmox()
        tour.run_containers()
        tour.fetch()
        tour.read_logs()
        tour.execute()
        tour.measure()
        tour.look_at_host()
        during = footprint.take(plan)
        tour.remove()
    return tour.vmid, during


def _publish(narrator: Narrator, plan: Plan, stack: ExitStack) -> str:
    registry = stack.enter_context(running_registry(plan.state / "registry"))
    image, layout = f"{registry}/demo/busybox:latest", plan.state / "image"
    write_image(layout)
    narrator.call(f"skopeo copy oci:{layout} docker://{image}")
    push(layout, image)
    return image


def _start_node(narrator: Narrator, plan: Plan, stack: ExitStack) -> NodeDescriptor:
    narrator.call(f"python -m pvecri_embedded --state-dir {plan.node_state} --lxc-path {plan.lxc_path}")
    node = stack.enter_context(running_node(plan))
    narrator.show(f"node {node.node} answers at {node.url}")
    return node


def _start_daemon(narrator: Narrator, plan: Plan, stack: ExitStack) -> CriClient:
    narrator.call(f"pvecri --config {plan.config} serve")
    client = stack.enter_context(running_daemon(plan))
    # While the daemon still answers, pods are removed by it: that frees what CNI and Proxmox hold, too.
    stack.callback(_remove_pods_after_failure, client)
    version = client.version()
    narrator.call("Version, Status")
    narrator.show(f"{version.runtime_name} {version.runtime_version} speaks CRI {version.runtime_api_version}")
    narrator.show(", ".join(condition.type for condition in client.status() if condition.status))
    return client


def _remove_pods_after_failure(client: CriClient) -> None:
    with suppress(grpc.RpcError, TimeoutError):
        remove_pods(client)


def _compare(narrator: Narrator, before: Footprint, during: Footprint, after: Footprint) -> None:
    """Show the three; RuntimeError when something is left that was not there before."""
    narrator.show(f"{'':22}{'before':>8}{'running':>9}{'after':>7}")
    left = []
    for kind, things in after.kinds().items():
        first, running = before.kinds()[kind], during.kinds()[kind]
        narrator.show(f"{kind.replace('_', ' '):22}{len(first):8}{len(running):9}{len(things):7}")
        left += [f"{kind}: {thing}" for thing in things]
    if left:
        raise RuntimeError("left behind: " + ", ".join(left))


def _words(error: BaseException) -> str:
    if isinstance(error, grpc.Call):
        return f"{error.code().name}: {error.details()}"
    if isinstance(error, subprocess.CalledProcessError):
        return f"{error}: {error.stderr!r}"
    return f"{error}" or type(error).__name__


if __name__ == "__main__":
    sys.exit(main())
