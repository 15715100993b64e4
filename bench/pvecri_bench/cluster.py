# SPDX-License-Identifier: Apache-2.0
"""`bench/cluster`: pvecri's own Proxmox client and VMIDs on many nodes of one simulated cluster.

The API only answers: there is no CT behind it, and one process answers for all nodes. So what counts are the
requests and the refused creates of a pod; the time shows where they pile up.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Set
from pathlib import Path

import msgspec

from pvecri.config.settings import ProxmoxConfig, VmidRange
from pvecri.observability.metrics_registry import REGISTRY
from pvecri.pods.sandbox.vmids import Vmids
from pvecri.proxmox.api import ProxmoxApi
from pvecri.proxmox.ctspec import CtSpec
from pvecri.proxmox.errors import CtExists
from pvecri.proxmox.sizing import CtSize
from pvecri_bench import plot

TOKEN_ID, SECRET, TEMPLATE = "root@pam!bench", "bench", "local:vztmpl/bench.tar.gz"  # pvecri_embedded.cluster


class Result(msgspec.Struct, frozen=True):
    """A run of `nodes` nodes that created `pods` CTs at once, `placed` apart or all from the first VMID."""

    nodes: int
    pods: int
    placed: bool
    seconds: float
    requests: float
    refused: int

    @property
    def per_pod(self) -> float:
        """Requests for a pod's CT."""
        return self.requests / self.pods


class Node:
    """A node's part of pvecri that talks to the cluster."""

    def __init__(self, config: ProxmoxConfig, place: str) -> None:
        self.api = ProxmoxApi(config, image_storage="")
        self._storage = config.storage
        self._vmids = Vmids(config.vmid_range, place, self._guests, set)
        self.refused = 0

    async def start(self) -> None:
        """Connect and read the VMIDs in use, as the daemon does for its first pod."""
        await self.api.start()
        await self._vmids.refresh()

    async def create(self) -> None:
        """Create a CT, as pods/sandbox/ct.py does: a refused VMID is skipped."""
        refused: set[int] = set()
        while True:
            vmid = await self._vmids.allocate(refused)
            spec = CtSpec(
                vmid=vmid,
                hostname="pod",
                template=TEMPLATE,
                storage=self._storage,
                size=CtSize(memory_mib=256),
                arch="amd64",
                start=False,
            )
            try:
                await self.api.create_ct(spec)
                break
            except CtExists:
                refused.add(vmid)
        self.refused += len(refused)
        await self.api.ct_config(vmid)

    async def _guests(self) -> Set[int]:
        return {guest.vmid for guest in await self.api.guests()}


@contextlib.contextmanager
def cluster(directory: Path, nodes: int, create_seconds: float) -> Iterator[tuple[str, str]]:
    """A simulated cluster's URL and fingerprint."""
    command = [sys.executable, "-m", "pvecri_embedded.cluster", str(directory), str(nodes), str(create_seconds)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip(), process.stdout.readline().strip()
        finally:
            process.stdin.close()


async def start_pods(
    url: str, fingerprint: str, directory: Path, nodes: int, pods: int, *, placed: bool
) -> Result:
    """Create `pods` CTs at once, each node its part of them; with `placed` each node has a place of its own."""
    secret = directory / "token"
    secret.write_text(SECRET)
    members = []
    for number in range(1, nodes + 1):
        config = ProxmoxConfig(
            url=url,
            node=f"pve{number}",
            token_id=TOKEN_ID,
            token_secret_file=secret,
            fingerprint=fingerprint,
            storage="local-lvm",
            template_storage="local",
            rootfs_size_gib=1,
            vmid_range=VmidRange(),
            request_timeout=600,
            task_timeout=600,
        )
        members.append(Node(config, f"pve{number}" if placed else ""))
    for member in members:
        await member.start()
    before, began = _requests(), time.monotonic()
    await asyncio.gather(*(members[index % nodes].create() for index in range(pods)))
    seconds, requests = time.monotonic() - began, _requests() - before
    for member in members:
        await member.api.close()
    return Result(nodes, pods, placed, seconds, requests, sum(member.refused for member in members))


def _requests() -> float:
    return sum(
        sample.value
        for metric in REGISTRY.collect()
        for sample in metric.samples
        if sample.name == "pvecri_proxmox_requests_total"
    )


def table(results: list[Result]) -> str:
    """The results as Markdown."""
    lines = [
        "| nodes | pods | VMIDs from | requests a pod | refused creates a pod | requests/s | seconds |",
        "| ----: | ---: | ---------- | -------------: | --------------------: | ---------: | ------: |",
    ]
    for each in results:
        place = "own places" if each.placed else "the first"
        lines.append(
            f"| {each.nodes} | {each.pods} | {place} | {each.per_pod:.1f} | {each.refused / each.pods:.2f} "
            f"| {each.requests / each.seconds:.0f} | {each.seconds:.1f} |"
        )
    return "\n".join(lines)


def plot_refusals(path: Path, results: list[Result]) -> None:
    """Draw refused creates over the number of nodes."""
    curves = {
        name: [(each.nodes, each.refused / each.pods) for each in results if each.placed is placed]
        for name, placed in (("each node from a place of its own", True), ("all from the first VMID", False))
        if any(each.placed is placed for each in results)
    }
    plot.write_svg(path, f"refused creates for a pod, {results[0].pods} pods at once", "nodes", curves)


def main() -> int:
    """See bench/cluster --help."""
    parser = argparse.ArgumentParser(prog="bench/cluster", description="pvecri on nodes of one simulated cluster")
    parser.add_argument("--nodes", default="1,2,4,8,16,32", help="numbers of nodes (%(default)s)")
    parser.add_argument("--pods", type=int, default=1000, help="pods that start at once (%(default)s)")
    parser.add_argument("--create", type=float, default=5.0, help="seconds of a create (%(default)s)")
    parser.add_argument("--beside", action="store_true", help="also with all nodes beginning at the first VMID")
    parser.add_argument("--plot", type=Path, help="write the curves to this SVG file")
    arguments = parser.parse_args()
    results = []
    for nodes in map(int, arguments.nodes.split(",")):
        for placed in (True, False) if arguments.beside else (True,):
            with (
                tempfile.TemporaryDirectory() as directory,
                cluster(Path(directory), nodes, arguments.create) as (url, fingerprint),
            ):
                run = start_pods(url, fingerprint, Path(directory), nodes, arguments.pods, placed=placed)
                results.append(asyncio.run(run))
            print(table(results[-1:]).splitlines()[-1], file=sys.stderr, flush=True)
    print(table(results))
    if arguments.plot is not None:
        plot_refusals(arguments.plot, results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
