# SPDX-License-Identifier: Apache-2.0
"""Damages an embedded node in many ways and lets `pvecri check` find each: python -m trial.damaged_node PAGE.md.

What was printed is written as a page of the documentation. The exit status is 1 if a damage was not found.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from pvecri.cri.proto import cri_pb2 as pb
from trial.cri import CriClient
from trial.damages import DAMAGES, Damage, Site
from trial.plan import Plan, make_plan
from trial.stack import end_on_signals, remove_everything, remove_pods, running_daemon, running_node

INTRODUCTION = """\
# What `pvecri check` finds

A healthy node, and the same node with one damage at a time: what the command prints, recorded by
`script/damaged-node` on an embedded node. Lines that the healthy node has, too, are shown only there, so the
exit status is 0 unless another one is shown. Folders are those of an installation.
[commands.md](../commands.md#pvecri-check) has all that is checked.

"""


def main(page: Path) -> int:
    """Write the page; 1 if a damage was not found, which is named on stderr."""
    end_on_signals()
    plan = make_plan(Path(f"/var/lib/pvecri-damaged-{secrets.token_hex(3)}"))
    try:
        text, missed = _record(plan)
    finally:
        remove_everything(plan)
    page.write_text(text)
    for damage in missed:
        print(f"damaged-node: not found: {damage.title}", file=sys.stderr)
    return 1 if missed else 0


def _record(plan: Plan) -> tuple[str, list[Damage]]:
    """The page, and what was not found."""
    with ExitStack() as stack:
        stack.enter_context(running_node(plan))
        daemon = stack.enter_context(ExitStack())
        client = daemon.enter_context(running_daemon(plan))
        site = Site(plan, _run_pod(client, plan))
        healthy = _check(plan)
        sections = [_section("A healthy node", "With one pod", (), healthy)]
        missed = []
        for damage in DAMAGES:
            if damage.without_daemon:
                daemon.close()
            with damage.damaged(site):
                found = _check(plan, *damage.options)
            new = [line for line in found if line not in healthy]
            sections.append(_section(damage.title, damage.done, damage.options, new))
            if not any(damage.subject in line and damage.word in line for line in new):
                missed.append(damage)
        with running_daemon(plan) as last:
            remove_pods(last)
    return INTRODUCTION + "\n".join(_installed(section, plan) for section in sections), missed


def _run_pod(client: CriClient, plan: Plan) -> int:
    """A pod without containers; its VMID."""
    metadata = pb.PodSandboxMetadata(name="shop", namespace="demo", uid="7e57-da7a")
    sandbox = client.run_pod(pb.PodSandboxConfig(metadata=metadata, log_directory=str(plan.state / "logs")))
    return int(json.loads(client.pod(sandbox).info["info"])["vmid"])


def _check(plan: Plan, *options: str) -> list[str]:
    """The lines that `pvecri check` prints, and its exit status."""
    command = [sys.executable, "-m", "pvecri", "--config", str(plan.config), "check", *options]
    done = subprocess.run(command, cwd=plan.state, capture_output=True, text=True, check=False, timeout=120)
    return [*(done.stdout + done.stderr).splitlines(), f"exit status {done.returncode}"]


def _section(title: str, done: str, options: Sequence[str], lines: Sequence[str]) -> str:
    """A damage, how it came, and what was printed."""
    command = " ".join(["pvecri check", *options])
    output = "".join(f"    {line}\n" for line in lines)
    return f"## {title}\n\n{done}:\n\n    # {command}\n{output}"


def _installed(text: str, plan: Plan) -> str:
    """The text with an installation's folders and port instead of this run's."""
    places = (
        (f"{plan.state}/cni/net.d", "/etc/cni/net.d"),
        (f"{plan.state}/pvecri", "/var/lib/pvecri"),
        (f"{plan.state}/", "/etc/pvecri/"),
        (str(plan.run), "/run/pvecri"),
    )
    for here, there in places:
        text = text.replace(here, there)
    return re.sub(r"127\.0\.0\.1:\d+", "127.0.0.1:8006", text)


if __name__ == "__main__":
    if os.geteuid() != 0:
        sys.exit("damaged-node: root is needed, for pods are LXC containers")
    sys.exit(main(Path(sys.argv[1])))
