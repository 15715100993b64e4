# SPDX-License-Identifier: Apache-2.0
"""One run: bring everything up, measure, take everything down, report."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import grpc
from msgspec.structs import replace
from trial.plan import Plan, make_plan
from trial.programs import StartError
from trial.registry import running_registry
from trial.stack import end_on_signals

from pvecri.errors import PvecriError
from pvecri_bench import machine, options, ours, peer, removal, report
from pvecri_bench.client import Client, WrongAnswerError
from pvecri_bench.images import Images, publish
from pvecri_bench.ledger import Ledger
from pvecri_bench.options import Options
from pvecri_bench.sections import bursts, life, lists, proxmox, pulls, quota
from pvecri_bench.session import Column, CommandLines, Session, say

FAILURES = (
    PvecriError, StartError, WrongAnswerError, OSError, RuntimeError, grpc.RpcError, subprocess.SubprocessError,
)  # fmt: skip

FRONT = "containerd, pvecri"
"""The column of containerd with pvecri-runtime."""

CHEAP = 10
"""How many more samples there are of calls that take less than a millisecond."""


@dataclass
class Outcome:
    """What a run comes to, as far as it got."""

    session: Session | None = None
    costs: proxmox.Costs | None = None
    failure: str = ""


def main() -> int:
    """The exit status: 0, or 1 when something failed. A slow number is no failure."""
    chosen = options.parse()
    if os.geteuid() != 0:
        print("compare: root is needed: containers are made", file=sys.stderr)
        return 1
    end_on_signals()
    here, outcome = machine.describe(), Outcome()
    try:
        _run(chosen, outcome)
    except KeyboardInterrupt:
        outcome.failure = "interrupted; all is cleaned up"
    except FAILURES as error:
        outcome.failure = _words(error)
    if outcome.session is not None:
        _tell(_report(chosen, here, outcome, outcome.session), chosen.json)
    if outcome.failure:
        print(f"compare: FAILED: {outcome.failure}", file=sys.stderr)
    return 1 if outcome.failure else 0


def _run(chosen: Options, outcome: Outcome) -> None:
    """Everything. RuntimeError when something is left behind in the end."""
    label = secrets.token_hex(3)
    # Not below /tmp, which may be in memory: overlayfs on tmpfs cannot do all that pods need.
    home = Path(f"/var/lib/pvecri-bench-{label}")
    cgroup = f"/pvecri-bench-{label}"
    plans: list[Plan] = []
    try:
        with ExitStack() as stack:
            stack.enter_context(removal.shared_directories_as_found())
            registry = stack.enter_context(running_registry(home / "registry", chosen.registry_port))
            say("making images")
            images = publish(registry, home / "images")
            plan = _planned(plans, home / "pvecri", registry)
            stack.callback(removal.remove_installation, plan, cgroup, ours.helpers(plan))
            ledger = stack.enter_context(ours.running_pvecri(plan))
            columns = [_column(ours.NAME, f"unix://{plan.socket}", label, images, stack, ours.helpers(plan))]
            if chosen.peer:
                socket = plan.runtime_socket if chosen.front else None
                columns += _bring_up_peer(plans, home, cgroup, images, registry, label, stack, socket)
            for number, endpoint in enumerate(chosen.endpoints, 1):
                columns.append(_column(f"other {number}", endpoint, label, images, stack))
            outcome.session = Session(tuple(columns), images, label, home, cgroup)
            outcome.costs = _measure(chosen, outcome.session, ledger)
    finally:
        _remove_home(home)
    left = [thing for plan in plans for thing in removal.left_behind(plan)]
    if left:
        raise RuntimeError("left behind: " + ", ".join(left))


def _planned(plans: list[Plan], state: Path, registry: str) -> Plan:
    plan = replace(make_plan(state), insecure_registries=(registry,))
    plans.append(plan)
    return plan


def _bring_up_peer(
    plans: list[Plan],
    home: Path,
    cgroup: str,
    images: Images,
    registry: str,
    label: str,
    stack: ExitStack,
    pvecri: Path | None,
) -> list[Column]:
    """containerd; and, with the socket `pvecri`, the same one with pods of pvecri-runtime."""
    plan = _planned(plans, home / "peer", registry)
    stack.callback(removal.remove_installation, plan, cgroup, peer.helpers(plan))
    stack.enter_context(peer.running_containerd(plan, registry, images.pause, pvecri))
    endpoint, helpers = f"unix://{plan.socket}", peer.helpers(plan)
    columns = [_column(peer.NAME, endpoint, label, images, stack, helpers)]
    if pvecri is not None:
        columns.append(_column(FRONT, endpoint, label, images, stack, helpers, peer.HANDLER))
    return columns


def _column(
    name: str,
    endpoint: str,
    label: str,
    images: Images,
    stack: ExitStack,
    helpers: CommandLines | None = None,
    handler: str = "",
) -> Column:
    """Connect to a runtime."""
    client = stack.enter_context(Client(endpoint, handler))
    # While the daemon still answers, pods are removed by it: that frees what CNI and Proxmox hold, too.
    stack.callback(removal.remove_traces, client, label, images)
    version = client.version().value
    title = f"{version.runtime_name} {version.runtime_version}"
    return Column(name, title, client, client.daemon_pid(), helpers)


def _measure(chosen: Options, session: Session, ledger: Ledger) -> proxmox.Costs | None:
    say("warming up")
    images = life.warm_up(session)
    costs = None
    for section in chosen.sections:
        if section == "reads":
            life.measure_reads(session, chosen.rounds * CHEAP)
        elif section == "life":
            life.measure_lives(session, images, chosen.rounds)
        elif section == "quota":
            quota.measure(session, images, chosen.rounds)
        elif section == "images":
            pulls.measure(session, chosen.rounds)
        elif section == "lists":
            lists.measure(session, images, chosen.containers, chosen.rounds)
        elif section == "bursts":
            bursts.measure(session, images, chosen.pods, chosen.parallel, chosen.bursts)
        elif section == "proxmox":
            costs = proxmox.measure(session, session.columns[0], ledger, images[ours.NAME])
    return costs


def _report(chosen: Options, here: machine.Machine, outcome: Outcome, session: Session) -> report.Report:
    return report.Report(
        when=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        commit=_commit(),
        machine=here,
        load_after=os.getloadavg()[0],
        columns={column.name: column.version for column in session.columns},
        peer=peer.NAME if chosen.peer else "",
        rounds=chosen.rounds,
        calls=session.samples.summaries(),
        figures=session.figures.all(),
        proxmox=outcome.costs,
        failure=outcome.failure,
    )


def _tell(told: report.Report, path: Path | None) -> None:
    print(report.render(told), flush=True)
    if path is not None:
        report.write_json(told, path)
        say(f"results written to {path}")


def _commit() -> str:
    """The checkout's commit, with a + when files differ from it; a question mark outside of a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=+"]
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True)
    except FileNotFoundError:
        return "?"
    return done.stdout.strip() or "?"


def _remove_home(home: Path) -> None:
    subprocess.run(["rm", "-rf", "--one-file-system", str(home)], check=False)


def _words(error: BaseException) -> str:
    if isinstance(error, grpc.Call):
        return f"{error.code().name}: {error.details()}"
    if isinstance(error, subprocess.CalledProcessError):
        return f"{error}: {error.stderr!r}"
    return f"{error}" or type(error).__name__
