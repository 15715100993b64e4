# SPDX-License-Identifier: Apache-2.0
"""The command line."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

SECTIONS = ("reads", "life", "quota", "images", "lists", "bursts", "proxmox")
"""In the order in which they run."""


@dataclass(frozen=True)
class Options:
    """What to measure, and beside whom. `containers` and `pods` are numbers of running ones.

    `bursts` says how often each burst is repeated; `registry_port` 0 is a free one.
    """

    rounds: int = 20
    pods: tuple[int, ...] = (20, 50)
    parallel: tuple[int, ...] = (1, 5, 10)
    bursts: int = 3
    containers: int = 100
    sections: tuple[str, ...] = SECTIONS
    json: Path | None = None
    peer: bool = True
    endpoints: tuple[str, ...] = ()
    front: bool = False
    registry_port: int = 0


def parse(arguments: Sequence[str] | None = None) -> Options:
    """Read the command line (default: this process's); a wrong one ends the process with status 2."""
    parser = _parser()
    given = parser.parse_args(arguments)
    for name in {*given.only, *given.skip} - {*SECTIONS}:
        parser.error(f"no section {name!r}: there are {', '.join(SECTIONS)}")
    if given.front and given.peer == "none":
        parser.error("--front needs --peer containerd")
    return Options(
        rounds=given.rounds,
        pods=given.pods,
        parallel=given.parallel,
        bursts=given.bursts,
        containers=given.containers,
        sections=tuple(name for name in given.only or SECTIONS if name not in given.skip),
        json=given.json,
        peer=given.peer == "containerd",
        endpoints=tuple(given.endpoint),
        front=given.front,
        registry_port=given.registry_port,
    )


def _parser() -> argparse.ArgumentParser:
    defaults = Options()
    parser = argparse.ArgumentParser(
        prog="bench/compare",
        description="Measure pvecri, in front of an embedded Proxmox node, beside Debian's containerd, call by "
        "call in turn. All that is made for it is removed in the end.",
        epilog=f"Sections: {', '.join(SECTIONS)}. See docs/benchmarks.md.",
    )
    parser.add_argument(
        "--rounds", type=_positive, default=defaults.rounds, metavar="N",
        help="pods that live alone, and pulls of an image (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--pods", type=_numbers, default=defaults.pods, metavar="N,…",
        help="sizes of the bursts of pods (default: 20,50)",
    )  # fmt: skip
    parser.add_argument(
        "--parallel", type=_numbers, default=defaults.parallel, metavar="N,…",
        help="how many clients start the pods of a burst at once (default: 1,5,10)",
    )  # fmt: skip
    parser.add_argument(
        "--bursts", type=_positive, default=defaults.bursts, metavar="N",
        help="how often each burst is repeated; the median counts (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--containers", type=_positive, default=defaults.containers, metavar="N",
        help="containers that run, in ten pods, while lists are asked for (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--only", type=_names, default=(), metavar="SECTION,…", help="measure only these sections")
    parser.add_argument("--skip", type=_names, default=(), metavar="SECTION,…", help="leave these sections out")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results to a file, too")
    parser.add_argument(
        "--peer", choices=("containerd", "none"), default="containerd",
        help="whom to measure beside (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--endpoint", action="append", default=[], metavar="unix://…",
        help="a runtime that runs already, as one more column (repeatable); it must pull from a registry on "
        "127.0.0.1 without TLS",
    )  # fmt: skip
    parser.add_argument(
        "--registry-port", type=_positive, default=defaults.registry_port, metavar="PORT",
        help="of the registry on 127.0.0.1, for an --endpoint that must be configured to pull from it without TLS "
        "(default: a free one)",
    )  # fmt: skip
    parser.add_argument(
        "--front", action="store_true",
        help="the same containerd with pvecri-runtime as the handler of its pods, as one more column",
    )  # fmt: skip
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(_positive(part) for part in text.split(","))


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))
